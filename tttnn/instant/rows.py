"""The matrices of experts in 4 bits: experts.N.bin, mapped.

Knows the bytes of the file. Does not know what an expert is used for.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import IndexCorruptError
from ..files import write_file
from .int4 import GROUP, groups_of, pack, unpack
from .manifest import ExpertsManifest, remedy

_HEADER = struct.Struct("<8sII32sQQ")
_MAGIC = b"tttnexpt"
_DIGEST = 16
_ALIGNMENT = 64


def row_bytes(numbers: int) -> int:
    """Return the bytes of a row of so many numbers."""
    content = groups_of(numbers) * (GROUP // 2 + 4) + _DIGEST
    return -(-content // _ALIGNMENT) * _ALIGNMENT


def write_rows(path: Path, model: str, rows: Sequence[NDArray[np.float32]]) -> None:
    """Write the numbers of each expert, all of one length, rounded to 4 bits."""
    size = row_bytes(len(rows[0]))
    content = [_HEADER.pack(_MAGIC, 1, 0, bytes.fromhex(model), len(rows), size)]
    for numbers in rows:
        packed, scales = pack(numbers)
        body = packed.tobytes() + scales.astype("<f4").tobytes()
        content.append((body + hashlib.blake2b(body, digest_size=_DIGEST).digest()).ljust(size, b"\0"))
    write_file(path, b"".join(content))


class ExpertRows:
    """The rows of a file, mapped; checked when it is opened, and each row when it is first read."""

    def __init__(self, folder: Path, manifest: ExpertsManifest) -> None:
        """Map the file that a manifest names.

        Raises:
            FileNotFoundError: it is missing.
            IndexCorruptError: its header or its size is not what the manifest says.
        """
        self.path = folder / manifest.rows_file
        self._numbers = manifest.numbers
        self._size = row_bytes(manifest.numbers)
        count = len(manifest.experts)
        wanted = _HEADER.pack(_MAGIC, 1, 0, bytes.fromhex(manifest.model), count, self._size)
        found = self.path.stat().st_size
        if found != len(wanted) + count * self._size:
            raise IndexCorruptError(
                f"{self.path}: must have {len(wanted) + count * self._size} bytes, got {found}. {remedy()}"
            )
        self._bytes = np.memmap(self.path, np.uint8, mode="r")
        if self._bytes[: len(wanted)].tobytes() != wanted:
            raise IndexCorruptError(f"{self.path}: its header is not that of its manifest. {remedy()}")
        self._read: dict[int, NDArray[np.float32]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return len(self._bytes)

    def read(self, row: int) -> NDArray[np.float32]:
        """Return the numbers of an expert, (numbers,) float32.

        Raises:
            IndexCorruptError: the row fails its checksum.
        """
        if row not in self._read:
            groups = groups_of(self._numbers)
            begin = _HEADER.size + row * self._size
            whole = self._bytes[begin : begin + self._size].tobytes()
            end = groups * (GROUP // 2 + 4)
            digest = hashlib.blake2b(whole[:end], digest_size=_DIGEST).digest()
            if whole[end:] != digest.ljust(self._size - end, b"\0"):
                raise IndexCorruptError(f"{self.path}: row {row} at byte {begin} fails its checksum. {remedy()}")
            packed = np.frombuffer(whole, np.uint8, groups * GROUP // 2)
            scales = np.frombuffer(whole, "<f4", groups, offset=groups * GROUP // 2)
            self._read[row] = unpack(packed, scales.astype(np.float32), self._numbers)
        return self._read[row]
