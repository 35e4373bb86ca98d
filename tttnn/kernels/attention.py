"""Attention of bfloat16 on the CPU by the core: causal for a training step, and of packed sequences for an encoder.

Knows tensors. Does not know models, losses or where weights live.

torch's flash attention on a CPU is several times slower than bfloat16 matrix products of the same size; the core's is
timed beside it in `benchmarks/bench_attention.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import tttnn._core as _core


def causal_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """Return ``softmax(scale * query @ key.T, keys up to the query) @ value``, with gradients.

    Products multiply bfloat16 and add in float32. The same bits for any number of threads.

    Args:
        query: (1, heads, tokens, dim) bfloat16 on the CPU; dim a multiple of 16 from 32 to 256.
        key: (1, kv_heads, tokens, dim) likewise; kv_heads divides heads, and neighboring query heads share one.
        value: As key.
        scale: Above 0; None: ``dim ** -0.5``.

    Returns:
        (1, tokens, heads, dim) bfloat16, contiguous.

    Raises:
        ValueError: A tensor is not as above.
        DeviceError: The processor has no AVX-512 with bfloat16; see `supported`.
    """
    _require(query, key, value)
    used = query.shape[-1] ** -0.5 if scale is None else scale
    result: Tensor = _CausalAttention.apply(query, key, value, used)  # type: ignore[no-untyped-call]
    return result


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, offsets: Sequence[int], *, scale: float | None = None
) -> Tensor:
    """Return ``softmax(scale * query @ key.T) @ value`` inside each of the sequences that stand one after the other.

    Products multiply bfloat16 and add in float32. The same bits for any number of threads and whatever the other
    sequences are. No gradients.

    Args:
        query: (1, heads, tokens, dim) bfloat16 on the CPU; dim a multiple of 16 from 32 to 256.
        key: (1, kv_heads, tokens, dim) likewise; kv_heads divides heads, and neighboring query heads share one.
        value: As key.
        offsets: Sequence i is the tokens from ``offsets[i]`` to ``offsets[i + 1]``; from 0 to `tokens`.
        scale: Above 0; None: ``dim ** -0.5``.

    Returns:
        (1, tokens, heads, dim) bfloat16, contiguous.

    Raises:
        ValueError: A tensor or the offsets are not as above.
        DeviceError: The processor has no AVX-512 with bfloat16; see `supported`.
    """
    _require(query, key, value)
    _, heads, tokens, dim = query.shape
    if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != tokens:
        raise ValueError(f"offsets must begin with 0 and end with {tokens} (tokens), got {list(offsets)}")
    query, key, value = _rows(query), _rows(key), _rows(value)
    out = query.new_empty(1, tokens, heads, dim)
    _native().forward_packed(
        (heads, key.shape[1], tokens, dim),
        dim**-0.5 if scale is None else scale,
        offsets,
        _view(query),
        _view(key),
        _view(value),
        _view(out.transpose(1, 2)),
        torch.get_num_threads(),
    )
    return out


def _require(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.device.type != "cpu" or tensor.dtype is not torch.bfloat16:
            raise ValueError(f"{name} must be bfloat16 on cpu, got {tensor.dtype} on {tensor.device}")
        if tensor.dim() != 4 or tensor.shape[0] != 1:
            raise ValueError(f"{name} must have shape (1, heads, tokens, dim), got {tuple(tensor.shape)}")
    _, heads, tokens, dim = query.shape
    if key.shape != value.shape or key.shape[2:] != query.shape[2:] or key.shape[1] < 1 or heads % key.shape[1] != 0:
        raise ValueError(
            f"key and value must have shape (1, a divisor of {heads}, {tokens}, {dim}), "
            f"got {tuple(key.shape)} and {tuple(value.shape)}"
        )


def serves(dim: int) -> bool:
    """Return whether heads of this size are served."""
    return 32 <= dim <= 256 and dim % 16 == 0


def supported() -> bool:
    """Return whether this processor has the instructions (AVX-512 with bfloat16 products)."""
    return _core.attention_supported()


@functools.cache
def _native() -> _core.Attention:
    """Return the core's attention of this process, which keeps its scratch memory."""
    return _core.Attention()


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _view(tensor: Tensor) -> tuple[int, int, int]:
    """Return address and strides of (1, heads, tokens, dim)."""
    return tensor.data_ptr(), tensor.stride(1), tensor.stride(2)


class _CausalAttention(torch.autograd.Function):
    """The core's two calls; keeps the output and its log-sum-exp instead of probabilities."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return (1, tokens, heads, dim)."""
        query, key, value = _rows(query), _rows(key), _rows(value)
        _, heads, tokens, dim = query.shape
        sizes = (heads, key.shape[1], tokens, dim)
        out = query.new_empty(1, tokens, heads, dim)
        lse = torch.empty(heads, tokens)
        _native().forward(
            sizes,
            scale,
            _view(query),
            _view(key),
            _view(value),
            _view(out.transpose(1, 2)),
            lse.data_ptr(),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.sizes, ctx.scale = sizes, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return gradients of query, key and value, each in the memory order of (1, tokens, heads, dim)."""
        query, key, value, out, lse = ctx.saved_tensors
        heads, kv_heads, tokens, dim = ctx.sizes
        dout = _rows(dout)
        dq = query.new_empty(1, tokens, heads, dim).transpose(1, 2)
        dk = query.new_empty(1, tokens, kv_heads, dim).transpose(1, 2)
        dv = query.new_empty(1, tokens, kv_heads, dim).transpose(1, 2)
        _native().backward(
            ctx.sizes,
            ctx.scale,
            _view(query),
            _view(key),
            _view(value),
            _view(out.transpose(1, 2)),
            lse.data_ptr(),
            _view(dout.transpose(1, 2)),
            _view(dq),
            _view(dk),
            _view(dv),
            torch.get_num_threads(),
        )
        return dq, dk, dv, None
