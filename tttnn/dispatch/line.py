"""Who waits, who is next, and who is not let in: earliest deadline first, bounded by count and by predicted seconds.

Knows jobs, predictions and a clock that it is given. Does not know HTTP, engines or what a job does.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from .refusals import Refused


@dataclass(eq=False)
class Place:
    """A job's place in the line."""

    predicted: float
    """Seconds that it will take."""
    deadline: float | None = None
    """As the line's clock counts, by when it must be answered."""
    job: Any = None
    shares: Hashable = None
    """Places with an equal value may be answered from one adapted state; None: from its own alone."""
    beside: float = 0.0
    """Seconds that it adds to another one whose adapted state it shares."""
    leader: Place | None = None
    """Whose adapted state it is answered from, while it runs; None: its own."""
    arrived: float = 0.0
    began: float | None = None
    key: tuple[float, int] = field(default=(0.0, 0))


class Line:
    """What waits and what runs, on `engines` engines.

    A job without a deadline of its own is ordered as if it had to be answered `max_seconds` after it came: deadlines
    that come later go behind it, so nothing waits for ever.

    Example:
        >>> line = Line(max_jobs=2, max_seconds=60.0, clock=lambda: 0.0)
        >>> line.add(Place(1.0, job="first"))
        >>> line.add(Place(1.0, deadline=5.0, job="urgent"))
        >>> [place.job for place in line.next()]
        ['urgent']
    """

    def __init__(self, *, max_jobs: int, max_seconds: float, clock: Callable[[], float], engines: int = 1) -> None:
        self._max_jobs = max_jobs
        self._max_seconds = max_seconds
        self._clock = clock
        self._engines = engines
        self._waiting: list[Place] = []
        self._running: set[Place] = set()
        self._count = itertools.count()

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that an engine works at."""
        return len(self._running)

    def seconds(self) -> float:
        """Return the predicted seconds until a job that came now would be begun."""
        return self._left() / self._engines

    def ahead_of(self, place: Place) -> int:
        """Return how many waiting jobs come before one."""
        return bisect.bisect_left(self._waiting, place.key, key=lambda other: other.key)

    def add(self, place: Place) -> None:
        """Let a job in.

        Raises:
            Refused: 429, because there are too many, because they will take too long, or because it would be answered
                after its deadline.
        """
        now = self._clock()
        place.arrived = now
        by = place.deadline if place.deadline is not None else now + self._max_seconds
        place.key = (by, next(self._count))
        if len(self._waiting) >= self._max_jobs:
            raise Refused(
                429,
                "queue_full",
                f"the queue holds {self._max_jobs} requests, as many as it may",
                retry_after=self._until_one_begins(),
            )
        seconds = self.seconds()
        if seconds > self._max_seconds:
            raise Refused(
                429,
                "queue_too_long",
                f"the queue is predicted to take {seconds:.0f} s, more than the {self._max_seconds:g} s allowed",
                retry_after=seconds - self._max_seconds,
            )
        if place.deadline is not None:
            begins = now + self._left(before=place) / self._engines
            if begins + place.predicted > place.deadline:
                raise Refused(
                    429,
                    "would_miss_deadline",
                    f"the answer is predicted after {begins + place.predicted - now:.2f} s, later than its deadline",
                    param="tttnn.deadline_ms",
                    retry_after=begins - now,
                )
        bisect.insort(self._waiting, place, key=lambda other: other.key)

    def next(self) -> list[Place]:
        """Take the first job out of the line, and with it those that may share its adapted state, in their order.

        They run from now on. There is one: see `waiting`. Nobody is taken with it while somebody waits with a deadline,
        whom they would be put before.
        """
        first = self._waiting.pop(0)
        taken = [first]
        if first.shares is not None and not self._hurried():
            taken += [place for place in self._waiting if place.shares == first.shares]
            self._waiting = [place for place in self._waiting if place.shares != first.shares]
        for place in taken:
            place.began = self._clock()
            place.leader = None if place is first else first
            self._running.add(place)
        return taken

    def put_back(self, place: Place) -> None:
        """Let a job that was taken out wait again, where it stood."""
        self._running.discard(place)
        place.began = place.leader = None
        bisect.insort(self._waiting, place, key=lambda other: other.key)

    def leave(self, place: Place) -> bool:
        """Take a job out of the line; False where it waits no more."""
        if place in self._waiting:
            self._waiting.remove(place)
            return True
        return False

    def done(self, place: Place) -> None:
        """Count a job as running no more."""
        self._running.discard(place)

    def _left(self, before: Place | None = None) -> float:
        """Return the predicted seconds of all work: of what runs, and of what waits or of that part that goes first."""
        now = self._clock()
        seconds = sum(self._left_of(place, now) for place in self._running)
        together = not self._hurried() and (before is None or before.deadline is None)
        adapted: set[Hashable] = set()
        for place in self._waiting:
            if before is None or place.key < before.key:
                seconds += place.beside if together and place.shares in adapted else place.predicted
                if place.shares is not None:
                    adapted.add(place.shares)
        return seconds

    def _hurried(self) -> bool:
        """Say whether somebody waits with a deadline."""
        return any(place.deadline is not None for place in self._waiting)

    def _until_one_begins(self) -> float:
        """Seconds until an engine is free of all that share its adapted state, and so a place in the line."""
        now = self._clock()
        left: dict[int, float] = {}
        for place in self._running:
            engine = id(place.leader or place)
            left[engine] = left.get(engine, 0.0) + self._left_of(place, now)
        return min(left.values(), default=0.0)

    @staticmethod
    def _left_of(place: Place, now: float) -> float:
        if place.leader is not None:
            return place.beside
        begun = now if place.began is None else place.began
        return max(0.0, place.predicted - (now - begun))
