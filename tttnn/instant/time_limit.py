"""Which jobs are still begun before a limit of time, by the longest of those that are done.

Knows a clock and jobs. Does not know how they are done, nor how many at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from .leaf_training import LeafJob


class TimeLimit:
    """Gives jobs while the next one will probably be done in time; for one process or several.

    Args:
        end: When all should be done, by the clock.
        clock: Seconds, from any beginning.
    """

    def __init__(self, end: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._end = end
        self._clock = clock
        self._longest = 0.0
        self._begun: dict[int, float] = {}

    def begun(self, jobs: Iterable[LeafJob]) -> Iterator[LeafJob]:
        """Give the jobs one by one, each when it is asked for, until the next one would be late."""
        for job in jobs:
            now = self._clock()
            if now + self._longest > self._end:
                return
            self._begun[job.cluster] = now
            yield job

    def done(self, cluster: int) -> None:
        """Take note that the job of a cluster is done."""
        self._longest = max(self._longest, self._clock() - self._begun.pop(cluster))
