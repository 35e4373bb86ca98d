"""Tar and zip archives as the files in them, read in the order of the archive and never unpacked to disk.

Knows archives and which of their members are files. Does not know what these hold.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Self

from .content import Content, DamagedError, LeftOut
from .folder import Wanted, shown

ReadMember = Callable[[str, IO[bytes]], Iterator[Content]]
"""Reads one member: ``read(name, file)``."""

_MOST_HEADER_BYTES = 1 << 20
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class _Header(tarfile.TarInfo):
    """A header whose extension is not read into memory where it is larger than any name or attribute."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read one header."""
        header = super().frombuf(buf, encoding, errors)
        if header.type in _HEADERS and header.size > _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {header.size} bytes")
        return header


def tar_members(name: str, file: IO[bytes], wanted: Wanted, read: ReadMember) -> Iterator[Content]:
    """Yield the content of the files in a tar archive.

    Raises:
        DamagedError: It is no archive that can be read to its end.
    """
    try:
        with tarfile.open(fileobj=file, mode="r|", tarinfo=_Header, errors="surrogateescape") as archive:
            for member in archive:
                inner = shown(member.name.lstrip("/"))
                if member.isdir() or not wanted(inner):
                    continue
                if member.isreg():
                    opened = archive.extractfile(member)
                    assert opened is not None
                    yield from read(f"{name}/{inner}", opened)
                else:
                    kind = "a link" if member.issym() or member.islnk() else "a device or pipe"
                    yield LeftOut(f"{name}/{inner}", None, f"is {kind} in an archive")
    except (tarfile.TarError, EOFError) as error:
        raise DamagedError(f"is not tar that can be read to its end: {error}") from None


def zip_members(name: str, file: Any, wanted: Wanted, read: ReadMember) -> Iterator[Content]:
    """Yield the content of the files in a zip archive.

    Raises:
        DamagedError: It has no table of contents that can be read.
    """
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DamagedError(f"is not zip that can be read: {error}") from None
    with archive:
        for member in archive.infolist():
            inner = shown(member.filename.lstrip("/"))
            if member.is_dir() or not wanted(inner):
                continue
            path = f"{name}/{inner}"
            if member.flag_bits & 1:
                yield LeftOut(path, None, "is encrypted")
                continue
            try:
                with archive.open(member) as opened:
                    yield from read(path, opened)
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
                yield LeftOut(path, None, f"cannot be read: {error}")
