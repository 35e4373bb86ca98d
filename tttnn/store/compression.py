"""Compressed files as streams of their content.

Knows zstd's frames. Does not know what the content is.
"""

from __future__ import annotations

from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import IO, Any

READ_BYTES = 1 << 20


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for its content; one whose name ends in ``.zst`` is decompressed."""
    file = path.open("rb")
    if path.suffix != ".zst":
        return file
    return BufferedReader(_ZstdStream(file, path), READ_BYTES)


class _ZstdStream(RawIOBase):
    """The content of all frames of a zstd file; unlike zstandard's reader, a torn last frame is an error."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        import zstandard

        self._file = file
        self._path = path
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame: Any = None
        self._waiting = b""  # compressed bytes after the end of a frame
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            compressed = self._waiting or self._file.read(READ_BYTES // 8)
            self._waiting = b""
            if not compressed:
                if self._frame is not None:
                    raise ValueError(
                        f"{self._path}: ends at byte {self._file.tell()} inside a zstd frame. The file is cut short."
                    )
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(compressed))
            except self._error as error:
                raise ValueError(
                    f"{self._path}: is not zstd that can be read, before byte {self._file.tell()}: {error}"
                ) from None
            if self._frame.eof:
                self._waiting = self._frame.unused_data
                self._frame = None
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()
