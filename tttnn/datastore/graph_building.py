"""Vectors into a graph that the core builds, one after another, the first of equal ones alone.

Knows the order in which vectors come. Does not know what the graph keeps of them, nor files.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..config import Progress

_REPORT = 256  # vectors between two progress calls


class GraphBuilder(Protocol):
    """What the core builds a graph with."""

    def add(self, vectors: NDArray[np.float32], ids: NDArray[np.int64], /) -> None:
        """Insert vectors, (n, dim), with their ids, (n,)."""


def insert_all(
    builder: GraphBuilder, vectors: NDArray[np.float32], first: NDArray[np.bool_], progress: Progress | None
) -> None:
    """Insert every vector that is the first of those equal to it, by id.

    Args:
        builder: Takes them.
        vectors: (n, dim); mapped ones are read a few hundred at a time.
        first: (n,), whether a vector is inserted.
        progress: Called with the stage "index", vectors done and n.
    """
    count = len(vectors)
    for begin in range(0, count, _REPORT):
        ids = begin + np.flatnonzero(first[begin : begin + _REPORT])
        builder.add(np.ascontiguousarray(vectors[ids], np.float32), ids)
        if progress is not None:
            progress("index", min(count, begin + _REPORT), count)
