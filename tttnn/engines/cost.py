"""Seconds that a request will take, from what earlier ones took.

Knows amounts and seconds. Does not know requests, queues or clocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

_SEEN = 15
"""Pieces of work that a prediction rests on: their median, which one slow piece does not move."""


@dataclass(frozen=True)
class Work:
    """How much a request asks for, as far as it is known before it is begun."""

    adaptations: int = 0
    neighbors: int = 0
    """That are trained on, of all adaptations together."""
    merges: int = 0
    """Adaptations that merge experts."""
    context_neighbors: int = 0
    """That are read before texts, of all texts together."""
    token_limit: int | None = None
    """Most tokens trained of one neighbor."""
    read_tokens: int = 0
    """Tokens read at once: prompts, scored texts, contexts."""
    new_tokens: int = 0
    """Tokens written one by one, at most."""
    texts: int = 0
    """Texts embedded beside the queries."""


class Costs:
    """What each kind of work costs: the median of its last pieces, 0 before the first."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[float]] = {}

    def saw(self, spent: Mapping[str, tuple[float, float]]) -> None:
        """Take note of work that is done: of each kind the seconds (or whatever it is measured in) and the amount."""
        for kind, (measured, amount) in spent.items():
            if amount > 0:
                self._seen.setdefault(kind, deque(maxlen=_SEEN)).append(measured / amount)

    def each(self, kind: str) -> float:
        """Return the cost of one unit of a kind of work."""
        seen = self._seen.get(kind)
        return median(seen) if seen else 0.0

    def predict(self, work: Work) -> float:
        """Return seconds: embed + tokens x pace + written tokens x pace + restore."""
        per_neighbor = self.each("neighbor_tokens")
        if work.token_limit is not None:
            per_neighbor = min(per_neighbor, work.token_limit)
        return (
            self.each("request")
            + work.adaptations * (self.each("retrieve") + self.each("restore"))
            + work.merges * self.each("merge")
            + work.neighbors * per_neighbor * self.each("train")
            + (work.read_tokens + work.context_neighbors * per_neighbor) * self.each("read")
            + work.new_tokens * self.each("write")
            + work.texts * self.each("embed")
        )
