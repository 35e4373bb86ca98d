"""The files of an index whose graph is walked on vectors of fewer bytes: csrc/FORMAT.md, "The compact index".

Knows how they are built from float32 vectors, read some at a time. Does not know manifests, nor how they are searched.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tttnn._core as _core

from ..config import IndexConfig, Progress
from .graph_building import insert_all

LINKS = "graph.links"
FULL = "vectors.full"

_CHUNK = 4096  # vectors that are copied at a time


def names_of(vectors: str) -> list[str]:
    """Return the names of the files: links, full vectors, and those that walks read."""
    return [LINKS, FULL, f"vectors.{vectors}"]


def bytes_per_vector(dim: int, vectors: str, M: int) -> int:
    """Return the bytes of links and vector of a node that a walk reads, upper levels left out (a few of a hundred)."""
    links = 4 + 4 * 2 * M + 8
    if vectors == "float32":
        return links + 4 * dim
    codes = 8 + dim if vectors == "int8" else 2 * dim
    return links + (codes + 3) // 4 * 4 + 8


def build_compact(
    paths: list[Path],
    vectors: NDArray[np.float32],
    first: NDArray[np.bool_],
    config: IndexConfig,
    seed: int,
    progress: Progress | None,
) -> None:
    """Write the files.

    The graph and the compact vectors are held in memory; of the full ones a few at a time.

    Args:
        paths: Where they go, in the order of `names_of`.
        vectors: (n, dim), finite; may be a memory map.
        first: (n,): which vectors are the first of their kind, and become nodes.
        config: The settings; `vectors` is not float32.
        seed: Seed of the nodes' levels.
        progress: Called with the stage "index", vectors done and n.

    Raises:
        EmbeddingError: A vector is too large for compact ones.
    """
    count, dim = vectors.shape
    links, full, compact = map(str, paths)
    builder = _core.CompactBuilder(
        dim=dim,
        vectors=config.vectors,
        metric=config.metric,
        capacity=int(first.sum()),
        M=config.M,
        ef_construction=config.ef_construction,
        seed=seed,
    )
    insert_all(builder, vectors, first, progress)
    builder.save(links, compact)
    writer = builder.full_writer(full)
    for begin in range(0, count, _CHUNK):
        ids = begin + np.flatnonzero(first[begin : begin + _CHUNK])
        writer.add(np.ascontiguousarray(vectors[ids], np.float32))
    writer.finish()
