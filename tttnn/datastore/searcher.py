"""The documents near a query vector: the answers of all segments joined, read, and explained.

Knows segments and vectors; does not know how a text becomes a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..retrieval.neighbors import Neighbor, SearchExplanation
from ..retrieval.where import EVERYTHING, Where
from .index import SearchWork
from .segment import Segment

_PASSAGES_PER_DOCUMENT = 4  # searched for each document asked for, at first


class Hit(NamedTuple):
    """A document that was found, and the unit of it that was nearest."""

    document: int
    distance: float
    segment: int
    unit: int


class Searcher:
    """Searches a fixed list of segments; immutable, so any number of threads may share it."""

    def __init__(self, segments: Sequence[Segment], *, unit: str, dim: int) -> None:
        self.segments = tuple(segments)
        self.dim = dim
        self._joins = unit != "document"
        self._vectors = sum(len(segment.index) for segment in segments)

    def check_files(self) -> None:
        """Refuse to search where a file was cut short; see `Segment.check_files`."""
        for segment in self.segments:
            segment.check_files()

    @cached_property
    def sources(self) -> frozenset[str]:
        """The sources of all documents that are not deleted."""
        return frozenset(name for segment in self.segments for name in segment.sources)

    def nearest(
        self,
        vectors: NDArray[np.float32],
        k: int,
        *,
        ef: int | None = None,
        where: Where = EVERYTHING,
        explain: SearchExplanation | None = None,
        exact: bool = False,
    ) -> list[list[Hit]]:
        """Return the k nearest documents of each vector, each once, at the distance of its nearest unit.

        Where joining passages leaves fewer than k documents, the search is repeated four times as wide, until there
        are k or every unit that may be an answer was seen.

        Args:
            vectors: (n, dim).
            k: Documents for each.
            ef: Width of the walk; None for the index's own. At least as many as are searched for.
            where: Which documents may be answers.
            explain: What was done is added to it.
            exact: Compare with every vector.
        """
        allowed = [segment.allowed_units(where) for segment in self.segments]
        width = min(self._vectors, k * _PASSAGES_PER_DOCUMENT if self._joins else k)
        results: list[list[Hit]] = [[] for _ in vectors]
        pending = np.arange(len(vectors))
        while len(pending) and self.segments:
            work = SearchWork()
            parts = [
                segment.index.search(
                    vectors[pending], width, ef=ef, where=mask, method="scan" if exact else "auto", work=work
                )
                for segment, mask in zip(self.segments, allowed, strict=True)
            ]
            if explain is not None:
                explain.rounds += 1
                explain.ef = max(explain.ef, work.ef)
                explain.walked += work.walked
                explain.scanned += work.scanned
                explain.distances += work.distances
            short = []
            for row, query in enumerate(pending.tolist()):
                hits, exhausted = self._join([(ids[row], distances[row]) for ids, distances in parts], width)
                results[query] = hits[:k]
                if len(hits) < k and not exhausted and width < self._vectors:
                    short.append(query)
            pending = np.array(short, np.int64)
            width = min(self._vectors, 4 * width)
        return results

    def _join(self, parts: list[tuple[NDArray[np.int64], NDArray[np.float32]]], width: int) -> tuple[list[Hit], bool]:
        """Merge the segments' answers into distinct documents; say whether there is nothing more to find."""
        candidates: list[tuple[float, int, int, int]] = []
        for number, (ids, distances) in enumerate(parts):
            units = ids[ids >= 0]
            documents = self.segments[number].documents_of(units)
            candidates += zip(
                distances[: len(units)].tolist(), [number] * len(units), units.tolist(), documents.tolist(), strict=True
            )
        candidates.sort()
        seen: dict[int, Hit] = {}
        # Beyond the width a segment's answer may lack units that another's has room for.
        for distance, number, unit, document in candidates[:width]:
            if document not in seen:
                seen[document] = Hit(document, distance, number, unit)
        return list(seen.values()), len(candidates) < width

    def read(self, hits: Sequence[Hit]) -> list[Neighbor]:
        """Read the texts of what was found."""
        neighbors: list[Neighbor | None] = [None] * len(hits)
        for number, segment in enumerate(self.segments):
            rows = [row for row, f in enumerate(hits) if f.segment == number]
            if not rows:
                continue
            positions = segment.positions_of(np.array([hits[row].document for row in rows], np.int64))
            for row, document in zip(rows, segment.store.read_many(positions), strict=True):
                f = hits[row]
                neighbors[row] = Neighbor(
                    f.document, f.distance, document.text, document.meta, document.source, segment.span_of(f.unit)
                )
        return [neighbor for neighbor in neighbors if neighbor is not None]

    def vectors_of(self, hits: Sequence[Hit]) -> NDArray[np.float32]:
        """Return the vectors of the units that were nearest, (n, dim)."""
        out = np.empty((len(hits), self.dim), np.float32)
        for number, segment in enumerate(self.segments):
            rows = [row for row, f in enumerate(hits) if f.segment == number]
            out[rows] = segment.index.vectors([hits[row].unit for row in rows])
        return out

    def explained(self, where: Where = EVERYTHING) -> SearchExplanation:
        """Return an explanation that holds what is the same for every query with this filter."""
        explanation = SearchExplanation(segments=len(self.segments), vectors=self._vectors)
        for segment in self.segments:
            live = np.ones(len(segment.store), np.bool_) if segment.deleted is None else ~segment.deleted
            explanation.deleted += int((~live).sum())
            documents = segment.documents_where(where)
            if documents is not None:
                explanation.filtered += int((live & ~documents).sum())
        return explanation

    def recall(
        self,
        vector: NDArray[np.float32],
        hits: Sequence[Hit],
        *,
        where: Where = EVERYTHING,
    ) -> float:
        """Return the share of the true nearest documents of a vector (dim,) that an answer holds.

        By distances, not by ids: of several documents at one distance any may be the answer.
        """
        true = self.nearest(vector[None], max(1, len(hits)), where=where, exact=True)[0]
        if not true:
            return 1.0
        return sum(f.distance <= true[-1].distance for f in hits) / len(true)
