"""How many tokens a model reads at once: what its configuration says, and what its positions really hold.

Knows models' configurations and embeddings. Does not know windows or what is computed of tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .modes import eval_mode

_NAMES = (
    "n_positions",
    "max_position_embeddings",
    "n_ctx",
    "max_seq_len",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "context_length",
)
"""What architectures call it; the first that a configuration has counts."""

_UNBOUNDED = 1_000_000
"""Tokenizers write a number above this where a model states no limit."""

_DEFAULT = 2048

_OFFSET = 8
"""Rows of a table of positions beside those of the stated limit: RoBERTa's 514 are 512, OPT's 2,050 are 2,048."""


def model_max_length(model: nn.Module, tokenizer: Any) -> int:
    """Return how many tokens the model reads at once; 2,048 where nothing says it.

    Where positions are rows of a table, that is tried, as far as the first layer: some configurations count rows that
    no token has. On another device than the CPU, where an index beyond a table ends the process, it is computed.
    """
    stated = _stated(model, tokenizer)
    tables = [table for table in _position_tables(model) if abs(table.num_embeddings - stated) <= _OFFSET]
    for table in tables:
        # transformers' families with a padding row count positions from the row after it.
        if table.padding_idx is not None and table.num_embeddings <= stated + table.padding_idx:
            stated = min(stated, table.num_embeddings - table.padding_idx - 1)
    if not tables or any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return stated
    return _tried(model, stated)


def _stated(model: Any, tokenizer: Any) -> int:
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    for name in _NAMES:
        limit = getattr(config, name, None)
        if isinstance(limit, int) and not isinstance(limit, bool) and limit > 1:
            return limit
    stated = int(getattr(tokenizer, "model_max_length", _UNBOUNDED))
    return stated if 1 < stated < _UNBOUNDED else _DEFAULT


def _position_tables(model: Any) -> list[nn.Embedding]:
    try:
        tokens = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        tokens = None
    return [module for module in model.modules() if isinstance(module, nn.Embedding) and module is not tokens]


class _ReachedError(Exception):
    """The first layer was reached: positions were found."""


def _tried(model: nn.Module, stated: int) -> int:
    """Return the longest input up to `stated` whose embedding works; `stated` where nothing can be said."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        return stated

    def reached(*_: Any) -> None:
        raise _ReachedError

    hook = max(lists, key=len)[0].register_forward_pre_hook(reached)

    def works(length: int) -> bool:
        try:
            with torch.inference_mode(), eval_mode(model):
                model(input_ids=torch.zeros(1, length, dtype=torch.int64) + 3, use_cache=False)
        except _ReachedError:
            return True
        except Exception:
            return False
        return True

    try:
        if works(stated):
            return stated
        low, high = 1, stated  # works, does not
        if not works(low):
            return stated  # it fails for another reason
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if works(middle) else (low, middle)
        return low
    finally:
        hook.remove()
