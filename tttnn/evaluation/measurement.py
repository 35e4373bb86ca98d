"""What a method is: asked with one document, it answers with a point for each number of neighbors.

Knows what is answered. Does not know any one method.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from .case import Case
from .lab import Lab
from .records import Point, UsedExperts, UsedNeighbor


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a method answers for one document.

    `seconds`: by number of neighbors, of the method up to there, without scoring. `stages`: seconds by stage.
    `after`: how the model continues the query at the end, where it is another model and texts are kept.
    """

    points: list[Point]
    seconds: dict[int, float]
    stages: dict[str, float] = field(default_factory=dict)
    neighbors: list[UsedNeighbor] = field(default_factory=list)
    found: int = 0
    stopped_by: str = "neighbors"
    after: str | None = None
    left_out: int = 0
    experts: list[UsedExperts] = field(default_factory=list)


class Method(Protocol):
    """A way to make a document more likely."""

    name: str

    def settings(self, lab: Lab) -> dict[str, Any]:
        """Return what the method's answers depend on, for the record; refuse what cannot work."""

    def measure(self, case: Case) -> Measurement:
        """Measure one document."""
