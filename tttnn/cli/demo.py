"""The main job on real text, small enough for two cores: sample, build, adapt, measure, draw.

Knows where every Python installation keeps real text: its own standard library. Does not print.
"""

from __future__ import annotations

import hashlib
import os
import random
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import models
from ..config import AdaptConfig, EvalConfig, Progress
from ..datastore.datastore import Datastore
from ..embedding.embedder import Embedder
from ..errors import MissingExtraError, TttnnError
from ..evaluation.catalogue import TTT_NN
from ..evaluation.protocols import split_task
from ..evaluation.records import Measured
from ..evaluation.results import GroupSummary, Summary
from ..evaluation.runner import evaluate
from ..lm.tokens import token_ids
from ..store.corpus import iter_corpus
from ..store.document import Document, text_digest
from ..training.adapted_model import AdaptedModel
from ..training.trainer import TestTimeTrainer

SAMPLE_BYTES = 3_000_000
WINDOW_TOKENS = 512
HELD_OUT = 5
MEASURED = 3
"""Held-out documents that are adapted to, the first by seed: on two cores, 20 neighbors take some 50 seconds."""

MIN_TOKENS = 1024
"""Tokens that a held-out document has at least: a query and a scored text of 512 each."""

_PROMPT_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One document's measurement: bits per byte at each number of neighbors, and the neighbors it used."""

    name: str
    curve: dict[int, float]
    neighbors: list[tuple[str, float]]
    """Name and distance, nearest first."""


@dataclass(slots=True)
class DemoResult:
    """What the demo measured. `seconds` has one entry per stage."""

    seed: int
    corpus: str
    windows: int
    num_bytes: int
    documents: list[HeldOut] = field(default_factory=list)
    summary: Summary | None = None
    prompt: str = ""
    before: str = ""
    after: str = ""
    plot: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def totals(self) -> list[GroupSummary]:
        """Return the rows of all documents together after each number of neighbors."""
        assert self.summary is not None
        return [row for row in self.summary.rows if row.group == "all" and row.method == TTT_NN.name]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, ready for JSON."""
        assert self.summary is not None
        total = self.summary.total()
        return {
            "base_bits_per_byte": total.base_bits_per_byte,
            "adapted_bits_per_byte": total.bits_per_byte,
            "ratio": [total.ratio.value, total.ratio.low, total.ratio.high],
            "documents": total.documents,
            "num_neighbors": total.k,
            "curve": {str(row.k): row.bits_per_byte for row in self.totals()},
            "per_document": [
                {"name": d.name, "curve": {str(k): value for k, value in d.curve.items()}} for d in self.documents
            ],
            "seed": self.seed,
            "corpus_windows": self.windows,
            "corpus_bytes": self.num_bytes,
            "plot": str(self.plot),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }


@dataclass(frozen=True, slots=True)
class Sample:
    """A corpus of windows, and whole documents that are not in it."""

    windows: list[Document]
    held_out: list[Document]
    num_bytes: int

    @property
    def digest(self) -> str:
        """Digest of all windows, which names the datastore made of them."""
        state = hashlib.blake2b(digest_size=6)
        for window in self.windows:
            state.update(text_digest(window.text).encode())
        return state.hexdigest()


def draw_sample(documents: list[Document], tokenizer: Any, seed: int, progress: Progress | None = None) -> Sample:
    """Hold whole documents out by seed, and cut a sample of the others into windows of 512 tokens.

    A document whose text equals a held-out one's is left out of the corpus, as is every second copy of a text.
    """
    order = sorted(documents, key=_name)
    random.Random(seed).shuffle(order)
    held_out: list[Document] = []
    rest: list[Document] = []
    seen: set[str] = set()
    for document in order:
        digest = text_digest(document.text)
        if digest in seen:
            continue
        seen.add(digest)
        # Sixteen characters a token is more than any text needs, so a longer piece holds MIN_TOKENS if the text does.
        wanted = len(held_out) < HELD_OUT and len(document.text) >= 2 * MIN_TOKENS
        if wanted and len(token_ids(tokenizer, document.text[: 16 * MIN_TOKENS])) >= MIN_TOKENS:
            held_out.append(document)
        else:
            rest.append(document)
    if len(held_out) < HELD_OUT or not rest:
        raise TttnnError(
            f"corpus must hold at least {HELD_OUT + 1} different documents, {HELD_OUT} of them of at least "
            f"{MIN_TOKENS} tokens, got {len(seen)} and {len(held_out)}"
        )
    windows: list[Document] = []
    size = 0
    for document in rest:
        for window in _windows(document, tokenizer):
            length = len(window.text.encode())
            if size + length > SAMPLE_BYTES:
                return Sample(windows, held_out, size)
            size += length
            windows.append(window)
        if progress is not None:
            progress("cut corpus (bytes)", size, SAMPLE_BYTES)
    return Sample(windows, held_out, size)


def _windows(document: Document, tokenizer: Any) -> Iterator[Document]:
    text = document.text[:SAMPLE_BYTES]
    out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = [end for _, end in out["offset_mapping"]]
    begin = 0
    for i, last in enumerate(range(WINDOW_TOKENS - 1, len(ends) + WINDOW_TOKENS - 1, WINDOW_TOKENS)):
        end = ends[min(last, len(ends) - 1)]
        if text[begin:end].strip():
            yield Document(text[begin:end], {"name": _name(document), "window": i})
        begin = end


def _name(document: Document) -> str:
    return str(document.meta.get("path") or document.source or text_digest(document.text)[:12])


def standard_library() -> list[Document]:
    """Read the Python files of the standard library of this interpreter; those that are not UTF-8 are left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    documents = []
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "dist-packages", "__pycache__"} & set(path.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip():
            documents.append(Document(text, {"path": str(path.relative_to(root))}))
    return documents


def run_demo(
    out: str | os.PathLike[str] = "tttnn-demo",
    *,
    corpus: str | os.PathLike[str] | None = None,
    seed: int = 0,
    config: AdaptConfig | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> DemoResult:
    """Run test-time training on held-out documents of real text, and measure it.

    Args:
        out: folder for the datastore, the result lines and the plot; a second run uses its datastore again.
        corpus: a folder of text, a ``.jsonl`` or ``.jsonl.zst``; None: the Python standard library's source files.
        seed: draws the held-out documents and the sample, before anything is measured.
        config: how to adapt; None: the defaults, with 20 neighbors.
        cache_dir: where demo models are kept.
        progress: called on every long step.
        tell: called with a sentence before something slow that has no progress.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "matplotlib is needed for the plot. Install it with: pip install 'tttnn[demo]'"
        ) from error

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    clock = _Clock()
    with clock("fetch models"):
        for name in ("smollm2-135m", "minilm-l6"):
            models.resolve(name, cache_dir=cache_dir, on_fetch=tell)
    with clock("load models"):
        if tell is not None:
            tell("loading SmolLM2-135M and MiniLM-L6")
        trainer = TestTimeTrainer.load("smollm2-135m", None, config, cache_dir=cache_dir)
        embedder = Embedder.load("minilm-l6", cache_dir=cache_dir)
    with clock("draw sample"):
        documents = list(iter_corpus(corpus)) if corpus is not None else standard_library()
        sample = draw_sample(documents, trainer.tokenizer, seed, progress)
    with clock("build datastore"):
        place = folder / f"datastore-{sample.digest}"
        if place.exists():
            try:
                datastore = Datastore.open(place, embedder)
            except (TttnnError, OSError):
                datastore = Datastore.build(place, sample.windows, embedder, progress=progress)
        else:
            datastore = Datastore.build(place, sample.windows, embedder, progress=progress)
    trainer.datastore = datastore

    source = str(corpus) if corpus is not None else "the Python standard library"
    result = DemoResult(seed, source, len(sample.windows), sample.num_bytes)
    stages: dict[str, float] = {}
    generating = 0.0
    measure = EvalConfig(query_tokens=WINDOW_TOKENS, scored_tokens=WINDOW_TOKENS)

    def letters(document: Document) -> int:
        task = split_task(trainer.tokenizer, document.text, measure)
        return sum(map(str.isalpha, task.query[-_PROMPT_CHARACTERS:])) if task is not None else 0

    # A prompt of numbers or tables would show a reader nothing.
    measured_documents = sample.held_out[:MEASURED]
    shown = max(measured_documents, key=letters)

    def observe(document: Document, adapted: AdaptedModel, k: int) -> None:
        nonlocal generating
        started = time.perf_counter()
        if document is shown and k in (0, trainer.config.num_neighbors):
            text = adapted.generate(max_new_tokens=48)
            result.prompt = adapted.query[-_PROMPT_CHARACTERS:]
            if k == 0:
                result.before = text
            else:
                result.after = text
        generating += time.perf_counter() - started
        if progress is not None:
            position = measured_documents.index(document)
            steps = trainer.config.num_neighbors
            progress("adapt (neighbors)", position * steps + k, MEASURED * steps)

    def collect(document: Document, measured: Measured) -> None:
        if not measured.lines:
            return
        line = measured.lines[-1]
        names = {n.id: str(datastore.store[n.id].meta.get("name", n.id)) for n in line.neighbors}
        result.documents.append(
            HeldOut(
                _name(document),
                {point.k: line.bits_per_byte(point.k) for point in line.points},
                [(names[neighbor.id], neighbor.distance) for neighbor in line.neighbors],
            )
        )
        for spent in measured.seconds:
            for stage, seconds in spent.seconds.items():
                stages[stage] = stages.get(stage, 0.0) + seconds

    results = folder / "results.jsonl"
    results.unlink(missing_ok=True)
    measured = evaluate(
        trainer,
        measured_documents,
        out=results,
        config=measure,
        observe=observe,
        on_document=collect,
    )
    result.summary = measured.summary()
    stages["generate"] = generating
    order = [_name(document) for document in measured_documents]
    result.documents.sort(key=lambda held: order.index(held.name))
    with clock("plot"):
        result.plot = _draw(result, folder / "bits_per_byte.png")
    trainer.release()
    result.seconds = clock.seconds | stages
    return result


class _Clock:
    """Adds up seconds by stage: ``with clock("stage"): ...``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stage = ""
        self._started = 0.0

    def __call__(self, stage: str) -> _Clock:
        self._stage = stage
        return self

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self._stage] = time.perf_counter() - self._started


def _draw(result: DemoResult, path: Path) -> Path:
    from matplotlib.figure import Figure

    assert result.summary is not None
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    total = result.totals()
    ks, values = [row.k for row in total], [row.bits_per_byte for row in total]
    left.plot(ks, values, color="C0", linewidth=2.2, marker="o")
    left.annotate(f"{values[0]:.3f}", (ks[0], values[0]), xytext=(8, 0), textcoords="offset points")
    left.annotate(f"{values[-1]:.3f}", (ks[-1], values[-1]), xytext=(-16, 8), textcoords="offset points")
    left.set_title("bits per byte, all held-out documents together", fontsize=10)
    for document in result.documents:
        curve = list(document.curve.values())
        right.plot(list(document.curve), [value / curve[0] for value in curve], linewidth=1.4, label=document.name)
    right.axhline(1, color="0.8", linewidth=1)
    right.set_title("each document, relative to the base model", fontsize=10)
    right.legend(frameon=False, fontsize=7)
    for axes in (left, right):
        axes.set_xlabel("neighbors trained on, one step each")
        axes.set_xticks(ks)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("SmolLM2-135M with test-time training on nearest neighbors", fontsize=11)
    figure.savefig(path, dpi=150)
    return path
