"""A process that trains experts while no request is there: started, stopped at each request, let go on, ended.

Knows a process and when it may run. Does not know what an expert is, nor jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine, Sequence
from typing import Any

from ..engines.pipe import Frame
from .engine_link import module_command

QUIET_SECONDS = 2.0
"""Seconds without a request after which it goes on: a conversation's next one finds the processors free."""


def idle_command(recipe: Frame) -> list[str]:
    """Return what starts the process that trains the experts of a recipe's model and datastore."""
    return [
        *module_command("tttnn.instant.idle_process"),
        str(recipe["datastore"]),
        str(recipe["model"]),
        str(recipe["cache_dir"] or ""),
    ]


class IdleTraining:
    """The process, which runs while it may: a request stops it where it is, however deep in a step."""

    def __init__(self, command: Sequence[str], *, quiet_seconds: float = QUIET_SECONDS) -> None:
        """Describe it; `keep` starts it.

        Args:
            command: what is run; it should end with its standard input.
            quiet_seconds: without a request after which it goes on.
        """
        self._command = command
        self._quiet_seconds = quiet_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._wanted = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The process's id, once it is started."""
        return None if self._process is None else self._process.pid

    def pause(self) -> None:
        """Stop the process at once, because there is a request."""
        self._wanted.set()
        self._signal(signal.SIGSTOP)

    async def keep(self, idle: asyncio.Event) -> None:
        """Start the process and let it go on whenever nothing has been there for a while, until it ends.

        It has a group of its own in this session: if this process dies while that one is stopped, the kernel ends it
        (an orphaned group with stopped members gets SIGHUP and SIGCONT, says POSIX).

        Args:
            idle: set while there is no request.
        """
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            process_group=0,
        )
        ended = asyncio.ensure_future(self._process.wait())
        try:
            if not idle.is_set():
                self.pause()
            while not ended.done():
                await _first(ended, idle.wait())
                self._wanted.clear()
                await asyncio.wait({ended}, timeout=self._quiet_seconds)
                if idle.is_set() and not self._wanted.is_set():
                    self._signal(signal.SIGCONT)
                    await _first(ended, self._wanted.wait())
        finally:
            self._signal(signal.SIGKILL)
            await ended

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


async def _first(ended: asyncio.Future[int], waited: Coroutine[Any, Any, bool]) -> None:
    """Wait until the process has ended or something else has happened."""
    other: asyncio.Future[Any] = asyncio.ensure_future(waited)
    try:
        await asyncio.wait([ended, other], return_when=asyncio.FIRST_COMPLETED)
    finally:
        other.cancel()
