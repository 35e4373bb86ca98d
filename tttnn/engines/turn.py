"""One job while an engine does it: what is said of it, whether anybody still waits, what it has cost.

Knows the pipe and a clock. Does not know what the job is.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from .failures import Cancelled, described, where
from .pipe import Frame

_log = logging.getLogger("tttnn.engines")

_BEAT_SECONDS = 0.5
"""Between two signs of life that say nothing else."""

_STEP_SECONDS = 0.05
"""Between two steps that are told to nobody who watches: each one wakes the serving process, which may have to share
this one's core."""


class Inbox(Protocol):
    """What a turn asks of what has come in."""

    def is_cancelled(self, number: int) -> bool:
        """Say whether a job was given up."""

    def is_interrupted(self, number: int, command: int) -> bool:
        """Say whether nobody waits for the answer to a job's command any more."""

    def command(self, number: int, timeout: float) -> Frame | None:
        """Return what a job is told next; None where nothing comes within `timeout` seconds."""


class Turn:
    """A job's turn at the engine."""

    def __init__(self, frame: Frame, send: Callable[[Frame], None], inbox: Inbox) -> None:
        """Begin a job.

        Args:
            frame: what is to be done; `deadline_ms` are left from now.
            send: hands a frame to the serving process.
            inbox: says whether the job was given up, and what it is told while it runs.
        """
        self.frame = frame
        self.seconds: dict[str, float] = {}
        """Of each stage."""
        self.spent: dict[str, tuple[float, float]] = {}
        """What work cost, for predictions; see `cost.Costs.saw`."""
        self.counts = {"prompt": 0, "written": 0, "trained": 0, "scored": 0, "reused": 0}
        self.number: int = frame["job"]
        self._send = send
        self._inbox = inbox
        self.joined: list[Turn] = []
        """Turns that are answered from the state to which this one adapts the model."""
        self.ended = False
        """Whether the one who asked has been told the end."""
        self.waited = 0.0
        """Seconds in which there was nothing to do but wait for a command."""
        self._started = self._said = time.perf_counter()
        left = frame.get("deadline_ms")
        self.deadline = math.inf if left is None else self._started + left / 1000

    def say(self, event: str, **values: Any) -> None:
        """Tell the one who asked."""
        self._said = time.perf_counter()
        self._send({"event": event, "job": self.number, **values})

    def say_step(self, step: int, of: int) -> None:
        """Tell how many neighbors of how many are trained, where nothing was told just before."""
        if time.perf_counter() - self._said >= _STEP_SECONDS:
            self.say("step", step=step, of=of)

    def gone(self) -> bool:
        """Say whether nobody waits any more; and, now and then, that this engine is alive."""
        if time.perf_counter() - self._said > _BEAT_SECONDS:
            self.say("beat")
        return self._inbox.is_cancelled(self.number)

    def nobody(self) -> bool:
        """Say whether nobody waits any more, for this turn or one that joined it."""
        return self.gone() and all(other.gone() for other in self.joined)

    def check(self) -> None:
        """Raise Cancelled where nobody waits any more."""
        if self.gone():
            raise Cancelled

    def end(self, event: str, **values: Any) -> None:
        """Tell the one who asked how it ended: "done" with a result, or "error"."""
        self.ended = True
        self.say(event, spent=self.spent, counts=self.counts, **values)

    def done(self, result: dict[str, Any]) -> None:
        """Tell the one who asked the result."""
        self.end("done", result={**result, "seconds": self.seconds})

    def command(self) -> Frame | None:
        """Wait for what the job is told next; None: nothing any more.

        Raises:
            Cancelled: nobody waits any more.
        """
        started = time.perf_counter()
        try:
            while True:
                frame = self._inbox.command(self.number, _BEAT_SECONDS)
                self.check()
                if frame is not None:
                    return None if "end" in frame else frame
        finally:
            self.waited += time.perf_counter() - started

    def interrupted(self, command: int) -> bool:
        """Say whether nobody waits for the answer to a command any more."""
        return self._inbox.is_interrupted(self.number, command)

    def cost(self, kind: str, measured: float, amount: float) -> None:
        """Note what work cost."""
        before = self.spent.get(kind, (0.0, 0.0))
        self.spent[kind] = (before[0] + measured, before[1] + amount)

    def stage(self, name: str, seconds: float) -> None:
        """Note seconds of a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def left_ms(self, reserve: float) -> float | None:
        """Return the milliseconds that are left but for `reserve` seconds; None where there is no deadline."""
        if self.deadline == math.inf:
            return None
        return max(0.0, 1000 * (self.deadline - reserve - time.perf_counter()))

    def total(self) -> float:
        """Seconds since the turn began."""
        return time.perf_counter() - self._started


def fail(turn: Turn, error: Exception) -> None:
    """Tell the one who asked what went wrong; what is this program's fault is written to the log."""
    if isinstance(error, Cancelled):
        turn.end("done", result={"cancelled": True})
        return
    plain = described(error)
    if plain["kind"] == "internal":
        _log.error("job %d: %s", turn.number, where(error))
    turn.end("error", error=plain)
