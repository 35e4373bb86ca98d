"""The main job on real text, small enough for two cores: sample, build, adapt, measure beside its rival, draw.

Does not print.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from .. import models
from ..config import AdaptConfig, Progress
from ..datastore.datastore import Datastore
from ..embedding.embedder import Embedder
from ..errors import MissingExtraError, TttnnError
from ..evaluation.catalogue import IN_CONTEXT
from ..files import check_folder, check_target
from ..stages import Stages
from ..store.corpus import Corpus, iter_corpus
from ..training.trainer import TestTimeTrainer
from .demo_measurement import DemoMeasurement
from .demo_picture import draw
from .demo_result import DemoResult
from .demo_sample import Sample, draw_sample, standard_library

MODEL, EMBEDDER = "smollm2-135m", "minilm-l6"
MEASURED = 3
"""Held-out documents that are adapted to, the first by seed."""

NUM_NEIGHBORS = 10
"""Each takes a step, some 2 to 4 seconds on two cores."""

_DATASTORE, _RESULTS, _PICTURE = "datastore-", "results.jsonl", "bits_per_byte.png"


def run_demo(
    out: str | os.PathLike[str] = "tttnn-demo",
    *,
    corpus: str | os.PathLike[str] | Corpus | None = None,
    seed: int = 0,
    config: AdaptConfig | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> DemoResult:
    """Run test-time training on held-out documents of real text, and measure it beside neighbors in the context.

    Args:
        out: folder for the datastore, the result lines and the plot; a second run uses its datastore again, and
            replaces the others.
        corpus: a corpus as of `iter_corpus`; None: the Python standard library's source files.
        seed: draws the held-out documents and the sample, before anything is measured.
        config: how to adapt; None: the defaults, with 10 neighbors.
        device: torch's name of a device.
        dtype: torch's name of the type of the model's weights.
        threads: torch's; None leaves them as they are.
        cache_dir: where demo models are kept.
        progress: called on every long step.
        tell: called with a sentence before something slow that has no progress.

    Raises:
        FileExistsError: the folder holds files of the names that are to be written, and no demo made it.
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "matplotlib is needed for the plot. Install it with: pip install 'tttnn[demo]'"
        ) from error
    import torch

    started = time.perf_counter()
    seconds = Stages()
    folder = Path(out)
    _check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with seconds("fetch models"):
        for name in (MODEL, EMBEDDER):
            models.resolve(name, cache_dir=cache_dir, on_fetch=tell)
    with seconds("load models"):
        if tell is not None:
            tell(f"loading {models.described(MODEL)}, and {models.described(EMBEDDER)}")
        trainer = TestTimeTrainer.load(
            MODEL,
            None,
            config or AdaptConfig(num_neighbors=NUM_NEIGHBORS),
            device=device,
            dtype=getattr(torch, dtype),
            threads=threads,
            cache_dir=cache_dir,
        )
        embedder = Embedder.load(EMBEDDER, device=device, threads=threads, cache_dir=cache_dir)
    with seconds("draw sample"):
        found = iter_corpus(corpus) if isinstance(corpus, str | os.PathLike) else corpus
        documents = list(found) if found is not None else standard_library()
        sample = draw_sample(documents, trainer.tokenizer, seed, progress)
    with seconds("build datastore"):
        place = folder / f"{_DATASTORE}{sample.digest}"
        trainer.datastore = _datastore(place, sample, embedder, progress)
    source = ", ".join(found.paths) if found is not None else "the Python standard library"
    result = DemoResult(MODEL, seed, source, len(sample.windows), sample.num_bytes, sample.left_out, place)
    measured = sample.held_out[:MEASURED]
    DemoMeasurement(result, trainer, measured, seconds, progress).run(folder / _RESULTS)
    with seconds("plot"):
        result.plot = draw(
            result.model,
            result.documents,
            result.totals(),
            result.totals(IN_CONTEXT.name)[-1],
            folder / _PICTURE,
        )
    trainer.release()
    result.seconds, result.total_seconds = seconds, time.perf_counter() - started
    return result


def _check_folder(folder: Path) -> None:
    """Refuse a folder in which files would be replaced that no demo wrote: it keeps its datastore beside them."""
    check_folder(folder)
    earlier = any(folder.glob(_DATASTORE + 12 * "[0-9a-f]"))  # named by the sample's digest
    for name in (_RESULTS, f"{_RESULTS}.seconds", f"{_RESULTS}.texts", _PICTURE):
        if os.path.lexists(folder / name) and not earlier:
            raise FileExistsError(f"{folder / name}: is there already, and no demo made it. Choose another --out.")
        if earlier:
            check_target(folder / name, force=True)


def _datastore(place: Path, sample: Sample, embedder: Embedder, progress: Progress | None) -> Datastore:
    """Open the datastore of a sample, or build it where there is none that is whole."""
    if place.exists():
        try:
            return Datastore.open(place, embedder)
        except (TttnnError, OSError):
            pass
    return Datastore.build(place, sample.windows, embedder, progress=progress)
