"""Whose turn it is with a model's weights: one transaction's, or that of any number of readers of the base weights.

Knows threads. Does not know models or what is done in a turn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..errors import AdaptError
from ..undone import UndoneBlock


class Claim:
    """A transaction's claim on the weights, and the thread that has them while it holds."""

    def __init__(self) -> None:
        self.thread = 0


class Turns:
    """One transaction at a time, and no reader in another thread beside it. Everything else is refused, not queued."""

    def __init__(self, begins_reading: Callable[[], Callable[[], None]] | None = None) -> None:
        """Nobody has the turn.

        Args:
            begins_reading: called where a block begins to read; returns what is called when it ends, perhaps twice.
        """
        self.begins_reading = begins_reading
        self._taken: dict[str, Claim] = {}  # "by": the claim of the open transaction
        self._readers: dict[Reading, int] = {}  # and their threads
        self._closed = False

    def close(self) -> None:
        """Refuse all that comes: the model is no longer held."""
        self._closed = True

    def require_held(self) -> None:
        """Refuse a use of a model that is no longer held.

        Raises:
            AdaptError: it was released.
        """
        if self._closed:
            raise AdaptError("trainer must not be used after its release(). Make a new one.")

    def take(self, claim: Claim) -> None:
        """Give a transaction its turn.

        Raises:
            AdaptError: another one has it, or another thread is reading, or the model was released.
        """
        self.require_held()
        claim.thread = threading.get_ident()
        # One C call, so that a Ctrl-C finds the turn either taken, and gives it back, or not taken.
        if self._taken.setdefault("by", claim) is not claim:
            raise AdaptError("trainer must adapt to one query at a time; the block of another one is still open")
        if any(thread != claim.thread for thread in list(self._readers.values())):
            self.give_back(claim)
            raise AdaptError(
                "trainer must not adapt while another thread scores or generates with it: that answer would come from "
                "weights that change. Wait until it is done."
            )

    def has(self, claim: Claim) -> bool:
        """Return whether a transaction has the turn."""
        return self._taken.get("by") is claim

    def give_back(self, claim: Claim) -> None:
        """End a transaction's turn; nothing where it has none."""
        if self.has(claim):
            self._taken.clear()

    def require(self, claim: Claim) -> None:
        """Refuse a use of what a transaction hands out after it, or in another thread.

        Raises:
            AdaptError: the turn is over, or this is not its thread.
        """
        if not self.has(claim):
            raise AdaptError("adapted model must be used inside its `with trainer.adapt(...)` block; it has ended")
        if claim.thread != threading.get_ident():
            raise AdaptError(
                "adapted model must be used in the thread that opened its block, got a call from another thread"
            )

    def reading(self) -> Reading:
        """Return a block that reads weights as they are: the base ones, or those of this thread's own transaction."""
        return Reading(self)

    def begin_reading(self, reading: Reading) -> None:
        """Let a block read.

        Raises:
            AdaptError: a transaction of another thread has the turn, or the model was released.
        """
        self.require_held()
        here = threading.get_ident()
        self._readers[reading] = here
        claim = self._taken.get("by")
        if claim is not None and claim.thread != here:
            raise AdaptError(
                "trainer must answer in the thread whose `with trainer.adapt(...)` block is open, got a call from "
                "another thread: the weights are adapted to a query that is not its own. Wait until the block ends."
            )

    def end_reading(self, reading: Reading) -> None:
        """End a block that reads; nothing where it has ended."""
        self._readers.pop(reading, None)


class Reading(UndoneBlock[None]):
    """A block in which weights are read; made by `Turns.reading`."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._after: Callable[[], None] | None = None

    def _enter(self) -> None:
        self._turns.begin_reading(self)
        if self._turns.begins_reading is not None:
            self._after = self._turns.begins_reading()

    def undo(self) -> None:
        """End the reading."""
        if self._after is not None:
            self._after()
        self._turns.end_reading(self)
