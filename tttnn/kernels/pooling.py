"""Token states to vectors: pooled and normalised by the native core, on the CPU or a CUDA device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import tttnn._core as _core


def pool_packed(
    states: torch.Tensor,
    offsets: NDArray[np.int64],
    rows: NDArray[np.int64],
    out: NDArray[np.float32],
    pooling: str,
    normalize: bool,
) -> int:
    """Pool texts that stand one after the other.

    Args:
        states: (tokens, dim) of all texts.
        offsets: (texts + 1,) where each text begins, and the end of the last.
        rows: (texts,) the row of `out` of each text.
        out: (n, dim), written at `rows`.
        pooling: "mean" or "cls".
        normalize: scales vectors to unit length.

    Returns:
        The first text whose vector is not finite, or -1.
    """
    array = _as_array(states)
    return _core.pool_packed(array, offsets, rows, out, pooling=pooling, normalize=normalize)


def _as_array(states: torch.Tensor) -> NDArray[Any]:
    """Return states on the CPU as the core takes them."""
    if states.dtype not in (torch.float32, torch.bfloat16):
        states = states.float()
    states = states.contiguous().cpu()
    return states.view(torch.uint16).numpy() if states.dtype == torch.bfloat16 else states.numpy()


def pool(
    hidden: torch.Tensor,
    mask: NDArray[np.uint8] | None,
    rows: NDArray[np.int64],
    out: NDArray[np.float32],
    pooling: str,
    normalize: bool,
) -> int:
    """Pool texts that are padded to the longest: as `pool_packed`, but for the form of the states.

    Args:
        hidden: (texts, tokens, dim).
        mask: (texts, tokens), 0 where there is padding; None where there is none.
        rows: (texts,) the row of `out` of each text.
        out: (n, dim), written at `rows`.
        pooling: "mean" or "cls".
        normalize: scales vectors to unit length.
    """
    if hidden.device.type == "cuda" and _core.build_info()["cuda"]:
        if hidden.dtype not in (torch.float32, torch.bfloat16):
            hidden = hidden.float()
        return _pool_cuda(hidden.contiguous(), mask, rows, out, pooling, normalize)
    return _core.pool(_as_array(hidden), mask, rows, out, pooling=pooling, normalize=normalize)


def _pool_cuda(
    hidden: torch.Tensor,
    mask: NDArray[np.uint8] | None,
    rows: NDArray[np.int64],
    out: NDArray[np.float32],
    pooling: str,
    normalize: bool,
) -> int:
    batch, tokens, dim = hidden.shape
    where = hidden.device
    on_device = torch.empty((batch, dim), dtype=torch.float32, device=where)
    targets = torch.arange(batch, device=where)
    bad = torch.zeros(1, dtype=torch.int32, device=where)
    real = None if mask is None else torch.from_numpy(mask).to(where)
    _core.pool_cuda(
        hidden.data_ptr(),
        bfloat16=hidden.dtype == torch.bfloat16,
        batch=batch,
        tokens=tokens,
        dim=dim,
        mask=0 if real is None else real.data_ptr(),
        rows=targets.data_ptr(),
        out=on_device.data_ptr(),
        bad=bad.data_ptr(),
        pooling=pooling,
        normalize=normalize,
        stream=torch.cuda.current_stream(where).cuda_stream,
    )
    vectors = on_device.cpu().numpy()
    out[rows] = vectors
    return int(np.argmin(np.isfinite(vectors).all(axis=1))) if int(bad.item()) else -1
