"""What files are read into: texts, rows, and what was left out, with the reason. Knows no format."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias


class Text(NamedTuple):
    """The text of a whole file."""

    name: str
    """The file's path under the folder or in the archive that was read; of a file that was named, its name."""
    text: str


class Row(NamedTuple):
    """One object or row of a file that holds many."""

    name: str
    number: int
    """The number of the line, element or row in the file, counted from 1."""
    fields: dict[str, Any]
    line: bytes | None = None
    """The bytes of the line that it was read from; None where it was no line."""


class LeftOut(NamedTuple):
    """A file, line or row that is not read."""

    name: str
    number: int | None
    """The line, element or row, counted from 1; None for a whole file."""
    reason: str
    line: bytes | None = None
    """The line, or its beginning."""


Content: TypeAlias = Text | Row | LeftOut


class LeftOutError(Exception):
    """A file, or the rest of it, is not read; the message is the reason."""


class DamagedError(LeftOutError):
    """A file is not what it should be: cut short, or without what every row needs.

    One that was found in a folder is left out; one that was named is an error.
    """


def sized(count: int) -> str:
    """Return a number of bytes as people write it: 64 MiB."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << power:
            return f"{count / (1 << power):.4g} {unit}"
    return f"{count} bytes"


def too_long(limit: int) -> str:
    """Return the reason why something that holds more bytes than a document may is left out."""
    return f"is longer than {sized(limit)} (max_document_bytes)"
