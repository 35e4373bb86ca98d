"""What a trainer asks for neighbors: a datastore, a selection before it, a cluster, a fake.

Knows queries and answers; does not know how they are found.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..config import SelectionConfig
from ..errors import ConfigError
from ..store.document import Document
from .neighbors import SearchResult
from .where import Where


@dataclass(frozen=True, slots=True)
class RetrieverInfo:
    """What answers depend on, for reports and the heads of result files."""

    id: str | None = None
    """The id of the documents; changes whenever they do. None where there are no documents, or none is known."""
    embedder: str | None = None
    """The name of what makes the vectors of queries."""
    selection: SelectionConfig | None = None
    """How neighbors are chosen among the nearest; None where the nearest are taken."""
    gives_vectors: bool = False
    """Whether `with_vectors` gives vectors, which a selection compares."""
    partial: bool = False
    """Whether an answer may lack documents, because shards that did not answer are passed over."""


class DocumentsById(Protocol):
    """Documents, read by id."""

    def __getitem__(self, index: int, /) -> Document:
        """Return one document; an IndexError where there is none of this id."""


class Retriever(Protocol):
    """Anything that finds neighbors: a datastore, a selection before it, a cluster, a fake."""

    @property
    def documents(self) -> DocumentsById:
        """The documents that answers are taken from, by `Neighbor.id`."""

    def search(
        self,
        query: str,
        k: int,
        *,
        exclude_digests: Collection[str] = (),
        where: Where | Mapping[str, Any] | None = None,
        with_vectors: bool = False,
    ) -> SearchResult:
        """Return at most `k` documents, nearest first.

        Args:
            query: The text.
            k: Documents wanted, at least 1.
            exclude_digests: Texts that are left out (`Neighbor.digest`); others come in their place.
            where: Which documents may be answers, as in ``{"source": ["Github"]}``; see `Where`.
            with_vectors: Give the result `query_vector` and `vectors`, where `describe` says that there are any.
        """

    def describe(self) -> RetrieverInfo:
        """Return what answers depend on."""


def described(retriever: Retriever | None) -> RetrieverInfo:
    """Return what a retriever says of itself; of none, nothing."""
    return RetrieverInfo() if retriever is None else retriever.describe()


def require_full(retriever: Retriever | None, what: str) -> None:
    """Refuse a retriever whose answers may be partial, for work whose result would silently depend on it.

    Raises:
        ConfigError: They may be.
    """
    if described(retriever).partial:
        raise ConfigError(f"on_missing_shard must be error for {what}, which needs every document, got partial")
