"""What is asked of one document: which part of it is the query, and which is scored after which context.

Knows texts and tokens; does not know how a model is adapted or scored.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import EvalConfig
from ..errors import ConfigError
from ..lm.tokens import TextTokens, Tokenizer


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked of one document: search and adapt with `query`, score `scored` after `context`."""

    query: str
    context: str
    scored: str


def split_task(tokenizer: Tokenizer | TextTokens, text: str, config: EvalConfig) -> Task | None:
    """Make the task of a document under a protocol; None where the document has too little text.

    Under ``split`` and ``split-bare`` the document is cut in half by tokens; a half longer than `query_tokens` ends the
    query there, and what is scored follows directly, up to `scored_tokens`. Under ``full`` query and scored text are
    both the document's first `scored_tokens` tokens. Cuts lie between characters. A query of white space alone is too
    little text.
    """
    limit = config.query_tokens + config.scored_tokens
    offsets = token_ends(tokenizer, text, 2 * limit)
    if config.protocol == "full":
        end = offsets[min(len(offsets), config.scored_tokens) - 1] if offsets else 0
        return Task(text[:end], "", text[:end]) if text[:end].strip() else None
    # Whether a long document's half lies beyond query_tokens is known from the first 2 x limit tokens.
    half = min(len(offsets) // 2, config.query_tokens)
    if half < 1:
        return None
    cut = offsets[half - 1]
    end = offsets[min(len(offsets), half + config.scored_tokens) - 1]
    query, scored = text[:cut], text[cut:end]
    if not query.strip() or not scored:
        return None
    return Task(query, query if config.protocol == "split" else "", scored)


def token_ends(tokenizer: Tokenizer | TextTokens, text: str, limit: int) -> list[int]:
    """Return the end, in characters, of each of the first `limit` tokens of a text."""
    characters = 8 * limit
    while True:
        offsets = TextTokens.of(tokenizer).tokenized(text[:characters]).offsets
        if offsets is None:
            raise ConfigError("tokenizer must say where in a text each token lies (a fast one), got one that does not")
        ends = [end for _, end in offsets]
        if len(ends) >= limit or characters >= len(text):
            return ends[:limit]
        characters *= 4
