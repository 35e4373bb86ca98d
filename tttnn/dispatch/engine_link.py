"""One engine process, seen from the serving process: started, spoken to, found dead, ended.

Knows processes, pipes and the shared weights' descriptor. Does not know jobs or when an engine is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engines.pipe import AsyncPipe, Frame


def module_command(module: str) -> list[str]:
    """Return what runs one of our modules; none of the working directory takes the place of one that it imports.

    Where tttnn itself lies there, as in its checkout, that directory is needed.
    """
    here = Path(__file__).resolve().parents[2] == Path.cwd()
    return [sys.executable, *([] if here else ["-P"]), "-m", module]


_MOMENT = 1.0
"""Seconds between the end of a process's pipe and the end of the process, at most."""


def engine_command() -> list[str]:
    """Return what starts an engine."""
    return module_command("tttnn.engines.process")


@dataclass(frozen=True)
class HeldWeights:
    """The pristine weights in memory that all engines share: a descriptor, and what lies where, as the engine said."""

    descriptor: int
    layout: Any


class EngineLink:
    """An engine process and the pipe to it."""

    def __init__(self, loads: Frame, weights: HeldWeights | None) -> None:
        """Describe an engine; `start` starts it.

        Args:
            loads: what it loads; see `engines.process.main`.
            weights: of an engine before it; None: this one makes them.
        """
        self._loads = loads
        self._weights = weights
        self.facts: Frame | None = None
        """What the engine said of itself when it was ready; None before."""
        self.weights = weights
        self._process: asyncio.subprocess.Process | None = None
        self._pipe: AsyncPipe | None = None
        self._gone = False
        """Whether its end of the pipe is closed."""

    @property
    def pid(self) -> int | None:
        """The process's id, once it is started."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the process; it loads and then says "ready" or "failed": see `receive`."""
        ours, theirs = socket.socketpair()
        desk, counter = socket.socketpair()
        passed = [theirs.fileno(), counter.fileno()]
        if self._weights is not None:
            passed.append(self._weights.descriptor)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *engine_command(),
                *map(str, passed[:2]),
                pass_fds=passed,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal is the serving process's to act upon
            )
        except BaseException:
            ours.close()
            desk.close()
            raise
        finally:
            theirs.close()
            counter.close()
        self._desk = desk
        self._pipe = await AsyncPipe.open(ours)
        weights = None if self._weights is None else [self._weights.descriptor, self._weights.layout]
        self._pipe.send({**self._loads, "weights": weights})

    def send(self, frame: Frame) -> None:
        """Hand the engine a frame."""
        if self._pipe is not None:
            self._pipe.send(frame)

    async def receive(self) -> Frame | None:
        """Return the engine's next frame; None where it is dead."""
        if self._pipe is None:
            return None
        frame = await self._pipe.receive()
        self._gone = frame is None
        if frame is not None and frame["event"] == "ready":
            self.facts = frame["facts"]
            if self.weights is None:
                # Sent before the frame was, so it is there.
                _, descriptors, _, _ = socket.recv_fds(self._desk, 1, 1)
                self.weights = HeldWeights(descriptors[0], frame["layout"])
        return frame

    async def end(self, *, gently: float = 0.0) -> int | None:
        """End the process, after at most `gently` seconds in which it may finish; return its exit code."""
        if self._process is None:
            return None
        if gently > 0:
            self.send({"stop": True})
        with contextlib.suppress(TimeoutError):
            # One that is dead gets a moment to be noticed: who signals it would take its exit code from asyncio.
            await asyncio.wait_for(self._process.wait(), max(gently, _MOMENT if self._gone else 0.0))
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        code = await self._process.wait()
        if self._pipe is not None:
            await self._pipe.close()
        self._desk.close()
        return code


def close_weights(weights: HeldWeights | None) -> None:
    """Give up the serving process's hold of the shared weights."""
    if weights is not None:
        os.close(weights.descriptor)
