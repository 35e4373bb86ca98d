"""JSON as rows: one object a line, or objects one after another or in an array. Memory is bounded by one of them.

Knows JSON. Does not know which of an object's fields is the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

from .content import Content, LeftOut, Row, sized, too_long

_MARK = b"\xef\xbb\xbf"
_KEPT = 1 << 16
"""Bytes of a line that is too long that are kept, to show where it is."""
_PIECE = 1 << 20
_MOST_SKIPPED = 64
"""A line may be so many times too long before the rest of its file is given up: a compressed one may have no end."""


class _NotARowError(Exception):
    """A line is no row; the message is the reason."""


def _refuse_constant(name: str) -> Any:
    raise _NotARowError(f"holds {name}, which JSON does not have")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def line_rows(name: str, file: BufferedReader[Any], limit: int) -> Iterator[Content]:
    """Yield what each line holds; blank ones hold nothing.

    Args:
        name: The file's.
        file: In UTF-8, without a byte order mark.
        limit: Bytes that a line may have.
    """
    for number, line in lines_of(file, limit):
        if line is None:
            yield LeftOut(name, number, f"has no end within {sized(_MOST_SKIPPED * limit)}: no line behind it is read")
            return
        if len(line.rstrip(b"\r\n")) > limit:
            yield LeftOut(name, number, too_long(limit), line[:_KEPT])
            continue
        for part in line.split(b"\r") if b"\r" in line else (line,):
            if part := part.strip():
                yield _row_of(name, number, part)


def _row_of(name: str, number: int, line: bytes) -> Content:
    try:
        return Row(name, number, _parsed(line.removeprefix(_MARK)), line)
    except _NotARowError as error:
        return LeftOut(name, number, str(error), line)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        row = _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        raise _NotARowError(f"is not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise _NotARowError(f"is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise _NotARowError("is nested too deeply") from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise _NotARowError(f"is not JSON that can be read: {error}") from None
    if not isinstance(row, dict):
        raise _NotARowError(f"must be a JSON object, got {type(row).__name__}")
    return row


def lines_of(file: BufferedReader[Any], limit: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield lines with their numbers, counted from 1.

    Of a line of more than `limit` bytes its beginning comes, a little longer than that, and the rest is passed over;
    None where it is so long that the rest of the file is given up.
    """
    number = 0
    while line := file.readline(limit + 3):
        number += 1
        yield number, line
        if len(line) == limit + 3 and line[-1:] != b"\n":
            line = b""
            for _ in range(_MOST_SKIPPED * limit // _PIECE + 1):
                piece = file.readline(_PIECE)
                if len(piece) < _PIECE or piece[-1:] == b"\n":
                    break
            else:
                yield number, None
                return


# What decides where a value ends. A string's own brackets do not count.
_STRUCTURE = re.compile(rb'["\\\[\]{},]')


def value_rows(name: str, file: BufferedReader[Any], limit: int) -> Iterator[Content]:
    """Yield what each object of a file holds: objects in one array, or one after another.

    Args:
        name: The file's.
        file: In UTF-8, without a byte order mark.
        limit: Bytes that an object may have.
    """
    for number, (value, whole) in enumerate(_values_of(file, limit), 1):
        if not whole:
            yield LeftOut(name, number, too_long(limit), value[:_KEPT])
        else:
            yield _row_of(name, number, value)


def _values_of(file: BufferedReader[Any], limit: int) -> Iterator[tuple[bytes, bool]]:
    """Yield the values of an array, or those that stand one after another, and whether each is whole."""
    cutter = _Cutter(limit)
    while piece := file.read1(_PIECE):
        yield from cutter.cut(piece)
    yield from cutter.end()


class _Cutter:
    """Cuts a stream into JSON values by brackets and strings, without reading what they mean."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._array: bool | None = None
        """Whether the file is one array; None before its first value."""
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._parts: list[bytes] = []
        self._held = 0

    def cut(self, piece: bytes) -> Iterator[tuple[bytes, bool]]:
        begin = 0
        if self._array is None:
            blank = len(piece) - len(piece.lstrip())
            if blank == len(piece):
                return
            self._array = piece[blank : blank + 1] == b"["
            begin = blank + self._array
        at = begin
        while True:
            if self._escaped:  # the character behind a backslash, perhaps in the next piece
                if at >= len(piece):
                    break
                self._escaped = False
                at += 1
            sign = _STRUCTURE.search(piece, at)
            if sign is None:
                break
            at = sign.end()
            mark = sign[0]
            if self._in_string:
                if mark == b"\\":
                    self._escaped = True
                elif mark == b'"':
                    self._in_string = False
            elif mark == b'"':
                self._in_string = True
            elif mark in b"[{":
                self._depth += 1
            elif mark in b"]}" and self._depth > 0:
                self._depth -= 1
                if self._depth == 0 and not self._array:
                    self._hold(piece[begin:at])
                    yield from self._take()
                    begin = at
            elif mark == b"]" or (mark == b"," and self._depth == 0 and self._array):
                self._hold(piece[begin : at - 1])
                yield from self._take()
                begin = at
        self._hold(piece[begin:])

    def end(self) -> Iterator[tuple[bytes, bool]]:
        yield from self._take()

    def _hold(self, part: bytes) -> None:
        if self._held == 0:
            part = part.lstrip()
        if self._held <= self._limit:
            self._parts.append(part)
        self._held += len(part)

    def _take(self) -> Iterator[tuple[bytes, bool]]:
        value = b"".join(self._parts).strip()
        whole = self._held <= self._limit
        self._parts, self._held = [], 0
        if value:
            yield value, whole
