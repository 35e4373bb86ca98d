"""One segment of a datastore: its texts, passages, index and deleted documents, checked against the manifest.

Knows which file is which, what must agree and what an id is; does not know how files are made or what a query is.

A document's id is given once and names that document for ever: a segment that was built holds the ids from `base`
upwards, one after another. Compaction leaves ids as they are: where a segment has gaps, ids.bin lists the id of every
position. The manifest's `next_id` only grows, so an id is never used again, not even that of a deleted document.

Deleted documents are listed in deleted.N.bin, N counting the deletions. The manifest names the file that is valid, with
its size and sha256, so a deletion happens when the manifest is replaced, and a lost or an older list is an error.
"""

from __future__ import annotations

import copy
import fcntl
import hashlib
import shutil
import struct
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import DatastoreLockedError, DatastoreMismatchError, IndexCorruptError, StoreCorruptError
from ..files import check_file, describe_file, digest_of, read_manifest, write_file, write_manifest
from ..store.document import Document
from ..store.text_store import TextStore
from .index import MANIFEST as INDEX_MANIFEST
from .index import NeighborIndex
from .passages import PassageTable

FORMAT = 2
MANIFEST = "manifest.json"
STATE = "build.json"
SEGMENTS = "segments"
TEXTS = "texts.zst"
PASSAGES = "passages.bin"
IDS = "ids.bin"
LOCK = ".lock"

_DELETED_MAGIC = b"tttndele"
_DELETED_HEADER = struct.Struct("<8sII16sQQ")  # magic, version, reserved, store id, documents, deleted documents
_DELETED_VERSION = 1
_DIGEST_BYTES = 16
_REMEDY = "Restore the file or rebuild the datastore."
_READ_DOCUMENTS = 256


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a datastore directory against other writers; readers are not held.

    Raises:
        DatastoreLockedError: Another process or thread holds it.
    """
    with open(path / LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatastoreLockedError(f"{path}: another builder is at work. Wait until it ends.") from None
        yield


def segment_name(number: int) -> str:
    """Return the directory name of a segment."""
    return f"{number:03d}"


def open_manifest(path: Path) -> dict[str, Any]:
    """Read a datastore's manifest and check its digest; one of an older format gets the fields of the newest.

    Raises:
        FileNotFoundError: There is no datastore, or its build was not finished.
        IndexCorruptError: The manifest is damaged.
    """
    if not (path / MANIFEST).is_file():
        if (path / STATE).is_file():
            raise FileNotFoundError(f"{path}: its build was not finished. Run the same build again to continue it.")
        raise FileNotFoundError(f"{path}: is not a datastore: there is no {MANIFEST} in it")
    manifest = read_manifest(path / MANIFEST, format_version=FORMAT)
    if digest_of({key: value for key, value in manifest.items() if key != "id"}) != manifest.get("id"):
        raise IndexCorruptError(f"{path / MANIFEST}: its id is not that of its content. {_REMEDY}")
    entries = manifest["segments"]
    for entry in entries:
        entry.setdefault("end", entry["base"] + entry["documents"])
        entry.setdefault("deleted", None)
    manifest.setdefault("next_id", entries[-1]["end"] if entries else 0)
    manifest.setdefault("next_segment", len(entries))
    return manifest


def replace_manifest(path: Path, manifest: dict[str, Any]) -> str:
    """Make another state of the datastore the valid one, at once; return its id."""
    content = {key: value for key, value in manifest.items() if key != "id"} | {"format": FORMAT}
    shortcut = path / TEXTS
    if content["segments"]:
        target = Path(SEGMENTS) / content["segments"][0]["name"] / TEXTS
        fresh = path / f"{TEXTS}.partial"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(shortcut)
    else:
        shortcut.unlink(missing_ok=True)
    identifier = digest_of(content)
    write_manifest(path / MANIFEST, {**content, "id": identifier})
    return identifier


def remove_unlisted(path: Path, manifest: dict[str, Any]) -> None:
    """Remove what an interrupted append, deletion or compaction left and the manifest does not name."""
    listed = {entry["name"]: entry for entry in manifest["segments"]}
    for folder in sorted((path / SEGMENTS).iterdir()) if (path / SEGMENTS).is_dir() else []:
        entry = listed.get(folder.name)
        if entry is None:
            shutil.rmtree(folder)
            continue
        valid = entry["deleted"]["name"] if entry["deleted"] else None
        for file in folder.glob("deleted.*"):
            if file.name != valid:
                file.unlink()


def write_deleted(folder: Path, entry: dict[str, Any], deleted: NDArray[np.bool_]) -> dict[str, Any]:
    """Write a new list of a segment's deleted documents beside the valid one; return what the manifest says of it.

    Args:
        folder: The segment's.
        entry: The segment's part of the manifest.
        deleted: (documents,), by position.
    """
    previous = int(entry["deleted"]["name"].split(".")[1]) if entry["deleted"] else 0
    name = f"deleted.{previous + 1}.bin"
    positions = np.flatnonzero(deleted)
    content = _DELETED_HEADER.pack(
        _DELETED_MAGIC, _DELETED_VERSION, 0, bytes.fromhex(entry["store_id"]), len(deleted), len(positions)
    ) + positions.astype("<u8").tobytes()  # fmt: skip
    write_file(folder / name, content + hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest())
    return {"name": name, "documents": len(positions), **describe_file(folder / name)}


def _read_deleted(folder: Path, entry: dict[str, Any]) -> NDArray[np.bool_] | None:
    described = entry["deleted"]
    if described is None:
        return None
    path = folder / described["name"]
    check_file(path, described, error=IndexCorruptError)
    content = path.read_bytes()
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if len(body) < _DELETED_HEADER.size or hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != digest:
        raise IndexCorruptError(f"{path}: fails its checksum. {_REMEDY}")
    magic, version, reserved, store, documents, count = _DELETED_HEADER.unpack_from(body)
    if magic != _DELETED_MAGIC or version != _DELETED_VERSION or reserved != 0:
        raise IndexCorruptError(f"{path}: is not a list of deleted documents of version {_DELETED_VERSION}. {_REMEDY}")
    if store.hex() != entry["store_id"] or documents != entry["documents"]:
        raise DatastoreMismatchError(
            f"{path}: is of the store {store.hex()} with {documents} documents, expected {entry['store_id']} with "
            f"{entry['documents']}. {_REMEDY}"
        )
    positions = np.frombuffer(body, "<u8", offset=_DELETED_HEADER.size).astype(np.int64)
    if (
        len(positions) != count
        or count != described["documents"]
        or (count and (np.any(np.diff(positions) <= 0) or positions[-1] >= documents or positions[0] < 0))
    ):
        raise IndexCorruptError(f"{path}: its positions are out of order. {_REMEDY}")
    deleted = np.zeros(documents, np.bool_)
    deleted[positions] = True
    return deleted


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

    def __init__(self, folder: Path, entry: dict[str, Any], unit: str) -> None:
        self.folder = folder
        self.entry = entry
        self.base: int = entry["base"]
        self.end: int = entry["end"]
        """No id of the segment is as large as this."""
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
        self._ids = self._read_ids() if IDS in entry["files"] else None
        self.deleted = _read_deleted(folder, entry)
        """(documents,) of bool by position; None where no document is deleted."""
        self._live_units: NDArray[np.bool_] | None = None
        if self.deleted is not None:
            self._live_units = self._units_of(~self.deleted)

    def with_deleted(self, entry: dict[str, Any]) -> Segment:
        """Return the same files with another list of deleted documents, which alone is read."""
        changed = copy.copy(self)
        changed.entry = entry
        changed.deleted = _read_deleted(self.folder, entry)
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
        found: NDArray[np.int64] = self.base + positions if self._ids is None else self._ids[positions]
        return found

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

    def allowed_units(self, sources: Collection[str] | None) -> NDArray[np.bool_] | None:
        """Return which units may be answers: of these sources and not deleted; None where all may."""
        if sources is None:
            return self._live_units
        chosen = self._units_of(self.documents_of_sources(sources))
        return chosen if self._live_units is None else chosen & self._live_units


def open_segments(path: Path, manifest: dict[str, Any], opened: Sequence[Segment] = ()) -> list[Segment]:
    """Open the segments that a manifest names.

    Args:
        path: The datastore.
        manifest: As of `open_manifest`.
        opened: Segments that are open. One whose files are those of the manifest is taken over and not read again,
            but for its list of deleted documents, where that is another.

    Raises:
        As `Segment`.
    """
    have = {segment.entry["name"]: segment for segment in opened}
    segments = []
    for entry in manifest["segments"]:
        held = have.get(entry["name"])
        if held is None or held.entry | {"deleted": None} != entry | {"deleted": None}:
            held = Segment(path / SEGMENTS / entry["name"], entry, manifest["unit"])
        elif held.entry != entry:
            held = held.with_deleted(entry)
        segments.append(held)
    return segments


class Documents(Sequence[Document]):
    """The documents of all segments by id. An id that was deleted is an IndexError; iteration passes over it.

    `len` counts the documents that are there, so ids may be larger; a negative index counts from the next id.
    """

    def __init__(self, segments: Sequence[Segment], next_id: int) -> None:
        self._segments = segments
        self._next_id = next_id
        self._bases = np.array([segment.base for segment in segments], np.int64)

    def __len__(self) -> int:
        return sum(len(segment) for segment in self._segments)

    def __iter__(self) -> Iterator[Document]:
        for segment in self._segments:
            positions = segment.positions_of(segment.live_ids)
            for begin in range(0, len(positions), _READ_DOCUMENTS):
                yield from segment.store.read_many(positions[begin : begin + _READ_DOCUMENTS])

    @property
    def ids(self) -> NDArray[np.int64]:
        """The ids of all documents, ascending."""
        return np.concatenate([np.zeros(0, np.int64), *(segment.live_ids for segment in self._segments)])

    def locate(self, ids: Sequence[int] | NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Find documents: (segment's number, rows in `ids`, positions in its store) of each segment that has some.

        Raises:
            IndexError: An id was never given, or its document was deleted.
        """
        wanted = np.asarray(ids, np.int64).reshape(-1)
        wrong = wanted[(wanted < 0) | (wanted >= self._next_id)]
        if len(wrong):
            raise IndexError(f"document id must be between 0 and {self._next_id - 1}, got {int(wrong[0])}")
        numbers = np.searchsorted(self._bases, wanted, side="right") - 1
        positions = np.full(len(wanted), -1, np.int64)
        found = []
        for number in np.unique(numbers[numbers >= 0]).tolist():
            segment = self._segments[number]
            rows = np.flatnonzero(numbers == number)
            inside = wanted[rows] < segment.end
            positions[rows] = np.where(inside, segment.positions_of(np.where(inside, wanted[rows], segment.base)), -1)
            found.append((number, rows, positions[rows]))
        gone = wanted[positions < 0]
        if len(gone):
            raise IndexError(f"document id must be of a document that is there, got {int(gone[0])}, which was deleted")
        return found

    def read_many(self, ids: Sequence[int]) -> list[Document]:
        """Read documents by id, in any order.

        Raises:
            IndexError: An id was never given, or its document was deleted.
        """
        documents: dict[int, Document] = {}
        for number, rows, positions in self.locate(ids):
            documents |= dict(zip(rows.tolist(), self._segments[number].store.read_many(positions), strict=True))
        return [documents[row] for row in range(len(documents))]

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        if isinstance(index, slice):
            there = set(self.ids.tolist())
            return self.read_many([i for i in range(*index.indices(self._next_id)) if i in there])
        position = index + self._next_id if index < 0 else index
        if not 0 <= position < self._next_id:
            raise IndexError(f"document id must be between {-self._next_id} and {self._next_id - 1}, got {index}")
        return self.read_many([position])[0]
