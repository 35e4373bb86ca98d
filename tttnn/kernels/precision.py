"""Which arithmetic to use on a device: float32, or bfloat16 where the hardware multiplies it natively.

Does not know what is computed.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Literal

from ..config import Precision

if TYPE_CHECKING:
    import torch


def resolved(precision: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Return the precision that `auto` means on `device`; the others unchanged."""
    import torch

    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Without these instructions, bfloat16 products on a CPU are emulated and slower than float32.
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which matrix products run in `precision`; float32 means the model's own type."""
    import torch

    if resolved(precision, device) == "float32":
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=torch.bfloat16)
