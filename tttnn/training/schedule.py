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
    - ``distance``: s / (s + d - m), where d is the neighbor's distance, m the smallest distance up to it, n the next
      larger one up to it, and s the larger of |m| and n - m; 1 where d = m. With the nearest first and m > 0 that is
      m / d, unless the nearest is much nearer than the next. It depends only on neighbors up to this one, so that a
      query stopped early is the beginning of a longer one. Zero, equal and negative distances (inner products) are
      welcome; an infinite one gives 0.

    Args:
        schedule: Which of them.
        distances: Of the neighbors in the order of training; none is NaN.
    """
    if schedule == "constant":
        return [1.0] * len(distances)
    if schedule == "inverse_sqrt":
        return [1 / math.sqrt(i + 1) for i in range(len(distances))]
    factors = []
    smallest = following = math.inf
    for distance in distances:
        if distance < smallest:
            smallest, following = distance, smallest
        elif smallest < distance < following:
            following = distance
        if distance == smallest:
            factors.append(1.0)
        elif math.isinf(distance):
            factors.append(0.0)
        else:
            scale = max(abs(smallest), following - smallest)
            factors.append(scale / (scale + distance - smallest))
    return factors
