"""The list of a segment's deleted documents: deleted.N.bin, N counting the deletions.

Knows the bytes of a list and what it must agree with. Does not know what a deleted document is to a search.

The manifest names the list that is valid, with its size and sha256, so a deletion happens when the manifest is
replaced, and a lost or an older list is an error.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DatastoreMismatchError, IndexCorruptError
from ..files import check_file, describe_file, write_file
from .manifest import DeletedEntry, SegmentEntry

_DELETED_MAGIC = b"tttndele"
_DELETED_HEADER = struct.Struct("<8sII16sQQ")  # magic, version, reserved, store id, documents, deleted documents
_DELETED_VERSION = 1
_DIGEST_BYTES = 16
_REMEDY = "Restore the file or rebuild the datastore."


def write_deleted(folder: Path, entry: SegmentEntry, deleted: NDArray[np.bool_]) -> DeletedEntry:
    """Write a new list of a segment's deleted documents beside the valid one; return what the manifest says of it.

    Args:
        folder: The segment's.
        entry: The segment's part of the manifest.
        deleted: (documents,), by position.
    """
    previous = int(entry.deleted.name.split(".")[1]) if entry.deleted is not None else 0
    name = f"deleted.{previous + 1}.bin"
    positions = np.flatnonzero(deleted)
    content = _DELETED_HEADER.pack(
        _DELETED_MAGIC, _DELETED_VERSION, 0, bytes.fromhex(entry.store_id), len(deleted), len(positions)
    ) + positions.astype("<u8").tobytes()  # fmt: skip
    write_file(folder / name, content + hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest())
    return DeletedEntry(name, len(positions), **describe_file(folder / name))


def read_deleted(folder: Path, entry: SegmentEntry) -> NDArray[np.bool_] | None:
    """Return which documents of a segment are deleted, (documents,) by position; None where none is.

    Raises:
        FileNotFoundError: The list is missing.
        IndexCorruptError: It is damaged.
        DatastoreMismatchError: It is of another store.
    """
    described = entry.deleted
    if described is None:
        return None
    path = folder / described.name
    check_file(path, asdict(described), error=IndexCorruptError)
    content = path.read_bytes()
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if len(body) < _DELETED_HEADER.size or hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != digest:
        raise IndexCorruptError(f"{path}: fails its checksum. {_REMEDY}")
    magic, version, reserved, store, documents, count = _DELETED_HEADER.unpack_from(body)
    if magic != _DELETED_MAGIC or version != _DELETED_VERSION or reserved != 0:
        raise IndexCorruptError(f"{path}: is not a list of deleted documents of version {_DELETED_VERSION}. {_REMEDY}")
    if store.hex() != entry.store_id or documents != entry.documents:
        raise DatastoreMismatchError(
            f"{path}: is of the store {store.hex()} with {documents} documents, expected {entry.store_id} with "
            f"{entry.documents}. {_REMEDY}"
        )
    positions = np.frombuffer(body, "<u8", offset=_DELETED_HEADER.size).astype(np.int64)
    if (
        len(positions) != count
        or count != described.documents
        or (count and (np.any(np.diff(positions) <= 0) or positions[-1] >= documents or positions[0] < 0))
    ):
        raise IndexCorruptError(f"{path}: its positions are out of order. {_REMEDY}")
    deleted = np.zeros(documents, np.bool_)
    deleted[positions] = True
    return deleted
