"""Documents cut into passages, and the table that says which bytes of which document a passage is.

Knows text and token boundaries; does not know how tokens are found, what a vector is or where documents are kept.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import IndexCorruptError
from ..files import check_file, describe_file, write_file

_HEADER = struct.Struct("<8sIIQ")  # magic, version, bytes in a record, passages
_MAGIC = b"tttnpass"
_VERSION = 1
_RECORD = np.dtype([("document", "<u4"), ("begin", "<u4"), ("end", "<u4")])


RECORD_BYTES = _RECORD.itemsize


class Passage(NamedTuple):
    """Bytes `begin` to `end` of the UTF-8 of one document."""

    document: int
    begin: int
    end: int


def cut_passages(text: str, tokens: NDArray[np.int64], *, length: int, overlap: int) -> list[tuple[int, int]]:
    """Cut a text into passages of at most `length` tokens.

    Every token lies in a passage, neighboring passages share `overlap` tokens, and a cut lies where a token begins.
    What stands between tokens belongs to the passage before it.

    Args:
        text: The document.
        tokens: (n, 2), where each token begins and ends, in characters.
        length: Tokens of a passage, at least 1.
        overlap: Tokens that a passage shares with the one before, less than `length`.

    Returns:
        Begin and end of each passage in characters; one passage for a text of few tokens or none.
    """
    if not 0 <= overlap < length:
        raise ValueError(f"passage_overlap must be between 0 and {length - 1} (passage length {length}), got {overlap}")
    count = len(tokens)
    if count <= length:
        return [(0, len(text))]
    cuts = []
    first = 0
    while True:
        last = first + length
        begin = 0 if first == 0 else int(tokens[first, 0])
        if last >= count:
            cuts.append((begin, len(text)))
            return cuts
        cuts.append((begin, int(tokens[last, 0])))
        first = last - overlap


def byte_spans(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Turn spans in characters into spans in bytes of the text's UTF-8."""
    if text.isascii():
        return list(spans)
    marks = sorted({mark for span in spans for mark in span})
    offsets = {}
    before, offset = 0, 0
    for mark in marks:
        offset += len(text[before:mark].encode("utf-8", "surrogatepass"))
        offsets[mark] = offset
        before = mark
    return [(offsets[begin], offsets[end]) for begin, end in spans]


class PassageTable:
    """A read-only sequence of passages, ordered by document; position = passage id."""

    def __init__(self, records: NDArray[np.void]) -> None:
        self._records = records

    @classmethod
    def of(cls, spans: Iterable[Sequence[tuple[int, int]]], *, first: int = 0) -> PassageTable:
        """Make a table of the spans in bytes of each document, in the order of the documents, from document `first`."""
        # Three numbers a passage from the start: a segment may have tens of millions.
        rows = array("Q")
        for document, passages in enumerate(spans, first):
            for begin, end in passages:
                if end >= 2**32:
                    raise ValueError(f"document {document} must have less than 4 GiB of text to be cut into passages")
                rows.extend((document, begin, end))
        columns = np.frombuffer(rows, np.uint64).reshape(-1, 3) if rows else np.zeros((0, 3), np.uint64)
        records = np.empty(len(columns), _RECORD)
        for i, name in enumerate(("document", "begin", "end")):
            records[name] = columns[:, i]
        return cls(records)

    @classmethod
    def open(cls, path: Path, expected: dict[str, object] | None = None) -> PassageTable:
        """Read a table.

        Args:
            path: The file.
            expected: Its size and sha256; None trusts the file.

        Raises:
            IndexCorruptError: The file is not what was written.
        """
        if expected is not None:
            check_file(path, expected, error=IndexCorruptError)
        content = path.read_bytes()
        if len(content) < _HEADER.size:
            raise IndexCorruptError(f"{path}: holds {len(content)} bytes, but a header has {_HEADER.size}")
        magic, version, record, count = _HEADER.unpack_from(content)
        if magic != _MAGIC or version != _VERSION or record != _RECORD.itemsize:
            raise IndexCorruptError(f"{path}: is not a passage table of version {_VERSION}")
        if len(content) != _HEADER.size + count * record:
            raise IndexCorruptError(f"{path}: promises {count} passages, but holds {len(content)} bytes")
        records = np.frombuffer(content, dtype=_RECORD, offset=_HEADER.size)
        if count and (
            np.any(records["end"] < records["begin"]) or np.any(np.diff(records["document"].astype("i8")) < 0)
        ):
            raise IndexCorruptError(f"{path}: its passages are out of order")
        return cls(records)

    @classmethod
    def joined(cls, records: bytes) -> PassageTable:
        """Make a table of what `to_bytes` gave of tables of consecutive documents."""
        return cls(np.frombuffer(records, _RECORD))

    @property
    def nbytes(self) -> int:
        """Bytes of the table in memory."""
        return int(self._records.nbytes)

    def to_bytes(self) -> bytes:
        """Return the passages, `RECORD_BYTES` each."""
        return self._records.tobytes()

    def kept(self, documents: NDArray[np.int64], passages: NDArray[np.int64]) -> PassageTable:
        """Return a table of some passages, whose documents have moved.

        Args:
            documents: (all documents,), the new position of each.
            passages: (n,), ascending.
        """
        records = self._records[passages].copy()
        records["document"] = documents[records["document"]]
        return PassageTable(records)

    def save(self, path: Path) -> dict[str, object]:
        """Write the table; return its size and sha256."""
        header = _HEADER.pack(_MAGIC, _VERSION, _RECORD.itemsize, len(self._records))
        write_file(path, header + self._records.tobytes())
        return describe_file(path)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, passage: int) -> Passage:
        record = self._records[passage]
        return Passage(int(record["document"]), int(record["begin"]), int(record["end"]))

    @property
    def documents(self) -> NDArray[np.int64]:
        """The document of each passage (n,)."""
        return self._records["document"].astype(np.int64)

    def documents_at(self, passages: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the documents of some passages."""
        documents: NDArray[np.int64] = self._records["document"][passages].astype(np.int64)
        return documents
