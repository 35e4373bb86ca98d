"""Compressed files as streams of their content: gzip, bzip2, xz and zstd.

Knows how each begins and ends. Does not know what the content is.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import IO, Any, Literal, Protocol, get_args

from .content import DamagedError
from .streams import Stream

Compression = Literal["gzip", "bzip2", "xz", "zstd"]

_SUFFIXES: dict[str, Compression] = {
    ".gz": "gzip",
    ".gzip": "gzip",
    ".tgz": "gzip",
    ".bz2": "bzip2",
    ".tbz2": "bzip2",
    ".tbz": "bzip2",
    ".xz": "xz",
    ".lzma": "xz",
    ".txz": "xz",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".tzst": "zstd",
}
_PIECE = 1 << 17
_CONTENT = 1 << 20  # that is made at a time
# A block of 128 KiB that repeats one byte takes 4 bytes of a zstd frame, and zstandard returns all that a piece holds.
_ZSTD_PIECE = 1 << 11


def split_compression(name: str) -> tuple[str, Compression | None]:
    """Return a file's name without the suffix of its compression, and which that is; None where it says nothing."""
    for suffix, compression in _SUFFIXES.items():
        if name.lower().endswith(suffix):
            inner = name[: -len(suffix)]
            return (inner + ".tar" if suffix.startswith(".t") else inner), compression
    return name, None


def compression_at(head: bytes) -> Compression | None:
    """Return the compression that a file begins with; None where it is none of these."""
    if head[:3] == b"\x1f\x8b\x08":
        return "gzip"
    if head[:3] == b"BZh" and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return "bzip2"
    if head[:6] == b"\xfd7zXZ\0":
        return "xz"
    if head[:4] == b"\x28\xb5\x2f\xfd" or (0x50 <= head[:1].ljust(1)[0] <= 0x5F and head[1:4] == b"\x2a\x4d\x18"):
        return "zstd"  # a frame, or a skippable one
    return None


class _Frame(Protocol):
    """Decompresses one frame, member or stream of a file."""

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the file, or none to go on with those it has; return some content."""
        ...

    @property
    def hungry(self) -> bool:
        """Whether it needs more of the file to go on."""
        ...

    @property
    def rest(self) -> bytes | None:
        """What it was fed beyond its end; None before that."""
        ...


class _Gzip:
    def __init__(self) -> None:
        self._member = zlib.decompressobj(31)

    def feed(self, data: bytes) -> bytes:
        return self._member.decompress(self._member.unconsumed_tail + data, _CONTENT)

    @property
    def hungry(self) -> bool:
        return not self._member.unconsumed_tail

    @property
    def rest(self) -> bytes | None:
        return self._member.unused_data if self._member.eof else None


class _Standard:
    """A frame of bz2 or lzma, whose decompressors work alike."""

    def __init__(self, decompressor: Any) -> None:
        self._decompressor = decompressor

    def feed(self, data: bytes) -> bytes:
        content: bytes = self._decompressor.decompress(data, _CONTENT)
        return content

    @property
    def hungry(self) -> bool:
        return bool(self._decompressor.needs_input)

    @property
    def rest(self) -> bytes | None:
        return self._decompressor.unused_data if self._decompressor.eof else None


class _Zstd:
    def __init__(self) -> None:
        import zstandard

        self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        self._left = b""

    def feed(self, data: bytes) -> bytes:
        data = self._left + data
        self._left = data[_ZSTD_PIECE:]
        content: bytes = self._frame.decompress(data[:_ZSTD_PIECE])
        return content

    @property
    def hungry(self) -> bool:
        return not self._left

    @property
    def rest(self) -> bytes | None:
        return self._frame.unused_data + self._left if self._frame.eof else None


def _frame_of(compression: Compression) -> _Frame:
    if compression == "gzip":
        return _Gzip()
    if compression == "zstd":
        return _Zstd()
    # What one xz file may ask for; the most that its own levels need is 65 MiB.
    return _Standard(bz2.BZ2Decompressor() if compression == "bzip2" else lzma.LZMADecompressor(memlimit=1 << 31))


def _errors() -> tuple[type[Exception], ...]:
    import zstandard

    return (zlib.error, OSError, EOFError, lzma.LZMAError, zstandard.ZstdError)


class Inflated(Stream):
    """The content of a compressed file, of all its frames; memory does not grow with what they promise.

    Reading raises DamagedError where the file is not what its compression says, and where it ends inside a frame.
    """

    def __init__(self, file: IO[bytes], compression: Compression) -> None:
        assert compression in get_args(Compression)
        self._file = file
        self._compression: Compression = compression
        self._errors = _errors()
        self._frame: _Frame | None = None
        self._waiting = b""  # bytes of the file after the end of a frame
        self._taken = 0

    def piece(self) -> bytes:
        """Return some content of the file."""
        while True:
            data = b""
            if self._frame is None or self._frame.hungry:
                data = self._waiting or self._next_piece()
                self._waiting = b""
                if not data:
                    return self._end()
            if self._frame is None:
                self._frame = _frame_of(self._compression)
            try:
                content = self._frame.feed(data)
            except self._errors as error:
                raise DamagedError(
                    f"is not {self._compression} that can be read, before byte {self._taken}: {error}"
                ) from None
            rest = self._frame.rest
            if rest is not None:
                # Tapes and disks pad files with zeros; zstd has frames for that.
                self._waiting = rest if self._compression == "zstd" else rest.lstrip(b"\0")
                self._frame = None
            if content:
                return content

    def _next_piece(self) -> bytes:
        while True:
            piece = self._file.read(_PIECE)
            padding = self._frame is None and self._taken > 0 and self._compression != "zstd"
            self._taken += len(piece)
            if not piece or not padding or (piece := piece.lstrip(b"\0")):
                return piece

    def _end(self) -> bytes:
        if self._frame is not None:
            raise DamagedError(f"ends at byte {self._taken} inside a {self._compression} frame. The file is cut short.")
        return b""
