"""The rows of a Parquet file, with values that JSON has.

Knows pyarrow, which is loaded on first use. Does not know which column is the text.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import date, datetime, time
from importlib import import_module
from typing import IO, Any

from ..errors import MissingExtraError
from ..files import mended
from .content import Content, DamagedError, LeftOut, Row

_BATCH_ROWS = 256


def parquet_rows(name: str, file: IO[bytes], *, text_field: str) -> Iterator[Content]:
    """Yield the rows of a Parquet file.

    What JSON does not have is written as text: times as ISO 8601, decimals and UUIDs by their digits, bytes as UTF-8 or
    else in base64, numbers that are not finite as "NaN", "Infinity" and "-Infinity".

    Args:
        name: The file's.
        file: One in which a place can be sought.
        text_field: The column that must be there.

    Raises:
        DamagedError: There is no such column, or the file is no Parquet that can be read.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        arrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError:
        raise MissingExtraError("reading Parquet needs pyarrow. Install it with: pip install pyarrow") from None
    try:
        with parquet.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
            if text_field not in names:
                raise DamagedError(f"has no column {text_field!r}, only {', '.join(names[:20])}")
            number = 1
            for batch in opened.iter_batches(batch_size=_BATCH_ROWS):
                yield from _rows_of(name, number, batch)
                number += batch.num_rows
    except (arrow.ArrowException, OSError) as error:
        raise DamagedError(f"is not Parquet that can be read: {' '.join(str(error).split())}") from None


def _rows_of(name: str, number: int, batch: Any) -> Iterator[Content]:
    """Yield the rows of a batch; where Python has no such value, row by row, so that only those are lost."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError, ArithmeticError, ImportError) as error:
        if batch.num_rows == 1:
            yield LeftOut(name, number, f"holds a value that cannot be read: {' '.join(str(error).split())}")
            return
        for i in range(batch.num_rows):
            yield from _rows_of(name, number + i, batch.slice(i, 1))
        return
    for i, row in enumerate(rows):
        yield Row(name, number + i, mended(row, default=_as_text))


def _as_text(value: Any) -> str:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return str(value)
