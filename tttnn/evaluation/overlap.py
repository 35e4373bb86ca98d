"""How much of one text stands in another: the share of word n-grams in common.

Knows texts alone.
"""

from __future__ import annotations

import re

NGRAM = 8
"""Words of an n-gram: eight in a row are hardly ever shared by chance."""

MAX_SHARE = 0.05
"""Largest share of either text's n-grams that the other may hold. The first 60 % of a document hold a fifth of its
second half, less the n-grams that lie across a cut."""

_WORDS = re.compile(r"\w+|[^\w\s]")


def words_of(text: str) -> list[str]:
    """Cut a text into words and punctuation: white space and upper case make no difference."""
    return _WORDS.findall(text.casefold())


def ngrams_of(text: str, n: int = NGRAM) -> set[tuple[str, ...]]:
    """Return the n-grams of a text's words; of a shorter text, all of it as one."""
    words = words_of(text)
    if not words:
        return set()
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def shared(scored: set[tuple[str, ...]], passage: set[tuple[str, ...]]) -> tuple[float, float]:
    """Return which share of each text's n-grams the other holds: of the scored text's, and of the passage's."""
    common = len(scored & passage)
    return common / max(1, len(scored)), common / max(1, len(passage))
