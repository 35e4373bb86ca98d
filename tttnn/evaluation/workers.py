"""Several processes that measure documents, and the one that deals them out and writes their results in order.

Knows processes and pipes. Does not know what is measured.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from ..config import EvalConfig, Progress
from ..errors import ConfigError, TttnnError
from ..processes import end_with_parent
from ..recipe import TrainerRecipe
from ..store.document import Document
from ..weights.shared_weights import SharedWeights
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
    pool = _Pool(workers, (recipe, config, names, exclude_own_text, keep_text))
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


class _Pool:
    """Processes, each at the other end of a pipe."""

    def __init__(self, workers: int, arguments: tuple[Any, ...]) -> None:
        # Inherited, and read when torch is imported: threads that spin while they wait slow the other workers down.
        os.putenv("OMP_WAIT_POLICY", "PASSIVE")
        self._arguments = arguments
        self._workers: dict[Connection, BaseProcess] = {}
        self._jobs: dict[Connection, int] = {}
        try:
            # The first one's weights are the others' too, so it has to be ready before they begin.
            first = self._start(None, shares=workers > 1)
            settings, weights = self._receive(first)
            others = [self._start(weights, shares=False) for _ in range(workers - 1)]
            for connection in others:
                if self._receive(connection) != (settings, None):
                    raise TttnnError("workers must have loaded the same model and datastore, but their settings differ")
        except BaseException:
            self.close()
            raise
        self.settings: dict[str, Any] = settings
        """What the results of each depend on; the same for all."""

    def _start(self, weights: SharedWeights | None, *, shares: bool) -> Connection:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        name = f"tttnn-worker-{len(self._workers)}"
        process = context.Process(
            target=_work, args=(theirs, weights, shares, *self._arguments), name=name, daemon=True
        )
        process.start()
        theirs.close()
        self._workers[ours] = process
        return ours

    def measure(self, jobs: list[tuple[int, Document]]) -> Iterable[Measured]:
        """Deal documents out, and yield what comes back in the order of `jobs`."""
        waiting = iter(jobs)
        for connection in self._workers:
            self._deal(connection, waiting)
        finished: dict[int, Measured] = {}
        for position, _ in jobs:
            while position not in finished:
                for ready in wait(list(self._jobs)):
                    assert isinstance(ready, Connection)
                    measured: Measured = self._receive(ready)
                    finished[measured.position] = measured
                    self._deal(ready, waiting)
            yield finished.pop(position)

    def _deal(self, connection: Connection, waiting: Any) -> None:
        self._jobs.pop(connection, None)
        job = next(waiting, None)
        if job is not None:
            self._jobs[connection] = job[0]
            # A worker that is dead says so where its answer is read.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(job)

    def _receive(self, connection: Connection) -> Any:
        try:
            kind, value = connection.recv()
        except (EOFError, ConnectionResetError):
            process = self._workers[connection]
            process.join()
            at = f"document {self._jobs[connection]}" if connection in self._jobs else "its start"
            raise TttnnError(
                f"{process.name} (process {process.pid}) died with exit code {process.exitcode} at {at}. What was "
                "measured is kept: the same command continues."
            ) from None
        if kind == "failed":
            raise value
        return value

    def close(self) -> None:
        """End all processes, whatever they are at."""
        for process in self._workers.values():
            process.kill()
        for connection, process in self._workers.items():
            process.join()
            process.close()
            connection.close()
        self._workers.clear()


def _work(
    connection: Connection,
    weights: SharedWeights | None,
    shares: bool,
    recipe: TrainerRecipe,
    config: EvalConfig,
    names: tuple[str, ...],
    exclude_own_text: bool,
    keep_text: bool,
) -> None:
    """Load a trainer, and measure one document after another, until nobody asks any more."""
    # A Ctrl-C reaches every process of a terminal; the one that writes decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    try:
        from transformers.utils import logging

        logging.disable_progress_bar()
        trainer = recipe.load(weights)
        lab = Lab(trainer, config, names, exclude_own_text=exclude_own_text, keep_text=keep_text)
        shared = trainer.share_weights() if shares else None
        connection.send(("ready", (results_settings(lab), shared)))
        while True:
            position, document = connection.recv()
            connection.send(("measured", measured_document(lab, position, document)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        raised = (
            error if isinstance(error, TttnnError | ValueError | OSError) else TttnnError(f"in a worker: {error!r}")
        )
        connection.send(("failed", raised))
