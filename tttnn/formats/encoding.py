"""Bytes as text: byte order marks, and what is no text.

Knows UTF-8, UTF-16 and UTF-32. Does not guess any other encoding.
"""

from __future__ import annotations

import codecs
from io import BufferedReader
from typing import Any

from .content import LeftOutError
from .streams import BUFFER_BYTES, Stream

# The mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def marked_encoding(head: bytes) -> tuple[str, int]:
    """Return the encoding that a byte order mark names and the size of the mark; UTF-8 and 0 where there is none."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name, len(mark)
    return "utf-8", 0


def decoded(data: bytes) -> str:
    """Return the text of a file, without a byte order mark; line ends stay as they are.

    Raises:
        LeftOutError: It is no text in UTF-8, and in no other encoding that a byte order mark names.
    """
    encoding, begin = marked_encoding(data)
    if encoding == "utf-8" and (position := data.find(b"\0")) >= 0:
        raise LeftOutError(f"is binary, or UTF-16 without a byte order mark: byte {position} is NUL")
    try:
        return data[begin:].decode(encoding)
    except UnicodeDecodeError as error:
        raise LeftOutError(f"is not {encoding.upper()}: {error.reason} at byte {begin + error.start}") from None


class Recoded(Stream):
    """A file in UTF-16 or UTF-32 as a stream of UTF-8, and one in UTF-8 as it is; without its byte order mark.

    Half a surrogate pair comes out as bytes that are not UTF-8, so that what reads lines can name the line.
    """

    def __init__(self, file: BufferedReader[Any], head: bytes) -> None:
        encoding, mark = marked_encoding(head)
        self._file = file
        self._encoding = encoding
        self._decoder = None if encoding == "utf-8" else codecs.getincrementaldecoder(encoding)("surrogatepass")
        if mark:
            self._file.read(mark)

    def piece(self) -> bytes:
        """Return some of the text."""
        while True:
            data = self._file.read1(BUFFER_BYTES)  # what is there, before damage behind it is met
            if self._decoder is None:
                return data
            try:
                text = self._decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise LeftOutError(f"is not {self._encoding.upper()}: {error.reason}") from None
            if text or not data:
                return text.encode("utf-8", "surrogatepass")
