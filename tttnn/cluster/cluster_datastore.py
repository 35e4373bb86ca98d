"""ClusterDatastore: the shards of a cluster, searched as one datastore.

Knows embedders, the state of the cluster and its documents by id. Does not know how answers are merged, nor where
shards run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..config import ClusterConfig, EmbedConfig
from ..datastore.answer import required
from ..embedding.embed_report import EmbedReport
from ..embedding.identity import settings_of
from ..errors import ClusterError, DatastoreMismatchError
from ..retrieval.neighbors import SearchResult
from ..retrieval.retriever import RetrieverInfo
from ..retrieval.where import Where, where_of
from ..store.document import Document
from .document_id import DocumentId
from .gathering import Carrier, gather
from .local_shards import LocalShards
from .manifest import CLUSTER, ClusterManifest, delete_from, open_cluster
from .search import ClusterSearch

if TYPE_CHECKING:
    from ..embedding.embedder import Embedder


class Shards(Carrier, Protocol):
    """A carrier that follows the changes of a cluster."""

    def update(self, manifest: ClusterManifest) -> None:
        """Take over another state of the cluster."""

    def close(self) -> None:
        """Let go of the shards."""


class ClusterDatastore:
    """Documents in shards, searched as one datastore. A trainer takes it in the place of one.

    >>> cluster = ClusterDatastore.open("pile")                        # doctest: +SKIP
    >>> cluster.search("def quicksort(", k=3).coverage.full            # doctest: +SKIP
    True
    """

    def __init__(
        self, place: Path, shards: Shards, manifest: ClusterManifest, config: ClusterConfig, *, name: str | None = None
    ) -> None:
        self.path = place
        self.name = name
        """Of the running cluster it is connected to; None where the shards are open in this process."""
        self.config = config
        """How long a search waits, and what happens when a shard is missing."""
        self.manifest = manifest
        self._shards = shards
        self._seen = _stamp(place)
        self._embedder: Embedder | None = None
        self._searches = 0
        self._closed = False

    @classmethod
    def open(
        cls, place: str | os.PathLike[str], embedder: Embedder | None = None, *, config: ClusterConfig | None = None
    ) -> ClusterDatastore:
        """Open all shards of a cluster in this process.

        Args:
            place: The cluster's directory.
            embedder: As of `Datastore.open`.
            config: Deadlines, and what happens when a shard is missing.

        Raises:
            FileNotFoundError: There is no cluster, or a shard is not there.
            DatastoreMismatchError: A shard is in another state than the cluster names, or the embedder is another.
            IndexCorruptError: A manifest, or a file of a shard, is damaged.
            StoreCorruptError: The texts of a shard are.
        """
        path, config = Path(place).absolute(), config or ClusterConfig()
        manifest = open_cluster(path)
        shards = LocalShards(path, manifest, partial=config.on_missing_shard == "partial")
        opened = cls(path, shards, manifest, config)
        return opened if embedder is None else opened.attach(embedder)

    @classmethod
    def connect(
        cls,
        name: str,
        embedder: Embedder | None = None,
        *,
        address: str = "auto",
        config: ClusterConfig | None = None,
    ) -> ClusterDatastore:
        """Connect to a cluster that runs on Ray (`tttnn cluster start`).

        Args:
            name: What it was called when it was started.
            embedder: As of `Datastore.open`. It is this process that embeds queries.
            address: Of Ray; ``auto``: of the one that runs on this machine.
            config: As of `open`.

        Raises:
            ClusterError: No such cluster runs, or no Ray.
            MissingExtraError: Ray is not installed.
            FileNotFoundError: The cluster's directory cannot be read here.
        """
        from .ray_shards import RayShards
        from .running import running_cluster

        facts = running_cluster(name, address=address)
        path = Path(facts["place"])
        manifest = open_cluster(path)
        shards = RayShards(name, path, facts["replicas"])
        opened = cls(path, shards, manifest, config or ClusterConfig(), name=name)
        return opened if embedder is None else opened.attach(embedder)

    def refresh(self) -> bool:
        """Take over what was added, replaced or deleted since; say whether there was anything. Searches do so."""
        if self._closed:
            raise ValueError(f"{self.path}: the cluster is closed. Open it again.")
        seen = _stamp(self.path)
        if seen is None or seen == self._seen:
            return False
        manifest = open_cluster(self.path)
        before = self.manifest
        if (manifest.unit, manifest.dim, manifest.embedder) != (before.unit, before.dim, before.embedder):
            raise DatastoreMismatchError(
                f"{self.path}: another cluster was put in its place since it was opened. Open it again."
            )
        self._shards.update(manifest)
        self.manifest, self._seen = manifest, seen
        return manifest.id != before.id

    @property
    def id(self) -> str:
        """The digest of the shards' ids: changes whenever a document does."""
        return self.manifest.id

    def __len__(self) -> int:
        """The number of documents that are not deleted."""
        return self.manifest.documents

    @property
    def foreign(self) -> bool:
        """Whether the vectors were imported; see `Datastore.foreign`."""
        return self.manifest.embedder.foreign

    @property
    def embedder_name(self) -> str:
        """The name of the embedder that the shards were built with."""
        return self.manifest.embedder.name

    @property
    def embed_config(self) -> EmbedConfig:
        """Settings with which `Embedder.load` makes that embedder.

        Raises:
            DatastoreMismatchError: The vectors were imported; nothing is known of their embedder.
        """
        self._refuse_foreign()
        return settings_of(self.manifest.embedder.identity, self.manifest.embed)

    def _refuse_foreign(self) -> None:
        self.manifest.embedder.require_known(self.path, self.manifest.dim, "query vectors")

    def attach(self, embedder: Embedder) -> ClusterDatastore:
        """Search with this embedder from now on; return this object.

        Raises:
            DatastoreMismatchError: It is another than the shards were built with.
        """
        self.manifest.embedder.require_same(f"{self.path}: its shards were", embedder.name, embedder.identity)
        self._embedder = embedder
        return self

    @property
    def embedder(self) -> Embedder:
        """The embedder; loaded by its name if none was given.

        Raises:
            DatastoreMismatchError: None was given and the vectors were imported.
        """
        if self._embedder is None:
            from ..embedding.embedder import Embedder

            self.attach(Embedder.load(self.embedder_name, self.embed_config))
        assert self._embedder is not None
        return self._embedder

    def describe(self) -> RetrieverInfo:
        """Return its id and the name of its embedder. Vectors stay where they are, so it gives none."""
        self.refresh()
        name = self._embedder.name if self.foreign and self._embedder is not None else self.embedder_name
        return RetrieverInfo(self.id, name, partial=self.config.on_missing_shard == "partial")

    @property
    def documents(self) -> ClusterDocuments:
        """The documents by id, read from the shards that own them."""
        return ClusterDocuments(self)

    def delete(self, ids: Collection[int]) -> int:
        """Delete documents by id from the shards that own them; return how many there were. Searches go on.

        Raises:
            IndexError: There is no such shard, or an id was never given in it.
            DatastoreMismatchError: A shard is in another state than the cluster names.
            DatastoreLockedError: Another process changes the cluster or the shard.
        """
        deleted = delete_from(self.path, [DocumentId(i) for i in ids])
        self.refresh()
        return deleted

    def search(
        self,
        query: str,
        k: int,
        *,
        exclude_digests: Collection[str] = (),
        where: Where | Mapping[str, Any] | None = None,
        source: str | Collection[str] | None = None,
        ef: int | None = None,
        with_vectors: bool = False,
        explain: bool = False,
    ) -> SearchResult:
        """Find the k documents nearest to a text in all shards, nearest first; ties by id.

        The result's `coverage` says what was searched.

        Args:
            query: The text; the embedder reads its first `max_length` tokens.
            k: Documents wanted, at least 1.
            exclude_digests: Texts that are left out; others come in their place.
            where: Which documents may be answers; as of `Datastore.search`.
            source: Short for ``where={"source": source}``.
            ef: Width of the graph search in each shard; None for the index's own.
            with_vectors: Must be False: vectors stay in their shards.
            explain: Must be False.

        Raises:
            ValueError: The query is empty, k is less than 1, no document has a source that was named, or vectors or an
                explanation are asked for.
            ClusterError: A shard gave no answer and `on_missing_shard` is "error", or less than `min_coverage` of the
                documents was searched.
        """
        k = required([query], k)
        filtered = where_of(where, source)
        for name, asked in (("with_vectors", with_vectors), ("explain", explain)):
            if asked:
                raise ValueError(f"{name} must be off for a cluster, whose vectors stay in their shards, got on")
        self.refresh()
        started = time.perf_counter()
        report = EmbedReport()
        vector = self.embedder.embed([query], report=report)[0]
        embedded = time.perf_counter() - started
        while True:
            try:
                found = self._found(vector, k, set(exclude_digests), ef, filtered)
            except ClusterError:
                if not self.refresh():
                    raise
                continue  # a shard was changed while it was asked
            if (found.coverage is not None and found.coverage.full) or not self.refresh():
                break
        return found.replace(
            seconds={"embed": embedded, **found.seconds},
            query_tokens=report.tokens,
            query_truncated=report.truncated > 0,
        )

    def _found(
        self, vector: NDArray[np.float32], k: int, excluded: set[str], ef: int | None, where: Where
    ) -> SearchResult:
        """Search in the state as it is known, by the vector (dim,) of a query."""
        self._searches += 1
        search = ClusterSearch(self.path, self.manifest, self._shards, self.config, vector, ef, where, self._searches)
        wanted = k + len(excluded)
        while True:
            neighbors, complete = search.nearest(wanted)
            kept = [n for n in neighbors if n.digest not in excluded]
            if len(kept) >= k or complete:
                break
            wanted *= 2  # more than one document has an excluded text
        return SearchResult(
            tuple(kept[:k]),
            search.seconds,
            requested=k,
            excluded=len(neighbors) - len(kept),
            coverage=search.coverage(),
        )

    def info(self) -> dict[str, Any]:
        """Describe the cluster: its id, documents, unit, embedder and shards."""
        return {
            "path": str(self.path),
            "id": self.id,
            "documents": len(self),
            "unit": self.manifest.unit,
            "dim": self.manifest.dim,
            "embedder": self.manifest.embedder.to_dict(),
            "shards": [
                {"shard": n, "path": s.path, "id": s.id, "documents": s.documents, "version": s.version}
                for n, s in enumerate(self.manifest.shards)
            ],
        }

    def read_document(self, index: int) -> Document:
        """Return one document.

        Raises:
            IndexError: There is none of this id.
            ClusterError: Its shard gave no answer.
        """
        self.refresh()
        wanted = DocumentId(index)
        if index < 0 or wanted.shard >= len(self.manifest.shards):
            raise IndexError(f"document id must be in one of {len(self.manifest.shards)} shards, got {index}")
        deadline = time.monotonic() + self.config.shard_deadline_seconds
        state = self.manifest.shards[wanted.shard].id
        gathered = gather(
            self._shards,
            "document",
            {wanted.shard: (state, wanted.local)},
            deadline=deadline,
            retry_seconds=self.config.shard_retry_seconds,
        )
        if wanted.shard not in gathered.answers:
            reason = gathered.failures[-1].reason
            raise ClusterError(f"{self.path}: {self.manifest.name_of(wanted.shard)} gave no answer: {reason}")
        document: Document | None = gathered.answers[wanted.shard]
        if document is None:
            raise IndexError(f"document id must be of a document that is there, got {wanted}")
        return document

    def close(self) -> None:
        """Let go of the shards; searching is a ValueError from then on."""
        self._closed = True
        self._shards.close()

    def __enter__(self) -> ClusterDatastore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., ClusterDatastore], tuple[str, str | None, ClusterConfig, Any]]:
        """Pickle the place, or the name, alone; see `Datastore.__reduce__`."""
        named = (self._embedder.name, self._embedder.config) if self.foreign and self._embedder is not None else None
        return _unpickled, (str(self.path), self.name, self.config, named)

    def __repr__(self) -> str:
        return f"ClusterDatastore({str(self.path)!r}, {len(self.manifest.shards)} shards, {len(self)} documents)"


class ClusterDocuments:
    """The documents of a cluster by id."""

    def __init__(self, cluster: ClusterDatastore) -> None:
        self._cluster = cluster

    def __getitem__(self, index: int, /) -> Document:
        return self._cluster.read_document(index)


def _stamp(place: Path) -> tuple[int, ...] | None:
    """Return what tells one manifest file from the next; None where there is none now."""
    try:
        status = os.stat(place / CLUSTER)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _unpickled(
    place: str, name: str | None, config: ClusterConfig, embedder: tuple[str, EmbedConfig | None] | None
) -> ClusterDatastore:
    from ..embedding.embedder import Embedder

    opened = (
        ClusterDatastore.open(place, config=config) if name is None else ClusterDatastore.connect(name, config=config)
    )
    return opened if embedder is None else opened.attach(Embedder.load(*embedder))
