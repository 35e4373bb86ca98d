"""Learning rates over the neighbors of one query.

Knows positions and distances only; not models or optimizers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal


def rate_factors(schedule: Literal["constant", "inverse_sqrt", "distance"], distances: Sequence[float]) -> list[float]:
    """Return for each neighbor the share of the learning rate it is trained with, in [0, 1].

    - ``constant``: 1.
    - ``inverse_sqrt``: 1/√i for the i-th neighbor, from 1.
    - ``distance``: s / (s + d - m), where d is the neighbor's distance, m the smallest distance up to it, and s the
      larger of |m| and the mean of (distance - m) up to it; 1 where d = m. With the nearest first and m > 0 that is
      m / d unless the distances are widely spread; it depends only on neighbors up to this one, so that a query
      stopped early is the beginning of a longer one. Zero, equal and negative distances (inner products) are welcome;
      an infinite one gives 0.

    Args:
        schedule: Which of them.
        distances: Of the neighbors in the order of training; none is NaN.
    """
    if schedule == "constant":
        return [1.0] * len(distances)
    if schedule == "inverse_sqrt":
        return [1 / math.sqrt(i + 1) for i in range(len(distances))]
    factors = []
    seen: list[float] = []
    for distance in distances:
        if math.isfinite(distance):
            seen.append(distance)
        smallest = min(seen, default=distance)
        gap = distance - smallest if distance > smallest else 0.0
        scale = max(abs(smallest), sum(d - smallest for d in seen) / len(seen)) if seen else 0.0
        factors.append(1.0 if gap == 0 else 0.0 if math.isinf(gap) else scale / (scale + gap))
    return factors
