"""The gate that every language model passes before it is scored or trained: it proves what both rely on.

Weights are finite, tokens are rows of the embedding, texts become different tokens, and the logits of a token depend on
those before it alone. What is not so is refused in one sentence.

Knows models and tokens. Does not know files, training or where texts come from.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnknownModelError, first_line, some
from ..kernels.finite import not_finite
from .modes import eval_mode
from .tokens import TextTokens

_TEXTS = (
    "The cat sat on a mat, 17 times.",
    "few red PLUMS from bed; 25 (or so)",
    "def f(x):\n    return x + 1",
    "日本語 猫 Ünïcödé",
    "русский وقت γάτα",
)
"""Texts without much in common, in scripts that some tokenizer or other knows."""

_PROBE = 24
"""Tokens of the probe: few, and more than the local windows of some architectures."""

_EQUAL = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Relative distance of logits that are the same but for rounding; 2e-2 in narrower types.

Where a later token counts, random models of all architectures that transformers has differ by 1e-3 and more.
"""


def check_model(model: nn.Module, texts: TextTokens, name: str | os.PathLike[str] | None = None) -> None:
    """Refuse a language model that is not what scoring and training rely on; see this module.

    The model's modes are put back. Reads all weights, and runs three short passes.

    Args:
        model: A transformers causal language model.
        texts: How it reads texts.
        name: What messages call it; None: its class.

    Raises:
        UnknownModelError: One sentence that says what is wrong.
    """
    called = f"model {os.fspath(name)!r}" if name else f"model ({type(model).__name__})"
    if not hasattr(model, "config"):
        raise UnknownModelError(f"{called}: must be a causal language model of transformers, not what wraps one")
    if any(weight.is_meta for weight in model.parameters()):
        raise UnknownModelError(f"{called}: its weights must be in memory, got some on the device meta")
    if bad := not_finite(model):
        raise UnknownModelError(f"{called}: its weights must be finite, got NaN or infinity in {some(bad)}")
    _check_tokens(model, texts, called)
    _check_causal(model, probe_ids(texts), called)


def check_trains(model: nn.Module, loss: Callable[[Tensor], Tensor], texts: TextTokens) -> None:
    """Refuse a model of which no gradient can be had in evaluation mode, in which it is trained.

    Raises:
        UnknownModelError: One sentence that says why.
    """
    window = torch.tensor([probe_ids(texts)], device=next(model.parameters()).device)
    try:
        with torch.enable_grad(), eval_mode(model):
            small_gradients(loss(window), model)
    except Exception as error:  # each architecture raises what it will
        raise UnknownModelError(
            f"model ({type(model).__name__}): must be trainable without dropout, but failed: {first_line(error)}"
        ) from error


def small_gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    """Return gradients of the embedding and of weights that are no matrices: through all layers, in little memory."""
    weights = [weight for weight in model.parameters() if weight.requires_grad and weight.dim() < 2]
    with contextlib.suppress(AttributeError, NotImplementedError):  # one that reads bytes or hashes has none
        weights += [weight for weight in _embedding(model).parameters() if weight.requires_grad]
    if not weights or not loss.requires_grad:
        return []
    return [gradient for gradient in torch.autograd.grad(loss, weights, allow_unused=True) if gradient is not None]


def probe_ids(texts: TextTokens, count: int = _PROBE) -> list[int]:
    """Return tokens of ordinary text, for trying a model."""
    ids = [token for text in _TEXTS for token in texts.ids(text)] or [0, 1]
    return (ids * count)[:count]


def _check_tokens(model: Any, texts: TextTokens, called: str) -> None:
    """Refuse a tokenizer that gives tokens which the model has not, or the same ones for every text."""
    tokenizer = texts.tokenizer
    rows = _rows(model)
    vocabulary: dict[str, int] = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    if rows is not None and max(vocabulary.values(), default=0) >= rows:
        # Control tokens that no text is read as, like one for padding, may lie beyond.
        reachable = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
        reachable += [token for token in vocabulary.values() if not texts.is_control(token)]
        largest = max(reachable)
        if largest >= rows:
            word = next((word for word, token in vocabulary.items() if token == largest), "")
            raise UnknownModelError(
                f"{called}: tokens must be below {rows} (the rows of its embedding), got {largest} for {word!r}. "
                f"The tokenizer is another model's, or needs: model.resize_token_embeddings({largest + 1})"
            )
    ids = [tuple(texts.ids(text)) for text in _TEXTS]
    if len({tokens for tokens in ids if tokens}) < 2:
        raise UnknownModelError(
            f"{called}: texts must become different tokens, but its tokenizer gives {list(ids[0]) or 'none'} for "
            "all of a probe. The tokenizer's files are missing, or another model's."
        )


def _embedding(model: Any) -> nn.Module:
    embedding: nn.Module = model.get_input_embeddings()
    return embedding


def _rows(model: Any) -> int | None:
    try:
        return int(model.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError, TypeError):
        return None  # it reads bytes, characters or hashes of them


def _check_causal(model: nn.Module, ids: list[int], called: str) -> None:
    """Refuse a model whose logits of a token change with a later one, or that does not run on tokens alone."""
    other = [*ids[:-1], next((token for token in ids if token != ids[-1]), 0)]
    first = _logits(model, ids, called)
    if not bool(first.isfinite().all()):
        raise UnknownModelError(f"{called}: its logits must be finite, got NaN or infinity for a short text")
    limit = _EQUAL.get(next(model.parameters()).dtype, 2e-2) * first.norm()
    if (_logits(model, ids, called) - first).norm() > limit:
        return  # Reformer hashes at random: nothing can be compared
    if (_logits(model, other, called) - first)[:-1].norm() > limit:
        config = getattr(model, "config", None)
        why = " (is_decoder=False)" if getattr(config, "is_decoder", None) is False else ""
        raise UnknownModelError(
            f"{called}: must be a causal language model, but the logits of a token change with the tokens after it"
            f"{why}. {type(model).__name__} reads a text as a whole."
        )


def _logits(model: Any, ids: list[int], called: str) -> Tensor:
    """Return (tokens, vocabulary) float32."""
    inputs = torch.tensor([ids], device=next(model.parameters()).device)
    try:
        with torch.inference_mode(), eval_mode(model):
            logits: Tensor = model(input_ids=inputs, use_cache=False).logits
    except Exception as error:  # each architecture raises what it will
        raise UnknownModelError(
            f"{called}: must give logits for tokens alone, but failed on {len(ids)} of them: {first_line(error)}"
        ) from error
    if logits.dim() != 3 or logits.shape[:2] != (1, len(ids)):
        raise UnknownModelError(
            f"{called}: must give one row of logits for each token, got shape {tuple(logits.shape)} for {len(ids)}"
        )
    return logits[0].float()
