"""Measure a trainer on documents: one JSON line per document and number of neighbors, resumable; a paired bootstrap.

Knows protocols, files of results and statistics. Does not know how a model is adapted.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .adapt import AdaptedModel, TestTimeTrainer
from .adaptation_report import AdaptReport
from .config import EvalConfig, Progress, SelectionConfig
from .corpus import Document, text_digest
from .errors import ConfigError
from .score import Score

_BOOTSTRAP = 10_000
"""Resamples of the paired bootstrap: the 95 % interval's ends are then known to about 1 % of its width."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked of one document: search and adapt with `query`, score `scored` after `context`."""

    query: str
    context: str
    scored: str


def split_task(tokenizer: Any, text: str, config: EvalConfig) -> Task | None:
    """Make the task of a document under a protocol; None where the document has too little text.

    Under ``split`` and ``split-bare`` the document is cut in half by tokens; a half longer than `query_tokens` ends the
    query there, and what is scored follows directly, up to `scored_tokens`. Under ``full`` query and scored text are
    both the document's first `scored_tokens` tokens. Cuts lie between characters.
    """
    limit = config.query_tokens + config.scored_tokens
    offsets = _token_ends(tokenizer, text, 2 * limit)
    if config.protocol == "full":
        end = offsets[min(len(offsets), config.scored_tokens) - 1] if offsets else 0
        return Task(text[:end], "", text[:end]) if end else None
    # Whether a long document's half lies beyond query_tokens is known from the first 2 x limit tokens.
    half = min(len(offsets) // 2, config.query_tokens)
    if half < 1:
        return None
    cut = offsets[half - 1]
    end = offsets[min(len(offsets), half + config.scored_tokens) - 1]
    query, scored = text[:cut], text[cut:end]
    if not query or not scored:
        return None
    return Task(query, query if config.protocol == "split" else "", scored)


def _token_ends(tokenizer: Any, text: str, limit: int) -> list[int]:
    """Return the end, in characters, of each of the first `limit` tokens of a text."""
    characters = 8 * limit
    while True:
        out = tokenizer(text[:characters], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = [end for _, end in out["offset_mapping"]]
        if len(ends) >= limit or characters >= len(text):
            return ends[:limit]
        characters *= 4


@dataclass(frozen=True, slots=True)
class Line:
    """One measurement: a document after `k` neighbors (0: the base model).

    `found` is the number of neighbors there were; where it is below `k`, the measurement is that after `found`.
    """

    document: int
    digest: str
    group: str
    method: str
    k: int
    found: int
    nats: float
    tokens: int
    num_bytes: int
    words: int
    bits_per_byte: float
    steps: int
    trained_tokens: int
    neighbors: list[int]
    neighbor_digests: list[str]
    stopped_by: str


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """One group at one number of neighbors, over its documents' bytes together.

    `difference` is adapted minus base in bits per byte, `ratio` adapted over base: a paired bootstrap over documents.
    """

    group: str
    k: int
    documents: int
    num_bytes: int
    base_bits_per_byte: float
    bits_per_byte: float
    difference: Interval
    ratio: Interval


@dataclass(frozen=True, slots=True)
class Summary:
    """All groups and the total (group "all") at each number of neighbors."""

    rows: list[GroupSummary]
    skipped: int

    def total(self, k: int | None = None) -> GroupSummary:
        """Return the row of all documents together at `k` neighbors; None: the largest."""
        rows = [row for row in self.rows if row.group == "all"]
        if not rows:
            raise ValueError("results must hold at least one document, got none")
        wanted = max(row.k for row in rows) if k is None else k
        for row in rows:
            if row.k == wanted:
                return row
        raise ValueError(f"k must be one of {', '.join(str(row.k) for row in rows)}, got {wanted}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        width = max([len(row.group) for row in self.rows] + [5])
        lines = [f"{'group':<{width}}  {'k':>3}  {'docs':>5}  {'base':>7}  {'adapted':>7}  ratio [95 % interval]"]
        for row in self.rows:
            ratio = f"{row.ratio.value:.4f} [{row.ratio.low:.4f}, {row.ratio.high:.4f}]"
            lines.append(
                f"{row.group:<{width}}  {row.k:>3}  {row.documents:>5}  {row.base_bits_per_byte:>7.4f}  "
                f"{row.bits_per_byte:>7.4f}  {ratio}"
            )
        if self.skipped:
            lines.append(f"{self.skipped} documents had too little text for the protocol")
        return "\n".join(lines)


@dataclass(slots=True)
class EvalResult:
    """The lines of an evaluation, its settings, and the documents left out for want of text."""

    settings: dict[str, Any]
    lines: list[Line] = field(default_factory=list)
    skipped: int = 0

    def summary(self, *, seed: int = 0) -> Summary:
        """Sum the lines up by group, with 95 % intervals of a paired bootstrap over documents."""
        groups: dict[str, dict[int, dict[int, Line]]] = defaultdict(lambda: defaultdict(dict))
        for line in self.lines:
            for group in (line.group, "all"):
                groups[group][line.k][line.document] = line
        rows = []
        for group in sorted(groups, key=lambda name: (name == "all", name)):
            base = groups[group].get(0)
            if base is None:
                continue
            for k in sorted(groups[group]):
                rows.append(_group_summary(group, k, base, groups[group][k], seed))
        return Summary(rows, self.skipped)


def _group_summary(group: str, k: int, base: dict[int, Line], adapted: dict[int, Line], seed: int) -> GroupSummary:
    documents = sorted(base.keys() & adapted.keys())
    before = np.array([base[d].nats for d in documents]) / math.log(2)
    after = np.array([adapted[d].nats for d in documents]) / math.log(2)
    size = np.array([base[d].num_bytes for d in documents], dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(documents), size=(_BOOTSTRAP, len(documents)))
    drawn = [values[draws].sum(1) for values in (before, after, size)]
    differences, ratios = (drawn[1] - drawn[0]) / drawn[2], drawn[1] / drawn[0]
    total = size.sum()
    return GroupSummary(
        group,
        k,
        len(documents),
        int(total),
        float(before.sum() / total),
        float(after.sum() / total),
        Interval(float((after - before).sum() / total), *_ends(differences)),
        Interval(float(after.sum() / before.sum()), *_ends(ratios)),
    )


def _ends(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def evaluate(
    trainer: TestTimeTrainer,
    documents: Iterable[Document | str],
    *,
    out: str | os.PathLike[str] | None = None,
    config: EvalConfig | None = None,
    exclude_own_text: bool = True,
    progress: Progress | None = None,
    observe: Callable[[Document, AdaptedModel, int], None] | None = None,
    on_document: Callable[[Document, list[Line], AdaptReport], None] | None = None,
) -> EvalResult:
    """Measure the base and the adapted model on documents, the whole curve over neighbors in one pass.

    With `out`, each document's lines are appended to a JSON-lines file when it is done, seconds per stage to
    ``<out>.seconds`` beside it. A file that an interrupted run left is continued: documents that it holds are not
    measured again, and the finished file is the same as without the interruption.

    Args:
        trainer: adapts and scores.
        documents: texts, grouped by their `source`.
        out: file of result lines; None keeps them in memory alone.
        config: protocol, lengths, and the numbers of neighbors to score after.
        exclude_own_text: leaves neighbors out whose text is the document's own, by digest.
        progress: called after each document.
        observe: called as ``observe(document, adapted, k)`` with the base model (k = 0) and after each neighbor.
        on_document: called after each newly measured document with its lines and report.

    Raises:
        ConfigError: `out` holds results of other settings.
    """
    config = config if config is not None else EvalConfig()
    curve = sorted({0, *(k for k in config.curve if k <= trainer.config.num_neighbors), trainer.config.num_neighbors})
    selection = getattr(trainer.datastore, "config", None)
    settings = {
        "protocol": config.protocol,
        "evaluation": config.to_dict() | {"curve": curve},
        "adapt": trainer.config.to_dict(),
        "score": trainer.scorer.config.to_dict(),
        "model": trainer.fingerprint,
        "datastore": getattr(trainer.datastore, "id", None),
        "selection": selection.to_dict() if isinstance(selection, SelectionConfig) else None,
        "exclude_own_text": exclude_own_text,
    }
    file = _ResultFile(Path(out), settings) if out is not None else None
    result = EvalResult(settings)
    chosen = list(_limited(documents, config))
    try:
        for done, (position, document) in enumerate(chosen):
            if progress is not None:
                progress("evaluate", done, len(chosen))
            digest = text_digest(document.text)
            lines = file.held(position, digest) if file is not None else None
            if lines is None:
                task = split_task(trainer.tokenizer, document.text, config)
                lines = []
                if task is not None:
                    exclude = [digest] if exclude_own_text else []
                    lines, report = _measured(trainer, task, position, document, digest, curve, exclude, observe)
                    if on_document is not None:
                        on_document(document, lines, report)
                    if file is not None:
                        file.append(lines, report)
            result.lines.extend(lines)
            result.skipped += not lines
        if progress is not None:
            progress("evaluate", len(chosen), len(chosen))
    finally:
        if file is not None:
            file.close()
    return result


def _measured(
    trainer: TestTimeTrainer,
    task: Task,
    position: int,
    document: Document,
    digest: str,
    curve: list[int],
    exclude: list[str],
    also: Callable[[Document, AdaptedModel, int], None] | None,
) -> tuple[list[Line], AdaptReport]:
    scores: dict[int, Score] = {}
    steps: dict[int, tuple[int, int]] = {}
    seen = (0, 0)  # neighbors and steps at the last observation

    def observe(adapted: AdaptedModel, k: int) -> None:
        nonlocal seen
        if also is not None:
            also(document, adapted, k)
        seen = (k, adapted.report.steps)
        if k in curve:
            scores[k] = adapted.score(task.scored, context=task.context)
            steps[k] = (adapted.report.steps, adapted.report.tokens)

    with trainer.adapt(task.query, observe=observe, exclude_digests=exclude) as adapted:
        report = adapted.report
        k_last = seen[0] + (report.steps > seen[1])
        if k_last not in scores:
            # Fewer neighbors than the curve asks for, or training stopped inside one: the state it ended in.
            scores[k_last] = adapted.score(task.scored, context=task.context)
            steps[k_last] = (report.steps, report.tokens)
    lines = []
    for k in curve:
        at = max(held for held in scores if held <= k)
        score = scores[at]
        trained = report.neighbors[: min(k, len(report.neighbors))]
        lines.append(
            Line(
                document=position,
                digest=digest,
                group=document.source or "documents",
                method="base" if k == 0 else "ttt-nn",
                k=k,
                found=min(k, report.found),
                nats=score.nats,
                tokens=score.tokens,
                num_bytes=score.num_bytes,
                words=score.words,
                bits_per_byte=score.bits_per_byte,
                steps=steps[at][0],
                trained_tokens=steps[at][1],
                neighbors=[neighbor.id for neighbor in trained],
                neighbor_digests=[neighbor.digest for neighbor in trained],
                stopped_by=report.stopped_by,
            )
        )
    return lines, report


def _limited(documents: Iterable[Document | str], config: EvalConfig) -> Iterator[tuple[int, Document]]:
    """Yield (position, document), at most `limit` of each group, drawn by seed, in the order they came."""
    numbered = [
        (i, document if isinstance(document, Document) else Document(document)) for i, document in enumerate(documents)
    ]
    if config.limit is None:
        yield from numbered
        return
    groups: dict[str, list[int]] = defaultdict(list)
    for i, document in numbered:
        groups[document.source or "documents"].append(i)
    kept: set[int] = set()
    for group in sorted(groups):
        drawn = random.Random(f"{config.sample_seed} {group}").sample(
            groups[group], min(config.limit, len(groups[group]))
        )
        kept.update(drawn)
    yield from (pair for pair in numbered if pair[0] in kept)


class _ResultFile:
    """A file of result lines: first the settings, then the lines of one document after another."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._held: dict[int, list[Line]] = {}
        header = json.dumps({"tttnn": "results 1", "settings": settings}, sort_keys=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab")  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            kept = self._read(path, header, settings) if path.stat().st_size else 0
        except BlockingIOError as error:
            self._file.close()
            raise ConfigError(
                f"{path}: another process is writing it. Wait for it, or choose another --out."
            ) from error
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(kept)
        self._seconds = open(f"{path}.seconds", "a" if kept else "w", encoding="utf-8")  # noqa: SIM115
        if not kept:
            self._file.write(header.encode() + b"\n")
            self._file.flush()

    def _read(self, path: Path, header: str, settings: dict[str, Any]) -> int:
        """Take over whole documents of an earlier run; return the number of bytes to keep."""
        data = path.read_bytes()
        first, newline, rest = data.partition(b"\n")
        if not newline:
            return 0  # cut off in its first line: nothing was measured
        if first.decode("utf-8", "replace") != header:
            raise ConfigError(f"{path}: holds results of {_difference(first, settings)}. Choose another --out.")
        kept = start = len(first) + 1
        count = len(settings["evaluation"]["curve"])
        block: list[Line] = []
        for number, row in enumerate(rest.split(b"\n")[:-1], 2):
            try:
                block.append(Line(**json.loads(row)))
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{path}: line {number} is no result: {error}. Choose another --out.") from error
            start += len(row) + 1
            if len(block) == count:
                self._held[block[0].document] = block
                block, kept = [], start
        return kept

    def held(self, position: int, digest: str) -> list[Line] | None:
        lines = self._held.get(position)
        if lines is not None and lines[0].digest != digest:
            raise ConfigError(
                f"document {position} must be the one the results file was begun with (digest {lines[0].digest}), "
                f"got {digest}. Choose another --out."
            )
        return lines

    def append(self, lines: list[Line], report: AdaptReport) -> None:
        self._file.write(b"".join(json.dumps(asdict(line)).encode() + b"\n" for line in lines))
        self._file.flush()
        os.fsync(self._file.fileno())
        seconds = {name: round(value, 4) for name, value in report.seconds.items()}
        self._seconds.write(json.dumps({"document": lines[0].document, "seconds": seconds, "at": time.time()}) + "\n")
        self._seconds.flush()

    def close(self) -> None:
        self._file.close()
        self._seconds.close()


def _difference(first: bytes, settings: dict[str, Any]) -> str:
    try:
        held = json.loads(first)["settings"]
    except (ValueError, KeyError, TypeError):
        return "something else than tttnn"
    names = []
    for key in sorted({*held, *settings}):
        old, new = held.get(key), settings.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            names += [f"{n} = {old.get(n)} (now {new.get(n)})" for n in sorted(old | new) if old.get(n) != new.get(n)]
        elif old != new:
            names.append(f"{key} = {old} (now {new})")
    return "other settings: " + ", ".join(names)
