"""A retriever that looks for one request's sources, and tells what it found before anything is trained on it.

Knows retrievers. Does not know trainers or the pipe.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from ..retrieval.neighbors import SearchResult
from ..retrieval.retriever import DocumentsById, Retriever, RetrieverInfo
from ..retrieval.where import Where
from .failures import Wrong


class HeardRetriever:
    """Stands between a trainer and its retriever."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever
        self.sources: Collection[str] = ()
        """Of the request that is answered now; empty: all."""
        self.found: Callable[[SearchResult], None] | None = None
        """Called with each result."""

    @property
    def documents(self) -> DocumentsById:
        """The documents that answers are taken from."""
        return self._retriever.documents

    def search(
        self,
        query: str,
        k: int,
        *,
        exclude_digests: Collection[str] = (),
        where: Where | Mapping[str, str | Collection[str]] | None = None,
        with_vectors: bool = False,
    ) -> SearchResult:
        """Search as the retriever does, among the request's sources.

        Raises:
            Wrong: no document has one of the sources.
        """
        if where is None and self.sources:
            where = Where(frozenset(self.sources))
        try:
            result = self._retriever.search(
                query, k, exclude_digests=exclude_digests, where=where, with_vectors=with_vectors
            )
        except ValueError:
            if not self.sources:
                raise
            raise Wrong("tttnn.where.source must name sources that documents have", "tttnn.where.source") from None
        if self.found is not None:
            self.found(result)
        return result

    def describe(self) -> RetrieverInfo:
        """Return what answers depend on."""
        return self._retriever.describe()
