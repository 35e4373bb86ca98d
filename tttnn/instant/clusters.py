"""Clusters of vectors: k-means from centers drawn by a seed.

Knows arrays. Does not know what the vectors stand for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 20  # hardly a vector changes its cluster afterwards
_DISTANCES = 1 << 23  # that are computed at once: 64 MB


def cluster_centers(vectors: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    """Return the centers of about `count` clusters, (clusters, dim); none of them is without a vector.

    Args:
        vectors: (n, dim).
        count: from 1 to n.
        seed: draws the vectors that are the first centers.
    """
    chosen = np.random.default_rng(seed).choice(len(vectors), count, replace=False)
    centers = vectors[np.sort(chosen)].astype(np.float64)
    cluster_of = np.full(len(vectors), -1)
    for _ in range(_ROUNDS):
        nearest, _ = nearest_centers(vectors, centers.astype(np.float32))
        if np.array_equal(nearest, cluster_of):
            break
        cluster_of = nearest
        sums = np.zeros_like(centers)
        np.add.at(sums, cluster_of, vectors)
        counts = np.bincount(cluster_of, minlength=len(centers))
        has_vectors = counts > 0
        centers = sums[has_vectors] / counts[has_vectors, None]
        cluster_of = (np.cumsum(has_vectors) - 1)[cluster_of]
    nearest, _ = nearest_centers(vectors, centers.astype(np.float32))
    with_vectors: NDArray[np.float32] = centers[np.unique(nearest)].astype(np.float32)
    return with_vectors


def nearest_centers(
    vectors: NDArray[np.float32], centers: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the nearest center of each vector, the first where several are, and its squared distance: (n,) both."""
    wide = centers.astype(np.float64)
    squares = (wide**2).sum(1)
    nearest = np.empty(len(vectors), np.int64)
    distances = np.empty(len(vectors))
    rows = max(1, _DISTANCES // len(centers))
    for begin in range(0, len(vectors), rows):
        block = vectors[begin : begin + rows].astype(np.float64)
        compared = squares - 2 * block @ wide.T  # squared distances less the vector's own square
        nearest[begin : begin + rows] = compared.argmin(1)
        distances[begin : begin + rows] = np.maximum(compared.min(1) + (block**2).sum(1), 0)
    return nearest, distances


def distances_to(vector: NDArray[np.float32], centers: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the squared Euclidean distances of a vector, (dim,), from centers, (clusters,)."""
    distances: NDArray[np.float64] = ((centers.astype(np.float64) - vector.astype(np.float64)) ** 2).sum(1)
    return distances
