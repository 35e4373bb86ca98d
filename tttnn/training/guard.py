"""The harm guard: score the query as training goes on, and keep the best state seen.

Knows scores and when to take them. Does not know models or texts: it is given a function that scores.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ..stages import Stages
from ..weights.arena import WeightArena
from .report import GuardReport
from .step_time import Pace


class Guard:
    """Keeps the state in which the query is likeliest; the base weights where no state is better than they.

    A tie keeps the earlier state, and so does a score that is not a number.

    >>> guard = Guard(arena, score, every=1, tokens=120, pace=Pace(), stages=Stages())     # doctest: +SKIP
    >>> guard.start()                                                     # doctest: +SKIP
    >>> guard.check(1, steps=1)                                           # doctest: +SKIP
    >>> guard.finish(1, steps=1)                                          # doctest: +SKIP
    """

    def __init__(
        self,
        arena: WeightArena,
        score: Callable[[], float],
        *,
        every: int,
        tokens: int,
        pace: Pace,
        stages: Stages,
        deadline: float = math.inf,
    ) -> None:
        """Guard one query.

        Args:
            arena: made with ``keeps_best``.
            score: returns the query's mean nats per token under the weights as they are.
            every: neighbors between two scores.
            tokens: of the query, scored each time.
            pace: learns how long that takes, over queries.
            stages: its seconds are those of the stage ``guard``.
            deadline: as `time.perf_counter` counts.
        """
        self.report = GuardReport()
        self._arena = arena
        self._score = score
        self._every = every
        self._tokens = tokens
        self._pace = pace
        self._stages = stages
        self._deadline = deadline
        self._best = math.inf
        self._steps = 0  # at the last score

    @property
    def predicted(self) -> float:
        """Seconds that the next score will take."""
        return self._pace.predict(self._tokens)

    def start(self) -> bool:
        """Score the base weights; False where the deadline leaves no time for that: nothing may be trained then."""
        self.report.kept = 0
        if time.perf_counter() + self.predicted >= self._deadline:
            self.report.reason = "the deadline left no time to score the query before training"
            return False
        self._best = self._scored(0)
        return True

    def check(self, neighbors: int, *, steps: int) -> None:
        """Score the state after so many neighbors and steps, where its turn has come, and keep it if it is the best."""
        if neighbors % self._every == 0:
            self._check(neighbors, steps)

    def finish(self, neighbors: int, *, steps: int) -> None:
        """Score the last state, where that was not done, and use the best one."""
        if steps != self._steps and time.perf_counter() >= self._deadline:
            self.report.reason = "the deadline passed before the last state was scored; it is not used"
        else:
            self._check(neighbors, steps)
        self._arena.use_kept()

    def _check(self, neighbors: int, steps: int) -> None:
        if steps == self._steps:
            return
        self._steps = steps
        value = self._scored(neighbors)
        if value < self._best:
            self._best = value
            self._arena.keep()
            self.report.kept = neighbors

    def _scored(self, neighbors: int) -> float:
        before = self._stages.get("guard", 0.0)
        with self._stages("guard"):
            value = self._score()
        self._pace.saw(self._stages["guard"] - before, self._tokens)
        self.report.scores.append(value)
        self.report.after.append(neighbors)
        return value
