"""Datastore: one directory of texts, passages and vectors, searched by text.

The only file that knows store, index and embedder at once. A file of another datastore, a damaged one and an embedder
other than the one it was built with are refused by name; they never answer a search.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..config import CorpusConfig, DatastoreConfig, EmbedConfig, IndexConfig, IndexVectors, Progress, StoreConfig
from ..embedding.identity import settings_of
from ..errors import DatastoreMismatchError
from ..retrieval.neighbors import SearchResult
from ..retrieval.retriever import RetrieverInfo
from ..retrieval.where import Where, check_sources, where_of
from ..store.document import Document
from .answer import answer_queries, required
from .build_report import BuildReport
from .builder import Builder
from .compaction import CompactReport, compact_datastore, delete_documents, discard_append
from .corpus_documents import Corpus
from .description import described
from .documents import Documents
from .faiss_import import FlatFiles
from .manifest import MANIFEST, Manifest
from .opening import open_current, stamp_of
from .searcher import Searcher
from .segment import Segment
from .vector_source import EmbeddedTexts

if TYPE_CHECKING:
    from ..embedding.embedder import Embedder


class Datastore:
    """Documents with an index over them.

    >>> datastore = Datastore.build("pile-00", iter_jsonl("00.jsonl.zst"), embedder)   # doctest: +SKIP
    >>> datastore.search("def quicksort(", k=3)                                        # doctest: +SKIP
    """

    def __init__(
        self, path: Path, manifest: Manifest, segments: list[Segment], seen: tuple[int, ...] | None = None
    ) -> None:
        self.path = path
        self.build_report = BuildReport()
        """What the stages cost, where this object was made by `build`, or of its last `append`."""
        self._embedder: Embedder | None = None
        self._closed = False
        self._hold(manifest, segments, seen)

    def _hold(self, manifest: Manifest, segments: list[Segment], seen: tuple[int, ...] | None = None) -> None:
        self._seen = seen
        self.manifest = manifest
        self.id: str = manifest.id
        """Changes with every append, deletion and compaction."""
        self._searcher = Searcher(segments, unit=manifest.unit, dim=manifest.dim)

    def refresh(self) -> bool:
        """Take over what a writer of another process changed since this was opened; say whether there was anything.

        `search` does so itself: it asks the system for the manifest's name alone, and reads it where that is another.
        Files that are open already are not read again. While a search runs it keeps what it began with.

        Raises:
            DatastoreMismatchError: Another datastore was put in the place of this one.
        """
        # Taken before reading: a manifest that is replaced meanwhile is then read at the next search.
        seen = stamp_of(self.path)
        if self._closed or seen is None or seen == self._seen:
            return False
        before = self.manifest
        manifest, segments = open_current(self.path, self._opened)
        if (manifest.unit, manifest.dim, manifest.embedder) != (before.unit, before.dim, before.embedder):
            raise DatastoreMismatchError(
                f"{self.path}: another datastore was put in its place since it was opened. Open it again."
            )
        self._hold(manifest, segments, seen)
        return manifest.id != before.id

    @property
    def _opened(self) -> Sequence[Segment]:
        """Segments whose files need not be opened again."""
        return () if self._closed else self._searcher.segments

    def _reopen(self) -> None:
        """Take what the manifest names now; files that are open already are not read again."""
        seen = stamp_of(self.path)
        self._hold(*open_current(self.path, self._opened), seen)
        self._closed = False

    @classmethod
    def build(
        cls,
        path: str | os.PathLike[str],
        documents: Corpus,
        embedder: Embedder,
        *,
        config: DatastoreConfig | None = None,
        index: IndexConfig | None = None,
        store: StoreConfig | None = None,
        progress: Progress | None = None,
        report: BuildReport | None = None,
    ) -> Datastore:
        """Build a datastore in a directory, or finish a build that was interrupted, and open it.

        Every stage that was finished is kept; the same call after an interruption gives the same files as an
        uninterrupted one. Vectors are kept on disk, so the corpus may be larger than memory; the index of one segment
        must fit.

        Args:
            path: A new or empty directory, or one with an interrupted build.
            documents: Documents or texts; or a function that returns them; or the path of a corpus. Read twice, the
                first time for a dictionary that stands for all of them; an iterator once, and its first documents
                stand for all.
            embedder: Makes the vectors.
            config: What is embedded, and how the corpus is cut into segments.
            index: How vectors are indexed.
            store: How texts are compressed.
            progress: Called with a stage (dictionary, ingest, passages, embed, index), documents or vectors done, and
                all of them or None.
            report: Filled while the build runs; rates and memory can be read from `progress`.

        Raises:
            FileExistsError: The directory holds a finished datastore, or something else.
            DatastoreLockedError: Another builder holds the directory.
            DatastoreMismatchError: An interrupted build there has other settings or another embedder.
            ValueError: The corpus is empty, or a resumed corpus gives other documents.
            EmbeddingError: The embedding of a document is not finite.
        """
        config, index, store = config or DatastoreConfig(), index or IndexConfig(), store or StoreConfig()
        builder = Builder(Path(path), documents, EmbeddedTexts(embedder), config, index, store, progress, report)
        builder.run()
        datastore = cls.open(path, embedder)
        datastore.build_report = builder.report
        return datastore

    @classmethod
    def import_faiss(
        cls,
        path: str | os.PathLike[str],
        indexes: Sequence[str | os.PathLike[str]],
        texts: Sequence[str | os.PathLike[str]],
        *,
        corpus: CorpusConfig | None = None,
        embedder_name: str = "unknown",
        index: IndexConfig | None = None,
        store: StoreConfig | None = None,
        progress: Progress | None = None,
        report: BuildReport | None = None,
    ) -> Datastore:
        """Make a datastore of flat faiss indexes and the texts their vectors stand for, without faiss.

        One segment for each index. Interrupted, the same call continues. tttnn cannot know what made the vectors: such
        a datastore is `foreign`, and is searched only with an embedder given to `open`, of the same dimension.

        Args:
            path: A new or empty directory.
            indexes: IndexFlatL2 or IndexFlatIP files of one dimension and metric.
            texts: As many corpora; document i of one belongs to vector i of the index beside it.
            corpus: How they are read. None: the defaults.
            embedder_name: Names what made the vectors.
            index: Backend and HNSW settings; the metric is that of the files.
            store: How texts are compressed.
            progress: As of `build`.
            report: As of `build`.

        Raises:
            FileExistsError: The directory holds a finished datastore, or something else.
            ValueError: The files do not fit each other, or one is no flat index.
            IndexCorruptError: An index is damaged.
            EmbeddingError: A vector is not finite.
        """
        flat = FlatFiles(indexes, texts, embedder_name=embedder_name, corpus=corpus)
        builder = Builder(
            Path(path),
            flat.documents,
            flat,
            DatastoreConfig(segment_documents=flat.largest),
            (index or IndexConfig()).with_(metric=flat.metric),
            store or StoreConfig(),
            progress,
            report,
        )
        builder.run()
        datastore = cls.open(path)
        datastore.build_report = builder.report
        return datastore

    @classmethod
    def open(cls, path: str | os.PathLike[str], embedder: Embedder | None = None) -> Datastore:
        """Open a datastore and check that its files belong together.

        Args:
            path: The directory.
            embedder: The one it was built with. None: loaded by its name at the first search. For imported vectors
                any of their dimension is taken.

        Raises:
            FileNotFoundError: There is no datastore, or its build was not finished.
            DatastoreMismatchError: The embedder is another than the one it was built with, or a file is of another
                datastore.
            IndexCorruptError: The manifest, an index or a passage table is damaged.
            StoreCorruptError: A text store is damaged.
        """
        folder = Path(path).absolute()  # so that methods work after a change of folder
        seen = stamp_of(folder)
        datastore = cls(folder, *open_current(folder), seen)
        return datastore if embedder is None else datastore.attach(embedder)

    def attach(self, embedder: Embedder) -> Datastore:
        """Search with this embedder from now on.

        Args:
            embedder: The one it was built with. For imported vectors any of their dimension is taken.

        Returns:
            This object.

        Raises:
            DatastoreMismatchError: It is another one.
        """
        self.manifest.embedder.require_same(f"{self.path}: was", embedder.name, embedder.identity)
        self._embedder = embedder
        return self

    @property
    def foreign(self) -> bool:
        """Whether the vectors were imported, so that tttnn cannot know that an embedder is the one that made them."""
        return self.manifest.embedder.foreign

    @property
    def embedder_name(self) -> str:
        """The name of the embedder it was built with, as `Embedder.load` takes it."""
        return self.manifest.embedder.name

    @property
    def embed_config(self) -> EmbedConfig:
        """Settings with which `Embedder.load` makes the embedder it was built with.

        Raises:
            DatastoreMismatchError: The vectors were imported; nothing is known of their embedder.
        """
        self._refuse_foreign("embedding settings")
        return settings_of(self.manifest.embedder.identity, self.manifest.settings["embed"])

    def _refuse_foreign(self, what: str) -> None:
        self.manifest.embedder.require_known(self.path, self.manifest.dim, what)

    @property
    def embedder(self) -> Embedder:
        """The embedder; loaded by its name if none was given.

        Raises:
            DatastoreMismatchError: None was given and the vectors were imported.
        """
        if self._embedder is None:
            self._refuse_foreign("query vectors")
            from ..embedding.embedder import Embedder

            self.attach(Embedder.load(self.embedder_name, self.embed_config))
        assert self._embedder is not None
        return self._embedder

    @property
    def store(self) -> Sequence[Document]:
        """All documents, by id. A TextStore where there is one segment and no id was deleted, else `Documents`."""
        segments = self._searcher.segments
        if len(segments) == 1 and not segments[0].has_gaps and segments[0].base == 0:
            return segments[0].store
        return self._documents

    @property
    def documents(self) -> Sequence[Document]:
        """All documents, by id: another name of `store`."""
        return self.store

    @property
    def ids(self) -> NDArray[np.int64]:
        """The ids of all documents that are there, ascending."""
        return self._documents.ids

    def describe(self) -> RetrieverInfo:
        """Return its id and the name of its embedder, for reports."""
        self.refresh()
        name = self._embedder.name if self.foreign and self._embedder is not None else self.embedder_name
        return RetrieverInfo(self.id, name, gives_vectors=True)

    @property
    def _documents(self) -> Documents:
        return Documents(self._searcher.segments, self.manifest.next_id)

    def __len__(self) -> int:
        """The number of documents that are not deleted."""
        return sum(len(segment) for segment in self._searcher.segments)

    def append(
        self, documents: Corpus, *, progress: Progress | None = None, report: BuildReport | None = None
    ) -> Datastore:
        """Add documents as new segments, with the settings the datastore was built with; ids go on.

        Survives interruption as `build` does: the same call continues it. This object has the new documents
        afterwards; what other processes have opened has them at its next search.

        Args:
            documents: As of `build`.
            progress: As of `build`.
            report: As of `build`.

        Returns:
            This object.

        Raises:
            DatastoreLockedError: Another writer holds the directory.
            DatastoreMismatchError: The embedder is not the one it was built with, or an interrupted append there has
                other settings.
            ValueError: There are no documents, or a resumed append gives other ones.
            EmbeddingError: The embedding of a document is not finite.
        """
        if self.foreign:
            self._refuse_foreign("vectors of new documents")
        builder = Builder(
            self.path,
            documents,
            EmbeddedTexts(self.embedder),
            self.manifest.datastore_config,
            self.manifest.index_config,
            self.manifest.store_config,
            progress,
            report,
            append=True,
        )
        builder.run()
        self.build_report = builder.report
        self._reopen()
        return self

    def discard_append(self) -> bool:
        """Forget an append that was interrupted; say whether there was one."""
        return discard_append(self.path)

    def delete(
        self,
        ids: Collection[int] = (),
        *,
        source: str | Collection[str] = (),
        digests: Collection[str] = (),
    ) -> int:
        """Delete documents: they are gone from every answer, of what other processes have opened too.

        Their bytes stay in the files until `compact`. Ids are never used again.

        Args:
            ids: By id; one that is deleted already is passed over.
            source: All documents of this source, or of these.
            digests: All documents whose text has one of these digests (`Neighbor.digest`). Reads every text.

        Returns:
            How many documents were deleted.

        Raises:
            IndexError: An id was never given.
            ValueError: There is no document of a source.
            DatastoreLockedError: Another writer holds the directory.
        """
        sources = {source} if isinstance(source, str) else source
        deleted = delete_documents(self.path, ids, sources=sources, digests=digests, opened=self._opened)
        self._reopen()
        return deleted

    def compact(self, *, vectors: IndexVectors | None = None, progress: Progress | None = None) -> CompactReport:
        """Rewrite segments without their deleted documents, and merge small ones. Every document keeps its id.

        Embeds nothing. Interrupted, it leaves the datastore as it was.

        Args:
            vectors: As of `IndexConfig`: index every segment so, and what is appended later. None: as it is.
            progress: Called with the stages "compact" (documents) and "index" (vectors).

        Raises:
            ValueError: The index is exact and compact vectors are asked for.
            DatastoreLockedError: Another writer holds the directory, or an append there was interrupted.
        """
        report = compact_datastore(self.path, vectors=vectors, progress=progress, opened=self._opened)
        self._reopen()
        return report

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
        """Find the k documents nearest to a text, nearest first.

        Args:
            query: The text; the embedder reads its first `max_length` tokens.
            k: Documents wanted, at least 1. Where the datastore has fewer, all of them come.
            exclude_digests: Texts that are left out (`tttnn.text_digest`); others come in their place.
            where: Which documents may be answers: ``{"source": ["Github"]}``, ``{"fraction": 0.1, "seed": 0}`` or both;
                see `Where`.
            source: Short for ``where={"source": source}``.
            ef: Width of the graph search; None for the index's own.
            with_vectors: Give the result `query_vector` and `vectors`.
            explain: Give the result `explanation`; its recall costs an exact search.

        Raises:
            TypeError: The query is no text, or k no whole number.
            ValueError: The query is empty, k is less than 1, or no document has a source that was named.
        """
        return self.search_many(
            [query],
            k,
            exclude_digests=exclude_digests,
            where=where,
            source=source,
            ef=ef,
            with_vectors=with_vectors,
            explain=explain,
        )[0]

    def search_many(
        self,
        queries: Sequence[str],
        k: int,
        *,
        exclude_digests: Collection[str] = (),
        where: Where | Mapping[str, Any] | None = None,
        source: str | Collection[str] | None = None,
        ef: int | None = None,
        with_vectors: bool = False,
        explain: bool = False,
    ) -> list[SearchResult]:
        """Search for several texts at once; see `search`."""
        k = required(queries, k)
        filtered = where_of(where, source)
        self.refresh()
        searcher = self._searcher
        searcher.check_files()
        if filtered.sources is not None:
            check_sources(filtered.sources, searcher.sources)
        return answer_queries(
            searcher,
            self.embedder,
            queries,
            k,
            exclude_digests=exclude_digests,
            where=filtered,
            ef=ef,
            with_vectors=with_vectors,
            explain=explain,
        )

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the vectors of documents by id, (n, dim).

        Raises:
            ValueError: Passages are embedded, so a document has several.
            IndexError: An id was never given, or its document was deleted.
        """
        if self.manifest.unit != "document":
            raise ValueError("unit must be document, got passage: a document has several vectors")
        out = np.empty((len(ids), self.manifest.dim), np.float32)
        for number, rows, positions in self._documents.locate(ids):
            out[rows] = self._searcher.segments[number].index.vectors(positions)
        return out

    def info(self) -> dict[str, Any]:
        """Describe the datastore: counts, sizes in bytes, embedder, index settings, estimated recall.

        `memory`: bytes of vectors and links that searches read through memory maps (fast where the machine keeps them),
        and bytes of tables in this process's own memory. `bytes_per_vector`: those bytes of a vector, and those of the
        index on disk.
        """
        return described(self.path, self.manifest, self._searcher.segments)

    def verify(self, *, full: bool = True, progress: Progress | None = None) -> None:
        """Compare every file with its checksums again.

        Args:
            full: Read every text and every compact vector too; otherwise the tables alone.
            progress: Called with the stage "verify", documents done and all of them.

        Raises:
            StoreCorruptError: A text store is damaged.
            IndexCorruptError: An index, a passage table or the manifest is damaged.
        """
        again = Datastore.open(self.path)
        if again.id != self.id:
            raise DatastoreMismatchError(
                f"{self.path / MANIFEST}: was written since this datastore was opened: its id is {again.id}, "
                f"expected {self.id}. Open it again."
            )
        again.verify_texts(full=full, progress=progress)
        again.close()

    def verify_texts(self, *, full: bool = True, progress: Progress | None = None) -> None:
        """Compare with their checksums what opening does not read: texts and compact vectors.

        Args:
            full: As of `verify`.
            progress: As of `verify`.

        Raises:
            StoreCorruptError: A text store is damaged.
            IndexCorruptError: A compact vector or a link is.
        """
        segments = self._searcher.segments
        total = sum(len(segment.store) for segment in segments)
        done = 0
        for segment in segments:
            report = None if progress is None else _shifted(progress, done, total)
            segment.verify_texts(full=full, progress=report)
            if full:
                segment.index.verify()
            done += len(segment.store)

    def close(self) -> None:
        """Close the stores; searching is a ValueError from then on."""
        self._closed = True
        for segment in self._searcher.segments:
            segment.store.close()

    def __enter__(self) -> Datastore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., Datastore], tuple[str, tuple[str, EmbedConfig | None] | None]]:
        """Pickle the place alone: another process opens it anew, and loads the embedder by its name when it searches.

        Of imported vectors the attached embedder is loaded when unpickled; it must have been loaded by a name.
        """
        named = (self._embedder.name, self._embedder.config) if self.foreign and self._embedder is not None else None
        return _unpickled, (str(self.path), named)

    def __repr__(self) -> str:
        return f"Datastore({str(self.path)!r}, {len(self)} documents)"


def _unpickled(path: str, embedder: tuple[str, EmbedConfig | None] | None) -> Datastore:
    opened = Datastore.open(path)
    if embedder is None:
        return opened
    from ..embedding.embedder import Embedder

    return opened.attach(Embedder.load(*embedder))


def _shifted(progress: Progress, base: int, total: int) -> Progress:
    return lambda stage, done, _: progress(stage, base + done, total)
