"""What an optimizer must do, and which one the settings name.

Knows settings and the two kinds of optimizers. Does not know formulas, losses, neighbors or when a query ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from ..config import AdaptConfig
from ..errors import AdaptError
from ..weights.arena import WeightArena
from .fused_adamw import FusedAdamW
from .optimizer_step import StepStats
from .torch_optimizer import TorchOptimizer


class Optimizer(Protocol):
    """Trains an arena's weights on the gradients that the last backward left."""

    def reset(self) -> None:
        """Forget moments and step counts."""

    def step(self, learning_rate: float) -> StepStats:
        """Clip, train one step, and leave gradients ready for the next backward.

        A parameter whose gradient is None is left alone, as torch leaves it alone.

        Raises:
            NonFiniteLossError: The gradient's norm is NaN or infinite; no weight was changed.
            AdaptError: No query is open.
        """

    def start_from(self, numbers: Sequence[int], weights: Callable[[int], Tensor]) -> None:
        """Let the first step of a query begin at other weights than the pristine ones; before any step.

        Args:
            numbers: of the parameters that have other weights.
            weights: called with each of the numbers; returns them in float32.

        Raises:
            AdaptError: No query is open.
        """


def build_optimizer(arena: WeightArena, config: AdaptConfig) -> Optimizer:
    """Return the optimizer that the config names, for the arena's trainable parameters.

    With ``optimizer_state="fresh"`` moments start anew in every query; with ``"carried"`` only when `reset` is called.
    """
    if config.optimizer == "adamw":
        return FusedAdamW(arena, config)
    if arena.rounded:
        raise AdaptError(f"{config.optimizer} must have an arena without rounded weights: it does not write them.")
    return TorchOptimizer(arena, config)
