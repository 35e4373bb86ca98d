"""Token windows: which tokens a model reads together, and which of them count.

Knows positions only; not tokens, models or texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens ``begin <= i < end`` of a sequence, of which ``first <= i < end`` are predicted.

    A model reads ``begin .. end - 2`` and predicts ``begin + 1 .. end - 1``: `first` is at least ``begin + 1``.
    """

    begin: int
    end: int
    first: int


def scoring_windows(length: int, max_length: int, *, first: int = 1) -> Iterator[Window]:
    """Cut a sequence so that every token from `first` on is predicted exactly once.

    With ``first=1`` the windows are those of the rolling log-likelihood of lm-evaluation-harness with one token of
    context: disjoint targets, the last window reaching back to be full. With a longer context before `first`, each
    window keeps at least half of `max_length` as context where there is that much.

    Args:
        length: tokens in the sequence, the first of which is never predicted.
        max_length: tokens that the model reads at once.
        first: position of the first token to predict, at least 1.
    """
    context = min(first, max_length // 2 + 1)
    while first < length:
        begin = max(0, first - context)
        end = min(length, begin + max_length + 1)
        yield Window(max(0, end - 1 - max_length), end, first)
        first = end


def training_windows(length: int, max_length: int, max_tokens: int | None = None) -> list[Window]:
    """Cut a document into disjoint windows of `max_length` tokens, at most `max_tokens` in all.

    A window of a single token is left out: it predicts nothing, and its mean loss is not a number. Windows hold the
    document's own tokens, without `bos` before them, as in the published code; whether it would help was not measured.
    """
    if max_tokens is not None:
        length = min(length, max_tokens)
    windows = [
        Window(begin, min(begin + max_length, length), begin + 1) for begin in range(0, max(length, 0), max_length)
    ]
    return [window for window in windows if window.end - window.begin >= 2]
