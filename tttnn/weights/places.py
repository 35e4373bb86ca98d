"""Where the weights of a query are: the one record of which of two places holds those of each trainable tensor.

Knows places and their addresses. Does not know who writes there, nor what.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class Places:
    """Of each trainable tensor: the place of its weights, whether this query has written them, and which are kept.

    A tensor has a first place, where its weights are when a query begins, and a second one where weights can be kept.

    Attributes:
        now: of each tensor, the place of its weights, 0 or 1.
        written: of each tensor, whether its weights were written in this query.
    """

    def __init__(self, views: Sequence[Sequence[Tensor]]) -> None:
        """Take the views of each tensor in its one place or its two."""
        self._views = views
        self._addresses = [[view.data_ptr() for view in of_tensor] for of_tensor in views]
        self.begin()

    def begin(self) -> None:
        """Begin a query: all weights are in the first place, unwritten, and none are kept."""
        self.now = [0] * len(self._views)
        self.written = [False] * len(self._views)
        self._kept: list[int] | None = None

    def keep(self) -> None:
        """Keep the weights of now, and no others: the next writing of each tensor goes to its other place."""
        self._kept = list(self.now)

    def next(self) -> list[int]:
        """Return the place that the next writing of each tensor goes to."""
        if self._kept is None:
            return list(self.now)
        return [1 - now if now == kept else now for now, kept in zip(self.now, self._kept, strict=True)]

    def wrote(self, places: Sequence[int | None]) -> None:
        """Take note of where weights were written; None for a tensor that was left alone."""
        self.now = [now if place is None else place for now, place in zip(self.now, places, strict=True)]
        self.written = [was or place is not None for was, place in zip(self.written, places, strict=True)]

    def return_to_kept(self) -> bool:
        """Make the kept weights those of now; False where none are kept."""
        if self._kept is None:
            return False
        self.now = list(self._kept)
        return True

    def addresses(self, places: Sequence[int]) -> list[int]:
        """Return the address of each tensor's weights at these places; 0 for one without values."""
        return [of_tensor[place] for of_tensor, place in zip(self._addresses, places, strict=True)]

    def views(self) -> list[Tensor]:
        """Return the weights of now."""
        return [of_tensor[place] for of_tensor, place in zip(self._views, self.now, strict=True)]

    def view(self, number: int) -> Tensor:
        """Return the weights of now of one tensor."""
        return self._views[number][self.now[number]]

    def copy(self, places: Sequence[int]) -> None:
        """Copy the weights of now to these places, where they are not there."""
        for of_tensor, now, place in zip(self._views, self.now, places, strict=True):
            if now != place:
                of_tensor[place].copy_(of_tensor[now])
