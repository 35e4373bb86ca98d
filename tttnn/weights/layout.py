"""Which tensors of a model a weight arena holds, and where in its blocks each of them lies.

Knows modules and tensors; does not know memory, queries or training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import AdaptError

_ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector of any kernel."""


@dataclass(frozen=True, eq=False)
class Captured:
    """One tensor of the model: every name it goes by, and its bytes in the blocks."""

    tensor: Tensor
    names: tuple[str, ...]
    kind: Literal["trainable", "buffer", "frozen"]
    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]


def refuse_unfit(model: nn.Module) -> None:
    """Raise AdaptError for a model whose weights are not plain tensors on one device."""
    device_map = getattr(model, "hf_device_map", None) or {}
    if len(set(map(str, device_map.values()))) > 1:
        raise AdaptError(
            f"model must be on one device, got device_map over {', '.join(sorted(set(map(str, device_map.values()))))}."
        )
    if getattr(model, "is_quantized", False) or getattr(model, "quantization_method", None) is not None:
        raise AdaptError("model must not be quantised: its weights cannot be trained. Load it in float32 or bfloat16.")
    for path, module in model.named_modules():
        if ".quantized." in f"{type(module).__module__}.":
            raise AdaptError(
                f"model must not be quantised, but {path} is {type(module).__module__}.{type(module).__name__}: its "
                "weights cannot be trained. Load it in float32 or bfloat16."
            )
        if any(base.__name__ in ("FullyShardedDataParallel", "FSDPModule") for base in type(module).__mro__):
            raise AdaptError(f"model must not be sharded, but {path or 'it'} is {type(module).__name__}.")
    devices: dict[torch.device, str] = {}
    named = [(name, tensor, nn.Parameter) for name, tensor in model.named_parameters()]
    for name, tensor, kind in [*named, *((name, tensor, Tensor) for name, tensor in model.named_buffers())]:
        if tensor.is_meta:
            raise AdaptError(f"{name} must hold numbers, but it is on the meta device. Load the weights first.")
        if type(tensor) is not kind or type(tensor.data) is not Tensor:
            raise AdaptError(
                f"{name} must be a plain tensor, got {type(tensor).__name__}: quantised and sharded models cannot be "
                "adapted. Load it in float32 or bfloat16 on one device."
            )
        if tensor.layout is not torch.strided:
            raise AdaptError(f"{name} must be dense, got layout {tensor.layout}.")
        if tensor.is_inference():
            raise AdaptError(f"{name} must be an ordinary tensor, but it was made under torch.inference_mode().")
        devices.setdefault(tensor.device, name)
    if not named:
        raise AdaptError(f"model must have parameters, got {type(model).__name__} without any.")
    if len(devices) > 1:
        where = ", ".join(f"{name} on {device}" for device, name in devices.items())
        raise AdaptError(f"model must be on one device, got {where}.")


def lay_out(slots: Sequence[tuple[dict[str, Any], str, str, Tensor]], patterns: Sequence[str] | None) -> list[Captured]:
    """Give every tensor its place: trainable first, then buffers, then frozen, each on its own cache line."""
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for _, _, path, tensor in slots:
        names.setdefault(id(tensor), []).append(path)
        tensors[id(tensor)] = tensor
    chosen = _choose(names, tensors, patterns)
    memory: dict[int, str] = {}
    order = {"trainable": 0, "buffer": 1, "frozen": 2}
    kinds: dict[int, Literal["trainable", "buffer", "frozen"]] = {
        key: "trainable" if key in chosen else "frozen" if isinstance(tensor, nn.Parameter) else "buffer"
        for key, tensor in tensors.items()
    }
    items = []
    offset = 0
    for key in sorted(tensors, key=lambda key: order[kinds[key]]):
        tensor = tensors[key]
        if isinstance(tensor, nn.Parameter) and tensor.numel() > 0:
            other = memory.setdefault(tensor.data_ptr(), names[key][0])
            if other != names[key][0]:
                raise AdaptError(
                    f"{names[key][0]} must have memory of its own or be tied to {other} as one parameter, but it "
                    "shares its memory as another one."
                )
        nbytes = tensor.numel() * tensor.element_size()
        items.append(
            Captured(
                tensor=tensor,
                names=tuple(names[key]),
                kind=kinds[key],
                offset=offset,
                nbytes=nbytes,
                dtype=tensor.dtype,
                shape=tensor.shape,
                stride=_dense_stride(tensor),
            )
        )
        offset = aligned(offset + nbytes)
    return items


def _choose(names: dict[int, list[str]], tensors: dict[int, Tensor], patterns: Sequence[str] | None) -> set[int]:
    """Return the ids of parameters to train."""
    parameters = {key: tensor for key, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}
    # One without elements has nothing to train, and no place in memory.
    floating = {key for key, tensor in parameters.items() if tensor.is_floating_point() and tensor.numel() > 0}
    if patterns is None:
        return {key for key in floating if parameters[key].requires_grad} or floating
    if isinstance(patterns, str):
        raise ValueError(f"trainable must be a sequence of patterns, got the text {patterns!r}")
    chosen: set[int] = set()
    for pattern in patterns:
        matching = {key for key in floating if any(fnmatchcase(name, pattern) for name in names[key])}
        if not matching:
            raise AdaptError(f"trainable must match names of parameters, but {pattern!r} matches none.")
        chosen |= matching
    if not chosen:
        raise AdaptError("trainable must name at least one parameter, got no pattern.")
    return chosen


def _dense_stride(tensor: Tensor) -> tuple[int, ...]:
    """Return the tensor's own strides where it fills its memory without gaps, else those of a contiguous one."""
    return torch.empty_like(tensor, memory_format=torch.preserve_format, device="meta").stride()


def aligned(nbytes: int) -> int:
    """Return a size rounded up to whole cache lines."""
    return (nbytes + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT
