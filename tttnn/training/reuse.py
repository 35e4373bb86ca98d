"""Trained states of earlier queries, for neighbor lists that come again.

Knows keys and states; does not know what makes two queries the same, nor how a state was trained.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from ..weights.arena import Snapshot
from .report import GuardReport, StoppedBy, TrainedNeighbor


@dataclass(frozen=True)
class TrainedState:
    """Weights as training left them, and what the report said of the training."""

    weights: Snapshot
    neighbors: list[TrainedNeighbor]
    steps: int
    tokens: int
    bytes_moved: int
    stopped_by: StoppedBy
    guard: GuardReport | None


class ReuseCache:
    """At most `capacity` states; the one unused for longest makes room."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._states: OrderedDict[Hashable, TrainedState] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    @property
    def nbytes(self) -> int:
        """Bytes that the states hold."""
        return sum(state.weights.nbytes for state in self._states.values())

    def get(self, key: Hashable) -> TrainedState | None:
        """Return the state of a key and count it as used; None where there is none."""
        state = self._states.get(key)
        if state is not None:
            self._states.move_to_end(key)
        return state

    def make_room(self) -> None:
        """Forget states until one more fits: before its weights are copied, so that memory never holds more."""
        while self._states and len(self._states) >= self.capacity:
            self._states.popitem(last=False)

    def put(self, key: Hashable, state: TrainedState) -> None:
        """Hold a state; one with the same key is replaced."""
        self._states.pop(key, None)
        self.make_room()
        self._states[key] = state

    def clear(self) -> None:
        """Forget all states and free their memory."""
        self._states.clear()
