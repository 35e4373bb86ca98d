"""The fused AdamW step over a weight arena, and torch's optimizers for comparison.

Knows gradients, moments and where the arena keeps weights. Does not know losses, neighbors or when a query ends.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Protocol

import torch
from torch import Tensor, nn

import tttnn._core as _core

from ..config import AdaptConfig
from ..errors import AdaptError, NonFiniteLossError
from ..weights.arena import WeightArena
from .cuda_step import DeviceAdamw, DeviceBlock, require_native


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


def build_optimizer(arena: WeightArena, config: AdaptConfig) -> Optimizer:
    """Return the optimizer that the config names, for the arena's trainable parameters.

    With ``optimizer_state="fresh"`` moments start anew in every query; with ``"carried"`` only when `reset` is called.
    """
    if config.optimizer == "adamw":
        return FusedAdamW(arena, config)
    if arena.rounded:
        raise AdaptError(f"{config.optimizer} must have an arena without rounded weights: it does not write them.")
    return TorchOptimizer(arena, config)


def _require_query(arena: WeightArena) -> None:
    if not arena.active:
        raise AdaptError("step() must be called inside a query. Call arena.begin() first.")


class FusedAdamW:
    """AdamW as one native call: norm, clip and update over the arena's blocks.

    Formulas and order of operations are torch's, in float32; bfloat16 weights are trained on float32 masters. The
    first step of a query reads pristine weights and no moments. The same bits for any number of threads. Where the
    arena holds rounded copies of its weights, gradients are taken in bfloat16 and each step writes the copies too. On a
    CUDA device kernels do the same, in the same order, where the build has them.
    """

    def __init__(self, arena: WeightArena, config: AdaptConfig) -> None:
        require_native(arena.device)
        on_device = arena.device.type != "cpu"
        block = partial(DeviceBlock, device=arena.device) if on_device else _core.Block
        adamw = partial(DeviceAdamw, device=arena.device) if on_device else _core.Adamw
        self._arena = arena
        self._carried = config.optimizer_state == "carried"
        self._generation = -1
        self._parameters = arena.parameters
        self._keeps = arena.keeps
        places = arena.places
        self._gradient_types = [torch.bfloat16 if place.rounded else place.dtype for place in places]
        offsets, total = [], 0
        for place in places:
            if place.dtype not in (torch.float32, torch.bfloat16):
                raise AdaptError(
                    f"{place.name} must be float32 or bfloat16 to be trained, got {place.dtype}. Use torch_adamw."
                )
            offsets.append(total)
            total += (place.size * 4 + 63) // 64 * 64
        has_masters = any(place.dtype is torch.bfloat16 for place in places)
        # The blocks live as long as this object: the core keeps bare addresses into them.
        self._m, self._v = block(total), block(total)
        self._masters = block(total if has_masters else 0)
        self._core = adamw(
            [
                (
                    place.pristine,
                    place.working,
                    place.other,
                    self._masters.address + offset if place.dtype is torch.bfloat16 else 0,
                    place.rounded,
                    self._m.address + offset,
                    self._v.address + offset,
                    place.size,
                    str(place.dtype).removeprefix("torch."),
                )
                for place, offset in zip(places, offsets, strict=True)
            ],
            beta1=config.beta1,
            beta2=config.beta2,
            epsilon=config.epsilon,
            weight_decay=config.weight_decay,
            clip_norm=math.inf if config.clip_norm is None else config.clip_norm,
        )

    def reset(self) -> None:
        """Forget moments and step counts; costs nothing, the next step does not read them."""
        self._core.fresh_moments()

    def step(self, learning_rate: float) -> StepStats:
        """Clip, train one step, and drop the gradients; see `Optimizer.step`."""
        arena, parameters = self._arena, self._parameters
        _require_query(arena)
        if arena.generation != self._generation:
            self._generation = arena.generation
            self._core.fresh_weights()
            if not self._carried:
                self._core.fresh_moments()
        if arena.keeps != self._keeps:
            self._keeps = arena.keeps
            self._core.keep()
        gradients = list(map(_usable, parameters, self._gradient_types))
        addresses = [0 if gradient is None else gradient.data_ptr() for gradient in gradients]
        norm, moved = self._core.step(addresses, learning_rate, torch.get_num_threads())
        arena.point_at(self._core.places())
        # None, not zero: the next backward then hands over its own tensors and adds nothing.
        deque(map(setattr, parameters, repeat("grad"), repeat(None)), maxlen=0)
        return StepStats(norm, moved)


def _usable(parameter: nn.Parameter, dtype: torch.dtype) -> Tensor | None:
    """Return the gradient as `dtype` in the parameter's memory order, copied only where it differs."""
    gradient = parameter.grad
    if gradient is None:
        return None
    if gradient.layout is not torch.strided:
        gradient = gradient.to_dense()
    if gradient.dtype is dtype and gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, dtype=dtype, memory_format=torch.preserve_format).copy_(gradient)


_PASSES = {"sgd": 9, "torch_adamw": 23}
"""Reads and writes of a float32 value per parameter: clipping 3, torch.optim.SGD 6, torch.optim.AdamW 20."""


class TorchOptimizer:
    """torch.optim.AdamW or torch.optim.SGD behind `clip_grad_norm_`, on float32 copies of other weights."""

    def __init__(self, arena: WeightArena, config: AdaptConfig) -> None:
        self._arena = arena
        self._config = config
        self._generation = -1
        self._masters = [p if p.dtype is torch.float32 else nn.Parameter(p.detach().float()) for p in arena.parameters]
        self._trained = sum(parameter.numel() for parameter in arena.parameters)
        self._torch = self._make()

    def _make(self) -> torch.optim.Optimizer:
        config = self._config
        if config.optimizer == "sgd":
            return torch.optim.SGD(self._masters, lr=config.learning_rate, weight_decay=config.weight_decay)
        return torch.optim.AdamW(
            self._masters,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        )

    def reset(self) -> None:
        """Forget moments and step counts."""
        self._torch = self._make()

    def step(self, learning_rate: float) -> StepStats:
        """Clip, train one step, and drop the gradients; see `Optimizer.step`."""
        _require_query(self._arena)
        self._arena.copy_to_working()
        parameters = self._arena.parameters
        if self._arena.generation != self._generation:
            self._generation = self._arena.generation
            with torch.no_grad():
                for master, parameter in zip(self._masters, parameters, strict=True):
                    if master is not parameter:
                        master.copy_(parameter)
            if self._config.optimizer_state == "fresh":
                self.reset()
        for master, parameter in zip(self._masters, parameters, strict=True):
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
        limit = math.inf if self._config.clip_norm is None else self._config.clip_norm
        norm = torch.nn.utils.get_total_norm([m.grad for m in self._masters if m.grad is not None]).item()
        if not math.isfinite(norm):
            raise NonFiniteLossError(f"gradient norm must be finite, got {norm}. No weight was changed by this step.")
        torch.nn.utils.clip_grads_with_norm_(self._masters, limit, torch.tensor(norm))
        for group in self._torch.param_groups:
            group["lr"] = learning_rate
        self._torch.step()
        with torch.no_grad():
            for master, parameter in zip(self._masters, parameters, strict=True):
                if master is not parameter:
                    parameter.copy_(master)
                    master.grad = None
        deque(map(setattr, parameters, repeat("grad"), repeat(None)), maxlen=0)
        return StepStats(norm, _PASSES[self._config.optimizer] * 4 * self._trained)
