"""Low-rank matrices beside a model's linear layers (LoRA), put in through peft and taken out again without a trace.

Knows modules and peft. Does not know training, queries or where weights lie.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import AdaptError, MissingExtraError

_NAME = "tttnn"
"""The name under which peft keeps our matrices in a layer."""

_LINEAR = ("Linear", "Conv1D")
"""Classes whose instances get matrices: torch's layer, and GPT-2's with its weight transposed."""


class LowRankLayers:
    """The low-rank matrices of one model: each chosen layer computes W x + (alpha / rank) B A x; A and B are trained.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685. B is zero, so that the model
    computes what it did before; A is drawn by a seed and leaves torch's random state alone. `remove` puts the original
    modules back, the same objects, with the ``requires_grad`` flags they had.
    """

    def __init__(self, model: nn.Module, layers: list[tuple[nn.Module, str, nn.Module]]) -> None:
        self._model = model
        self._layers = layers
        self._flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    @classmethod
    def insert(cls, model: nn.Module, *, rank: int, alpha: float, targets: Sequence[str] = (), seed: int = 0) -> Self:
        """Put matrices beside the chosen layers of a model, whose own parameters keep their ``requires_grad``.

        Args:
            model: A transformers decoder, not yet with peft layers.
            rank: Rows of A and columns of B.
            alpha: The product B A is scaled by alpha / rank.
            targets: Last names (``q_proj``) or ``fnmatch`` patterns of whole names of linear layers; empty: all of the
                decoder's layers.
            seed: Seed of A, for each layer the same whatever the other layers are.

        Raises:
            MissingExtraError: peft is not installed.
            AdaptError: A target matches no linear layer, or the model has peft layers already.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise MissingExtraError("trainable='lora' must have peft. Install it: pip install 'tttnn[lora]'") from error
        if hasattr(model, "peft_config"):
            raise AdaptError("model must be without peft layers of its own. Merge and unload them first.")
        names = _chosen(model, targets)
        layers = []
        for name in names:
            path, _, last = name.rpartition(".")
            layers.append((model.get_submodule(path), last, model.get_submodule(name)))
        made = cls(model, layers)
        transposed = all(type(layer).__name__ == "Conv1D" for _, _, layer in layers)
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type, unused-ignore]  # peft scales by any number
            target_modules=names,
            fan_in_fan_out=transposed,
            lora_dropout=0.0,
            bias="none",
        )
        try:
            with warnings.catch_warnings(), torch.random.fork_rng():
                # Of mixed Linear and Conv1D layers peft says that it chose the right orientation itself.
                warnings.simplefilter("ignore")
                inject_adapter_in_model(config, model, adapter_name=_NAME)  # type: ignore[arg-type, unused-ignore]
            made._put_flags_back()
            for (parent, last, layer), name in zip(layers, names, strict=True):
                wrapped: Any = getattr(parent, last)
                wrapped.train(layer.training)
                _draw(wrapped.lora_A[_NAME].weight, f"{seed} {name}")
        except BaseException:
            made.remove()
            raise
        return made

    @property
    def names(self) -> list[str]:
        """Names of the trained matrices among the model's parameters."""
        held = {id(matrix) for pair in map(self._matrices, self._layers) for matrix in pair}
        return [name for name, parameter in self._model.named_parameters() if id(parameter) in held]

    @staticmethod
    def base_name(name: str) -> str | None:
        """Return the name that a tensor has in the model without matrices; None for a matrix."""
        if ".lora_" in name:
            return None
        return name.replace(".base_layer.", ".")

    def merged(self) -> dict[str, Tensor]:
        """Return copies of the whole state under the names of the model without matrices, each product added."""
        with torch.no_grad():
            updates = {id(layer.weight): self._update(parent, last) for parent, last, layer in self._layers}
            state = {}
            for name, tensor in self._model.state_dict(keep_vars=True).items():
                plain = self.base_name(name)
                if plain is not None:
                    update = updates.get(id(tensor))
                    state[plain] = tensor.detach().clone() if update is None else tensor.detach() + update
        return state

    def remove(self) -> None:
        """Put the original modules and flags back; may be called again."""
        for parent, last, layer in self._layers:
            setattr(parent, last, layer)
        self._put_flags_back()
        if hasattr(self._model, "peft_config"):
            del self._model.peft_config

    def _put_flags_back(self) -> None:
        # peft leaves them False, also after its own unload().
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)

    @staticmethod
    def _update(parent: nn.Module, last: str) -> Tensor:
        update: Tensor = getattr(parent, last).get_delta_weight(_NAME)
        return update

    @staticmethod
    def _matrices(place: tuple[nn.Module, str, nn.Module]) -> tuple[Tensor, Tensor]:
        wrapped: Any = getattr(place[0], place[1])
        return wrapped.lora_A[_NAME].weight, wrapped.lora_B[_NAME].weight


def _chosen(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Return the names of the linear layers to put matrices beside."""
    linear = [name for name, module in model.named_modules() if type(module).__name__ in _LINEAR]
    if not targets:
        lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
        if not lists:
            raise AdaptError(f"model must have a list of layers, got {type(model).__name__} without any.")
        path = max(lists, key=lambda entry: len(entry[1]))[0]
        return [name for name in linear if name.startswith(f"{path}.")]
    chosen: set[str] = set()
    for target in targets:
        matching = {name for name in linear if name.endswith(f".{target}") or fnmatchcase(name, target)}
        if not matching:
            raise AdaptError(f"lora_targets must match names of linear layers, but {target!r} matches none.")
        chosen |= matching
    return [name for name in linear if name in chosen]


def _draw(matrix: Tensor, seed: str) -> None:
    """Fill A as torch fills a linear layer of its shape, from a generator of its own."""
    number = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=8).digest(), "little") >> 1
    generator = torch.Generator().manual_seed(number)
    drawn = torch.empty(matrix.shape, dtype=torch.float32)
    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
    with torch.no_grad():
        matrix.copy_(drawn)
