"""Processes that do jobs one after another, each at the other end of a pipe, and the one that deals jobs out to them.

Knows processes and pipes. Does not know what the jobs are.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from .errors import TttnnError
from .processes import end_with_parent

Work = Callable[..., Iterator[Any]]
"""What a process does: called with an iterator of jobs and the arguments of `start`, it yields an answer for each job;
where it has something to say before the first job, it yields that first."""


class WorkerPool:
    """Processes that take jobs as they become free; ended by `close`, and when this process is gone.

    Args:
        name: Of the processes, before their numbers.
        label: Names a job in the message about a process that died with it.
        remedy: Ends that message.
    """

    def __init__(self, name: str, *, label: Callable[[Any], str], remedy: str) -> None:
        # Inherited, and read when torch is imported: threads that spin while they wait slow the other workers down.
        os.putenv("OMP_WAIT_POLICY", "PASSIVE")
        self._name = name
        self._label = label
        self._remedy = remedy
        self._workers: dict[Connection, BaseProcess] = {}
        self._jobs: dict[Connection, Any] = {}

    def start(self, work: Work, *arguments: Any) -> Connection:
        """Start a process and return the end of its pipe, for `receive`."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        name = f"{self._name}-{len(self._workers)}"
        process = context.Process(target=_do_jobs, args=(theirs, work, arguments), name=name, daemon=True)
        process.start()
        theirs.close()
        self._workers[ours] = process
        return ours

    def answers(self, jobs: Iterable[Any]) -> Iterator[Any]:
        """Deal jobs out as processes become free, and yield the answers as they come.

        Raises:
            TttnnError: A process died; what one raises is raised here.
        """
        waiting = iter(jobs)
        for connection in self._workers:
            self._deal(connection, waiting)
        while self._jobs:
            for ready in wait(list(self._jobs)):
                assert isinstance(ready, Connection)
                # The next job is chosen when the caller has seen what became of this one.
                yield self.receive(ready)
                self._deal(ready, waiting)

    def _deal(self, connection: Connection, waiting: Iterator[Any]) -> None:
        self._jobs.pop(connection, None)
        for job in waiting:
            self._jobs[connection] = job
            # A worker that is dead says so where its answer is read.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(job)
            return

    def receive(self, connection: Connection) -> Any:
        """Return the next answer of one process; raise what it raised, or TttnnError where it died."""
        try:
            kind, value = connection.recv()
        except (EOFError, ConnectionResetError):
            process = self._workers[connection]
            process.join()
            at = self._label(self._jobs[connection]) if connection in self._jobs else "its start"
            raise TttnnError(
                f"{process.name} (process {process.pid}) died with exit code {process.exitcode} at {at}. {self._remedy}"
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


def _do_jobs(connection: Connection, work: Work, arguments: tuple[Any, ...]) -> None:
    """Do one job after another, until nobody asks any more."""
    # A Ctrl-C reaches every process of a terminal; the one that deals decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    try:
        for answer in work(_asked(connection), *arguments):
            connection.send(("answer", answer))
    except (BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        raised = (
            error if isinstance(error, TttnnError | ValueError | OSError) else TttnnError(f"in a worker: {error!r}")
        )
        connection.send(("failed", raised))


def _asked(connection: Connection) -> Iterator[Any]:
    with contextlib.suppress(EOFError):
        while True:
            yield connection.recv()
