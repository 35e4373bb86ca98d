"""Seconds of the stages of some work, taken by a `with` block each.

Knows a clock and names. Does not know what the work is.
"""

from __future__ import annotations

import time
from types import TracebackType


class Stages(dict[str, float]):
    """Seconds by stage, in the order in which stages were first entered; a stage that comes again adds up.

    A stage inside of another counts for itself alone: the outer one does not have its seconds too. For one thread.

    >>> stages = Stages()
    >>> with stages("train"):
    ...     with stages("tokenize"):
    ...         pass
    >>> list(stages)
    ['train', 'tokenize']
    """

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        super().__init__(seconds or {})
        self._open: list[str] = []
        self._since = 0.0

    def __call__(self, name: str) -> _Stage:
        """Return a context manager that adds the seconds of its block to a stage."""
        return _Stage(self, name)

    def enter(self, name: str) -> None:
        """Begin a stage; the one around it stands still meanwhile."""
        self.setdefault(name, 0.0)
        self._turn()
        self._open.append(name)

    def leave(self, name: str) -> None:
        """End a stage, and what was begun inside of it and never ended."""
        self._turn()
        if name in self._open:
            del self._open[len(self._open) - 1 - self._open[::-1].index(name) :]

    def add(self, seconds: dict[str, float]) -> None:
        """Add seconds that were taken elsewhere, by stage."""
        for name, value in seconds.items():
            self[name] = self.get(name, 0.0) + value

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._open:
            self[self._open[-1]] += now - self._since
        self._since = now


class _Stage:
    def __init__(self, stages: Stages, name: str) -> None:
        self._stages = stages
        self._name = name

    def __enter__(self) -> None:
        self._stages.enter(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stages.leave(self._name)
