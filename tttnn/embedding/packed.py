"""PackedEncoder: an encoder over texts whose tokens stand one after the other, without padding.

Knows how transformers' encoders take positions and look up their attention. Does not know tokenizers, pooling or what
the states are for.

All but attention works on each token for itself, so a packed batch is one row of all tokens: (1, tokens, dim).
Attention gets the bounds of the texts, by the argument in which transformers hands them on to attention functions.
"""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..kernels.attention import packed_attention, serves, supported
from ..kernels.hf_attention import (
    REPLACED,
    asked,
    configs_of,
    implementation_of,
    missing_name,
    register,
    replaced_attention,
    set_implementation,
)

_log = logging.getLogger("tttnn")

NAME = "tttnn_packed"
"""What transformers calls this attention."""

_LENGTHS = (40, 1, 2, 17, 40, 70)
"""Tokens of the texts of the probe: one, more than a block of the kernel, and two of one length."""

_ALIKE = 0.998
"""Least cosine of a probe's mean state with the padded way's: bfloat16 keeps 8 bits, and deep models multiply it.

A missing position, or a text that sees another, changes states as a whole.
"""


class _UnfitError(Exception):
    """A model asks its attention for more than attention inside each text."""

    def __init__(self) -> None:
        super().__init__("its attention has a mask, a bias or a window, or is causal")


class PackedEncoder:
    """Runs an encoder over packed texts.

    >>> packed = PackedEncoder.for_model(model, first_position=0)   # doctest: +SKIP
    >>> states = packed([[101, 2023, 102], [101, 102]])             # doctest: +SKIP
    >>> states.shape, packed_offsets([3, 2])                        # doctest: +SKIP
    (torch.Size([5, 384]), array([0, 3, 5]))
    """

    def __init__(self, model: nn.Module, first_position: int) -> None:
        self._model = model
        self._first_position = first_position

    @classmethod
    def for_model(cls, model: nn.Module, *, first_position: int = 0) -> Self | None:
        """Return the packed way of a model, or None where it has none.

        That is: a model that is not on the CPU, whose attention is not transformers' sdpa, that takes no position ids
        or hands nothing on to its attention, whose attention is causal or has a bias, a window or a mask of its own,
        and one that cannot read a probe so, or whose states of it differ from the padded way's.

        From then on the model's configuration names this module's attention, which is the model's own for anything but
        packed texts; where None is returned it is as it was.

        Args:
            model: An encoder of transformers in eval mode. It must stay there.
            first_position: Position id of a text's first token.
        """
        if any(p.device.type != "cpu" for p in model.parameters()) or not _takes_bounds(model):
            return None
        gone = missing_name()
        if gone is not None:
            _log.warning("texts are padded: this transformers has no %s", gone)
            return None
        configs = configs_of(model)
        if not configs or any(implementation_of(config) != REPLACED for config in configs):
            return None
        packed = cls(model, first_position)
        fits = False
        try:
            ids = _probe(model, first_position)
            expected = _padded(model, ids)
            for config in configs:
                set_implementation(config, NAME)
            fits = bool((torch.cosine_similarity(packed.means(ids), expected) >= _ALIKE).all())
        except Exception as problem:  # whatever it is that this model does not take, the padded way asks less of it
            _log.debug("texts are padded: %s", problem)
        finally:
            if not fits:
                for config in configs:
                    set_implementation(config, REPLACED)
        return packed if fits else None

    def __call__(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Return the last hidden states of all texts' tokens: (tokens, dim), text after text.

        With bfloat16 weights and a processor as `attention.supported` says, attention is the core's, whose bits do not
        depend on other texts nor on threads; else it is torch's, on texts of one length at a time.

        Args:
            ids: Token ids of each text, at least one.
        """
        register(NAME, _attend)  # once more where this object came from another process
        lengths = [len(row) for row in ids]
        offsets = torch.from_numpy(packed_offsets(lengths))
        tokens = torch.from_numpy(np.concatenate([np.asarray(row, np.int64) for row in ids]))
        positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])) + self._first_position
        with torch.inference_mode():
            out = self._model(
                input_ids=tokens.unsqueeze(0),
                position_ids=positions.unsqueeze(0),
                cu_seq_lens_q=offsets,
            )
        states: Tensor = out.last_hidden_state
        return states[0]

    def means(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Return each text's mean state: (texts, dim)."""
        texts = torch.split(self(ids), [len(row) for row in ids])
        return torch.stack([text.float().mean(0) for text in texts])


def packed_offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    """Return where each text begins among the tokens of all, and where the last one ends: (texts + 1,)."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _probe(model: Any, first_position: int) -> list[list[int]]:
    limit = getattr(model.config, "max_position_embeddings", None) or max(_LENGTHS)
    vocabulary = model.get_input_embeddings().num_embeddings
    padding = getattr(model.config, "pad_token_id", None)  # at which RoBERTa does not count positions
    words = [token for token in range(min(vocabulary, 1000)) if token != padding]
    lengths = [min(length, limit - first_position) for length in _LENGTHS]
    return [[words[(7 * t + i) % len(words)] for t in range(length)] for i, length in enumerate(lengths)]


def _padded(model: nn.Module, ids: Sequence[Sequence[int]]) -> Tensor:
    """Return each text's mean state: (texts, dim), from a padded batch."""
    real = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.int64)
    tokens = torch.zeros_like(real)
    for i, row in enumerate(ids):
        real[i, : len(row)] = 1
        tokens[i, : len(row)] = torch.tensor(row)
    with torch.inference_mode():
        states = model(input_ids=tokens, attention_mask=real).last_hidden_state.float()
        means: Tensor = (states * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    return means


def _takes_bounds(model: nn.Module) -> bool:
    parameters = inspect.signature(model.forward).parameters
    return "position_ids" in parameters and any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend as transformers' attention functions do, inside each text where their bounds are given."""
    if cu_seq_lens_q is None:
        return replaced_attention(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **options
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is not None or dropout != 0.0 or causal or asked(options) or query.shape[1] != key.shape[1]:
        raise _UnfitError
    offsets: list[int] = cu_seq_lens_q.tolist()
    if supported() and query.dtype is torch.bfloat16 and serves(query.shape[-1]):
        return packed_attention(query, key, value, offsets, scale=scaling), None
    return _by_length(query, key, value, offsets, scaling), None


def _by_length(query: Tensor, key: Tensor, value: Tensor, offsets: list[int], scale: float | None) -> Tensor:
    """Attend by torch inside each text; neighbors of one length together. Returns (1, tokens, heads, dim)."""
    _, heads, tokens, dim = query.shape
    out = query.new_empty(1, tokens, heads, dim)
    lengths = [end - begin for begin, end in itertools.pairwise(offsets)]
    first = 0
    while first < len(lengths):
        last = first + 1
        while last < len(lengths) and lengths[last] == lengths[first]:
            last += 1
        part = slice(offsets[first], offsets[last])
        shape = (last - first, lengths[first], heads, dim)
        q, k, v = (t[0, :, part].transpose(0, 1).reshape(shape).transpose(1, 2) for t in (query, key, value))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
        out[0, part] = attended.transpose(1, 2).reshape(-1, heads, dim)
        first = last
    return out
