"""Attention by the core inside of transformers' models: how they look theirs up, and how it is switched for a block.

Knows every name of transformers that this needs and that transformers does not promise: they stand here and nowhere
else. Where one is gone the model keeps its own attention, which a log line says. Does not know losses, optimizers or
where weights live.

Inside of a training step, anything but plain causal attention of one sequence goes to the implementation that the model
had.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..undone import UndoneBlock
from .attention import causal_attention, serves, supported
from .thread_modes import Autocast, Gradients

_log = logging.getLogger("tttnn")

NAME = "tttnn_causal"
"""What transformers calls this attention."""

REPLACED = "sdpa"
"""The implementation that is replaced, and that does what the native one does not."""

_TOLERANCE = 0.05
"""Relative distance between logits with and without: bfloat16 keeps 8 bits, and deep models multiply the rounding.

A wrong mask or a missing soft cap changes logits as a whole.
"""

_PROBE = 80
"""Tokens of the probe: more than a block of the kernel."""

_WITHOUT_MEANING = frozenset({"position_ids", "cache_position", "use_cache", "output_hidden_states", "return_dict"})
"""What models hand on to their attention and no attention function reads."""


class NativeAttention:
    """Switches a model's attention to the native one and back.

    >>> attention = NativeAttention.for_model(model)   # doctest: +SKIP
    >>> with attention.enabled():                      # doctest: +SKIP
    ...     model(input_ids=ids, labels=ids).loss.backward()
    """

    def __init__(self, configs: list[Any]) -> None:
        self._configs = configs

    @classmethod
    def for_model(cls, model: nn.Module) -> Self | None:
        """Return the switch for a model, or None where it would not help.

        That is: a processor without the instructions, a model that is not on the CPU or whose attention is not
        transformers' sdpa, and one whose logits on a probe of at most 80 tokens in bfloat16 arithmetic do not change by
        a bit with it (then nothing of the model goes through it), or change by more than 5 % of their length. The
        model must be in evaluation mode: dropout would change them too.
        """
        find_embeddings = getattr(model, "get_input_embeddings", None)
        if not supported() or find_embeddings is None or any(p.device.type != "cpu" for p in model.parameters()):
            return None
        gone = missing_name()
        if gone is not None:
            _log.warning("training attends by the model's own means: this transformers has no %s", gone)
            return None
        configs = configs_of(model)
        if not any(implementation_of(config) == REPLACED for config in configs):
            return None
        register(NAME, _attend)
        switch = cls(configs)
        longest = min([_PROBE, *(getattr(config, "max_position_embeddings", None) or _PROBE for config in configs)])
        probe = torch.arange(longest).unsqueeze(0) * 7 % find_embeddings().num_embeddings
        try:
            with Gradients(False), Autocast("cpu", bfloat16=True):
                expected = model(input_ids=probe, use_cache=False).logits
                with switch.enabled():
                    logits = model(input_ids=probe, use_cache=False).logits
        except Exception as error:  # each architecture raises what it will
            _log.debug("training attends by the model's own means: the probe failed (%s)", error)
            return None
        distance = (logits.double() - expected.double()).norm().item()
        return switch if 0.0 < distance <= _TOLERANCE * expected.double().norm().item() else None

    def enabled(self) -> AttentionSwitch:
        """Return a context manager inside of which the model attends natively.

        However the block ends, every configuration then names the implementation that it named before.
        """
        return AttentionSwitch(self._configs)


class AttentionSwitch(UndoneBlock[None]):
    """One block: what each configuration named before it."""

    def __init__(self, configs: list[Any]) -> None:
        self._before = [(config, implementation_of(config)) for config in configs]

    def _enter(self) -> None:
        for config, name in self._before:
            if name == REPLACED:
                set_implementation(config, NAME)

    def undo(self) -> None:
        """Let every configuration name what it named when this was made; may be called at any time, and again."""
        for config, name in self._before:
            set_implementation(config, name)


def missing_name() -> str | None:
    """Return the first of the names used here that the installed transformers has not; None where it has all."""
    try:
        from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
    except ImportError as error:
        return str(error)
    for owner, name in ((AttentionInterface, "register"), (AttentionMaskInterface, "register")):
        if not hasattr(owner, name):
            return f"{owner.__name__}.{name}"
    try:
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    except ImportError as error:
        return str(error)
    if REPLACED not in ALL_MASK_ATTENTION_FUNCTIONS or REPLACED not in ALL_ATTENTION_FUNCTIONS:
        return f"attention named {REPLACED}"
    config = PreTrainedConfig()
    for name in ("_attn_implementation", "_attn_implementation_internal"):
        if not hasattr(config, name):
            return f"PreTrainedConfig.{name}"
    return None


def configs_of(model: nn.Module) -> list[Any]:
    """Return the transformers configurations of a model's modules, each once."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return list({id(config): config for config in configs if hasattr(config, "_attn_implementation_internal")}.values())


def implementation_of(config: Any) -> str | None:
    """Return the name of the attention that a configuration asks for."""
    name: str | None = config._attn_implementation
    return name


def set_implementation(config: Any, name: str | None) -> None:
    """Let a configuration ask for an attention; those below it are left alone, as by the public setter they are not."""
    config._attn_implementation_internal = name


def register(name: str, attend: Callable[..., tuple[Tensor, Tensor | None]]) -> None:
    """Make transformers' models find an attention function by a name, with the masks of `REPLACED`.

    Such a mask is None exactly where causal order, or no order at all, says everything: no padding, no shorter window.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[REPLACED])


def asked(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that ask an attention function for something."""
    return {
        name: value
        for name, value in options.items()
        if value is not None and value is not False and name not in _WITHOUT_MEANING
    }


def replaced_attention(*tensors: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    """Attend by the implementation that was replaced."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    answer: tuple[Tensor, Tensor | None] = ALL_ATTENTION_FUNCTIONS[REPLACED](*tensors, **options)
    return answer


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend as transformers' attention functions do: natively where that is all that is asked for."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if (
        attention_mask is None
        and dropout == 0.0
        and causal is True
        and _only_causal(options, query.shape[2])
        and _shapes_fit(query, key, value, getattr(module, "num_key_value_groups", 1))
        and _is_bfloat16(query, key, value)
        and isinstance(scale, float)
        and 0.0 < scale < math.inf
        and not torch.compiler.is_compiling()
    ):
        wide = (query, key, value)
        query, key, value = (tensor.to(torch.bfloat16) for tensor in wide)
        return causal_attention(query, key, value, scale=scale), None
    return replaced_attention(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **options
    )


def _only_causal(options: dict[str, Any], tokens: int) -> bool:
    """Return whether no option asks for more than causal attention over `tokens`."""
    return all(
        name == "sliding_window" and isinstance(value, int) and value >= tokens
        for name, value in asked(options).items()
    )


def _shapes_fit(query: Tensor, key: Tensor, value: Tensor, group: int) -> bool:
    batch, heads, tokens, dim = query.shape
    return (
        batch == 1
        and tokens >= 1
        and serves(dim)
        and heads == key.shape[1] * group
        and key.shape == value.shape == (1, key.shape[1], tokens, dim)
    )


def _is_bfloat16(*tensors: Tensor) -> bool:
    """Return whether tensors are bfloat16 on the CPU, or would be made so by autocast."""
    cast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
    return all(
        tensor.device.type == "cpu" and (tensor.dtype is torch.bfloat16 or (cast and tensor.dtype is torch.float32))
        for tensor in tensors
    )
