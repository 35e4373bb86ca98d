"""What a search gives: neighbors, nearest first, what it cost, and how it was made.

Knows documents and distances; does not know where they come from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..store.document import excerpt, text_digest
from .coverage import Coverage

_SHOWN = 10  # neighbors in the repr of an answer


@dataclass(frozen=True, slots=True, repr=False)
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
    """Digest of the text; computed from it when empty."""

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", text_digest(self.text))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, the whole text among them."""
        return asdict(self)

    def __repr__(self) -> str:
        source = "" if self.source is None else f", source={excerpt(self.source)}"
        return f"Neighbor(id={self.id}, distance={self.distance:.4f}{source}, text={excerpt(self.text)})"


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
    """Documents that the filter left out."""
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


@dataclass(frozen=True, eq=False, repr=False)
class SearchResult(Sequence[Neighbor]):
    """The neighbors of one query, nearest first, with what the search cost: a sequence that does not change.

    Equal to another answer, or to a list or tuple, with the same neighbors, whatever it cost. A slice is a list.

    >>> found = SearchResult((Neighbor(17, 0.25, "def quicksort(items): ..."),), requested=1)
    >>> len(found), found[0].id, found == list(found)
    (1, 17, True)
    """

    neighbors: tuple[Neighbor, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of the stages embed, search and read; of several queries each has its share."""
    requested: int = 0
    """Documents that were asked for."""
    query_tokens: int = 0
    """Tokens of the query that were embedded."""
    query_truncated: bool = False
    """Whether the query was longer than the embedder reads."""
    excluded: int = 0
    """Documents that were found and left out by their digest."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Documents that a selection left out, by reason."""
    query_vector: NDArray[np.float32] | None = None
    """(dim,), where vectors were asked for."""
    vectors: NDArray[np.float32] | None = None
    """(n, dim), of each neighbor the vector that was nearest, where vectors were asked for."""
    explanation: SearchExplanation | None = None
    """How the answer came about, where that was asked for."""
    coverage: Coverage | None = None
    """What share of a cluster was searched; None where there are no shards."""

    __hash__ = None  # type: ignore[assignment]  # metadata are dictionaries

    def __len__(self) -> int:
        return len(self.neighbors)

    def __iter__(self) -> Iterator[Neighbor]:
        return iter(self.neighbors)

    @overload
    def __getitem__(self, index: int) -> Neighbor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Neighbor]: ...
    def __getitem__(self, index: int | slice) -> Neighbor | list[Neighbor]:
        return list(self.neighbors[index]) if isinstance(index, slice) else self.neighbors[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SearchResult | list | tuple):
            return self.neighbors == tuple(other)
        return NotImplemented

    def replace(self, **changes: Any) -> SearchResult:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON where the neighbors' metadata are; vectors are left out."""
        return {
            "neighbors": [neighbor.to_dict() for neighbor in self.neighbors],
            "seconds": dict(self.seconds),
            "requested": self.requested,
            "query_tokens": self.query_tokens,
            "query_truncated": self.query_truncated,
            "excluded": self.excluded,
            "left_out": dict(self.left_out),
            "explanation": None if self.explanation is None else self.explanation.to_dict(),
            "coverage": None if self.coverage is None else self.coverage.to_dict(),
        }

    def __repr__(self) -> str:
        lines = [f"  {neighbor!r}," for neighbor in self.neighbors[:_SHOWN]]
        if len(self) > _SHOWN:
            lines.append(f"  ... {len(self) - _SHOWN} more,")
        body = "\n" + "\n".join(lines) + "\n" if lines else ""
        return f"SearchResult({len(self)} of {self.requested} neighbors: [{body}])"

    def _repr_html_(self) -> str:
        """Return a table, as notebooks show it."""
        head = "".join(f"<th>{name}</th>" for name in ("", "distance", "id", "source", "text"))
        rows = []
        for rank, neighbor in enumerate(self.neighbors, 1):
            cells = (rank, f"{neighbor.distance:.4f}", neighbor.id, neighbor.source or "", excerpt(neighbor.text))
            rows.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
        milliseconds = 1000 * sum(self.seconds.values())
        caption = f"{len(self)} of {self.requested} neighbors, {milliseconds:.1f} ms"
        return f"<table><caption>{caption}</caption><tr>{head}</tr>{''.join(rows)}</table>"
