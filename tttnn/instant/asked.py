"""Which experts of clusters are trained first, and which ones queries missed: asked.N.bin.

Knows numbers of clusters and the bytes of the file. Does not know queries' texts, which stand nowhere.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .clusters import distances_to

_ROW = struct.Struct("<I")
_PAUSE = 0.5  # seconds between two looks


def largest_first(sizes: Sequence[int], asked: Counter[int]) -> list[int]:
    """Return all clusters: those most asked for first, then those with most documents, then by number."""
    return sorted(range(len(sizes)), key=lambda cluster: (-asked[cluster], -sizes[cluster], cluster))


def asked_by(queries: Sequence[NDArray[np.float32]], centers: NDArray[np.float32], nearest: int) -> Counter[int]:
    """Count for how many queries' vectors a cluster is one of the nearest ones."""
    asked: Counter[int] = Counter()
    for vector in queries:
        asked.update(map(int, np.argsort(distances_to(vector, centers), kind="stable")[:nearest]))
    return asked


def begin_asked(path: Path) -> None:
    """Make the file, so that queries say which experts they miss; what it holds stays."""
    path.touch()


def ask(path: Path, clusters: Sequence[int]) -> None:
    """Note that a query missed the experts of clusters, where somebody wants to know."""
    with contextlib.suppress(OSError):  # nobody asked, or the folder cannot be written: a query needs neither
        handle = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, b"".join(_ROW.pack(cluster) for cluster in clusters))
        finally:
            os.close(handle)


def asked_for(path: Path) -> Counter[int]:
    """Count how often each cluster's expert was missed."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Counter()
    whole = content[: len(content) // _ROW.size * _ROW.size]
    return Counter(cluster for (cluster,) in _ROW.iter_unpack(whole))


def watched(path: Path, missing: set[int]) -> Iterator[int]:
    """Give the clusters whose experts queries missed, most asked for first, as they are asked for; without end.

    Args:
        path: of the file.
        missing: clusters without an expert; those given are taken out of it.
    """
    while missing:
        asked = asked_for(path)
        wanted = sorted((cluster for cluster in missing if asked[cluster]), key=lambda c: (-asked[c], c))
        if not wanted:
            time.sleep(_PAUSE)
            continue
        missing.discard(wanted[0])
        yield wanted[0]
