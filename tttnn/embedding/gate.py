"""The gate that every encoder passes before it embeds: it proves what its vectors rely on, or refuses in a sentence.

Weights are finite, token ids are rows of the embedding, texts become different tokens and different states, each token
has a state, and a text has the same ones twice.

Knows encoders and tokens. Does not know files, pooling or batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EmbeddingError, TttnnError, UnknownModelError, first_line, some
from ..kernels.finite import not_finite
from .tokens import EncoderTokens

# Texts without a common word or letter, in scripts that some tokenizer or other knows.
_TEXTS = ("MKTAYI the cat sat on a mat 17", "GLNDVW 25 few red plums from bed", "日本語 猫 Ünïcödé", "русский وقت γάτα")

_APART = 1e-6
"""Least distance of two texts' states, to their size: more than float32 rounds."""


def check_contents(model: nn.Module, tokens: EncoderTokens, name: str) -> None:
    """Refuse an encoder whose weights are not finite, or that does not fit its tokenizer.

    Args:
        model: An encoder of transformers.
        tokens: Its tokenizer.
        name: What messages call it.

    Raises:
        EmbeddingError: A weight is not finite.
        UnknownModelError: Token ids lie beyond the embedding or are of several kinds, or texts become the same tokens.
    """
    check_finite(model, name)
    _check_vocabulary(model, tokens, name)
    if tokens.kinds() - {0}:
        raise UnknownModelError(
            f"encoder {name!r}: all tokens of a text must be of kind 0, but its tokenizer gives token_type_ids of "
            f"{sorted(tokens.kinds())}, which tttnn does not hand on."
        )
    with reading(name):
        plain = [tokens.plain(text) for text in _TEXTS]
    if len({known for ids in plain if (known := tuple(i for i in ids if i != tokens.unknown))}) < 2:
        raise UnknownModelError(
            f"encoder {name!r}: texts must become different tokens, but its tokenizer knows hardly any of a probe "
            f"and gives {plain[0][:5] or 'none'}. The tokenizer's files are missing or another model's."
        )


def check_states(model: nn.Module, tokens: EncoderTokens, name: str) -> None:
    """Refuse an encoder whose states depend on nothing, or on more than the text.

    Args:
        model: An encoder of transformers in float32 and eval mode.
        tokens: Its tokenizer.
        name: What messages call it.

    Raises:
        EmbeddingError: A state is not finite.
        UnknownModelError: It gives no states, the same for every text, or others each time.
    """
    texts = tokens.encode(_TEXTS).ids
    states = [states_of(model, ids, name) for ids in texts]
    if not all(bool(state.isfinite().all()) for state in states):
        raise EmbeddingError(f"encoder {name!r}: its states must be finite, got NaN or infinity for a short text")
    if not torch.equal(states[0], states_of(model, texts[0], name)):
        raise UnknownModelError(f"encoder {name!r}: a text must have one vector, got another each time")
    means = torch.stack([state.mean(0) for state in states])
    if not bool(((means[1:] - means[0]).norm(dim=1) > _APART * means.norm(dim=1).max()).any()):
        raise UnknownModelError(f"encoder {name!r}: texts must have different vectors, got the same for all of a probe")


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what a tokenizer raises of its own at an ordinary text into an error that names its encoder.

    Raises:
        UnknownModelError: The tokenizer failed.
    """
    try:
        yield
    except TttnnError:
        raise
    except Exception as problem:  # tokenizers raise Exception itself
        raise UnknownModelError(
            f"encoder {name!r}: its tokenizer must read any text, but failed: {first_line(problem)}"
        ) from problem


def check_finite(model: nn.Module, name: str) -> None:
    """Refuse an encoder with a weight that is NaN or infinite.

    Raises:
        EmbeddingError: The message says which.
    """
    if bad := not_finite(model):
        raise EmbeddingError(f"encoder {name!r}: its weights must be finite, got NaN or infinity in {some(bad)}")


def states_of(model: Any, ids: list[int], name: str) -> Tensor:
    """Return the last hidden states of one text's tokens: (tokens, dim) float32.

    Raises:
        UnknownModelError: The encoder cannot read token ids, or gives no state for each of them.
    """
    device = next(model.parameters()).device
    try:
        with torch.inference_mode():
            states: Tensor = model(
                input_ids=torch.tensor([ids], device=device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.int64, device=device),
            ).last_hidden_state
    except Exception as problem:  # each architecture raises what it will
        raise UnknownModelError(
            f"encoder {name!r}: must give states for token ids, but failed: {first_line(problem)}"
        ) from problem
    if states.dim() != 3 or states.shape[:2] != (1, len(ids)):
        raise UnknownModelError(
            f"encoder {name!r}: must give one state for each token, got shape {tuple(states.shape)} for {len(ids)}"
        )
    return states[0].float()


def probe_ids(tokens: EncoderTokens) -> list[int]:
    """Return token ids of ordinary text, for trying an encoder: at least two different ones."""
    ids = [i for text in _TEXTS for i in tokens.plain(text)]
    return ids or [0, 1]


def _check_vocabulary(model: Any, tokens: EncoderTokens, name: str) -> None:
    try:
        rows = int(model.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError):
        return  # it reads characters or hashes of them
    largest = max(tokens.vocabulary.values(), default=0)
    if largest >= rows:
        word = next(token for token, i in tokens.vocabulary.items() if i == largest)
        raise UnknownModelError(
            f"encoder {name!r}: token ids must be below {rows} (the rows of its embedding), got {largest} for "
            f"{word!r}. Its tokenizer belongs to another model."
        )
