"""Which weights of a model hold NaN or infinity.

Knows modules and types of numbers. Does not know what a model computes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def not_finite(model: nn.Module) -> list[str]:
    """Return the names of parameters that hold NaN or infinity, and of buffers that hold NaN: masks may be infinite."""
    bad = [name for name, weight in model.named_parameters() if not _is_finite(weight)]
    return bad + [
        name
        for name, buffer in model.named_buffers()
        if buffer.is_floating_point() and buffer.numel() and bool(buffer.isnan().any())
    ]


@torch.no_grad()
def _is_finite(weight: Tensor) -> bool:
    if not weight.is_floating_point() or weight.numel() == 0:
        return True
    if weight.element_size() < 2:  # eight-bit types know no minimum
        return bool(weight.float().isfinite().all())
    # One pass without a copy; NaN is the least and the greatest of what holds it.
    low, high = torch.aminmax(weight)
    return bool(low.isfinite()) and bool(high.isfinite())
