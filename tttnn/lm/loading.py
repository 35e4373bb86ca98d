"""A language model with its tokenizer, loaded from files: every weight that its logits depend on was in them.

Knows transformers' loading. Does not know how a model is scored or trained; what else it must be, `gate` looks at.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import models
from ..errors import UnknownModelError, some
from .modes import eval_mode


class LoadedModel(NamedTuple):
    """A causal language model of transformers and its tokenizer."""

    model: Any
    tokenizer: Any


def load_tokenizer(name: str | os.PathLike[str], *, cache_dir: str | os.PathLike[str] | None = None) -> Any:
    """Load a tokenizer by the name of its model; never runs code of the model's files.

    Raises:
        UnknownModelError: There is no such model in reach.
    """
    from transformers import AutoTokenizer

    folder = models.resolve(name, cache_dir=cache_dir)
    with models.loading(name, folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def load_model(
    name: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    cache_dir: str | os.PathLike[str] | None = None,
) -> LoadedModel:
    """Load a causal language model on the CPU; never runs code of its files.

    Args:
        name: A demo name, a hub id or a directory.
        dtype: Type of the weights.
        cache_dir: Where demo models are kept; None for the default.

    Raises:
        UnknownModelError: There is no such model in reach, its files cannot be loaded, or lack weights.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(name, cache_dir=cache_dir)
    folder = models.resolve(name, cache_dir=cache_dir)
    with models.loading(name, folder):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True
        )
        if wrong := models.loading_fault(info):
            raise UnknownModelError(f"model {os.fspath(name)!r} could not be loaded: {wrong}.")
        lacking = _missing(model, info.get("missing_keys", ()))
        if lacking and _depends_on(model, lacking.values()):
            unknown = sorted(info.get("unexpected_keys", ()))
            instead = f", and hold instead {some(unknown)}" if unknown else ""
            raise UnknownModelError(
                f"model {os.fspath(name)!r} could not be loaded: its files must hold all weights of "
                f"{type(model).__name__}, but lack {some(sorted(lacking))}{instead}."
            )
    return LoadedModel(model, tokenizer)


def _missing(model: Any, names: Iterable[str]) -> dict[str, Tensor]:
    every = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    return {name: every[name] for name in names if name in every and every[name].is_floating_point()}


def _depends_on(model: Any, weights: Iterable[Tensor]) -> bool:
    """Return whether logits depend on weights that files lack; those they do not depend on become zeros.

    They were drawn at random, so NaN in their place is no loss; it goes on to everything that depends on it.
    """
    weights = list(weights)
    with torch.no_grad(), eval_mode(model):
        for weight in weights:
            weight.fill_(float("nan"))
        try:
            logits = model(input_ids=torch.arange(8).unsqueeze(0), use_cache=False).logits
        except Exception:  # what cannot be tried is not known to do without them
            return True
        for weight in weights:
            weight.zero_()
    return not bool(logits.isfinite().all())
