"""Which tokens of a neighbor are trained on: those of its nearest passage first, within a limit.

Knows texts and tokenizers. Does not know models or windows.
"""

from __future__ import annotations

from ..retrieval.neighbors import Neighbor
from .tokens import TextTokens, TokenizedText, Tokenizer


def portion_of(tokenizer: Tokenizer | TextTokens, neighbor: Neighbor, limit: int | None) -> TokenizedText:
    """Return the tokens of a neighbor to train on: at most `limit`, beginning where its nearest passage begins.

    Where fewer than `limit` tokens follow, tokens before the passage fill the rest. Only as much of a long document is
    tokenized as is needed. None: all of it.
    """
    texts, text = TextTokens.of(tokenizer), neighbor.text
    if limit is None:
        return _tokenized(texts, text, 0, len(text))
    begin = 0
    if neighbor.span is not None and neighbor.span[0] > 0:
        begin = len(text.encode("utf-8")[: neighbor.span[0]].decode("utf-8", "ignore"))
    after, whole = _first_tokens(texts, text, begin, limit)
    missing = limit - len(after.tokens)
    if missing == 0 or not whole or begin == 0:
        return after
    # A little more than is needed: the first token of the piece may be a fragment.
    before = _tokenized(texts, text, max(0, begin - 16 * missing), begin)
    return TokenizedText(
        before.tokens[-missing:] + after.tokens,
        None if before.offsets is None or after.offsets is None else before.offsets[-missing:] + after.offsets,
    )


def _first_tokens(texts: TextTokens, text: str, begin: int, limit: int) -> tuple[TokenizedText, bool]:
    """Return the first `limit` tokens from a character on, and whether the text ended before."""
    characters = 8 * limit
    while True:
        tokens = _tokenized(texts, text, begin, begin + characters)
        ended = begin + characters >= len(text)
        # The last token of a piece may change when the text goes on, so one more than the limit is wanted.
        if ended or len(tokens.tokens) > limit:
            first = TokenizedText(tokens.tokens[:limit], None if tokens.offsets is None else tokens.offsets[:limit])
            return first, ended and len(tokens.tokens) <= limit
        characters *= 4


def _tokenized(texts: TextTokens, text: str, begin: int, end: int) -> TokenizedText:
    tokenized = texts.tokenized(text[begin:end])
    if tokenized.offsets is None:
        return tokenized
    return TokenizedText(tokenized.tokens, [(begin + first, begin + last) for first, last in tokenized.offsets])
