"""The matrices of experts in 4 bits: experts.N.bin, mapped.

Knows the bytes of the file. Does not know what an expert is used for.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tttnn._core as _core

from ..errors import IndexCorruptError
from ..files import explained, replacing, sync
from .int4 import GROUP, groups_of, pack, unpack
from .manifest import ExpertsManifest, remedy

_HEADER = struct.Struct("<8sII32sQQ")
_MAGIC = b"tttnexpt"
_DIGEST = 16
_ALIGNMENT = 64
_KEPT = 8  # rows kept unpacked: those of the last few queries, 10 MB each for a model of 135 M weights


def row_bytes(numbers: int) -> int:
    """Return the bytes of a row of so many numbers."""
    content = groups_of(numbers) * (GROUP // 2 + 4) + _DIGEST
    return -(-content // _ALIGNMENT) * _ALIGNMENT


def row_of(numbers: NDArray[np.float32]) -> bytes:
    """Return a row: numbers rounded to 4 bits, their scales and a checksum."""
    packed, scales = pack(numbers)
    body = packed.tobytes() + scales.astype("<f4").tobytes()
    return (body + hashlib.blake2b(body, digest_size=_DIGEST).digest()).ljust(row_bytes(len(numbers)), b"\0")


def begin_rows(path: Path, model: str, count: int, numbers: int, rows: Mapping[int, bytes]) -> None:
    """Write a file of `count` rows of so many numbers, with some of the rows; the others are `put_row`'s.

    A row that is not there takes no space where the file system has files with holes.
    """
    size = row_bytes(numbers)
    with replacing(path) as file:
        file.write(_HEADER.pack(_MAGIC, 1, 0, bytes.fromhex(model), count, size))
        for number, row in sorted(rows.items()):
            file.seek(_HEADER.size + number * size)
            file.write(row)
        file.truncate(_HEADER.size + count * size)


def put_row(path: Path, number: int, row: bytes) -> None:
    """Write a row that no manifest names yet, and make it durable."""
    with explained(path), open(path, "r+b") as file:
        file.seek(_HEADER.size + number * len(row))
        file.write(row)
        sync(file)


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
        count = manifest.rows
        wanted = _HEADER.pack(_MAGIC, 1, 0, bytes.fromhex(manifest.model), count, self._size)
        size = self.path.stat().st_size
        if size != len(wanted) + count * self._size:
            raise IndexCorruptError(
                f"{self.path}: must have {len(wanted) + count * self._size} bytes, got {size}. {remedy()}"
            )
        self._file = _core.MappedFile(str(self.path))  # a file cut short reads as zeros, which fail a row's checksum
        self._bytes = self._file.bytes
        if self._bytes[: len(wanted)].tobytes() != wanted:
            raise IndexCorruptError(f"{self.path}: its header is not that of its manifest. {remedy()}")
        self._read: OrderedDict[int, NDArray[np.float32]] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return len(self._bytes)

    def row(self, number: int) -> bytes:
        """Return the bytes of a row.

        Raises:
            IndexCorruptError: it fails its checksum.
        """
        begin = _HEADER.size + number * self._size
        whole = self._bytes[begin : begin + self._size].tobytes()
        end = groups_of(self._numbers) * (GROUP // 2 + 4)
        digest = hashlib.blake2b(whole[:end], digest_size=_DIGEST).digest()
        if whole[end:] != digest.ljust(self._size - end, b"\0"):
            raise IndexCorruptError(f"{self.path}: row {number} at byte {begin} fails its checksum. {remedy()}")
        return whole

    def read(self, number: int) -> NDArray[np.float32]:
        """Return the numbers of an expert, (numbers,) float32.

        Raises:
            IndexCorruptError: its row fails its checksum.
        """
        if number not in self._read:
            self._read[number] = numbers_of(self.row(number), self._numbers)
            if len(self._read) > _KEPT:
                self._read.popitem(last=False)
        self._read.move_to_end(number)
        return self._read[number]


def numbers_of(row: bytes, count: int) -> NDArray[np.float32]:
    """Return the numbers that the bytes of a row stand for, (count,) float32."""
    groups = groups_of(count)
    packed = np.frombuffer(row, np.uint8, groups * GROUP // 2)
    scales = np.frombuffer(row, "<f4", groups, offset=groups * GROUP // 2)
    return unpack(packed, scales.astype(np.float32), count)
