"""Datastore: one directory of texts, passages and vectors, searched by text.

The only file that knows store, index and embedder at once. A file of another datastore, a damaged one and an embedder
other than the one it was built with are refused by name; they never answer a search.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from .builder import FORMAT, MANIFEST, PASSAGES, SEGMENTS, STATE, TEXTS, Builder, Corpus
from .config import DatastoreConfig, EmbedConfig, IndexConfig, Progress, StoreConfig
from .embed import Embedder, EmbedReport
from .errors import DatastoreMismatchError, IndexCorruptError, StoreCorruptError
from .files import check_file, digest_of, read_manifest
from .index import MANIFEST as INDEX_MANIFEST
from .index import NeighborIndex
from .passages import PassageTable
from .store import Document, TextStore, text_digest

_PASSAGES_PER_DOCUMENT = 4  # searched for each document asked for, at first


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


class _Found(NamedTuple):
    document: int
    distance: float
    segment: int
    unit: int


class _Segment:
    """One segment's files, checked against the manifest when opened."""

    def __init__(self, folder: Path, entry: dict[str, Any], unit: str) -> None:
        self.folder = folder
        self.base: int = entry["base"]
        for name, expected in entry["files"].items():
            check_file(folder / name, expected, error=IndexCorruptError)
        size = (folder / TEXTS).stat().st_size
        if size != entry["store_bytes"]:
            raise StoreCorruptError(
                f"{folder / TEXTS}: holds {size} bytes, expected {entry['store_bytes']}. "
                "Restore the file or rebuild the datastore."
            )
        self.store = TextStore.open(folder / TEXTS)
        if self.store.store_id != entry["store_id"] or len(self.store) != entry["documents"]:
            raise DatastoreMismatchError(
                f"{folder / TEXTS}: is not the store that was indexed: its id is {self.store.store_id}, "
                f"expected {entry['store_id']}"
            )
        self.index = NeighborIndex.open(folder)
        self.passages = PassageTable.open(folder / PASSAGES) if unit == "passage" else None
        units = len(self.store) if self.passages is None else len(self.passages)
        if len(self.index) != units or len(self.index) != entry["units"]:
            raise DatastoreMismatchError(
                f"{folder / INDEX_MANIFEST}: indexes {len(self.index)} vectors, but there are {units} {unit}s"
            )

    def document_of(self, units: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the document ids of this segment's units."""
        return self.base + (units if self.passages is None else self.passages.documents[units])

    def span_of(self, unit: int) -> tuple[int, int] | None:
        if self.passages is None:
            return None
        passage = self.passages[unit]
        return passage.begin, passage.end

    def units_of_sources(self, names: Collection[str]) -> NDArray[np.bool_]:
        """Return which units lie in documents of these sources."""
        codes = [code for code, name in enumerate(self.store.sources) if name in names]
        documents = np.isin(self.store.source_codes, codes)
        return documents if self.passages is None else documents[self.passages.documents]


class Datastore:
    """Documents with an index over them.

    >>> datastore = Datastore.build("pile-00", iter_jsonl("00.jsonl.zst"), embedder)   # doctest: +SKIP
    >>> datastore.search("def quicksort(", k=3)                                        # doctest: +SKIP
    """

    def __init__(self, path: Path, manifest: dict[str, Any], segments: list[_Segment]) -> None:
        self.path = path
        self.manifest = manifest
        self.id: str = manifest["id"]
        self.build_seconds: dict[str, float] = {}
        """Seconds of each stage, where this object was made by `build`."""
        self._segments = segments
        self._embedder: Embedder | None = None

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
    ) -> Datastore:
        """Build a datastore in a directory, or finish a build that was interrupted, and open it.

        Every stage that was finished is kept; the same call after an interruption gives the same files as an
        uninterrupted one. Vectors are kept on disk, so the corpus may be larger than memory; the index of one segment
        must fit.

        Args:
            path: A new or empty directory, or one with an interrupted build.
            documents: Documents or texts; or a function that returns them; or the path of a corpus. Read once.
            embedder: Makes the vectors.
            config: What is embedded, and how the corpus is cut into segments.
            index: How vectors are indexed.
            store: How texts are compressed.
            progress: Called with a stage (ingest, passages, embed, index), documents or vectors done, and all of them
                or None.

        Raises:
            FileExistsError: The directory holds a finished datastore, or something else.
            DatastoreLockedError: Another builder holds the directory.
            DatastoreMismatchError: An interrupted build there has other settings or another embedder.
            ValueError: The corpus is empty, or a resumed corpus gives other documents.
            EmbeddingError: The embedding of a document is not finite.
        """
        builder = Builder(
            Path(path),
            documents,
            embedder,
            config or DatastoreConfig(),
            index or IndexConfig(),
            store or StoreConfig(),
            progress,
        )
        builder.run()
        datastore = cls.open(path, embedder)
        datastore.build_seconds = builder.seconds
        return datastore

    @classmethod
    def open(cls, path: str | os.PathLike[str], embedder: Embedder | None = None) -> Datastore:
        """Open a datastore and check that its files belong together.

        Args:
            path: The directory.
            embedder: The one it was built with. None: loaded by its name at the first search.

        Raises:
            FileNotFoundError: There is no datastore, or its build was not finished.
            DatastoreMismatchError: The embedder is another than the one it was built with, or a file is of another
                datastore.
            IndexCorruptError: The manifest, an index or a passage table is damaged.
            StoreCorruptError: A text store is damaged.
        """
        path = Path(path)
        if not (path / MANIFEST).is_file():
            if (path / STATE).is_file():
                raise FileNotFoundError(f"{path}: its build was not finished. Run the same build again to continue it.")
            raise FileNotFoundError(f"{path}: is not a datastore: there is no {MANIFEST} in it")
        manifest = read_manifest(path / MANIFEST, format_version=FORMAT)
        if digest_of({key: value for key, value in manifest.items() if key != "id"}) != manifest["id"]:
            raise IndexCorruptError(f"{path / MANIFEST}: its id is not that of its content")
        datastore = cls(path, manifest, [])
        if embedder is not None:
            datastore._check(embedder)
            datastore._embedder = embedder
        datastore._segments = [
            _Segment(path / SEGMENTS / entry["name"], entry, manifest["unit"]) for entry in manifest["segments"]
        ]
        return datastore

    def _check(self, embedder: Embedder) -> None:
        expected, found = self.manifest["embedder"]["identity"], embedder.identity
        differing = [name for name in expected if expected[name] != found.get(name)]
        if differing:
            raise DatastoreMismatchError(
                f"{self.path}: was built with embedder {self.embedder_name!r}, got {embedder.name!r}: "
                + ", ".join(f"{name} is {found.get(name)}, expected {expected[name]}" for name in differing)
            )

    @property
    def embedder_name(self) -> str:
        """The name of the embedder it was built with, as `Embedder.load` takes it."""
        return str(self.manifest["embedder"]["name"])

    @property
    def embed_config(self) -> EmbedConfig:
        """Settings with which `Embedder.load` makes the embedder it was built with."""
        identity = self.manifest["embedder"]["identity"]
        return EmbedConfig(**self.manifest["settings"]["embed"]).with_(
            pooling=identity["pooling"],
            normalize="yes" if identity["normalize"] else "no",
            max_length=identity["max_length"],
        )

    @property
    def embedder(self) -> Embedder:
        """The embedder; loaded by its name if none was given."""
        if self._embedder is None:
            embedder = Embedder.load(self.embedder_name, self.embed_config)
            self._check(embedder)
            self._embedder = embedder
        return self._embedder

    @property
    def store(self) -> Sequence[Document]:
        """All documents, by id. A TextStore where there is one segment."""
        if len(self._segments) == 1:
            return self._segments[0].store
        return _JoinedStores([segment.store for segment in self._segments])

    def __len__(self) -> int:
        return sum(len(segment.store) for segment in self._segments)

    def search(
        self,
        query: str,
        k: int,
        *,
        ef: int | None = None,
        source: str | Collection[str] | None = None,
        exclude_digests: Collection[str] = (),
        with_vectors: bool = False,
    ) -> SearchResult:
        """Find the k documents nearest to a text, nearest first.

        Args:
            query: The text; the embedder reads its first `max_length` tokens.
            k: Documents wanted, at least 1. Where the datastore has fewer, all of them come.
            ef: Width of the graph search; None for the index's own.
            source: Only documents of this source, or of one of these.
            exclude_digests: Texts that are left out (`tttnn.store.text_digest`); others come in their place.
            with_vectors: Give the result `query_vector` and `vectors`.

        Raises:
            ValueError: The query is empty, or k is less than 1.
        """
        return self.search_many(
            [query], k, ef=ef, source=source, exclude_digests=exclude_digests, with_vectors=with_vectors
        )[0]

    def search_many(
        self,
        queries: Sequence[str],
        k: int,
        *,
        ef: int | None = None,
        source: str | Collection[str] | None = None,
        exclude_digests: Collection[str] = (),
        with_vectors: bool = False,
    ) -> list[SearchResult]:
        """Search for several texts at once; see `search`."""
        for query in queries:
            if not query.strip():
                raise ValueError(f"query must hold some text, got {query!r}")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        reports = [EmbedReport() for _ in queries]
        started = time.perf_counter()
        embedder = self.embedder
        # One by one: the answer to a query does not depend on the queries beside it, to the last bit.
        vectors = np.concatenate(
            [np.zeros((0, embedder.dim), np.float32)]
            + [embedder.embed([query], report=report) for query, report in zip(queries, reports, strict=True)]
        )
        embedded = time.perf_counter()
        names = None if source is None else {source} if isinstance(source, str) else set(source)
        excluded = set(exclude_digests)
        lists = self._nearest(vectors, k + len(excluded), ef, names)
        searched = time.perf_counter()
        share = max(1, len(queries))
        results = []
        for number, (found, report) in enumerate(zip(lists, reports, strict=True)):
            reading = time.perf_counter()
            neighbors = self._read(found)
            wanted = k + len(excluded)
            while sum(n.digest not in excluded for n in neighbors) < k and len(found) >= wanted:
                # More than one document has an excluded text.
                wanted *= 2
                found = self._nearest(vectors[number : number + 1], wanted, ef, names)[0]
                neighbors = self._read(found)
            kept = [i for i, n in enumerate(neighbors) if n.digest not in excluded][:k]
            seconds = {
                "embed": (embedded - started) / share,
                "search": (searched - embedded) / share,
                "read": time.perf_counter() - reading,
            }
            result = SearchResult(
                [neighbors[i] for i in kept],
                seconds=seconds,
                requested=k,
                query_tokens=report.tokens,
                query_truncated=report.truncated > 0,
            )
            if with_vectors:
                result.query_vector = vectors[number]
                result.vectors = self._vectors_of([found[i] for i in kept])
            results.append(result)
        return results

    def _nearest(
        self, vectors: NDArray[np.float32], k: int, ef: int | None, sources: set[str] | None
    ) -> list[list[_Found]]:
        """Return the k nearest documents of each vector, each once, at the distance of its nearest passage."""
        where = [None if sources is None else segment.units_of_sources(sources) for segment in self._segments]
        total = sum(len(segment.index) for segment in self._segments)
        width = min(total, k if self.manifest["unit"] == "document" else k * _PASSAGES_PER_DOCUMENT)
        results: list[list[_Found]] = [[] for _ in vectors]
        pending = np.arange(len(vectors))
        while len(pending):
            parts = [
                segment.index.search(vectors[pending], width, ef=ef, where=mask)
                for segment, mask in zip(self._segments, where, strict=True)
            ]
            short = []
            for row, query in enumerate(pending.tolist()):
                found, exhausted = self._join([(ids[row], distances[row]) for ids, distances in parts], width)
                results[query] = found[:k]
                if len(found) < k and not exhausted and width < total:
                    short.append(query)
            pending = np.array(short, np.int64)
            width = min(total, 4 * width)
        return results

    def _join(
        self, parts: list[tuple[NDArray[np.int64], NDArray[np.float32]]], width: int
    ) -> tuple[list[_Found], bool]:
        """Merge the segments' answers into distinct documents; say whether there is nothing more to find."""
        candidates = [
            (float(distance), number, int(unit))
            for number, (ids, distances) in enumerate(parts)
            for unit, distance in zip(ids, distances, strict=True)
            if unit >= 0
        ]
        candidates.sort()
        seen: dict[int, _Found] = {}
        # Beyond the width a segment's answer may lack units that another's has room for.
        for distance, number, unit in candidates[:width]:
            segment = self._segments[number]
            document = int(segment.document_of(np.array([unit]))[0])
            if document not in seen:
                seen[document] = _Found(document, distance, number, unit)
        return list(seen.values()), len(candidates) < width

    def _read(self, found: list[_Found]) -> list[Neighbor]:
        neighbors: dict[int, Neighbor] = {}
        for segment in self._segments:
            mine = [f for f in found if segment.base <= f.document < segment.base + len(segment.store)]
            documents = segment.store.read_many([f.document - segment.base for f in mine])
            for f, document in zip(mine, documents, strict=True):
                neighbors[f.document] = Neighbor(
                    f.document, f.distance, document.text, document.meta, document.source, segment.span_of(f.unit)
                )
        return [neighbors[f.document] for f in found]

    def _vectors_of(self, found: list[_Found]) -> NDArray[np.float32]:
        out = np.empty((len(found), self.manifest["dim"]), np.float32)
        for number, segment in enumerate(self._segments):
            rows = [row for row, f in enumerate(found) if f.segment == number]
            out[rows] = segment.index.vectors([found[row].unit for row in rows])
        return out

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the vectors of documents by id, (n, dim).

        Raises:
            ValueError: Passages are embedded, so a document has several.
        """
        if self.manifest["unit"] != "document":
            raise ValueError("unit must be document, got passage: a document has several vectors")
        out = np.empty((len(ids), self.manifest["dim"]), np.float32)
        wanted = np.asarray(ids, np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"document id must be between 0 and {len(self) - 1}, got {wanted.tolist()}")
        for segment in self._segments:
            mine = (wanted >= segment.base) & (wanted < segment.base + len(segment.store))
            out[mine] = segment.index.vectors(wanted[mine] - segment.base)
        return out

    def info(self) -> dict[str, Any]:
        """Describe the datastore: counts, sizes in bytes, embedder, index settings, estimated recall."""
        entries = self.manifest["segments"]
        stores = sum(entry["store_bytes"] for entry in entries)
        files = [entry["files"] for entry in entries]
        vectors = sum(
            described["size"] for segment in self._segments for described in segment.index.manifest["files"].values()
        )
        passages = sum(described[PASSAGES]["size"] for described in files if PASSAGES in described)
        units = sum(entry["units"] for entry in entries)
        return {
            "path": str(self.path),
            "id": self.id,
            "format": self.manifest["format"],
            "documents": len(self),
            "unit": self.manifest["unit"],
            "vectors": units,
            "dim": self.manifest["dim"],
            "segments": len(entries),
            "sources": sorted({name for segment in self._segments for name in segment.store.sources}),
            "text_bytes": sum(segment.store.info()["text_bytes"] for segment in self._segments),
            "store_bytes": stores,
            "index_bytes": vectors,
            "passage_bytes": passages,
            "embedded_tokens": sum(entry["tokens"] for entry in entries),
            "truncated": sum(entry["truncated"] for entry in entries),
            "empty": sum(entry["empty"] for entry in entries),
            "recall_at_20": round(sum(e["recall_at_20"] * e["units"] for e in entries) / units, 4),
            "embedder": self.manifest["embedder"],
            "settings": self.manifest["settings"],
        }

    def verify(self, *, full: bool = True, progress: Progress | None = None) -> None:
        """Compare every file with its checksums again.

        Args:
            full: Read every text too; otherwise the tables of the stores only.
            progress: Called with the stage "verify", documents done and all of them.

        Raises:
            StoreCorruptError: A text store is damaged.
            IndexCorruptError: An index, a passage table or the manifest is damaged.
        """
        again = Datastore.open(self.path)
        if again.id != self.id:
            raise IndexCorruptError(f"{self.path / MANIFEST}: its id is {again.id}, but {self.id} was opened")
        for segment in again._segments:
            base = segment.base
            report = None if progress is None else _shifted(progress, base, len(self))
            segment.store.verify(full=full, progress=report)
        again.close()

    def close(self) -> None:
        """Close the stores; searching is a ValueError from then on."""
        for segment in self._segments:
            segment.store.close()

    def __enter__(self) -> Datastore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Datastore({str(self.path)!r}, {len(self)} documents)"


def _shifted(progress: Progress, base: int, total: int) -> Progress:
    return lambda stage, done, _: progress(stage, base + done, total)


class _JoinedStores(Sequence[Document]):
    """The stores of several segments as one sequence."""

    def __init__(self, stores: list[TextStore]) -> None:
        self._stores = stores
        self._ends = np.cumsum([len(store) for store in stores])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"document id must be between {-len(self)} and {len(self) - 1}, got {index}")
        number = int(np.searchsorted(self._ends, position, side="right"))
        return self._stores[number][position - (int(self._ends[number - 1]) if number else 0)]
