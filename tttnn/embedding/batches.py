"""Which texts stand together in a batch. Knows lengths and a budget; does not know texts, tokens or encoders."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

GROUP = 1024
"""Texts that are ordered by length together; the next group is tokenised meanwhile."""
_FIRST_GROUP = 64  # small, so that the encoder starts soon


def groups_of(count: int) -> list[tuple[int, int]]:
    """Return begin and end of each group of so many texts."""
    bounds = [0, *range(_FIRST_GROUP, count, GROUP), count] if count else []
    return list(itertools.pairwise(bounds))


def token_batches(
    lengths: Sequence[int], budget: int, *, padded: bool = True, together: Literal["any", "equal", "none"] = "any"
) -> list[list[int]]:
    """Group texts so that each group has at most `budget` tokens, padded to its longest or not; longest first.

    Texts of equal length stay together, and a text longer than the budget is a group of its own.

    Args:
        lengths: Tokens of each text.
        budget: Tokens of a group.
        padded: Whether each text of a group takes as much of the budget as its longest.
        together: Which texts may be in one group: any, those of equal length, or none with another.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    size = 0  # of the last group, or of its longest text where all are padded to it
    for i in order:
        length = max(1, lengths[i])
        after = (len(batches[-1]) + 1) * size if batches and padded else size + length
        fits = together == "any" or (together == "equal" and bool(batches) and lengths[batches[-1][0]] == lengths[i])
        if batches and fits and after <= budget:
            batches[-1].append(i)
            size = size if padded else after
        else:
            batches.append([i])
            size = length
    return batches
