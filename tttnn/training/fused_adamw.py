"""AdamW as one native call over a weight arena: gradient norm, clipping and update.

Knows gradients, moments and where the arena keeps weights. Does not know losses, neighbors or when a query ends.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat

import torch
from torch import Tensor, nn

import tttnn._core as _core

from ..config import AdaptConfig
from ..errors import AdaptError
from ..weights.arena import WeightArena
from .cuda_step import DeviceAdamw, DeviceBlock, require_native
from .optimizer_step import StepStats, require_query


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
        offsets: list[int] = []
        total = 0
        for place in places:
            if place.dtype not in (torch.float32, torch.bfloat16):
                raise AdaptError(
                    f"{place.name} must be float32 or bfloat16 to be trained, got {place.dtype}. Use torch_adamw."
                )
            offsets.append(total)
            total += (place.size * 4 + 63) // 64 * 64
        self._offsets = offsets
        has_masters = any(place.dtype is torch.bfloat16 for place in places)
        # The blocks live as long as this object: the core keeps bare addresses into them.
        self._m, self._v = block(total), block(total)
        self._masters = block(total if has_masters else 0)
        self._core = adamw(
            [
                (
                    place.working,
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
        self._begin_query()
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

    def _begin_query(self) -> None:
        """Forget the weights of the query before, in the first call of one."""
        require_query(self._arena)
        if self._arena.generation != self._generation:
            self._generation = self._arena.generation
            self._core.fresh_weights()
            if not self._carried:
                self._core.fresh_moments()

    def start_from(self, numbers: Sequence[int], weights: Callable[[int], Tensor]) -> None:
        """Let the first step begin at other weights; see `Optimizer.start_from`.

        A step of no gradient at the learning rate 0 takes the pristine weights to where steps write; there they are
        replaced.

        Raises:
            AdaptError: No query is open, or moments are carried from query to query, which that step would shrink.
        """
        if self._carried:
            raise AdaptError("optimizer_state must be fresh for steps that begin at other weights, got 'carried'")
        self._begin_query()
        chosen = set(numbers)
        widest = max((self._parameters[number].numel() for number in chosen), default=0)
        nothing = torch.zeros(widest, dtype=torch.float32, device=self._arena.device)
        addresses = [nothing.data_ptr() if i in chosen else 0 for i in range(len(self._parameters))]
        self._core.step(addresses, 0.0, torch.get_num_threads())
        self._arena.point_at(self._core.places())
        for number in numbers:
            values = weights(number)
            self._arena.write(number, values)
            if self._parameters[number].dtype is torch.bfloat16:
                self._write_master(number, values)
        self._core.fresh_moments()

    def _write_master(self, number: int, values: Tensor) -> None:
        """Give a bfloat16 parameter's float32 master other weights, in the parameter's memory order."""
        parameter = self._parameters[number]
        ordered = torch.empty_like(parameter, dtype=torch.float32, memory_format=torch.preserve_format).copy_(values)
        flat = ordered.as_strided((ordered.numel(),), (1,))
        block, begin = self._masters, self._offsets[number]
        if isinstance(block, DeviceBlock):
            block.view(torch.float32, flat.numel(), begin).copy_(flat)
        else:
            torch.frombuffer(block, dtype=torch.float32, count=flat.numel(), offset=begin).copy_(flat)


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
