"""What a search gives: neighbors, nearest first, what it cost, and how it was made.

Knows documents and distances; does not know where they come from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..store.document import text_digest


@dataclass(frozen=True, slots=True)
class Neighbor:
    """A document near a query."""

    id: int
    distance: float
    text: str
    meta: dict[str, Any] = field(default_factory=dict)
    source: str | None = None
    span: tuple[int, int] | None = None
    """Bytes of the text's UTF-8 that are nearest; None where documents are embedded whole."""
    digest: str = ""
    """Of the text; made from it when empty."""

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", text_digest(self.text))


@dataclass
class SearchExplanation:
    """How one query was answered."""

    segments: int = 0
    """Segments that were searched."""
    vectors: int = 0
    """Vectors in them, deleted ones included."""
    deleted: int = 0
    """Documents in them that are deleted and so were no answers."""
    filtered: int = 0
    """Documents that the filter by source left out."""
    excluded: int = 0
    """Documents that were found and left out by their digest."""
    ef: int = 0
    """Width of the last, widest walk through a graph; 0 where every vector was compared."""
    rounds: int = 0
    """Searches until k documents were found or all were seen; each is four times as wide as the one before."""
    walked: int = 0
    """Graphs walked, over all rounds."""
    scanned: int = 0
    """Times that all allowed vectors of a segment were compared instead, because it was less work or the graph did
    not reach k of them."""
    distances: int = 0
    """Distances computed, over all rounds."""
    recall: float | None = None
    """Share of the true nearest documents, by exact search of the same query, that the answer holds."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class SearchResult(list[Neighbor]):
    """Neighbors, nearest first, with what the search cost."""

    def __init__(
        self,
        neighbors: Iterable[Neighbor] = (),
        *,
        seconds: dict[str, float] | None = None,
        requested: int = 0,
        query_tokens: int = 0,
        query_truncated: bool = False,
    ) -> None:
        super().__init__(neighbors)
        self.seconds = seconds if seconds is not None else {}
        """Of the stages embed, search and read; of several queries each has its share."""
        self.requested = requested
        self.query_tokens = query_tokens
        """Tokens of the query that were embedded."""
        self.query_truncated = query_truncated
        """Whether the query was longer than the embedder reads."""
        self.left_out: dict[str, int] = {}
        """Documents that a selection left out, by reason."""
        self.query_vector: NDArray[np.float32] | None = None
        """(dim,), where vectors were asked for."""
        self.vectors: NDArray[np.float32] | None = None
        """(n, dim), of each neighbor the vector that was nearest, where vectors were asked for."""
        self.explanation: SearchExplanation | None = None
        """Where one was asked for."""
