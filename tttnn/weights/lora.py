"""Low-rank matrices beside a model's linear layers (LoRA), put in and taken out again without a trace.

Knows modules. Does not know training, queries or where weights lie.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

import tttnn._core as _core

from ..errors import AdaptError
from .trainable import decoder_layers


class LowRankLinear(nn.Module):
    """A linear layer and two matrices beside it: W x + scale B A x, where A and B alone are trained.

    Takes the place of `base_layer`, whose every other attribute it has.
    """

    def __init__(self, base_layer: nn.Module, a: Tensor, b: Tensor, scale: float) -> None:
        """Stand beside a layer.

        Args:
            base_layer: torch's Linear or a class of its kind, or GPT-2's Conv1D, whose weight is transposed.
            a: (rank, inputs).
            b: (outputs, rank).
            scale: of the product.
        """
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Parameter(a)
        self.lora_B = nn.Parameter(b)
        self.scale = scale
        self.train(base_layer.training)

    def forward(self, states: Tensor, *args: Any, **options: Any) -> Tensor:
        """Return the layer's answer with the update: (..., inputs) to (..., outputs)."""
        result: Tensor = self.base_layer(states, *args, **options)
        low = nn.functional.linear(states.to(self.lora_A.dtype), self.lora_A)
        update = nn.functional.linear(low, self.lora_B) * self.scale
        return (result + update).to(result.dtype)

    def update(self) -> Tensor:
        """Return scale B A, in the shape and type of the layer's weight."""
        weight: Any = self.base_layer.weight
        product = (self.lora_B.float() @ self.lora_A.float() * self.scale).to(weight.dtype)
        return product.t() if is_transposed(self.base_layer) else product

    @property
    def weight(self) -> Tensor:
        """The updated weight: some models use a layer's weight without calling the layer."""
        weight: Tensor = self.base_layer.weight  # type: ignore[assignment]
        return weight + self.update()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)


def is_transposed(layer: nn.Module) -> bool:
    """Say whether a linear layer holds its weight as (inputs, outputs), as GPT-2's do."""
    return type(layer).__name__ == "Conv1D"


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """Return the outputs and inputs of a linear layer."""
    weight: Any = layer.weight
    first, second = weight.shape
    return (second, first) if is_transposed(layer) else (first, second)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_transposed(module)


class LowRankLayers:
    """The low-rank matrices of one model: each chosen layer computes W x + (alpha / rank) B A x; A and B are trained.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685. B is zero, so that the model
    computes what it did before; A is drawn by a seed and leaves torch's random state alone. `remove` puts the original
    modules back, the same objects.
    """

    def __init__(
        self, model: nn.Module, *, rank: int, alpha: float, targets: Sequence[str] = (), seed: int = 0
    ) -> None:
        """Make matrices for the chosen layers of a model, which is not changed; `insert` puts them in.

        Args:
            model: A transformers decoder, without low-rank layers.
            rank: Rows of A and columns of B.
            alpha: The product B A is scaled by alpha / rank.
            targets: Last names (``q_proj``) or ``fnmatch`` patterns of whole names of linear layers; empty: all of the
                decoder's layers.
            seed: Seed of A, for each layer the same whatever the other layers are.

        Raises:
            AdaptError: A target matches no linear layer, or the model has low-rank layers already.
        """
        if hasattr(model, "peft_config") or any(isinstance(module, LowRankLinear) for module in model.modules()):
            raise AdaptError("model must be without low-rank layers of its own. Merge and unload them first.")
        self._model = model
        self._rank, self._alpha = rank, alpha
        self._places: list[tuple[nn.Module, str, str]] = []  # module, name in it, whole name of the layer
        self._layers: list[nn.Module] = []
        self._wrapped: list[LowRankLinear] = []
        for name in chosen_layers(model, targets):
            path, _, last = name.rpartition(".")
            layer: Any = model.get_submodule(name)
            weight = layer.weight
            outputs, inputs = shape_of(layer)
            a = drawn(rank, inputs, f"{seed} {name}").to(weight)
            b = torch.zeros(outputs, rank, dtype=weight.dtype, device=weight.device)
            self._places.append((model.get_submodule(path), last, name))
            self._layers.append(layer)
            self._wrapped.append(LowRankLinear(layer, a, b, alpha / rank))

    def _put_in(self) -> None:
        for (parent, last, _), wrapped in zip(self._places, self._wrapped, strict=True):
            setattr(parent, last, wrapped)

    def remove(self) -> None:
        """Put the original modules back; may be called again."""
        for (parent, last, _), layer in zip(self._places, self._layers, strict=True):
            setattr(parent, last, layer)

    _insert = _core.undoing(_put_in, remove)

    def insert(self) -> Self:
        """Put the matrices beside their layers: all of them, or none where that is interrupted."""
        self._insert()
        return self

    @property
    def names(self) -> list[str]:
        """Names of the trained matrices among the model's parameters."""
        return [f"{name}.{matrix}" for _, _, name in self._places for matrix in ("lora_A", "lora_B")]

    @staticmethod
    def base_name(name: str) -> str | None:
        """Return the name that a tensor has in the model without matrices; None for a matrix."""
        if ".lora_" in name:
            return None
        return name.replace(".base_layer.", ".")

    def merged(self) -> dict[str, Tensor]:
        """Return copies of the whole state under the names of the model without matrices, each product added.

        Raises:
            AdaptError: A layer with matrices shares its weight with another, which the product would change too.
        """
        state: dict[str, Tensor] = {}
        copied: dict[int, Tensor] = {}  # one copy for all names of a tied tensor
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            plain = self.base_name(name)
            if plain is not None:
                if id(tensor) not in copied:
                    copied[id(tensor)] = tensor.detach().clone()
                state[plain] = copied[id(tensor)]
        with torch.no_grad():
            for (_, _, name), wrapped in zip(self._places, self._wrapped, strict=True):
                key = id(wrapped.base_layer.weight)
                tied = [other for other, copy in state.items() if copy is copied[key] and other != f"{name}.weight"]
                if tied:
                    raise AdaptError(
                        f"{name}.weight must be a weight of its own for its low-rank update to be added, but it is "
                        f"tied to {tied[0]}. Write the matrices alone: save_adapter()."
                    )
                copied[key] += wrapped.update()
        return state

    def save(self, path: str | os.PathLike[str], *, base_model: str) -> None:
        """Write the matrices as a directory that peft loads as an adapter of the model.

        Args:
            path: The directory; made where there is none.
            base_model: Name or directory of the model without matrices.
        """
        write_adapter(
            path,
            {name: (w.lora_A, w.lora_B) for (_, _, name), w in zip(self._places, self._wrapped, strict=True)},
            alpha=self._alpha,
            transposed=all(map(is_transposed, self._layers)),
            base_model=base_model,
        )


def write_adapter(
    path: str | os.PathLike[str],
    matrices: Mapping[str, tuple[Tensor, Tensor]],
    *,
    alpha: float,
    transposed: bool,
    base_model: str,
) -> None:
    """Write the A and B of layers, by name, as a directory that peft loads as an adapter of their model.

    Args:
        path: The directory; made where there is none.
        matrices: A, (rank, inputs), and B, (outputs, rank), of each layer.
        alpha: The products B A are scaled by this over the rank.
        transposed: Whether the layers hold their weights as (inputs, outputs).
        base_model: Name or directory of the model without matrices.
    """
    from safetensors.torch import save_file

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    copies = {
        f"base_model.model.{name}.lora_{letter}.weight": matrix.detach().cpu().clone()
        for name, pair in matrices.items()
        for letter, matrix in zip("AB", pair, strict=True)
    }
    save_file(copies, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": len(next(iter(matrices.values()))[0]),
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "target_modules": list(matrices),
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def chosen_layers(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Return the names of the linear layers to put matrices beside."""
    linear = [name for name, module in model.named_modules() if _is_linear(module)]
    if not targets:
        path, _ = decoder_layers(model)
        chosen = [name for name in linear if name.startswith(f"{path}.")]
        if not chosen:
            raise AdaptError(f"the layers of {type(model).__name__} must have linear layers to be trained by LoRA.")
        return chosen
    matched: set[str] = set()
    for target in targets:
        matching = {name for name in linear if _names(target, name)}
        if not matching:
            raise AdaptError(_refusal(model, target, linear))
        matched |= matching
    return [name for name in linear if name in matched]


def _names(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}") or fnmatchcase(name, target)


def _refusal(model: nn.Module, target: str, linear: Sequence[str]) -> str:
    """Say what a target names instead of linear layers, and what could be named."""
    matched = "matches none"
    for name, module in model.named_modules():
        if name and _names(target, name):
            matched = f"matches {name} ({type(module).__name__})"
    for name, parameter in model.named_parameters():
        if _names(target, name):
            matched = f"matches {name} (a parameter of shape {tuple(parameter.shape)})"
    last = sorted({name.rpartition(".")[2] for name in linear})
    return f"lora_targets must match names of linear layers, but {target!r} {matched}. There are {', '.join(last)}."


def drawn(rank: int, inputs: int, seed: str) -> Tensor:
    """Return A as torch draws a linear layer of its shape, (rank, inputs), from a generator of its own."""
    number = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=8).digest(), "little") >> 1
    generator = torch.Generator().manual_seed(number)
    drawn = torch.empty(rank, inputs, dtype=torch.float32)
    return nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
