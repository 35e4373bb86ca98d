"""Which tokens of a neighbor are trained on: those of its nearest passage first, within a limit.

Knows texts and tokenizers. Does not know models or windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..retrieval.neighbors import Neighbor
from .score import token_ids


@dataclass(frozen=True, slots=True)
class Portion:
    """Tokens of one text in their order, and where each begins and ends in it, in characters.

    `offsets` is None where the tokenizer does not say (those written in Python).
    """

    tokens: list[int]
    offsets: list[tuple[int, int]] | None

    def span(self, text: str, count: int) -> tuple[int, int] | None:
        """Return the bytes of the text's UTF-8 that the first `count` tokens cover; None where that is not known."""
        if self.offsets is None or count == 0:
            return None
        begin, end = self.offsets[0][0], self.offsets[count - 1][1]
        before = len(text[:begin].encode("utf-8", "surrogatepass"))
        return before, before + len(text[begin:end].encode("utf-8", "surrogatepass"))


def portion_of(tokenizer: Any, neighbor: Neighbor, limit: int | None) -> Portion:
    """Return the tokens of a neighbor to train on: at most `limit`, beginning where its nearest passage begins.

    Where fewer than `limit` tokens follow, tokens before the passage fill the rest. Only as much of a long document is
    tokenized as is needed. None: all of it.
    """
    text = neighbor.text
    if limit is None:
        return _tokenized(tokenizer, text, 0, len(text))
    begin = 0
    if neighbor.span is not None and neighbor.span[0] > 0:
        begin = len(text.encode("utf-8")[: neighbor.span[0]].decode("utf-8", "ignore"))
    after, whole = _first_tokens(tokenizer, text, begin, limit)
    missing = limit - len(after.tokens)
    if missing == 0 or not whole or begin == 0:
        return after
    # A little more than is needed: the first token of the piece may be a fragment.
    before = _tokenized(tokenizer, text, max(0, begin - 16 * missing), begin)
    return Portion(
        before.tokens[-missing:] + after.tokens,
        None if before.offsets is None or after.offsets is None else before.offsets[-missing:] + after.offsets,
    )


def _first_tokens(tokenizer: Any, text: str, begin: int, limit: int) -> tuple[Portion, bool]:
    """Return the first `limit` tokens from a character on, and whether the text ended before."""
    characters = 8 * limit
    while True:
        found = _tokenized(tokenizer, text, begin, begin + characters)
        ended = begin + characters >= len(text)
        # The last token of a piece may change when the text goes on, so one more than the limit is wanted.
        if ended or len(found.tokens) > limit:
            first = Portion(found.tokens[:limit], None if found.offsets is None else found.offsets[:limit])
            return first, ended and len(found.tokens) <= limit
        characters *= 4


def _tokenized(tokenizer: Any, text: str, begin: int, end: int) -> Portion:
    piece = text[begin:end]
    if not getattr(tokenizer, "is_fast", False):
        return Portion(token_ids(tokenizer, piece), None)
    found = tokenizer(piece, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    return Portion(list(found["input_ids"]), [(begin + first, begin + last) for first, last in found["offset_mapping"]])
