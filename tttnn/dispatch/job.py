"""One piece of work for an engine, and what comes back of it, piece by piece, into a buffer that nobody waits for.

Knows frames and who asked for what. Does not know HTTP or what the work is.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Hashable
from typing import Any

from ..engines.cost import Work
from ..engines.pipe import Frame
from .line import Place
from .refusals import Refused

_numbers = itertools.count(1)


class Job:
    """Work that waits, runs or is done.

    The engine's frames lie in a buffer until the one who asked reads them: a slow reader delays nobody.
    """

    def __init__(
        self, task: str, payload: Frame, work: Work, *, deadline_ms: float | None = None, shares: Hashable = None
    ) -> None:
        """Describe work.

        Args:
            task: what an engine does; a name in `engines.tasks`.
            payload: what it needs for that, plain values.
            work: how much that is.
            deadline_ms: milliseconds from now by which the whole answer must be there.
            shares: jobs that wait with an equal value may be answered from one adapted state; None: from its own alone.
        """
        self.number = next(_numbers)
        self.task = task
        self.payload = payload
        self.work = work
        self.deadline_ms = deadline_ms
        self.shares = shares
        self.place: Place | None = None
        self.step = (0, 0)
        """The last training step, and how many neighbors there are."""
        self.cancelled = False
        self.queue_seconds = 0.0
        self.actual_seconds = 0.0
        self.gone: Refused | None = None
        """Why nobody waits for the answer any more, where the server itself gave it up."""
        self._events: asyncio.Queue[Frame | Refused] = asyncio.Queue()

    @property
    def predicted_seconds(self) -> float:
        """Seconds that the work was predicted to take when it was let in."""
        return self.place.predicted if self.place is not None else 0.0

    def put(self, event: Frame | Refused) -> None:
        """Add to the buffer; a Refused is the last."""
        if isinstance(event, dict) and event.get("event") == "step":
            self.step = (event["step"], event["of"])
        self._events.put_nowait(event)

    async def next(self) -> Frame:
        """Return the oldest frame that was not read; the last one's event is "done".

        Raises:
            Refused: there will be no answer.
        """
        event = await self._events.get()
        if isinstance(event, Refused):
            raise event
        return event

    async def result(self) -> dict[str, Any]:
        """Wait for the end, and return what the work gave.

        Raises:
            Refused: there is no answer.
        """
        while True:
            frame = await self.next()
            if frame["event"] == "done":
                result: dict[str, Any] = frame["result"]
                return result
