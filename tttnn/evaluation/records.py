"""What was measured of one document under one method: the rows that a file of results holds.

The dataclasses here are its format (`result_file.FORMAT` numbers it). Knows no model and no torch.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Point:
    """A measurement after `k` neighbors (0: none).

    `nats` of the scored text; `query_nats` of the query in the same state, where the method knows it. `trained_tokens`
    were trained on, `context_tokens` of neighbors were read in the context, or counted into a histogram. `extra` holds
    what one method alone has.
    """

    k: int
    nats: float
    query_nats: float | None
    steps: int
    trained_tokens: int
    context_tokens: int
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UsedNeighbor:
    """A receipt: which text a method used, and how many of its tokens. `span`: bytes of the nearest passage."""

    id: int
    digest: str
    distance: float
    tokens: int
    span: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class UsedExperts:
    """A receipt: an expert that a method merged, its weight, and the digest of the documents that it saw."""

    name: str
    weight: float
    members: str


@dataclass(frozen=True, slots=True)
class Line:
    """One document under one method.

    `tokens`, `num_bytes` and `words` are those of the scored text, the same for every method. Where fewer neighbors
    were `found` than a point's `k`, the point is the measurement after those. `left_out` counts near neighbors that
    were not used because they hold scored text (`EvalConfig.max_overlap`). `experts` are those that were merged.
    """

    document: int
    digest: str
    group: str
    method: str
    protocol: str
    tokens: int
    num_bytes: int
    words: int
    query_tokens: int
    query_bytes: int
    found: int
    stopped_by: str
    points: list[Point]
    neighbors: list[UsedNeighbor]
    left_out: int = 0
    experts: list[UsedExperts] = field(default_factory=list)

    def at(self, k: int | None = None) -> Point:
        """Return the point of the largest number of neighbors up to `k`; None: the last."""
        reached = [point for point in self.points if k is None or point.k <= k]
        return reached[-1] if reached else self.points[0]

    def bits_per_byte(self, k: int | None = None) -> float:
        """Return the bits per byte of the scored text after up to `k` neighbors; None: the last point."""
        return self.at(k).nats / math.log(2) / self.num_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON; a point's `extra`, and experts, only where there are some."""
        row = asdict(self)
        if not row["experts"]:
            del row["experts"]
        for point in row["points"]:
            if not point["extra"]:
                del point["extra"]
        return row

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Line:
        """Return the line that `to_dict` gave."""
        points = [Point(**point) for point in row["points"]]
        neighbors = [
            UsedNeighbor(**neighbor | {"span": None if neighbor["span"] is None else tuple(neighbor["span"])})
            for neighbor in row["neighbors"]
        ]
        if not points:
            raise ValueError("points must not be empty, got []")
        experts = [UsedExperts(**expert) for expert in row.get("experts", [])]
        return cls(**row | {"points": points, "neighbors": neighbors, "experts": experts})


TOO_LITTLE = "too little text"
"""Why most documents that are not measured are not: the protocol needs more."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A document that was not measured, and why: it has too little text for the protocol, or a method failed on it."""

    document: int
    digest: str
    group: str
    reason: str = TOO_LITTLE


@dataclass(frozen=True, slots=True)
class Seconds:
    """What one document cost under one method.

    `seconds` by stage; `points`: seconds of the method up to k neighbors, retrieval included, scoring not.
    """

    document: int
    method: str
    seconds: dict[str, float]
    points: dict[int, float]

    def at(self, k: int | None = None) -> float:
        """Return the seconds up to `k` neighbors; None: all of them."""
        reached = [value for at, value in sorted(self.points.items()) if k is None or at <= k]
        return reached[-1] if reached else 0.0


@dataclass(frozen=True, slots=True)
class Texts:
    """What one document looked like, kept only where asked for. `neighbors`: pairs of id and excerpt."""

    document: int
    method: str
    query: str
    scored: str
    neighbors: list[tuple[int, str]]
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Measured:
    """All of one document: a line for each method, or why there is none, and what goes beside them."""

    skipped: Skipped | None
    lines: list[Line]
    seconds: list[Seconds]
    texts: list[Texts]

    @property
    def position(self) -> int:
        """The document's position."""
        return self.skipped.document if self.skipped is not None else self.lines[0].document

    @property
    def digest(self) -> str:
        """The document's digest."""
        return self.skipped.digest if self.skipped is not None else self.lines[0].digest
