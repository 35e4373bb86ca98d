"""One search from its texts to its result: embed, search, leave out, read, and say what each part took.

Knows a searcher and an embedder. Does not know directories, writers or where the segments came from.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..embedding.embed_report import EmbedReport
from ..retrieval.neighbors import SearchExplanation, SearchResult
from ..retrieval.where import Where
from .searcher import Hit, Searcher

if TYPE_CHECKING:
    from ..embedding.embedder import Embedder


def required(queries: Sequence[str], k: int) -> int:
    """Return how many neighbors are wanted, as a plain int.

    Raises:
        TypeError: A query is no text, or k no whole number.
        ValueError: A query has no words, or k is less than 1.
    """
    for query in queries:
        if not isinstance(query, str):
            raise TypeError(f"query must be a text, got {type(query).__name__}")
        if not query.strip():
            raise ValueError(f"query must hold some text, got {query!r}")
    if not hasattr(k, "__index__"):
        raise TypeError(f"k must be a whole number, got {k!r}")
    k = operator.index(k)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return k


def answer_queries(
    searcher: Searcher,
    embedder: Embedder,
    queries: Sequence[str],
    k: int,
    *,
    exclude_digests: Collection[str],
    where: Where,
    ef: int | None,
    with_vectors: bool,
    explain: bool,
) -> list[SearchResult]:
    """Find the k documents nearest to each text; see `Datastore.search`."""
    excluded = set(exclude_digests)
    reports = [EmbedReport() for _ in queries]
    started = time.perf_counter()
    # One by one: the answer to a query does not depend on the queries beside it, to the last bit.
    vectors = np.concatenate(
        [np.zeros((0, embedder.dim), np.float32)]
        + [embedder.embed([query], report=report) for query, report in zip(queries, reports, strict=True)]
    )
    embedded = time.perf_counter()
    explanations = [searcher.explained(where) if explain else None for _ in queries]
    # Explained queries are searched one by one, so that each knows its own work.
    groups = [slice(i, i + 1) for i in range(len(queries))] if explain else [slice(0, len(queries))]
    wanted = k + len(excluded)
    lists = [
        nearest
        for i, group in enumerate(groups)
        for nearest in searcher.nearest(
            vectors[group], wanted, ef=ef, where=where, explain=explanations[i] if explain else None
        )
    ]
    share = max(1, len(queries))
    seconds = {"embed": (embedded - started) / share, "search": (time.perf_counter() - embedded) / share}
    results = []
    for i, (nearest, report, explanation) in enumerate(zip(lists, reports, explanations, strict=True)):
        query = _Query(searcher, vectors[i], k, excluded, where, ef, explanation)
        results.append(query.answered(nearest, seconds, report, with_vectors=with_vectors))
    return results


class _Query:
    """One query with its vector and what may answer it."""

    def __init__(
        self,
        searcher: Searcher,
        vector: NDArray[np.float32],
        k: int,
        excluded: set[str],
        where: Where,
        ef: int | None,
        explanation: SearchExplanation | None,
    ) -> None:
        self._searcher = searcher
        self._vector = vector
        self._k = k
        self._excluded = excluded
        self._where = where
        self._ef = ef
        self._explanation = explanation

    def answered(
        self, nearest: Sequence[Hit], seconds: dict[str, float], report: EmbedReport, *, with_vectors: bool
    ) -> SearchResult:
        """Read what was found, search wider where too much of it is left out, and make the result."""
        reading = time.perf_counter()
        searcher, excluded, k = self._searcher, self._excluded, self._k
        neighbors = searcher.read(nearest)
        wanted = k + len(excluded)
        while sum(n.digest not in excluded for n in neighbors) < k and len(nearest) >= wanted:
            # More than one document has an excluded text.
            wanted *= 2
            nearest = searcher.nearest(
                self._vector[None], wanted, ef=self._ef, where=self._where, explain=self._explanation
            )[0]
            neighbors = searcher.read(nearest)
        kept = [i for i, n in enumerate(neighbors) if n.digest not in excluded][:k]
        left_out = sum(n.digest in excluded for n in neighbors)
        seconds = {**seconds, "read": time.perf_counter() - reading}
        if self._explanation is not None:
            self._explanation.excluded = left_out
            self._explanation.recall = searcher.recall(self._vector, nearest, where=self._where)
        return SearchResult(
            tuple(neighbors[i] for i in kept),
            seconds,
            requested=k,
            query_tokens=report.tokens,
            query_truncated=report.truncated > 0,
            excluded=left_out,
            query_vector=self._vector if with_vectors else None,
            vectors=searcher.vectors_of([nearest[i] for i in kept]) if with_vectors else None,
            explanation=self._explanation,
        )
