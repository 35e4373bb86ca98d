"""Several processes that train the experts of clusters, each with a model of its own.

Knows processes and pipes. Does not know the order of experts or where they are written.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import ExpertConfig
from ..datastore.datastore import Datastore
from ..errors import DatastoreMismatchError, TttnnError
from ..lm.loading import load_model
from ..lm.tokens import TextTokens
from ..processes import end_with_parent
from .fingerprint import fingerprint_of
from .leaf_training import LeafJob, TrainedLeaf, train_leaves
from .plan import DocumentTokens


@dataclass(frozen=True, slots=True)
class LeafRecipe:
    """What a process needs to train experts: names, and torch's threads, on which sums depend."""

    model: str
    cache_dir: str | os.PathLike[str] | None
    device: str
    threads: int


class LeafWorkers:
    """Processes, each at the other end of a pipe; ended by `close`, and when this process is gone."""

    def __init__(
        self,
        count: int,
        recipe: LeafRecipe,
        datastore: str,
        fingerprint: str,
        config: ExpertConfig,
        root: NDArray[np.float32],
    ) -> None:
        # Inherited, and read when torch is imported: threads that spin while they wait slow the other workers down.
        os.putenv("OMP_WAIT_POLICY", "PASSIVE")
        self._workers: dict[Connection, BaseProcess] = {}
        context = multiprocessing.get_context("spawn")
        try:
            for number in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_work,
                    args=(theirs, recipe, datastore, fingerprint, config, root),
                    name=f"tttnn-precompute-{number}",
                    daemon=True,
                )
                process.start()
                theirs.close()
                self._workers[ours] = process
        except BaseException:
            self.close()
            raise

    def train(self, jobs: Iterable[LeafJob]) -> Iterator[TrainedLeaf]:
        """Deal jobs out as processes become free, and give each expert when it is done.

        Raises:
            TttnnError: a process died; what one raises is raised here.
        """
        waiting = iter(jobs)
        busy = {connection for connection in self._workers if _dealt(connection, waiting)}
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                leaf = self._receive(ready)
                if not _dealt(ready, waiting):
                    busy.discard(ready)
                yield leaf

    def _receive(self, connection: Connection) -> TrainedLeaf:
        try:
            kind, value = connection.recv()
        except (EOFError, ConnectionResetError):
            process = self._workers[connection]
            process.join()
            raise TttnnError(
                f"{process.name} (process {process.pid}) died with exit code {process.exitcode}. The experts that are "
                "trained are kept: the same command continues."
            ) from None
        if kind == "failed":
            raise value
        trained: TrainedLeaf = value
        return trained

    def close(self) -> None:
        """End all processes, whatever they are at."""
        for process in self._workers.values():
            process.kill()
        for connection, process in self._workers.items():
            process.join()
            process.close()
            connection.close()
        self._workers.clear()


def _dealt(connection: Connection, waiting: Iterator[LeafJob]) -> bool:
    job = next(waiting, None)
    if job is None:
        return False
    # A worker that is dead says so where its answer is read.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.send(job)
    return True


def _work(
    connection: Connection,
    recipe: LeafRecipe,
    datastore: str,
    fingerprint: str,
    config: ExpertConfig,
    root: NDArray[np.float32],
) -> None:
    """Load a model, and train one expert after another, until nobody asks any more."""
    # A Ctrl-C reaches every process of a terminal; the one that writes decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    try:
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(recipe.threads)
        model, tokenizer = load_model(recipe.model, cache_dir=recipe.cache_dir)
        model = model.to(recipe.device)
        if fingerprint_of(model) != fingerprint:
            raise DatastoreMismatchError(f"{recipe.model}: must have the weights of the model loaded first")
        with Datastore.open(datastore) as opened:
            tokens = DocumentTokens(opened, TextTokens(tokenizer), config.max_length)
            for leaf in train_leaves(model, tokens, config, root, _asked(connection)):
                connection.send(("trained", leaf))
    except (BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        raised: Any = (
            error if isinstance(error, TttnnError | ValueError | OSError) else TttnnError(f"in a worker: {error!r}")
        )
        connection.send(("failed", raised))


def _asked(connection: Connection) -> Iterator[LeafJob]:
    with contextlib.suppress(EOFError):
        while True:
            yield connection.recv()
