"""What every optimizer's step is held to, and what it tells.

Knows a query is open or not. Does not know gradients, moments or formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import AdaptError
from ..weights.arena import WeightArena


@dataclass(frozen=True)
class StepStats:
    """What one optimizer step saw and cost.

    Attributes:
        grad_norm: Euclidean norm of the whole gradient, before clipping.
        bytes_moved: Bytes of weights, gradients and moments read and written, norm included; counted for the native
            step, from the number of passes over the tensors for torch's.
    """

    grad_norm: float
    bytes_moved: int


def require_query(arena: WeightArena) -> None:
    """Raise AdaptError where no query is open."""
    if not arena.active:
        raise AdaptError("step() must be called inside a query. Call arena.begin() first.")
