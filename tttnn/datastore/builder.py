"""Builds the segments of a datastore in stages: dictionary, ingest, passages, embed, index.

Knows what lies in the directory and in which order it is made; does not answer queries. While a build or an append is
under way build.json says how far it is. Killed at any moment, it continues there: documents in the store are compared
and not compressed again; passages and vectors go on after the last group that was committed; of the index a segment's
graph begins anew, and so does the reading of the corpus for the dictionary.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from ..config import DatastoreConfig, IndexConfig, Progress, StoreConfig
from ..embedding.embed_report import EmbedReport
from ..errors import DatastoreMismatchError
from ..files import PARTIAL, digest_of, explained, read_manifest, sync, write_file, write_manifest
from ..store.corpus import iter_corpus, no_documents
from ..store.document import Document
from ..store.text_store import TextStore
from ..store.writer import TextStoreWriter, train_dictionary
from .build_report import BuildReport
from .corpus_documents import Corpus, bytes_of, can_be_read_again, compare_documents, documents_of
from .index import MANIFEST as INDEX_MANIFEST
from .index import NeighborIndex, require_graph
from .lock import LOCK, locked
from .manifest import (
    FORMAT,
    MANIFEST,
    PASSAGES,
    SEGMENTS,
    STATE,
    TEXTS,
    BuildState,
    EmbeddedCounts,
    IngestedSegment,
    Manifest,
    open_manifest,
    remove_begun,
    remove_unlisted,
    replace_manifest,
    segment_name,
)
from .passages import RECORD_BYTES, PassageTable, byte_spans, cut_passages
from .segment_entry import describe_segment
from .units import read_units
from .vector_source import VectorSource

DICTIONARY = "dictionary.partial"
CUT = "cut.json"
CUT_PASSAGES = "passages.partial"
VECTORS = "vectors.partial"
EMBEDDED = "embedded.json"

_CUT_DOCUMENTS = 2048  # between two commits of the passages
_REPORT_DOCUMENTS = 256


class Builder:
    """One run of a build or of an append; `run` returns when the manifest holds the new segments.

    Args:
        path: The directory.
        documents: The corpus. Where it can be read twice, the stores' dictionaries are trained on a sample of all of
            a segment's documents, else on its first ones.
        source: Makes the vectors.
        config: What is embedded, and how the corpus is cut into segments.
        index: How vectors are indexed.
        store: How texts are compressed.
        progress: Called with a stage, what is done and all of it.
        report: Filled while the build runs.
        append: Add segments to the datastore that is there, instead of making one.
    """

    def __init__(
        self,
        path: Path,
        documents: Corpus,
        source: VectorSource,
        config: DatastoreConfig,
        index: IndexConfig,
        store: StoreConfig,
        progress: Progress | None,
        report: BuildReport | None = None,
        *,
        append: bool = False,
    ) -> None:
        self.path = path
        self.documents = iter_corpus(documents) if isinstance(documents, str | os.PathLike) else documents
        self.source = source
        self.config = config
        self.index = index
        self.store = store
        self.progress = progress
        self.report = report if report is not None else BuildReport()
        self.append = append
        self.first = 0
        """Number of the first segment that is built."""
        self.base = 0
        """Id of the first document."""
        self.plan: dict[str, Any] = {
            **source.plan(),
            "datastore": config.to_dict(),
            "index": index.to_dict(),
            # The number of threads does not change a store.
            "store": {f.name: getattr(store, f.name) for f in fields(store) if f.name != "threads"},
        }
        require_graph(index)
        embedder = source.embedder
        if config.unit == "passage" and embedder is None:
            raise ValueError("unit must be document where vectors are imported, got passage")
        if config.unit == "passage" and embedder is not None and config.passage_overlap >= embedder.passage_length:
            raise ValueError(
                f"passage_overlap must be less than {embedder.passage_length} (the embedder's passage length), "
                f"got {config.passage_overlap}"
            )

    def run(self) -> None:
        """Build, or finish what an interrupted run left.

        Raises:
            FileExistsError: The directory holds a finished datastore, or something else.
            DatastoreLockedError: Another builder holds the directory.
            DatastoreMismatchError: An interrupted build there has other settings or another embedder.
            ValueError: The corpus is empty, or a resumed corpus gives other documents.
            EmbeddingError: A vector is not finite.
        """
        if not self.append:
            if self.path.exists() and (not self.path.is_dir() or not _is_ours(self.path)):
                raise FileExistsError(f"{self.path}: is not a datastore. Build into a new or empty directory.")
            self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path), explained(self.path):
            manifest = open_manifest(self.path) if self.append or (self.path / MANIFEST).exists() else None
            remove_begun(self.path)
            if manifest is not None and self._was_finished(manifest):
                return
            if manifest is not None and not self.append:
                raise FileExistsError(f"{self.path}: holds a datastore already. Open it, or build somewhere else.")
            state = self._read_state(manifest)
            if not state.ingested:
                state = self._ingest(self._sample(state))
            if self.config.unit == "passage":
                self._cut(state)
            self._embed(state)
            self._index(state)
            self._finish(state, manifest)

    def _was_finished(self, manifest: Manifest) -> bool:
        """Clean up after a run that was killed when its segments were in the manifest already; say whether one was."""
        if not (self.path / STATE).exists():
            return False
        state = BuildState.read(self.path)
        if state.first >= manifest.next_segment:
            return False
        self.first = state.first
        self._clean_up(state)
        if state.append != self.append:
            return False
        if self.append:
            documents = documents_of(self.documents)
            done = state.base
            for number, segment in enumerate(state.segments):
                remedy = "That append is complete now. Append once more for other documents."
                compare_documents(documents, self._segment(number) / TEXTS, done, remedy)
                done += segment.documents
        return True

    @property
    def _remedy(self) -> str:
        if self.append:
            return "Append the same documents again, or discard the interrupted append."
        return "Continue with the same corpus, or remove the directory."

    def _begin(self, stage: str, done: int = 0, total: int | None = None) -> None:
        self.report.begin(stage, done, total)

    def _advance(self, stage: str, done: int, total: int | None) -> None:
        self.report.advance(stage, done, total)
        if self.progress is not None:
            self.progress(stage, done, total)

    def _read_state(self, manifest: Manifest | None) -> BuildState:
        if manifest is not None:
            self.first, self.base = manifest.next_segment, manifest.next_id
        if not (self.path / STATE).exists():
            if manifest is not None:
                remove_unlisted(self.path, manifest)
            return BuildState(self.plan, self.append, self.first, self.base).write(self.path)
        state = BuildState.read(self.path)
        if digest_of(state.plan) != digest_of(self.plan):
            differing = [name for name in self.plan if digest_of(state.plan.get(name)) != digest_of(self.plan[name])]
            raise DatastoreMismatchError(
                f"{self.path}: an interrupted build there has other settings ({', '.join(differing)}). "
                "Continue it with the same settings, or remove the directory."
            )
        return state

    def _segment(self, number: int) -> Path:
        return self.path / SEGMENTS / segment_name(self.first + number)

    def _segment_size(self, number: int) -> int:
        """Return the most documents that a segment may have."""
        return self.source.segment_documents(number, self.config.segment_documents)

    def _sample(self, state: BuildState) -> BuildState:
        """Train each segment's dictionary on documents spread over all of it."""
        if state.sampled or self.store.dictionary_bytes == 0 or not can_be_read_again(self.documents):
            return state
        self._begin("dictionary")
        stage = self.report.stages["dictionary"]
        done = 0

        def counted(part: Iterable[Document]) -> Iterator[Document]:
            nonlocal done
            for document in part:
                done += 1
                stage.bytes += bytes_of(document.text)
                if done % _REPORT_DOCUMENTS == 0:
                    self._advance("dictionary", done, None)
                yield document

        documents = documents_of(self.documents)
        for number in range(1_000_000):
            first = next(documents, None)
            if first is None:
                break
            part = chain([first], islice(documents, self._segment_size(number) - 1))
            folder = self._segment(number)
            folder.mkdir(parents=True, exist_ok=True)
            write_file(folder / DICTIONARY, train_dictionary(counted(part), config=self.store))
        self._advance("dictionary", done, done)
        return replace(state, sampled=True).write(self.path)

    def _ingest(self, state: BuildState) -> BuildState:
        documents = documents_of(self.documents)
        done = 0
        self._begin("ingest")
        stage = self.report.stages["ingest"]
        for number, segment in enumerate(state.segments):
            compare_documents(documents, self._segment(number) / TEXTS, done, self._remedy)
            done += segment.documents
            stage.resumed = done
            self._advance("ingest", done, None)
        for number in range(len(state.segments), 1_000_000):
            first = next(documents, None)
            if first is None:
                break
            folder = self._segment(number)
            folder.mkdir(parents=True, exist_ok=True)
            trained = folder / DICTIONARY
            dictionary = trained.read_bytes() if state.sampled and trained.exists() else None
            with TextStoreWriter(folder / TEXTS, config=self.store, resume=True, dictionary=dictionary) as writer:
                stage.resumed += writer.committed
                for document in chain([first], islice(documents, self._segment_size(number) - 1)):
                    writer.append(document.text, document.meta)
                    done += 1
                    stage.bytes += bytes_of(document.text)
                    if done % _REPORT_DOCUMENTS == 0:
                        self._advance("ingest", done, None)
                summary = writer.finish()
            ingested = IngestedSegment(summary.documents, summary.store_id)
            state = replace(state, segments=(*state.segments, ingested)).write(self.path)
        if not state.segments:
            (self.path / STATE).unlink()
            raise no_documents(self.documents)
        self._advance("ingest", done, done)
        return replace(state, ingested=True).write(self.path)

    def _cut(self, state: BuildState) -> None:
        total = sum(segment.documents for segment in state.segments)
        done = 0
        self._begin("passages", 0, total)
        for number, segment in enumerate(state.segments):
            folder = self._segment(number)
            if not (folder / PASSAGES).exists():
                self._cut_segment(folder, done, total)
            else:
                self.report.stages["passages"].resumed += segment.documents
            done += segment.documents
            self._advance("passages", done, total)

    def _cut_segment(self, folder: Path, done: int, total: int) -> None:
        counts = {"documents": 0, "passages": 0}
        if (folder / CUT).exists():
            counts = read_manifest(folder / CUT, format_version=FORMAT)
            counts.pop("format")
        self.report.stages["passages"].resumed += counts["documents"]
        with TextStore.open(folder / TEXTS) as store, open(folder / CUT_PASSAGES, "ab") as file:
            file.truncate(counts["passages"] * RECORD_BYTES)
            while counts["documents"] < len(store):
                begin = counts["documents"]
                end = min(len(store), begin + _CUT_DOCUMENTS)
                table = PassageTable.of(self._spans(store, begin, end, done, total), first=begin)
                file.write(table.to_bytes())
                sync(file)
                counts = {"documents": end, "passages": counts["passages"] + len(table)}
                write_manifest(folder / CUT, {"format": FORMAT, **counts})
        PassageTable.joined((folder / CUT_PASSAGES).read_bytes()).save(folder / PASSAGES)
        (folder / CUT_PASSAGES).unlink()

    def _spans(self, store: TextStore, begin: int, end: int, done: int, total: int) -> Iterator[list[tuple[int, int]]]:
        """Yield the passages, in bytes, of documents [begin, end)."""
        stage, embedder = self.report.stages["passages"], self.source.embedder
        assert embedder is not None  # checked when the builder was made
        for i in range(begin, end):
            text = store.read_text(i)
            tokens = embedder.token_spans(text)
            stage.tokens += len(tokens)
            stage.bytes += bytes_of(text)
            length, overlap = embedder.passage_length, self.config.passage_overlap
            yield byte_spans(text, cut_passages(text, tokens, length=length, overlap=overlap))
            if i % 64 == 0:
                self._advance("passages", done + i, total)

    def _units(self, number: int, segment: IngestedSegment) -> int:
        if self.config.unit == "document":
            return segment.documents
        return len(PassageTable.open(self._segment(number) / PASSAGES))

    def _embed(self, state: BuildState) -> None:
        units = [self._units(number, segment) for number, segment in enumerate(state.segments)]
        total, done, base = sum(units), 0, self.base
        self._begin("embed", 0, total)
        for number, segment in enumerate(state.segments):
            folder = self._segment(number)
            if not (folder / INDEX_MANIFEST).exists():
                self._embed_segment(number, base, units[number], done, total)
            else:
                self.report.stages["embed"].resumed += units[number]
            done += units[number]
            base += segment.documents
            self._advance("embed", done, total)

    def _embed_segment(self, number: int, base: int, units: int, done: int, total: int) -> None:
        folder = self._segment(number)
        row_bytes = 4 * self.source.dim
        counts = EmbeddedCounts.read(folder / EMBEDDED)
        stage = self.report.stages["embed"]
        stage.resumed += counts.rows
        if counts.rows == units and (folder / VECTORS).stat().st_size == units * row_bytes:
            return
        table = PassageTable.open(folder / PASSAGES) if self.config.unit == "passage" else None
        with TextStore.open(folder / TEXTS) as store, open(folder / VECTORS, "ab") as file:
            file.truncate(counts.rows * row_bytes)
            while counts.rows < units:
                begin, end = counts.rows, min(units, counts.rows + self.source.batch)
                read = EmbedReport()
                vectors, size = self.source.vectors(
                    number,
                    begin,
                    end,
                    partial(read_units, store, table, begin, end, base),
                    report=read,
                    progress=self._advance_embedding(read, done + begin, total),
                )
                stage.bytes += size
                file.write(vectors.astype("<f4", copy=False).tobytes())
                sync(file)
                counts = EmbeddedCounts(
                    end, counts.tokens + read.tokens, counts.truncated + read.truncated, counts.empty + read.empty
                ).write(folder / EMBEDDED)
                self._advance("embed", done + end, total)

    def _advance_embedding(self, read: EmbedReport, done: int, total: int) -> Progress:
        stage = self.report.stages["embed"]
        tokens = stage.tokens

        def advance(_: str, finished: int, __: int | None) -> None:
            stage.tokens = tokens + read.tokens
            self._advance("embed", done + finished, total)

        return advance

    def _index(self, state: BuildState) -> None:
        units = [self._units(number, segment) for number, segment in enumerate(state.segments)]
        finished = [(self._segment(number) / INDEX_MANIFEST).exists() for number in range(len(units))]
        done = [units[number] if finished[number] else 0 for number in range(len(units))]
        lock = threading.Lock()
        self._begin("index", sum(done), sum(units))
        stage = self.report.stages["index"]

        def build(number: int) -> None:
            folder = self._segment(number)

            def advance(_: str, now: int, __: int | None) -> None:
                with lock:
                    stage.bytes += 4 * self.source.dim * (now - done[number])
                    done[number] = now
                    self._advance("index", sum(done), sum(units))

            if not finished[number]:
                vectors = np.memmap(folder / VECTORS, "<f4", "r", shape=(units[number], self.source.dim))
                index = NeighborIndex.build(
                    folder, vectors, self.index, seed=self.config.seed + self.first + number, progress=advance
                )
                del vectors, index
            (folder / VECTORS).unlink(missing_ok=True)
            advance("index", units[number], None)

        # hnswlib inserts without the GIL: one thread for each segment keeps each graph the same.
        with ThreadPoolExecutor(min(len(units), len(os.sched_getaffinity(0)))) as workers:
            for _ in workers.map(build, range(len(units))):
                pass

    def _finish(self, state: BuildState, manifest: Manifest | None) -> None:
        entries = []
        base = self.base
        for number, segment in enumerate(state.segments):
            counts = EmbeddedCounts.read(self._segment(number) / EMBEDDED)
            names = [PASSAGES] if self.config.unit == "passage" else []
            entries.append(describe_segment(self._segment(number), base, segment, counts, names))
            base = entries[-1].end
        if manifest is None:
            settings = {key: value for key, value in self.plan.items() if key not in ("embedder", "precision")}
            manifest = Manifest(self.config.unit, self.source.dim, self.source.entry(), settings, (), 0, 0)
        segments = (*manifest.segments, *entries)
        next_segment = self.first + len(entries)
        replace_manifest(self.path, replace(manifest, segments=segments, next_id=base, next_segment=next_segment))
        self._clean_up(state)

    def _clean_up(self, state: BuildState) -> None:
        for number in range(len(state.segments)):
            for name in (EMBEDDED, CUT, DICTIONARY):
                (self._segment(number) / name).unlink(missing_ok=True)
        (self.path / STATE).unlink()


def _is_ours(path: Path) -> bool:
    names = {entry.name for entry in path.iterdir()}
    begun = {name for name in names if name.startswith(f"{STATE}.") and name.endswith(PARTIAL)}
    return MANIFEST in names or STATE in names or names <= {LOCK, *begun}
