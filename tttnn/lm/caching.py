"""Whether a model generates with a cache of what it has read: some architectures cannot, or not with all their layers.

Knows models. Does not know prompts, nor whether weights are adapted.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence

import torch
from torch import nn

from ..errors import UnknownModelError, first_line

_log = logging.getLogger("tttnn")
_MADE = 3  # of the prompt, then twice from what was kept
_known: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def lacks_cache(model: nn.Module) -> bool:
    """Return whether a model is known to generate without a cache alone."""
    return model in _known


def fails_with_cache(model: nn.Module, ids: Sequence[int]) -> bool:
    """Return whether the cache is what a model failed of, by trying: without one it generates, and with one does not.

    Args:
        model: A transformers causal language model, in evaluation mode.
        ids: Some tokens of it, at least one.

    Raises:
        UnknownModelError: It generates in neither way.
    """
    why = _failure(model, ids, use_cache=True)
    if why is None:
        return False
    if (worse := _failure(model, ids, use_cache=False)) is not None:
        raise UnknownModelError(
            f"model ({type(model).__name__}): must generate text, but failed on {len(ids)} tokens: {worse}"
        )
    _log.warning("%s generates without a cache, and slowly, because with one: %s", type(model).__name__, why)
    _known.add(model)
    return True


def _failure(model: nn.Module, ids: Sequence[int], *, use_cache: bool) -> str | None:
    from transformers import GenerationConfig

    inputs = torch.tensor([list(ids)], device=next(model.parameters()).device)
    settings = GenerationConfig(max_new_tokens=_MADE, do_sample=False, use_cache=use_cache, pad_token_id=0)
    try:
        model.generate(inputs, attention_mask=torch.ones_like(inputs), generation_config=settings)  # type: ignore[operator]
    except Exception as error:  # each architecture raises what it will
        return first_line(error)
    return None
