"""Neighbors in the context: which of their tokens stand before a text, the nearest next to it.

Knows tokens and room. Does not know texts, models or how neighbors are found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

SEPARATOR = "\n\n"
"""Stands after each neighbor in the context."""


def neighbors_before(
    neighbors: Sequence[Sequence[int]],
    separator: Sequence[int],
    room: int,
    *,
    refused: Callable[[list[int]], bool] | None = None,
) -> tuple[list[int], list[int]]:
    """Return the tokens of neighbors as they stand before a text, and how many are of which.

    The nearest neighbor stands last. Where there is no room for all, the farthest are left out, and of the last one
    that finds room its first tokens are kept.

    Args:
        neighbors: tokens of each, nearest first.
        separator: stands after each of them.
        room: tokens that may stand before the text.
        refused: asked of a neighbor's first tokens where it is cut; True leaves it out.
    """
    pieces: list[list[int]] = []
    for whole in neighbors:
        piece = list(whole[: max(0, room - len(separator))])
        if not piece or (len(piece) < len(whole) and refused is not None and refused(piece)):
            break
        room -= len(piece) + len(separator)
        pieces.append(piece)
    return [token for piece in reversed(pieces) for token in [*piece, *separator]], list(map(len, pieces))
