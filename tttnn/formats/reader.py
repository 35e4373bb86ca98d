"""One file, whatever it is: opened if it is safe to open, unpacked, told what kind it is, and handed to its reader.

Knows every kind. Does not know which field of a row is which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from ..config import CorpusConfig
from ..errors import MissingExtraError
from .archive import tar_members, zip_members
from .compression import Inflated, compression_at, split_compression
from .content import Content, DamagedError, LeftOut, LeftOutError, Text, too_long
from .encoding import Recoded, decoded
from .folder import Wanted
from .html import html_text
from .json_rows import line_rows, value_rows
from .kinds import Kind, kind_of, refuse
from .parquet import parquet_rows
from .streams import BUFFER_BYTES, Beginning, OpenedFile, opened
from .tables import table_rows


@dataclass(frozen=True)
class Reader:
    """Reads files into texts and rows, by one set of settings."""

    config: CorpusConfig
    kind: Kind | None = None
    """What every file is taken for; None: what it is found to be."""
    wanted: Wanted = field(default_factory=Wanted)
    """Which members of archives are read."""

    def named(self, path: Path, name: str) -> Iterator[Content]:
        """Read a file that was named: a regular one, a pipe or a terminal.

        Raises:
            DamagedError: It is cut short, or not what it begins as, or without what every row needs.
            MissingExtraError: A package that reads such files is not installed.
            OSError: It cannot be opened or read.
        """
        with opened(path, wait=True) as file:
            yield from self.stream(name, file, whole=False)

    def found(self, path: Path, name: str) -> Iterator[Content]:
        """Read a file that was found in a folder; what hinders that is the reason why it is left out."""
        try:
            with opened(path, wait=False) as file:
                yield from _safely(name, self.stream(name, file, whole=True))
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)
            yield LeftOut(name, None, "is gone" if gone else f"cannot be read: {error.strerror or error}")
        except LeftOutError as error:
            yield LeftOut(name, None, str(error))

    def stream(self, name: str, file: Any, *, whole: bool, inside: bool = False) -> Iterator[Content]:
        """Read an open file.

        Args:
            name: Its name.
            file: Its bytes, from their beginning.
            whole: Whether a JSON file of one object without the text's field is a text (`kinds.kind_of`).
            inside: Whether it stands in an archive.

        Raises:
            DamagedError: As of `named`.
            MissingExtraError: As of `named`.
        """
        try:
            yield from self._content(name, file, whole, inside)
        except DamagedError:
            raise
        except LeftOutError as error:
            yield LeftOut(name, None, str(error))

    def _content(self, name: str, file: Any, whole: bool, inside: bool) -> Iterator[Content]:
        beginning = Beginning(file)
        if self.kind in (None, "text"):
            refuse(beginning.head)
        inner, expected = split_compression(name)
        compression = compression_at(beginning.head) or (expected if beginning.head else None)
        if compression is not None:
            beginning = Beginning(Inflated(BufferedReader(beginning, BUFFER_BYTES), compression))
            if compression_at(beginning.head) is not None:
                raise LeftOutError("is compressed twice")
        if not beginning.head:
            raise LeftOutError("is empty")
        kind = self.kind or kind_of(inner, beginning.head, text_field=self.config.text_field, whole=whole)
        if kind in ("text", "html"):
            yield self._text(name, kind, beginning, file)
            return
        if inside and kind in ("tar", "zip"):
            raise LeftOutError("is an archive in an archive")
        if kind in ("parquet", "zip") and (compression is not None or not file.seekable() or inside):
            raise LeftOutError(f"is {kind} in a stream, an archive or a compressed file: it is read from a file only")
        yield from self._rows(name, kind, beginning, file)
        if isinstance(file, OpenedFile) and (change := file.change()) is not None:
            yield LeftOut(name, None, f"{change}; what was added is not read")

    def _rows(self, name: str, kind: Kind, beginning: Beginning, file: Any) -> Iterator[Content]:
        limit, text_field = self.config.max_document_bytes, self.config.text_field
        if kind == "parquet":
            yield from parquet_rows(name, file, text_field=text_field)
        elif kind == "zip":
            yield from zip_members(name, file, self.wanted, self._member)
        elif kind == "tar":
            yield from tar_members(name, BufferedReader(beginning, BUFFER_BYTES), self.wanted, self._member)
        else:
            recoded = Recoded(BufferedReader(beginning, BUFFER_BYTES), beginning.head)
            lines = BufferedReader(recoded, BUFFER_BYTES)
            if kind == "lines":
                yield from line_rows(name, lines, limit)
            elif kind == "json":
                yield from value_rows(name, lines, limit)
            else:
                yield from table_rows(name, lines, limit, text_field=text_field)

    def _text(self, name: str, kind: Kind, beginning: Beginning, file: Any) -> Text:
        limit = self.config.max_document_bytes
        data = BufferedReader(beginning, BUFFER_BYTES).read(limit + 1)
        if len(data) > limit:
            raise LeftOutError(too_long(limit))
        if isinstance(file, OpenedFile) and (change := file.change()) is not None:
            raise LeftOutError(change)
        text = html_text(data) if kind == "html" else decoded(data)
        if not text.strip():
            raise LeftOutError("holds no text")
        return Text(name, text)

    def _member(self, name: str, file: IO[bytes]) -> Iterator[Content]:
        return _safely(name, self.stream(name, file, whole=True, inside=True))


def _safely(name: str, contents: Iterator[Content]) -> Iterator[Content]:
    """Yield contents; what would be an error of a file that was named is the reason why this one is left out."""
    try:
        yield from contents
    except (LeftOutError, MissingExtraError) as error:
        yield LeftOut(name, None, str(error))
