"""Training of one expert: B alone, one step a document, on and on from wherever it was interrupted.

Knows a model, tokens and a file of states. Does not know documents, datastores or what becomes of the matrices.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..config import ExpertConfig
from ..errors import IndexCorruptError, NonFiniteLossError
from ..files import write_file
from ..lm.loss import loss_of
from ..lm.modes import eval_mode
from ..weights.lora import LowRankLayers

_DIGEST = 16
_BETAS = (0.9, 0.999)
_CLIP = 1.0
SAVE_EVERY = 20
"""Steps between two states on disk: a few seconds of work are lost at most, and writing costs less than one step."""


class ExpertTraining:
    """A block inside of which a model has low-rank matrices, of which B is trained; afterwards it is what it was."""

    def __init__(self, model: nn.Module, config: ExpertConfig) -> None:
        self._model = model
        self._config = config
        self._layers = LowRankLayers(
            model, rank=config.rank, alpha=config.scale * config.rank, targets=config.targets, seed=config.seed
        )
        self._eval = eval_mode(model)
        self._flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def __enter__(self) -> Self:
        self._eval.__enter__()
        self._layers.insert()
        names = {name for name in self._layers.names if name.endswith("lora_B")}
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(name in names)
        of = dict(self._model.named_parameters())
        self._b = [of[name] for name in self._layers.names if name in names]
        self._objective = loss_of(self._model)
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._layers.remove()
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        self._eval.__exit__(kind, error, trace)

    def begin(self, numbers: NDArray[np.float32] | None = None, rate: float | None = None) -> None:
        """Start anew, without moments.

        Args:
            numbers: B of all layers to start from, as `numbers` gives them; None: zero.
            rate: learning rate; None: the root's.
        """
        with torch.no_grad():
            for parameter in self._b:
                parameter.zero_()
        if numbers is not None:
            self.put(numbers)
        rate = self._config.learning_rate if rate is None else rate
        self._optimizer = torch.optim.AdamW(self._b, lr=rate, betas=_BETAS, weight_decay=0.0)
        self.losses: list[float] = []

    def run(
        self,
        windows: Sequence[Sequence[int]],
        *,
        state: Path | None = None,
        plan: str = "",
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        """Train one step on each window, going on from a state on disk where that is of the same plan.

        Args:
            windows: tokens, at least two each.
            state: the file of states; None: none is kept.
            plan: what tells this training from another one.
            on_step: called with the steps that are done.

        Raises:
            NonFiniteLossError: a loss is not finite; names the window.
            IndexCorruptError: the file of states is damaged.
        """
        if state is not None:
            self._resume(state, plan)
        for number in range(len(self.losses), len(windows)):
            self.losses.append(self._step(windows[number], number))
            if state is not None and len(self.losses) % SAVE_EVERY == 0:
                self._save(state, plan)
            if on_step is not None:
                on_step(len(self.losses))

    def _step(self, tokens: Sequence[int], number: int) -> float:
        loss = self._objective(self._ids(tokens))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFiniteLossError(f"loss of step {number} must be finite, got {value}. Lower the learning rate.")
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._b, _CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return value

    def _ids(self, tokens: Sequence[int]) -> torch.Tensor:
        return torch.tensor([tokens], device=self._b[0].device)

    def mean_loss(self, windows: Sequence[Sequence[int]]) -> float:
        """Return the mean loss over the tokens of windows, in nats."""
        with torch.no_grad():
            nats = [float(self._objective(self._ids(tokens))) * (len(tokens) - 1) for tokens in windows]
        return sum(nats) / sum(len(tokens) - 1 for tokens in windows)

    def numbers(self) -> NDArray[np.float32]:
        """Return B of all layers in their order, (numbers,) float32."""
        flat = [parameter.detach().cpu().float().numpy().reshape(-1) for parameter in self._b]
        return np.concatenate(flat)

    def put(self, numbers: NDArray[np.float32]) -> None:
        """Give B of all layers other numbers."""
        begin = 0
        with torch.no_grad():
            for parameter in self._b:
                end = begin + parameter.numel()
                parameter.copy_(torch.from_numpy(numbers[begin:end].copy()).view(parameter.shape))
                begin = end

    def _save(self, path: Path, plan: str) -> None:
        from safetensors.torch import save

        tensors = {}
        for number, parameter in enumerate(self._b):
            moments: dict[str, Any] = self._optimizer.state[parameter]
            tensors[f"{number}.b"] = parameter.detach().cpu().contiguous()
            for name in ("exp_avg", "exp_avg_sq"):
                tensors[f"{number}.{name}"] = moments[name].detach().cpu().contiguous()
        content = save(tensors, metadata={"plan": plan, "losses": json.dumps([loss.hex() for loss in self.losses])})
        write_file(path, content + hashlib.blake2b(content, digest_size=_DIGEST).digest())

    def _resume(self, path: Path, plan: str) -> None:
        from safetensors.torch import load

        if not path.exists():
            return
        whole = path.read_bytes()
        content = whole[:-_DIGEST]
        if hashlib.blake2b(content, digest_size=_DIGEST).digest() != whole[-_DIGEST:]:
            raise IndexCorruptError(f"{path}: fails its checksum. Remove it; training then starts anew.")
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        if metadata["plan"] != plan:
            return
        tensors = load(content)
        losses = [float.fromhex(text) for text in json.loads(metadata["losses"])]
        with torch.no_grad():
            for number, parameter in enumerate(self._b):
                parameter.copy_(tensors[f"{number}.b"])
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(len(losses))),
                    "exp_avg": tensors[f"{number}.exp_avg"].to(parameter),
                    "exp_avg_sq": tensors[f"{number}.exp_avg_sq"].to(parameter),
                }
        self.losses = losses
