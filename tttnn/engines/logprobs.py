"""Log-probabilities of tokens as the API tells them, with the likeliest ones beside each and where each begins.

Knows a model and a tokenizer. Does not know whether weights are adapted, nor who asks.
"""

from __future__ import annotations

from typing import Any

import torch

from ..config import Precision
from ..kernels.precision import autocast
from ..lm.modes import eval_mode

_ROWS = 256
"""Rows of logits turned into float32 log-probabilities at once, as in scoring."""


@torch.inference_mode()
def token_logprobs(
    model: Any, ids: list[int], *, first: int, count: int, precision: Precision
) -> tuple[list[float | None], list[list[tuple[int, float]] | None]]:
    """Read a sequence once, and return what the model made of its tokens.

    Args:
        model: a causal language model, with the weights as they are.
        ids: the sequence, within the model's window.
        first: the first token to tell of; token 0 has nothing before it, and gives None.
        count: how many of the likeliest tokens to tell at each position, beside the token itself.
        precision: arithmetic, as in scoring.

    Returns:
        For each token from `first` on its log-probability, and (token, log-probability) of the likeliest, likeliest
        first, the token itself always among them.
    """
    device = next(model.parameters()).device
    values: list[float | None] = [None] * (first == 0)
    likeliest: list[list[tuple[int, float]] | None] = [None] * (first == 0)
    begin = max(first, 1)
    if begin >= len(ids):
        return values, likeliest
    inputs = torch.tensor([ids], device=device)
    with eval_mode(model), autocast(precision, device):
        logits = model(input_ids=inputs[:, :-1], use_cache=False).logits[0, begin - 1 :]
    targets = inputs[0, begin:]
    for row in range(0, len(targets), _ROWS):
        log_probs = logits[row : row + _ROWS].float().log_softmax(-1)
        wanted = targets[row : row + _ROWS]
        own = log_probs.gather(-1, wanted[:, None])[:, 0].tolist()
        top = log_probs.topk(min(count, log_probs.shape[-1]), dim=-1)
        for token, value, indices, best in zip(
            wanted.tolist(), own, top.indices.tolist(), top.values.tolist(), strict=True
        ):
            pairs = list(zip(indices, best, strict=True))
            values.append(value)
            likeliest.append(pairs if token in indices else [*pairs, (token, value)])
    return values, likeliest


def offsets(tokenizer: Any, ids: list[int]) -> list[int]:
    """Return for each token where its text begins in the text of all, in characters.

    Tokens that share a character, because each holds some of its bytes, begin where that character does.
    """
    begins, done, pending = [], 0, 0
    for i in range(len(ids)):
        begins.append(done)
        text = str(tokenizer.decode(ids[pending : i + 1]))
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            done += len(text)
            pending = i + 1
    return begins


def described(
    tokenizer: Any, ids: list[int], values: list[float | None], likeliest: list[list[tuple[int, float]] | None]
) -> dict[str, Any]:
    """Return log-probabilities as plain values, with tokens as texts."""
    return {
        "tokens": [_text(tokenizer, token) for token in ids],
        "token_logprobs": values,
        "top": [
            None if pairs is None else [[_text(tokenizer, token), value] for token, value in pairs]
            for pairs in likeliest
        ],
        "offsets": offsets(tokenizer, ids),
    }


def _text(tokenizer: Any, token: int) -> str:
    """Return a token's text; its name in the vocabulary where it holds some bytes of a character only."""
    text = str(tokenizer.decode([token]))
    return str(tokenizer.convert_ids_to_tokens(token)) if "\N{REPLACEMENT CHARACTER}" in text else text
