"""Which arithmetic to use on a device: float32, or bfloat16 where the hardware multiplies it natively.

Does not know what is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import tttnn._core as _core

from ..config import Precision

if TYPE_CHECKING:
    import torch

    from .thread_modes import Autocast


def resolved(precision: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Return the precision that `auto` means on `device`; the others unchanged."""
    import torch

    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Without AVX-512's bfloat16 products, those on a CPU are emulated and slower than float32. A processor with
        # tiles (AMX) has them too.
        fast = _core.attention_supported()
    return "bfloat16" if fast else "float32"


def autocast(precision: Precision, device: torch.device) -> Autocast:
    """Return a context in which matrix products run in `precision`; float32 means the model's own type."""
    from .thread_modes import Autocast

    return Autocast(device.type, bfloat16=resolved(precision, device) == "bfloat16")
