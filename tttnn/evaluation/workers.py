"""Several processes that measure documents, and the one that writes their results in order.

Knows what a process loads, and a pool of them. Does not know what is measured.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..config import EvalConfig, Progress
from ..errors import ConfigError, TttnnError
from ..recipe import TrainerRecipe
from ..store.document import Document
from ..weights.shared_weights import SharedWeights
from ..worker_pool import WorkerPool
from .lab import Lab
from .methods import methods_named
from .records import Measured
from .results import EvalResult
from .runner import DEFAULT_METHODS, Record, carries_state, measured_document, results_settings
from .sampling import sampled


def evaluate_with_workers(
    recipe: TrainerRecipe,
    documents: Iterable[Document | str],
    *,
    workers: int,
    out: str | os.PathLike[str] | None = None,
    config: EvalConfig | None = None,
    methods: Sequence[str] = DEFAULT_METHODS,
    exclude_own_text: bool = True,
    keep_text: bool = False,
    progress: Progress | None = None,
) -> EvalResult:
    """Do what `evaluation.evaluate` does, by several processes, each with a model of its own.

    Documents are dealt to processes as these become free, and this process alone writes, in the order of one process.
    The file of results is therefore the same, byte for byte, for any number of workers, as long as each has as many
    threads of torch: these decide the order in which numbers are added up. The workers read one copy of the model's
    pristine weights; what they train is each one's own. When a worker dies, or this process is interrupted or
    killed, all end, and what was written can be continued.

    Args:
        recipe: loads the trainer of each process.
        documents: as for `evaluate`, as are the arguments not named here.
        workers: processes, at least 1.
        out: file of result lines.
        config: protocol, lengths, sample and curve.
        methods: names of `catalogue.CATALOGUE`.
        exclude_own_text: leaves a document's own text out of its neighbors.
        keep_text: keeps texts beside the results.
        progress: called after each document.

    Raises:
        ConfigError: as of `evaluate`; or a method carries state from document to document.
        TttnnError: a worker died; what a worker raises is raised here.
    """
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    names = tuple(method.name for method in methods_named(methods))  # refused before anything is loaded
    config = config if config is not None else EvalConfig()
    chosen = sampled(documents, config)
    pool = _Measurers(workers, (recipe, config, names, exclude_own_text, keep_text))
    try:
        if carries_state(pool.settings) and workers > 1:
            raise ConfigError(
                f"workers must be 1 where optimizer_state is carried from document to document, got {workers}"
            )
        record = Record(pool.settings, chosen, out, keep_text=keep_text)
        try:
            missing = [pair for pair in chosen if record.missing(pair[0])]
            done = len(chosen) - len(missing)
            if progress is not None:
                progress("evaluate", done, len(chosen))
            for measured in pool.measure(missing):
                record.add(measured)
                done += 1
                if progress is not None:
                    progress("evaluate", done, len(chosen))
            return record.result()
        finally:
            record.close()
    finally:
        pool.close()


class _Measurers:
    """Processes that measure documents, all with the weights of the first."""

    def __init__(self, workers: int, arguments: tuple[Any, ...]) -> None:
        self._pool = WorkerPool(
            "tttnn-worker",
            label=lambda job: f"document {job[0]}",
            remedy="What was measured is kept: the same command continues.",
        )
        try:
            # The first one's weights are the others' too, so it has to be ready before they begin.
            first = self._pool.start(_measure, None, workers > 1, *arguments)
            settings, weights = self._pool.receive(first)
            others = [self._pool.start(_measure, weights, False, *arguments) for _ in range(workers - 1)]
            for worker in others:
                if self._pool.receive(worker) != (settings, None):
                    raise TttnnError("workers must have loaded the same model and datastore, but their settings differ")
        except BaseException:
            self.close()
            raise
        self.settings: dict[str, Any] = settings
        """What the results of each depend on; the same for all."""

    def measure(self, jobs: list[tuple[int, Document]]) -> Iterator[Measured]:
        """Yield what was measured of documents, in their order."""
        answers = self._pool.answers(jobs)
        finished: dict[int, Measured] = {}
        for position, _ in jobs:
            while position not in finished:
                measured: Measured = next(answers)
                finished[measured.position] = measured
            yield finished.pop(position)

    def close(self) -> None:
        """End all processes, whatever they are at."""
        self._pool.close()


def _measure(
    jobs: Iterator[tuple[int, Document]],
    weights: SharedWeights | None,
    shares: bool,
    recipe: TrainerRecipe,
    config: EvalConfig,
    names: tuple[str, ...],
    exclude_own_text: bool,
    keep_text: bool,
) -> Iterator[Any]:
    """Load a trainer, say what results depend on, and measure one document after another."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    trainer = recipe.load(weights)
    lab = Lab(trainer, config, names, exclude_own_text=exclude_own_text, keep_text=keep_text)
    yield results_settings(lab), trainer.share_weights() if shares else None
    for position, document in jobs:
        yield measured_document(lab, position, document)
