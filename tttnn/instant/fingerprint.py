"""What tells one model's weights from another's, without taking them over for long.

Knows models. Does not know experts.
"""

from __future__ import annotations

from typing import Any

from ..weights.arena import WeightArena


def fingerprint_of(model: Any) -> str:
    """Return the fingerprint of a model's weights, as a trainer of it has; the model is what it was afterwards."""
    smallest = min(model.named_parameters(), key=lambda entry: int(entry[1].numel()))[0]
    arena = WeightArena(model, trainable=[smallest])
    try:
        return arena.digest()
    finally:
        arena.release()
