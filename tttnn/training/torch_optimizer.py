"""torch's optimizers over a weight arena, for comparison with the native step.

Knows parameters and torch.optim. Does not know losses, neighbors or when a query ends.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import repeat

import torch
from torch import Tensor, nn

from ..config import AdaptConfig
from ..errors import NonFiniteLossError
from ..weights.arena import WeightArena
from .optimizer_step import StepStats, require_query

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

    def start_from(self, numbers: Sequence[int], weights: Callable[[int], Tensor]) -> None:
        """Let the first step begin at other weights; see `Optimizer.start_from`."""
        require_query(self._arena)
        self._arena.copy_to_working()
        for number in numbers:
            self._arena.write(number, weights(number))

    def step(self, learning_rate: float) -> StepStats:
        """Clip, train one step, and drop the gradients; see `Optimizer.step`."""
        require_query(self._arena)
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
