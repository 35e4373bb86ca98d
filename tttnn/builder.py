"""Builds a datastore directory in stages: ingest, passages, embed, index. Killed at any moment, it continues there.

Knows what lies in the directory and in which order it is made; does not answer queries. While a build is under way
build.json stands in the place of manifest.json and says how far it is; vectors wait in vectors.partial.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from .config import DatastoreConfig, IndexConfig, Progress, StoreConfig
from .embed import GROUP, Embedder, EmbedReport
from .errors import DatastoreLockedError, DatastoreMismatchError
from .files import describe_file, digest_of, read_manifest, write_manifest
from .index import MANIFEST as INDEX_MANIFEST
from .index import NeighborIndex
from .passages import PassageTable, byte_spans, cut_passages
from .store import Document, TextStore, TextStoreWriter, iter_corpus

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "build.json"
SEGMENTS = "segments"
TEXTS = "texts.zst"
PASSAGES = "passages.bin"
LOCK = ".lock"
VECTORS = "vectors.partial"
EMBEDDED = "embedded.json"

Corpus = Iterable[Document | str] | Callable[[], Iterable[Document | str]] | str | os.PathLike[str]
"""Documents; or a function that returns them; or the path of a corpus."""

DOCUMENT_CHARACTERS = 1_000_000
"""Of a longer document only so many characters are looked at when its beginning is embedded."""

_READ_DOCUMENTS = 64  # long documents are cut before the next ones are read
_RECALL_QUERIES = 100


def segment_name(number: int) -> str:
    """Return the directory name of a segment."""
    return f"{number:03d}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a datastore directory against other builders.

    Raises:
        DatastoreLockedError: Another process or thread holds it.
    """
    with open(path / LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatastoreLockedError(f"{path}: another builder is at work. Wait until it ends.") from None
        yield


class Builder:
    """One run of a build; `run` returns when manifest.json stands."""

    def __init__(
        self,
        path: Path,
        documents: Corpus,
        embedder: Embedder,
        config: DatastoreConfig,
        index: IndexConfig,
        store: StoreConfig,
        progress: Progress | None,
    ) -> None:
        self.path = path
        self.documents = documents
        self.embedder = embedder
        self.config = config
        self.index = index
        self.store = store
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.plan: dict[str, Any] = {
            "embedder": embedder.identity,
            "precision": embedder.precision,
            "embed": embedder.config.to_dict(),
            "datastore": config.to_dict(),
            "index": index.to_dict(),
            # The number of threads does not change a store.
            "store": {f.name: getattr(store, f.name) for f in fields(store) if f.name != "threads"},
        }
        if config.unit == "passage" and config.passage_overlap >= embedder.passage_length:
            raise ValueError(
                f"passage_overlap must be less than {embedder.passage_length} (the embedder's passage length), "
                f"got {config.passage_overlap}"
            )

    def run(self) -> None:
        """Build, or finish what an interrupted build left.

        Raises:
            FileExistsError: The directory holds a finished datastore, or something else.
            DatastoreLockedError: Another builder holds the directory.
            DatastoreMismatchError: An interrupted build there has other settings or another embedder.
            ValueError: The corpus is empty, or a resumed corpus gives other documents.
            EmbeddingError: A vector is not finite.
        """
        if self.path.exists() and (not self.path.is_dir() or not _is_ours(self.path)):
            raise FileExistsError(f"{self.path}: is not a datastore. Build into a new or empty directory.")
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            if (self.path / MANIFEST).exists():
                if (self.path / STATE).exists():  # killed after the last stage
                    self._clean_up(self._read_state())
                    return
                raise FileExistsError(f"{self.path}: holds a datastore already. Open it, or build somewhere else.")
            state = self._read_state()
            if not state["ingested"]:
                self._timed("ingest", lambda: self._ingest(state))
            if self.config.unit == "passage":
                self._timed("passages", lambda: self._cut(state))
            self._timed("embed", lambda: self._embed(state))
            self._timed("index", lambda: self._index(state))
            self._finish(state)

    def _timed(self, stage: str, work: Callable[[], None]) -> None:
        started = time.perf_counter()
        work()
        self.seconds[stage] = time.perf_counter() - started

    def _report(self, stage: str, done: int, total: int | None) -> None:
        if self.progress is not None:
            self.progress(stage, done, total)

    def _shifted(self, stage: str, base: int, total: int) -> Progress:
        return lambda _, done, __: self._report(stage, base + done, total)

    def _read_state(self) -> dict[str, Any]:
        if not (self.path / STATE).exists():
            state: dict[str, Any] = {"format": FORMAT, "plan": self.plan, "ingested": False, "segments": []}
            write_manifest(self.path / STATE, state)
            return state
        state = read_manifest(self.path / STATE, format_version=FORMAT)
        if digest_of(state["plan"]) != digest_of(self.plan):
            differing = [name for name in self.plan if digest_of(state["plan"].get(name)) != digest_of(self.plan[name])]
            raise DatastoreMismatchError(
                f"{self.path}: an interrupted build there has other settings ({', '.join(differing)}). "
                "Continue it with the same settings, or remove the directory."
            )
        return state

    def _segment(self, number: int) -> Path:
        return self.path / SEGMENTS / segment_name(number)

    def _ingest(self, state: dict[str, Any]) -> None:
        documents = _documents_of(self.documents)
        done = 0
        for number, segment in enumerate(state["segments"]):
            _compare(documents, self._segment(number) / TEXTS, done)
            done += segment["documents"]
            self._report("ingest", done, None)
        for number in range(len(state["segments"]), 1_000_000):
            first = next(documents, None)
            if first is None:
                break
            folder = self._segment(number)
            folder.mkdir(parents=True, exist_ok=True)
            with TextStoreWriter(folder / TEXTS, config=self.store, resume=True) as writer:
                for document in chain([first], islice(documents, self.config.segment_documents - 1)):
                    writer.append(document.text, document.meta)
                    done += 1
                    if done % 256 == 0:
                        self._report("ingest", done, None)
                summary = writer.finish()
            state["segments"].append({"documents": summary.documents, "store_id": summary.store_id})
            write_manifest(self.path / STATE, state)
        if not state["segments"]:
            (self.path / STATE).unlink()
            raise ValueError("documents must hold at least one document, got none")
        self._report("ingest", done, done)
        state["ingested"] = True
        write_manifest(self.path / STATE, state)

    def _cut(self, state: dict[str, Any]) -> None:
        total = sum(segment["documents"] for segment in state["segments"])
        done = 0
        for number, segment in enumerate(state["segments"]):
            path = self._segment(number) / PASSAGES
            if not path.exists():
                with TextStore.open(self._segment(number) / TEXTS) as store:
                    PassageTable.of(self._spans(store, done, total)).save(path)
            done += segment["documents"]
            self._report("passages", done, total)

    def _spans(self, store: TextStore, done: int, total: int) -> Iterator[list[tuple[int, int]]]:
        """Yield each document's passages, in bytes."""
        for i in range(len(store)):
            text = store.read_text(i)
            spans = cut_passages(
                text,
                self.embedder.token_spans(text),
                length=self.embedder.passage_length,
                overlap=self.config.passage_overlap,
            )
            yield byte_spans(text, spans)
            if i % 64 == 0:
                self._report("passages", done + i, total)

    def _units(self, number: int, segment: dict[str, Any]) -> int:
        if self.config.unit == "document":
            return int(segment["documents"])
        return len(PassageTable.open(self._segment(number) / PASSAGES))

    def _embed(self, state: dict[str, Any]) -> None:
        units = [self._units(number, segment) for number, segment in enumerate(state["segments"])]
        total, done, base = sum(units), 0, 0
        for number, segment in enumerate(state["segments"]):
            folder = self._segment(number)
            if not (folder / INDEX_MANIFEST).exists():
                self._embed_segment(folder, base, units[number], done, total)
            done += units[number]
            base += segment["documents"]
            self._report("embed", done, total)

    def _embed_segment(self, folder: Path, base: int, units: int, done: int, total: int) -> None:
        row_bytes = 4 * self.embedder.dim
        counts: dict[str, int] = {"rows": 0, "tokens": 0, "truncated": 0, "empty": 0}
        if (folder / EMBEDDED).exists():
            counts = read_manifest(folder / EMBEDDED, format_version=FORMAT)
            counts.pop("format")
        if counts["rows"] == units and (folder / VECTORS).stat().st_size == units * row_bytes:
            return
        table = PassageTable.open(folder / PASSAGES) if self.config.unit == "passage" else None
        with TextStore.open(folder / TEXTS) as store, open(folder / VECTORS, "ab") as file:
            file.truncate(counts["rows"] * row_bytes)
            while counts["rows"] < units:
                # The groups are the same after an interruption, so the vectors are too, to the last bit.
                begin = counts["rows"]
                end = min(units, begin + GROUP)
                texts, name_of = _read_units(store, table, begin, end, base)
                read = EmbedReport()
                vectors = self.embedder.embed(
                    texts, name_of=name_of, report=read, progress=self._shifted("embed", done + begin, total)
                )
                file.write(vectors.astype("<f4", copy=False).tobytes())
                file.flush()
                os.fdatasync(file.fileno())
                counts = {
                    "rows": end,
                    "tokens": counts["tokens"] + read.tokens,
                    "truncated": counts["truncated"] + read.truncated,
                    "empty": counts["empty"] + read.empty,
                }
                write_manifest(folder / EMBEDDED, {"format": FORMAT, **counts})

    def _index(self, state: dict[str, Any]) -> None:
        units = [self._units(number, segment) for number, segment in enumerate(state["segments"])]
        done = [0] * len(units)
        guard = threading.Lock()

        def build(number: int) -> None:
            folder = self._segment(number)

            def report(_: str, finished: int, __: int | None) -> None:
                with guard:
                    done[number] = finished
                    self._report("index", sum(done), sum(units))

            if not (folder / INDEX_MANIFEST).exists():
                vectors = np.memmap(folder / VECTORS, "<f4", "r", shape=(units[number], self.embedder.dim))
                index = NeighborIndex.build(
                    folder, vectors, self.index, seed=self.config.seed + number, progress=report
                )
                del vectors, index
            (folder / VECTORS).unlink(missing_ok=True)
            report("index", units[number], None)

        # hnswlib inserts without the GIL: one thread for each segment keeps each graph the same.
        with ThreadPoolExecutor(min(len(units), len(os.sched_getaffinity(0)))) as workers:
            for _ in workers.map(build, range(len(units))):
                pass

    def _finish(self, state: dict[str, Any]) -> None:
        segments = []
        base = 0
        for number, segment in enumerate(state["segments"]):
            folder = self._segment(number)
            counts = read_manifest(folder / EMBEDDED, format_version=FORMAT)
            names = [INDEX_MANIFEST, *([PASSAGES] if self.config.unit == "passage" else [])]
            index = NeighborIndex.open(folder)
            segments.append(
                {
                    "name": segment_name(number),
                    "base": base,
                    "documents": segment["documents"],
                    "store_id": segment["store_id"],
                    "store_bytes": (folder / TEXTS).stat().st_size,
                    "units": counts["rows"],
                    "tokens": counts["tokens"],
                    "truncated": counts["truncated"],
                    "empty": counts["empty"],
                    "recall_at_20": round(index.estimate_recall(20, sample=_RECALL_QUERIES), 4),
                    "files": {name: describe_file(folder / name) for name in names},
                }
            )
            base += segment["documents"]
        embedder = self.embedder
        content = {
            "format": FORMAT,
            "unit": self.config.unit,
            "settings": {key: value for key, value in self.plan.items() if key not in ("embedder", "precision")},
            "embedder": {"name": embedder.name, "precision": embedder.precision, "identity": embedder.identity},
            "dim": embedder.dim,
            "segments": segments,
        }
        shortcut = self.path / TEXTS
        shortcut.unlink(missing_ok=True)
        shortcut.symlink_to(Path(SEGMENTS) / segment_name(0) / TEXTS)
        write_manifest(self.path / MANIFEST, {**content, "id": digest_of(content)})
        self._clean_up(state)

    def _clean_up(self, state: dict[str, Any]) -> None:
        for number in range(len(state["segments"])):
            (self._segment(number) / EMBEDDED).unlink(missing_ok=True)
        (self.path / STATE).unlink()


def _is_ours(path: Path) -> bool:
    names = {entry.name for entry in path.iterdir()}
    return MANIFEST in names or STATE in names or names <= {LOCK, f"{STATE}.partial"}


def _documents_of(corpus: Corpus) -> Iterator[Document]:
    if isinstance(corpus, str | os.PathLike):
        documents: Iterable[Document | str] = iter_corpus(corpus)
    else:
        documents = corpus() if callable(corpus) else corpus
    for number, document in enumerate(documents):
        if isinstance(document, str):
            yield Document(document)
        elif isinstance(document, Document):
            yield document
        else:
            raise TypeError(f"document {number} must be a Document or str, got {type(document).__name__}")


def _compare(documents: Iterator[Document], path: Path, base: int) -> None:
    """Take a finished segment's documents from the corpus; they must be those in its store."""
    with TextStore.open(path) as store:
        for i, written in enumerate(store):
            found = next(documents, None)
            if found is None or found.text != written.text or found.meta != written.meta:
                raise ValueError(
                    f"document {base + i} differs from the one that the interrupted build read. "
                    "Continue with the same corpus, or remove the directory."
                )


def _read_units(
    store: TextStore, table: PassageTable | None, begin: int, end: int, base: int
) -> tuple[list[str], Callable[[int], str]]:
    """Return the texts of units [begin, end) and what names them in messages."""
    if table is None:
        texts = []
        for first in range(begin, end, _READ_DOCUMENTS):
            ids = range(first, min(end, first + _READ_DOCUMENTS))
            texts += [text[:DOCUMENT_CHARACTERS] for text in store.read_many(ids, texts_only=True)]
        return texts, lambda i: f"document {base + begin + i}"
    texts = []
    document, content = -1, b""
    for i in range(begin, end):
        passage = table[i]
        if passage.document != document:
            document, content = passage.document, store.read_text(passage.document).encode()
        texts.append(content[passage.begin : passage.end].decode())
    return texts, lambda i: f"document {base + table[begin + i].document} (passage {begin + i})"
