"""A retriever that looks among what one request allows, and tells what it found before anything is trained on it.

Knows retrievers. Does not know trainers or the pipe.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..retrieval.neighbors import SearchResult
from ..retrieval.retriever import DocumentsById, Retriever, RetrieverInfo
from ..retrieval.where import EVERYTHING, Where
from .failures import Wrong


class HeardRetriever:
    """Stands between a trainer and its retriever."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever
        self.where = EVERYTHING
        """Which documents may be answers to the request that is answered now."""
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
        where: Where | Mapping[str, Any] | None = None,
        with_vectors: bool = False,
    ) -> SearchResult:
        """Search as the retriever does, among the documents that the request allows.

        Raises:
            Wrong: no document has one of the sources.
        """
        if where is None and self.where != EVERYTHING:
            where = self.where
        try:
            result = self._retriever.search(
                query, k, exclude_digests=exclude_digests, where=where, with_vectors=with_vectors
            )
        except ValueError:
            if self.where.sources is None:
                raise
            raise Wrong("tttnn.where.source must name sources that documents have", "tttnn.where.source") from None
        if self.found is not None:
            self.found(result)
        return result

    def describe(self) -> RetrieverInfo:
        """Return what answers depend on."""
        return self._retriever.describe()
