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
        trained = arena.trained
        self._gradient_types = [torch.bfloat16 if tensor.rounded else tensor.dtype for tensor in trained]
        self._has_master = [tensor.dtype is torch.bfloat16 for tensor in trained]
        offsets: list[int] = []
        total = 0
        for tensor in trained:
            if tensor.dtype not in (torch.float32, torch.bfloat16):
                raise AdaptError(
                    f"{tensor.name} must be float32 or bfloat16 to be trained, got {tensor.dtype}. Use torch_adamw."
                )
            offsets.append(total)
            total += (tensor.size * 4 + 63) // 64 * 64
        self._offsets = offsets
        # The blocks live as long as this object: the core keeps bare addresses into them.
        self._m, self._v = block(total), block(total)
        self._masters = block(total if any(self._has_master) else 0)
        self._core = adamw(
            [
                _core.AdamwTensor(
                    size=tensor.size,
                    dtype=str(tensor.dtype).removeprefix("torch."),
                    m=self._m.address + offset,
                    v=self._v.address + offset,
                    master=self._masters.address + offset if has_master else 0,
                    rounded=tensor.rounded,
                )
                for tensor, offset, has_master in zip(trained, offsets, self._has_master, strict=True)
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
        gradients = list(map(_usable, parameters, self._gradient_types))
        addresses = [0 if gradient is None else gradient.data_ptr() for gradient in gradients]
        places = arena.places
        targets = places.next()
        # Written weights that are bfloat16 go on in their masters.
        sources = [
            0 if has_master and written else address
            for has_master, written, address in zip(
                self._has_master, places.written, places.addresses(places.now), strict=True
            )
        ]
        norm, moved = self._core.step(
            addresses, sources, places.addresses(targets), learning_rate, torch.get_num_threads()
        )
        arena.point_at(
            [None if gradient is None else place for gradient, place in zip(gradients, targets, strict=True)]
        )
        # None, not zero: the next backward then hands over its own tensors and adds nothing.
        deque(map(setattr, parameters, repeat("grad"), repeat(None)), maxlen=0)
        return StepStats(norm, moved)

    def _begin_query(self) -> None:
        """Forget the moments of the query before, in the first call of one."""
        require_query(self._arena)
        if self._arena.generation != self._generation:
            self._generation = self._arena.generation
            if not self._carried:
                self._core.fresh_moments()

    def start_from(self, numbers: Sequence[int], weights: Callable[[int], Tensor]) -> None:
        """Let the first step begin at other weights; see `Optimizer.start_from`.

        Raises:
            AdaptError: No query is open.
        """
        self._begin_query()
        self._arena.begin_writing(numbers)
        for number in numbers:
            values = weights(number)
            self._arena.write(number, values)
            if self._has_master[number]:
                self._write_master(number, values)

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
