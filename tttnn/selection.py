"""Which of the documents near a query are trained on: the nearest, or the most informative ones (SIFT).

Knows distances and vectors; does not know what training does with the documents.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from .config import SelectionConfig
from .datastore import Datastore, SearchResult


def sift(
    query: NDArray[np.float32], candidates: NDArray[np.float32], k: int, *, noise: float
) -> tuple[list[int], list[float]]:
    """Choose candidates one by one so that each makes the query least uncertain, given those chosen before.

    SIFT (Hübotter, Bongni, Hakimi, Krause: Efficiently Learning at Test-Time, ICLR 2025): with the linear kernel
    K(x, y) = <x, y> of unit vectors and noise λ, the next candidate minimises the posterior variance of the query q,

        σ²(q | X) = K(q, q) - K(q, X) (K(X, X) + λ I)⁻¹ K(X, q).

    Adding x lowers it by c(x)² / (σ²(x | X) + λ), where c is the posterior covariance of x and q; each choice updates
    c and σ² of all candidates by one outer product. A small λ makes a candidate that repeats a chosen one worthless; a
    large one leaves the order of the nearest. No candidate is chosen twice.

    Args:
        query: (dim,).
        candidates: (n, dim).
        k: How many to choose; all of them where there are fewer.
        noise: λ, more than 0.

    Returns:
        Positions in `candidates` in the order of choice, and the query's posterior variance after each, as a share of
        the variance before the first.
    """
    if not noise > 0:
        raise ValueError(f"noise must be more than 0, got {noise}")
    points = _unit(np.asarray(candidates, np.float64))
    target = _unit(np.asarray(query, np.float64))
    count = len(points)
    covariance = points @ target
    variance = np.ones(count)
    left = np.ones(count, np.bool_)
    updates = np.zeros((min(k, count), count))
    uncertainty = 1.0
    chosen: list[int] = []
    remaining: list[float] = []
    for step in range(min(k, count)):
        gains = np.where(left, covariance**2 / (np.maximum(variance, 0.0) + noise), -1.0)
        best = int(np.argmax(gains))
        uncertainty -= float(gains[best])
        chosen.append(best)
        remaining.append(max(uncertainty, 0.0))
        left[best] = False
        scale = np.sqrt(max(variance[best], 0.0) + noise)
        column = points @ points[best] - updates[:step].T @ updates[:step, best]
        updates[step] = column / scale
        covariance = covariance - updates[step] * (covariance[best] / scale)
        variance = variance - updates[step] ** 2
    return chosen, remaining


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return vectors scaled to length 1; a zero vector stays."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: NDArray[np.float64] = vectors / np.where(length > 0, length, 1.0)
    return scaled


class Selector:
    """A datastore's search with a choice among what it finds. A trainer takes it in the place of the datastore.

    >>> trainer = TestTimeTrainer(model, tokenizer, Selector(datastore, config))    # doctest: +SKIP
    """

    def __init__(self, datastore: Datastore, config: SelectionConfig | None = None) -> None:
        self.datastore = datastore
        self.config = config or SelectionConfig()

    @property
    def id(self) -> str:
        """The datastore's id."""
        return self.datastore.id

    def search(self, query: str, k: int, **options: object) -> SearchResult:
        """Find at most k documents: the nearest first, or with SIFT the most informative first.

        The result's `left_out` counts documents by reason, and its `seconds` has the stage "select".

        Args:
            query: The text.
            k: Documents wanted, at least 1.
            options: As of `Datastore.search`.
        """
        config = self.config
        wanted = k if config.method == "nearest" else max(k, config.candidates)
        while True:
            found = self.datastore.search(query, wanted, with_vectors=True, **options)  # type: ignore[arg-type]
            started = time.perf_counter()
            near = [config.duplicate_radius is not None and n.distance < config.duplicate_radius for n in found]
            far = [config.max_distance is not None and n.distance > config.max_distance for n in found]
            kept = [i for i in range(len(found)) if not near[i] and not far[i]]
            # Near-duplicates take the place of other documents, so more are asked for while there are more.
            if len(kept) >= k or len(found) < wanted or any(far):
                break
            wanted *= 2
        if config.method == "sift":
            assert found.vectors is not None
            assert found.query_vector is not None
            order, _ = sift(found.query_vector, found.vectors[kept], k, noise=config.sift_lambda)
        else:
            order = list(range(min(k, len(kept))))
        chosen = [kept[i] for i in order]
        result = SearchResult(
            [found[i] for i in chosen],
            seconds=found.seconds | {"select": time.perf_counter() - started},
            requested=k,
            query_tokens=found.query_tokens,
            query_truncated=found.query_truncated,
        )
        result.query_vector = found.query_vector
        result.vectors = found.vectors[chosen] if found.vectors is not None else None
        result.left_out = {"near_duplicates": sum(near), "too_far": sum(far), "not_chosen": len(kept) - len(chosen)}
        return result
