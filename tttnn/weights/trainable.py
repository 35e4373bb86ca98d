"""Which parameters of a model are trained: settings in, names out.

Knows modules and settings. Does not know memory, training or LoRA, whose parameters are not the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..config import AdaptConfig
from ..errors import AdaptError, ConfigError


def trained_names(model: nn.Module, config: AdaptConfig) -> list[str] | None:
    """Return patterns for `WeightArena(trainable=...)`; None for all that require gradients.

    Args:
        model: A transformers causal language model.
        config: ``trainable`` other than ``lora``, with ``last_layers`` or ``trainable_patterns``.

    Raises:
        ConfigError: More last layers than the model has, or patterns without any.
        AdaptError: The model has no list of layers, or nothing but embeddings.
    """
    if config.trainable == "last-layers":
        return last_layers(model, config.last_layers)
    if config.trainable == "patterns":
        if not config.trainable_patterns:
            raise ConfigError("trainable_patterns must name at least one parameter for trainable='patterns', got none")
        return list(config.trainable_patterns)
    if config.trainable == "no-embeddings":
        frozen = {id(parameter) for module in _embeddings(model) for parameter in module.parameters()}
        names = [name for name, parameter in model.named_parameters() if id(parameter) not in frozen]
        if not names:
            raise AdaptError(f"model must have more than embeddings to train, got {type(model).__name__}.")
        return names
    return None


def trained_elements(model: nn.Module, names: Sequence[str] | None) -> tuple[int, int]:
    """Return how many weights a model holds in the machine's memory, and how many of them patterns choose for training.

    Tied weights count once. None chooses those that require gradients, or all where none does.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.device.type == "cpu"]
    elements = sum(p.numel() for _, p in named)
    if names is None:
        return elements, sum(p.numel() for _, p in named if p.requires_grad) or elements
    exact = set(names)
    patterns = [name for name in names if "*" in name or "?" in name or "[" in name]
    chosen = [p for name, p in named if name in exact or any(fnmatchcase(name, pattern) for pattern in patterns)]
    return elements, sum(p.numel() for p in chosen)


def _embeddings(model: nn.Module) -> list[nn.Module]:
    """Return every embedding table, of tokens and positions, and the output head."""
    output: Any = getattr(model, "get_output_embeddings", lambda: None)()
    head = [output] if isinstance(output, nn.Module) else []
    return head + [module for module in model.modules() if isinstance(module, nn.Embedding)]


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the layers that tokens go through, and their path in the model: its decoder's longest list of modules.

    A vision tower, which may well be deeper, does not count: neither what lies beside the decoder that the head reads,
    nor in it what reads something else than tokens (transformers' `main_input_name`).

    Raises:
        AdaptError: There is no list of layers.
    """
    towers = [
        f"{path}."
        for path, module in model.named_modules()
        if path and getattr(module, "main_input_name", "input_ids") != "input_ids"
    ]
    find_decoder: Any = getattr(model, "get_decoder", lambda: None)
    decoder = find_decoder()
    inside = set(map(id, decoder.modules())) if isinstance(decoder, nn.Module) else set()
    every = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not path.startswith(tuple(towers))
    ]
    lists = [(path, module) for path, module in every if id(module) in inside] or every
    if not lists:
        raise AdaptError(f"model must have a list of layers, got {type(model).__name__} without any.")
    return max(lists, key=lambda entry: len(entry[1]))


def last_layers(model: nn.Module, count: int) -> list[str]:
    """Return patterns for `WeightArena(trainable=...)` that name the parameters of the model's last layers.

    The layers are those of `decoder_layers`.

    Args:
        model: The model to look at.
        count: How many layers, from the last backwards; 1 to the number of layers.

    Raises:
        ConfigError: There are fewer layers.
        AdaptError: There is no list of layers.
    """
    path, layers = decoder_layers(model)
    if not 1 <= count <= len(layers):
        raise ConfigError(f"last_layers must be between 1 and {len(layers)} (the number of layers), got {count}")
    return [f"{path}.{i}.*" for i in range(len(layers) - count, len(layers))]
