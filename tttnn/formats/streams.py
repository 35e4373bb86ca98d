"""Streams of bytes that are made piece by piece, and files opened so that nothing can hang or go on for ever.

Knows descriptors and buffers. Does not know what the bytes mean.
"""

from __future__ import annotations

import os
import stat
from abc import abstractmethod
from io import RawIOBase
from pathlib import Path
from typing import IO, Any

from .content import DamagedError, LeftOutError
from .folder import kind_of_file

BUFFER_BYTES = 1 << 20
HEAD_BYTES = 1 << 16
"""How much of a file's beginning is looked at."""


class Stream(RawIOBase):
    """A stream whose bytes come from `piece`. Closing it closes nothing else."""

    _ready = memoryview(b"")

    @abstractmethod
    def piece(self) -> bytes:
        """Return the next bytes, none at the end."""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there, as any raw stream does."""
        if not self._ready:
            self._ready = memoryview(self.piece())
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


class Beginning(Stream):
    """A stream whose first bytes can be looked at before it is read."""

    def __init__(self, file: IO[bytes] | RawIOBase) -> None:
        self._file = file
        self._damage: DamagedError | None = None
        pieces, size = [], 0
        try:
            while size < HEAD_BYTES and (piece := file.read(HEAD_BYTES - size)):
                pieces.append(piece)
                size += len(piece)
        except DamagedError as error:
            # What is there can be read; the damage is met again behind it.
            if not pieces:
                raise
            self._damage = error
        self.head = b"".join(pieces)
        """The first `HEAD_BYTES` bytes, or all that there are."""
        self._ready = memoryview(self.head)

    def piece(self) -> bytes:
        """Return what follows the head."""
        if self._damage is not None:
            raise self._damage
        return self._file.read(BUFFER_BYTES) or b""


class OpenedFile(RawIOBase):
    """A regular file as it was when it was opened, or a pipe; knows whether it has changed since."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        state = os.fstat(descriptor)
        self._regular = stat.S_ISREG(state.st_mode)
        self._size, self._written = state.st_size, state.st_mtime_ns
        # Files of /proc have no size, but content.
        self._end = self._size if self._regular and self._size > 0 else None
        self._at = 0

    def change(self) -> str | None:
        """Say how the file has changed since it was opened; None where it has not."""
        state = os.fstat(self._file.fileno())
        if not self._regular or (state.st_size, state.st_mtime_ns) == (self._size, self._written):
            return None
        return f"changed while it was read: from {self._size} bytes to {state.st_size}"

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Say whether a place in it can be sought."""
        return self._regular

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Seek a place, as in any file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence, self._end or 0)
        self._at = self._file.seek(base + offset)
        return self._at

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read, up to the size that the file had when it was opened."""
        view = memoryview(buffer)
        if self._end is not None:
            view = view[: max(0, self._end - self._at)]
        count = (self._file.readinto(view) if len(view) else 0) or 0
        self._at += count
        return count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def opened(path: Path, *, wait: bool) -> OpenedFile:
    """Open a file.

    Args:
        path: The file.
        wait: Whether it may be a pipe, and its writer is waited for; otherwise only a regular file is opened.

    Raises:
        LeftOutError: It is no regular file.
        OSError: It cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if wait else os.O_NONBLOCK))
    kind = kind_of_file(os.fstat(descriptor).st_mode)
    if kind is not None and not wait:
        os.close(descriptor)
        raise LeftOutError(f"is {kind}, not a regular file")
    return OpenedFile(descriptor)
