"""Whether a model computes in bfloat16: tried on a short window, before anything relies on it.

Knows models, losses and arithmetic. Does not know optimizers or where weights live.

Some architectures fail under autocast (a Fourier transform has no bfloat16, an indexed copy wants one type), and some
give other numbers. Such a model computes in float32, and a log line says so.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..config import Precision
from ..kernels.precision import autocast, resolved
from ..kernels.thread_modes import Gradients
from ..undone import UndoneBlock
from .gate import small_gradients
from .modes import eval_mode

_log = logging.getLogger("tttnn")

_NEAR = 0.1
"""Relative distance of a loss in bfloat16 from that in float32: 8 bits, and deep models multiply the rounding."""


def usable_precision(
    model: nn.Module,
    value: Callable[[Tensor], Tensor],
    ids: list[int],
    precision: Precision,
    *,
    trains: bool = False,
    rounded: bool = False,
) -> Literal["float32", "bfloat16"]:
    """Return the arithmetic to use: what `precision` means on the model's device, or float32 where that fails.

    Args:
        model: Its modes, weights and gradients are as before afterwards.
        value: A scalar of a window (1, n), such as its loss.
        ids: A window to try.
        precision: What is asked for.
        trains: Whether gradients must work too.
        rounded: Whether to try with float32 weights rounded ahead, as they are trained on a CPU.
    """
    device = next(model.parameters()).device
    wanted = resolved(precision, device)
    if wanted == "float32":
        return wanted
    window = torch.tensor([ids], device=device)
    failure = None
    with eval_mode(model):
        try:
            with Gradients(False), autocast("float32", device):
                exact = value(window).item()
            with Gradients(trains), _Rounded(model if rounded else None), autocast(wanted, device):
                tried = value(window)
                if trains:
                    _require_finite_gradients(tried, model)
            difference = tried.item()
            if not abs(difference - exact) <= _NEAR * max(abs(exact), 1e-3):
                failure = f"its loss is {difference:.4g}, in float32 {exact:.4g}"
        except Exception as error:  # each architecture raises what it will
            failure = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if failure is None:
        return wanted
    _log.warning("%s computes in float32: bfloat16 does not work (%s)", type(model).__name__, failure)
    return "float32"


def _require_finite_gradients(loss: Tensor, model: nn.Module) -> None:
    total = sum(float(gradient.float().square().sum()) for gradient in small_gradients(loss, model))
    if not math.isfinite(total):
        raise ValueError("its gradient is not finite")


class _Rounded(UndoneBlock[None]):
    """Float32 weights of a model are rounded to bfloat16 inside of the block; None: of no model."""

    def __init__(self, model: nn.Module | None) -> None:
        self._before: list[tuple[Any, Tensor]] = [] if model is None else [(p, p.data) for p in model.parameters()]

    def _enter(self) -> None:
        for parameter, data in self._before:
            if data.dtype is torch.float32:
                parameter.data = data.bfloat16()

    def undo(self) -> None:
        """Let the parameters have their own weights again."""
        for parameter, data in self._before:
            parameter.data = data
