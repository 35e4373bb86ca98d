"""One segment of a datastore: its texts, passages, index and deleted documents, checked against the manifest.

Knows which file is which, what must agree and where an id is; does not know how files are made or what a query is.

Compaction leaves ids as they are: where a segment has gaps, ids.bin lists the id of every position.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import Progress
from ..errors import DatastoreMismatchError, IndexCorruptError, StoreCorruptError
from ..files import check_file
from ..retrieval.where import Where
from ..store.text_store import TextStore
from .deletions import read_deleted
from .index import MANIFEST as INDEX_MANIFEST
from .index import NeighborIndex
from .manifest import IDS, PASSAGES, SEGMENTS, TEXTS, Manifest, SegmentEntry
from .passages import PassageTable

_REMEDY = "Restore the file or rebuild the datastore."


class Segment:
    """One segment's files, checked against the manifest when opened. Never changes afterwards.

    Args:
        folder: The segment's.
        entry: Its part of the manifest.
        unit: "document" or "passage", what a vector stands for.

    Raises:
        FileNotFoundError: A file is missing.
        IndexCorruptError: The index, the passages, the ids or the deleted documents are damaged.
        StoreCorruptError: The texts are damaged.
        DatastoreMismatchError: A file is of another datastore.
    """

    def __init__(self, folder: Path, entry: SegmentEntry, unit: str) -> None:
        self.folder = folder
        self.entry = entry
        self.base: int = entry.base
        self.end: int = entry.end
        """No id of the segment is as large as this."""
        for name, expected in entry.files.items():
            check_file(folder / name, asdict(expected), error=IndexCorruptError)
        size = (folder / TEXTS).stat().st_size
        if size != entry.store_bytes:
            raise StoreCorruptError(
                f"{folder / TEXTS}: holds {size} bytes, expected {entry.store_bytes}. "
                "Restore the file or rebuild the datastore."
            )
        self.store = TextStore.open(folder / TEXTS)
        if self.store.store_id != entry.store_id or len(self.store) != entry.documents:
            raise DatastoreMismatchError(
                f"{folder / TEXTS}: is not the store that was indexed: its id is {self.store.store_id}, "
                f"expected {entry.store_id}"
            )
        self.index = NeighborIndex.open(folder)
        self.passages = PassageTable.open(folder / PASSAGES) if unit == "passage" else None
        units = len(self.store) if self.passages is None else len(self.passages)
        if len(self.index) != units or len(self.index) != entry.units:
            raise DatastoreMismatchError(
                f"{folder / INDEX_MANIFEST}: indexes {len(self.index)} vectors, but there are {units} {unit}s"
            )
        self._sizes = {path: path.stat().st_size for path in (*self.index.mapped_paths, folder / TEXTS)}
        self._ids = self._read_ids() if IDS in entry.files else None
        self.deleted = read_deleted(folder, entry)
        """(documents,) of bool by position; None where no document is deleted."""
        self._live_units: NDArray[np.bool_] | None = None
        if self.deleted is not None:
            self._live_units = self._units_of(~self.deleted)

    def check_files(self) -> None:
        """Refuse to read maps whose files were cut short since they were opened: the system ends a process that does.

        Files that were removed or replaced are sound: a map goes on with what it was made of.

        Raises:
            StoreCorruptError: The texts were cut short.
            IndexCorruptError: The vectors were.
        """
        for path, size in self._sizes.items():
            try:
                bytes_there = os.stat(path).st_size
            except FileNotFoundError:
                continue
            if bytes_there < size:
                error = StoreCorruptError if path.name == TEXTS else IndexCorruptError
                raise error(f"{path}: holds {bytes_there} bytes, but {size} when it was opened. {_REMEDY}")

    def verify_texts(self, *, full: bool, progress: Progress | None) -> None:
        """Compare the texts with their checksums, and the bytes of their file with the manifest.

        Args:
            full: Read every text and every byte too; otherwise the tables only.
            progress: Called with the stage "verify", documents done and all of them.

        Raises:
            StoreCorruptError: The texts are damaged.
        """
        self.store.verify(full=full, progress=progress)
        if full and self.entry.store_sha256:
            expected = {"size": self.entry.store_bytes, "sha256": self.entry.store_sha256}
            check_file(self.folder / TEXTS, expected, error=StoreCorruptError)

    def with_deleted(self, entry: SegmentEntry) -> Segment:
        """Return the same files with another list of deleted documents, which alone is read."""
        changed = copy.copy(self)
        changed.entry = entry
        changed.deleted = read_deleted(self.folder, entry)
        changed._live_units = None if changed.deleted is None else self._units_of(~changed.deleted)
        return changed

    def _read_ids(self) -> NDArray[np.int64]:
        ids = np.fromfile(self.folder / IDS, "<i8").astype(np.int64)
        if (
            len(ids) != len(self.store)
            or np.any(np.diff(ids) <= 0)
            or (len(ids) and (ids[0] < self.base or ids[-1] >= self.end))
        ):
            raise IndexCorruptError(f"{self.folder / IDS}: its ids are out of order. {_REMEDY}")
        return ids

    def __len__(self) -> int:
        """The number of documents that are not deleted."""
        return len(self.store) - (0 if self.deleted is None else int(self.deleted.sum()))

    @property
    def held_bytes(self) -> int:
        """Bytes of the tables that are in this process's own memory while the segment is open."""
        passages = 0 if self.passages is None else self.passages.nbytes
        tables = [table for table in (self._ids, self.deleted, self._live_units) if table is not None]
        return self.index.held_bytes + passages + sum(table.nbytes for table in tables)

    @property
    def has_gaps(self) -> bool:
        """Whether some id between `base` and `end` is of no document."""
        return self._ids is not None or self.deleted is not None

    @property
    def live_ids(self) -> NDArray[np.int64]:
        """The ids of the documents that are not deleted, ascending."""
        positions = np.arange(len(self.store)) if self.deleted is None else np.flatnonzero(~self.deleted)
        return self.ids_at(positions)

    @property
    def sources(self) -> set[str]:
        """The sources of the documents that are not deleted."""
        codes = self.store.source_codes if self.deleted is None else self.store.source_codes[~self.deleted]
        return {self.store.sources[code] for code in np.unique(codes).tolist() if code >= 0}

    @property
    def live_units(self) -> NDArray[np.int64]:
        """The units of the documents that are not deleted, ascending."""
        return np.arange(len(self.index)) if self._live_units is None else np.flatnonzero(self._live_units)

    def ids_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids of documents by their positions in the store."""
        ids: NDArray[np.int64] = self.base + positions if self._ids is None else self._ids[positions]
        return ids

    def positions_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions in the store of ids between `base` and `end`; -1 for one that is of no document."""
        if self._ids is None:
            positions = ids - self.base
        else:
            positions = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
            positions = np.where(self._ids[positions] == ids, positions, -1)
        if self.deleted is not None:
            positions = np.where((positions >= 0) & ~self.deleted[positions], positions, -1)
        return positions

    def documents_of(self, units: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the document ids of this segment's units."""
        return self.ids_at(units if self.passages is None else self.passages.documents_at(units))

    def span_of(self, unit: int) -> tuple[int, int] | None:
        """Return the bytes of its document that a unit stands for; None for the whole document."""
        if self.passages is None:
            return None
        passage = self.passages[unit]
        return passage.begin, passage.end

    def _units_of(self, documents: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return documents if self.passages is None else documents[self.passages.documents]

    def documents_of_sources(self, names: Collection[str]) -> NDArray[np.bool_]:
        """Return which documents, by position, come from these sources."""
        codes = [code for code, name in enumerate(self.store.sources) if name in names]
        return np.isin(self.store.source_codes, codes)

    def documents_where(self, where: Where) -> NDArray[np.bool_] | None:
        """Return which documents, by position, a filter allows, deleted ones among them; None where it allows all."""
        chosen = None if where.sources is None else self.documents_of_sources(where.sources)
        if where.draws:
            drawn = where.drawn(self.ids_at(np.arange(len(self.store))))
            chosen = drawn if chosen is None else chosen & drawn
        return chosen

    def allowed_units(self, where: Where) -> NDArray[np.bool_] | None:
        """Return which units may be answers: of documents that a filter allows, not deleted; None where all may."""
        documents = self.documents_where(where)
        if documents is None:
            return self._live_units
        chosen = self._units_of(documents)
        return chosen if self._live_units is None else chosen & self._live_units


def open_segments(path: Path, manifest: Manifest, opened: Sequence[Segment] = ()) -> list[Segment]:
    """Open the segments that a manifest names.

    Args:
        path: The datastore.
        manifest: As of `open_manifest`.
        opened: Segments that are open. One whose files are those of the manifest is taken over and not read again,
            but for its list of deleted documents, where that is another.

    Raises:
        As `Segment`.
    """
    have = {segment.entry.name: segment for segment in opened}
    segments = []
    for entry in manifest.segments:
        current = have.get(entry.name)
        if current is None or replace(current.entry, deleted=None) != replace(entry, deleted=None):
            current = Segment(path / SEGMENTS / entry.name, entry, manifest.unit)
        elif current.entry != entry:
            current = current.with_deleted(entry)
        segments.append(current)
    return segments
