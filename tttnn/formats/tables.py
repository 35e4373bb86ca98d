"""Tables as rows: values with commas, tabs, semicolons or bars between, under a line of names.

Knows the csv module. Does not know which column is the text.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

from .content import Content, DamagedError, LeftOut, Row, too_long
from .json_rows import lines_of

_SEPARATORS = ",\t;|"


def table_rows(name: str, file: BufferedReader[Any], limit: int, *, text_field: str) -> Iterator[Content]:
    """Yield the rows of a table; its first line names the columns.

    The separator is the one under which a column is `text_field`. Every value is a text; a row's number is that of its
    first line.

    Args:
        name: The file's.
        file: In UTF-8, without a byte order mark.
        limit: Bytes that a line may have.
        text_field: The column that must be there.

    Raises:
        DamagedError: There is no such column.
    """
    lines = _Lines(file, limit)
    first = next(lines, "")
    separator = next((s for s in _SEPARATORS if text_field in _cells(first, s)), None)
    if separator is None:
        header = max((_cells(first, s) for s in _SEPARATORS), key=len)
        raise DamagedError(f"has no column {text_field!r}, only {', '.join(header[:20])}")
    columns = _cells(first, separator)
    # The module's own limit is 128 KiB, for all of a process.
    csv.field_size_limit(max(csv.field_size_limit(), limit))
    reader = csv.reader(lines, delimiter=separator)
    while True:
        number = lines.number + 1
        fault: str | None = None
        cells: list[str] = []
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fault = f"is no row: {error}"
        if lines.cut:
            fault, lines.cut = too_long(limit), False
        if fault is None and cells and len(cells) != len(columns):
            fault = f"has {len(cells)} values, expected {len(columns)} as in the first line"
        if fault is not None:
            yield LeftOut(name, number, fault)
        elif cells:
            yield Row(name, number, dict(zip(columns, cells, strict=True)))


class _Lines:
    """The lines of a file as text; bytes that are not UTF-8 become lone surrogates, so that only their row is lost."""

    def __init__(self, file: BufferedReader[Any], limit: int) -> None:
        self._lines = lines_of(file, limit)
        self._limit = limit
        self.number = 0
        """The number of the last line that was read, counted from 1."""
        self.cut = False
        """Whether a line since this was last set was longer than the limit."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        if line is None:
            raise StopIteration
        if len(line.rstrip(b"\r\n")) > self._limit:
            self.cut = True
            line = line[: self._limit]
        return line.decode("utf-8", "surrogateescape")


def _cells(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return []
