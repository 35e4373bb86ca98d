"""Which of the documents near a query are trained on: the nearest, the most informative ones (SIFT), or those that
together stand for the query (HullFT).

Knows distances and vectors; does not know what training does with the documents.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..config import SelectionConfig
from ..errors import ConfigError
from .neighbors import SearchResult
from .retriever import DocumentsById, Retriever, RetrieverInfo
from .where import Where

SelectionMethod = Literal["nearest", "sift", "hull"]


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


def hull(
    query: NDArray[np.float32], candidates: NDArray[np.float32], k: int, *, steps: int = 100, tolerance: float = 1e-4
) -> tuple[list[int], list[float], float]:
    """Choose candidates of which a weighted mean comes nearest to the query.

    HullFT (Khamis, Maalouf: Efficient Test-Time Finetuning of LLMs via Convex Reconstruction and Gradient Caching,
    2026, arXiv:2605.30337) minimises over weights of the simplex

        f(w) = || q - sum_i w_i x_i ||²,  w_i >= 0,  sum_i w_i = 1,

    by the method of Frank and Wolfe (1956): move towards the candidate along which f falls fastest, as far as f falls.
    The first is the nearest candidate. A candidate that points where a chosen one does adds little and is passed over,
    so the chosen are relevant and differ. When k are chosen, only their weights are moved on. The paper's rounding of
    weights to repeated training steps is not done here.

    Args:
        query: (dim,).
        candidates: (n, dim).
        k: The most candidates to choose. Fewer come where fewer come as near to the query.
        steps: Most moves.
        tolerance: Stop where f is no more than this, as a share of |q|², above its least value (the duality gap).

    Returns:
        Positions in `candidates`, the heaviest first; their weights, which sum to 1; and f.
    """
    points = np.asarray(candidates, np.float64)
    count = len(points)
    if count == 0 or k < 1:
        return [], [], float(np.dot(query, query))
    target = np.asarray(query, np.float64)
    length = float(target @ target)
    gram = points @ points.T
    toward = points @ target
    norms = gram.diagonal()
    first = int(np.argmin(norms - 2.0 * toward))
    weights = np.zeros(count)
    weights[first] = 1.0
    products = gram[first].copy()  # of each candidate with the weighted mean
    size = float(norms[first])  # of the weighted mean, squared
    along = float(toward[first])  # its product with the query
    chosen = [first]
    for _ in range(steps):
        slopes = products - toward
        best = int(np.argmin(slopes)) if len(chosen) < k else chosen[int(np.argmin(slopes[chosen]))]
        gap = size - along - float(slopes[best])
        if gap <= tolerance * length:
            break
        # || mean + t (x - mean) - q ||² is least at t = gap / || x - mean ||².
        spread = size - 2.0 * float(products[best]) + float(norms[best])
        step = min(1.0, gap / spread)
        size = (1 - step) ** 2 * size + 2 * step * (1 - step) * float(products[best]) + step**2 * float(norms[best])
        along += step * (float(toward[best]) - along)
        products += step * (gram[best] - products)
        weights *= 1.0 - step
        weights[best] += step
        if best not in chosen:
            chosen.append(best)
    support = [i for i in chosen if weights[i] > 0.0]
    support.sort(key=lambda i: (-weights[i], i))
    return support, weights[support].tolist(), max(0.0, length - 2.0 * along + size)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return vectors scaled to length 1; a zero vector stays."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: NDArray[np.float64] = vectors / np.where(length > 0, length, 1.0)
    return scaled


class Selector:
    """A retriever's search with a choice among what it finds. A trainer takes it in the place of the retriever.

    >>> trainer = TestTimeTrainer(model, tokenizer, Selector(datastore, config))    # doctest: +SKIP
    """

    def __init__(self, datastore: Retriever, config: SelectionConfig | None = None) -> None:
        """Put a choice before a datastore or another retriever.

        Raises:
            ConfigError: The method compares vectors, and the retriever gives none.
        """
        self.datastore = datastore
        self.config = config or SelectionConfig()
        if self.config.method != "nearest" and not datastore.describe().gives_vectors:
            raise ConfigError(
                f"method {self.config.method} must have a retriever whose vectors it compares, "
                f"got {type(datastore).__name__}, which gives none"
            )

    @property
    def documents(self) -> DocumentsById:
        """Those of the retriever behind."""
        return self.datastore.documents

    def describe(self) -> RetrieverInfo:
        """Return what the retriever behind says of itself, and the choice."""
        return replace(self.datastore.describe(), selection=self.config)

    def search(
        self,
        query: str,
        k: int,
        *,
        exclude_digests: Collection[str] = (),
        where: Where | Mapping[str, Any] | None = None,
        with_vectors: bool = False,
    ) -> SearchResult:
        """Find at most k documents: the nearest first, with SIFT the most informative, with hull the heaviest.

        The result's `left_out` counts documents by reason, and its `seconds` has the stage "select".

        Args:
            query: The text.
            k: Documents wanted, at least 1.
            exclude_digests: Texts that are left out before the choice.
            where: Which documents may be answers.
            with_vectors: Give the result `query_vector` and `vectors`.
        """
        config = self.config
        compares = config.method != "nearest"
        wanted = max(k, config.candidates) if compares else k
        while True:
            candidates = self.datastore.search(
                query, wanted, exclude_digests=exclude_digests, where=where, with_vectors=with_vectors or compares
            )
            started = time.perf_counter()
            near = [config.duplicate_radius is not None and n.distance < config.duplicate_radius for n in candidates]
            far = [config.max_distance is not None and n.distance > config.max_distance for n in candidates]
            kept = [i for i in range(len(candidates)) if not near[i] and not far[i]]
            # Near-duplicates take the place of other documents, so more are asked for while there are more.
            if len(kept) >= k or len(candidates) < wanted or any(far):
                break
            wanted *= 2
        chosen = [kept[i] for i in self._order(candidates, kept, k)]
        return candidates.replace(
            neighbors=tuple(candidates[i] for i in chosen),
            seconds=candidates.seconds | {"select": time.perf_counter() - started},
            requested=k,
            left_out={"near_duplicates": sum(near), "too_far": sum(far), "not_chosen": len(kept) - len(chosen)},
            query_vector=candidates.query_vector if with_vectors else None,
            vectors=candidates.vectors[chosen] if with_vectors and candidates.vectors is not None else None,
        )

    def _order(self, nearest: SearchResult, kept: list[int], k: int) -> list[int]:
        """Return the places in `kept` of those that are chosen, in the order of use."""
        if self.config.method == "nearest":
            return list(range(min(k, len(kept))))
        assert nearest.vectors is not None
        assert nearest.query_vector is not None
        if self.config.method == "sift":
            return sift(nearest.query_vector, nearest.vectors[kept], k, noise=self.config.sift_lambda)[0]
        return hull(nearest.query_vector, nearest.vectors[kept], k)[0]


def selected_otherwise(retriever: Retriever, method: SelectionMethod) -> Selector:
    """Return a retriever's documents chosen by another method, with the other settings of its own selection.

    Raises:
        ConfigError: The method compares vectors, and the retriever gives none.
    """
    behind = retriever.datastore if isinstance(retriever, Selector) else retriever
    return Selector(behind, (retriever.describe().selection or SelectionConfig()).with_(method=method))
