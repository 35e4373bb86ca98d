"""Deletes documents of a datastore, and rewrites its segments without them.

Knows segments and the manifest; embeds nothing: vectors are taken from the old index. Nothing that the manifest names
is changed in place, so a reader goes on with what it opened and an interruption leaves the datastore as it was; what it
left behind is removed by the next writer.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import IndexVectors, Progress
from ..errors import DatastoreLockedError
from ..files import explained, write_file
from ..retrieval.where import check_sources
from ..store.document import text_digest
from ..store.writer import TextStoreWriter, train_dictionary
from .builder import VECTORS
from .deletions import write_deleted
from .documents import Documents
from .index import NeighborIndex, require_graph
from .lock import locked
from .manifest import (
    IDS,
    PASSAGES,
    SEGMENTS,
    STATE,
    TEXTS,
    EmbeddedCounts,
    IngestedSegment,
    Manifest,
    SegmentEntry,
    open_manifest,
    remove_unlisted,
    replace_manifest,
    segment_name,
)
from .passages import PassageTable
from .segment import Segment, open_segments
from .segment_entry import describe_segment

_CHUNK = 4096  # documents or vectors that are held at a time


@dataclass(frozen=True)
class CompactReport:
    """What a compaction did."""

    removed: int
    """Deleted documents that were dropped for good."""
    segments_before: int
    segments_after: int
    bytes_before: int
    bytes_after: int

    def to_dict(self) -> dict[str, int]:
        """Return plain values."""
        return asdict(self)


def delete_documents(
    path: Path,
    ids: Collection[int] = (),
    *,
    sources: Collection[str] = (),
    digests: Collection[str] = (),
    opened: Sequence[Segment] = (),
) -> int:
    """Mark documents as deleted; they are gone from every answer of what is opened from then on.

    Args:
        path: The datastore.
        ids: By id; one that is deleted already is passed over.
        sources: All documents of these sources.
        digests: All documents whose text has one of these digests (`tttnn.text_digest`). Reads every text.
        opened: Segments that are open already; see `open_segments`.

    Returns:
        How many documents were there and are deleted now.

    Raises:
        IndexError: An id was never given.
        ValueError: There is no document of a source.
        DatastoreLockedError: Another writer holds the directory.
    """
    with locked(path), explained(path):
        manifest = open_manifest(path)
        segments = open_segments(path, manifest, opened)
        wrong = [i for i in ids if not 0 <= i < manifest.next_id]
        if wrong:
            raise IndexError(f"document id must be between 0 and {manifest.next_id - 1}, got {wrong[0]}")
        check_sources(sources, {name for segment in segments for name in segment.store.sources})
        wanted = np.unique(np.fromiter(ids, np.int64, len(ids)))
        changed: list[SegmentEntry] = []
        total = 0
        for segment in segments:
            doomed = _doomed(segment, wanted, sources, set(digests))
            before = np.zeros(len(segment.store), np.bool_) if segment.deleted is None else segment.deleted
            fresh = int((doomed & ~before).sum())
            entry = segment.entry
            if fresh:
                total += fresh
                entry = replace(entry, deleted=write_deleted(segment.folder, entry, before | doomed))
            changed.append(entry)
        if total:
            manifest = replace_manifest(path, replace(manifest, segments=tuple(changed)))
            if not (path / STATE).exists():
                remove_unlisted(path, manifest)
        return total


def _doomed(
    segment: Segment, ids: NDArray[np.int64], sources: Collection[str], digests: Collection[str]
) -> NDArray[np.bool_]:
    doomed = np.zeros(len(segment.store), np.bool_)
    mine = ids[(ids >= segment.base) & (ids < segment.end)]
    positions = segment.positions_of(mine)
    doomed[positions[positions >= 0]] = True
    if sources:
        doomed |= segment.documents_of_sources(sources)
    if digests:
        for begin in range(0, len(segment.store), _CHUNK):
            end = min(len(segment.store), begin + _CHUNK)
            texts = segment.store.read_many(range(begin, end), texts_only=True)
            doomed[begin:end] |= [text_digest(text) in digests for text in texts]
    return doomed


def compact_datastore(
    path: Path,
    *,
    vectors: IndexVectors | None = None,
    progress: Progress | None = None,
    opened: Sequence[Segment] = (),
) -> CompactReport:
    """Rewrite segments that have deleted documents without them, and merge small neighboring segments.

    Segments are merged, in the order of their ids, as long as the result has no more documents than a segment may have
    (`DatastoreConfig.segment_documents`). Every document keeps its id; ids of deleted documents are not used again.
    Old segments are removed when the manifest names the new ones.

    Args:
        path: The datastore.
        vectors: As of `IndexConfig`: every segment is indexed so from now on, and what is appended later too. None:
            as the datastore's settings say.
        progress: Called with the stage "compact" and the documents written, then with "index" and vectors.
        opened: Segments that are open already; see `open_segments`.

    Raises:
        ValueError: The index is exact and compact vectors are asked for.
        DatastoreLockedError: Another writer holds the directory, or an append there was interrupted.
    """
    with locked(path), explained(path):
        manifest = open_manifest(path)
        if (path / STATE).exists():
            raise DatastoreLockedError(
                f"{path}: an append there was interrupted. Append the same documents again or discard it, then compact."
            )
        remove_unlisted(path, manifest)
        settings = manifest.settings
        if vectors is not None and vectors != manifest.index_config.vectors:
            index = manifest.index_config.with_(vectors=vectors)
            require_graph(index)
            settings = {**settings, "index": index.to_dict()}
        changed = replace(manifest, settings=settings)
        segments = open_segments(path, manifest, opened)
        before = sum(_size(segment.folder) for segment in segments)
        removed = sum(len(segment.store) - len(segment) for segment in segments)
        entries: list[SegmentEntry] = []
        number = manifest.next_segment
        for group in _groups(segments, manifest.datastore_config.segment_documents):
            whole = len(group) == 1 and group[0].deleted is None
            if whole and (vectors is None or group[0].index.walks_on == vectors):
                entries.append(group[0].entry)
            elif any(len(segment) for segment in group):
                write = _index_again if whole else _merge
                entries.append(write(path / SEGMENTS / segment_name(number), group, changed, number, progress))
                number += 1
        if number > manifest.next_segment or len(entries) < len(segments) or changed != manifest:
            manifest = replace_manifest(path, replace(changed, segments=tuple(entries), next_segment=number))
        remove_unlisted(path, manifest)
        after = sum(_size(path / SEGMENTS / entry.name) for entry in entries)
        return CompactReport(removed, len(segments), len(entries), before, after)


def discard_append(path: Path) -> bool:
    """Forget an append that was interrupted; say whether there was one.

    Raises:
        DatastoreLockedError: Another writer holds the directory.
    """
    with locked(path), explained(path):
        manifest = open_manifest(path)
        if not (path / STATE).exists():
            return False
        (path / STATE).unlink()
        remove_unlisted(path, manifest)
        return True


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _groups(segments: list[Segment], most: int) -> Iterator[list[Segment]]:
    """Yield runs of neighboring segments that together have at most `most` documents left."""
    group: list[Segment] = []
    for segment in segments:
        if group and sum(map(len, group)) + len(segment) > most:
            yield group
            group = []
        group.append(segment)
    if group:
        yield group


def _merge(
    folder: Path, group: list[Segment], manifest: Manifest, number: int, progress: Progress | None
) -> SegmentEntry:
    """Write one segment of what is left of several; return what the manifest says of it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    base, end = group[0].base, group[-1].end
    ids = np.concatenate([segment.live_ids for segment in group])
    live = Documents(group, end)
    config = manifest.store_config
    dictionary = train_dictionary(live, config=config) if config.dictionary_bytes else None
    with TextStoreWriter(folder / TEXTS, config=config, dictionary=dictionary) as writer:
        for done, document in enumerate(live, 1):
            writer.append(document.text, document.meta)
            if progress is not None and (done % _CHUNK == 0 or done == len(ids)):
                progress("compact", done, len(ids))
        summary = writer.finish()
    files = []
    if end - base != len(ids):
        write_file(folder / IDS, ids.astype("<i8").tobytes())
        files.append(IDS)
    units = [segment.live_units for segment in group]
    if manifest.unit == "passage":
        _merge_passages(group, units).save(folder / PASSAGES)
        files.append(PASSAGES)
    _index(folder, group, units, manifest, number, progress)
    return _described(folder, group, summary.documents, summary.store_id, files)


def _index_again(
    folder: Path, group: list[Segment], manifest: Manifest, number: int, progress: Progress | None
) -> SegmentEntry:
    """Write a segment that has all of another but its index; return what the manifest says of it."""
    (segment,) = group
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = [name for name in (IDS, PASSAGES) if name in segment.entry.files]
    for name in (TEXTS, *files):
        try:
            os.link(segment.folder / name, folder / name)  # no file of a segment is ever changed
        except OSError:
            shutil.copyfile(segment.folder / name, folder / name)
    _index(folder, group, [segment.live_units], manifest, number, progress)
    return _described(folder, group, segment.entry.documents, segment.entry.store_id, files)


def _index(
    folder: Path,
    group: list[Segment],
    units: list[NDArray[np.int64]],
    manifest: Manifest,
    number: int,
    progress: Progress | None,
) -> None:
    _copy_vectors(folder / VECTORS, group, units, manifest.dim)
    vectors = np.memmap(folder / VECTORS, "<f4", "r", shape=(sum(map(len, units)), manifest.dim))
    seed = manifest.datastore_config.seed + number
    NeighborIndex.build(folder, vectors, manifest.index_config, seed=seed, progress=progress)
    del vectors
    (folder / VECTORS).unlink()


def _described(folder: Path, group: list[Segment], documents: int, store_id: str, files: list[str]) -> SegmentEntry:
    """Return what the manifest says of a segment that was written in the place of several."""
    # What embedding counted stays a count of what was embedded, deleted documents included.
    counts = EmbeddedCounts(
        sum(len(segment.live_units) for segment in group),
        sum(segment.entry.tokens for segment in group),
        sum(segment.entry.truncated for segment in group),
        sum(segment.entry.empty for segment in group),
    )
    written = IngestedSegment(documents, store_id)
    return replace(describe_segment(folder, group[0].base, written, counts, files), end=group[-1].end)


def _merge_passages(group: list[Segment], units: list[NDArray[np.int64]]) -> PassageTable:
    parts = []
    first = 0
    for segment, kept in zip(group, units, strict=True):
        assert segment.passages is not None
        live = np.ones(len(segment.store), np.bool_) if segment.deleted is None else ~segment.deleted
        parts.append(segment.passages.kept(first + np.cumsum(live) - 1, kept).to_bytes())
        first += int(live.sum())
    return PassageTable.joined(b"".join(parts))


def _copy_vectors(path: Path, group: list[Segment], units: list[NDArray[np.int64]], dim: int) -> None:
    with open(path, "wb") as file:
        for segment, kept in zip(group, units, strict=True):
            for begin in range(0, len(kept), _CHUNK):
                vectors = segment.index.vectors(kept[begin : begin + _CHUNK])
                assert vectors.shape[1] == dim
                file.write(vectors.astype("<f4", copy=False).tobytes())
