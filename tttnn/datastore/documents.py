"""The documents of all segments of a datastore, by id.

Knows segments and ids. Does not know vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from ..store.document import Document
from .segment import Segment

_READ_DOCUMENTS = 256


class Documents(Sequence[Document]):
    """The documents of all segments by id. An id that was deleted is an IndexError; iteration passes over it.

    `len` counts the documents that are there, so ids may be larger; a negative index counts from the next id.
    """

    def __init__(self, segments: Sequence[Segment], next_id: int) -> None:
        self._segments = segments
        self._next_id = next_id
        self._bases = np.array([segment.base for segment in segments], np.int64)

    def __len__(self) -> int:
        return sum(len(segment) for segment in self._segments)

    def __iter__(self) -> Iterator[Document]:
        for segment in self._segments:
            positions = segment.positions_of(segment.live_ids)
            for begin in range(0, len(positions), _READ_DOCUMENTS):
                yield from segment.store.read_many(positions[begin : begin + _READ_DOCUMENTS])

    @property
    def ids(self) -> NDArray[np.int64]:
        """The ids of all documents, ascending."""
        return np.concatenate([np.zeros(0, np.int64), *(segment.live_ids for segment in self._segments)])

    def locate(self, ids: Sequence[int] | NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Find documents: (segment's number, rows in `ids`, positions in its store) of each segment that has some.

        Raises:
            IndexError: An id was never given, or its document was deleted.
        """
        wanted = np.asarray(ids, np.int64).reshape(-1)
        wrong = wanted[(wanted < 0) | (wanted >= self._next_id)]
        if len(wrong):
            raise IndexError(f"document id must be between 0 and {self._next_id - 1}, got {int(wrong[0])}")
        numbers = np.searchsorted(self._bases, wanted, side="right") - 1
        positions = np.full(len(wanted), -1, np.int64)
        parts = []
        for number in np.unique(numbers[numbers >= 0]).tolist():
            segment = self._segments[number]
            rows = np.flatnonzero(numbers == number)
            inside = wanted[rows] < segment.end
            positions[rows] = np.where(inside, segment.positions_of(np.where(inside, wanted[rows], segment.base)), -1)
            parts.append((number, rows, positions[rows]))
        gone = wanted[positions < 0]
        if len(gone):
            raise IndexError(f"document id must be of a document that is there, got {int(gone[0])}, which was deleted")
        return parts

    def read_many(self, ids: Sequence[int]) -> list[Document]:
        """Read documents by id, in any order.

        Raises:
            IndexError: An id was never given, or its document was deleted.
        """
        documents: dict[int, Document] = {}
        for number, rows, positions in self.locate(ids):
            documents |= dict(zip(rows.tolist(), self._segments[number].store.read_many(positions), strict=True))
        return [documents[row] for row in range(len(documents))]

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        if isinstance(index, slice):
            there = set(self.ids.tolist())
            return self.read_many([i for i in range(*index.indices(self._next_id)) if i in there])
        position = index + self._next_id if index < 0 else index
        if not 0 <= position < self._next_id:
            raise IndexError(f"document id must be between {-self._next_id} and {self._next_id - 1}, got {index}")
        return self.read_many([position])[0]
