"""How long the next piece of work will take, from those seen.

Knows seconds and amounts only.
"""

from __future__ import annotations


class Pace:
    """Predicts seconds in proportion to an amount of work: tokens, or bytes.

    Quick to believe that work got slower, slow to believe that it got faster: a deadline must hold.
    """

    def __init__(self) -> None:
        self._seconds_per_unit: float | None = None

    def saw(self, seconds: float, amount: int) -> None:
        """Take note of a piece of work that is done; `amount` is at least 1."""
        taken = seconds / amount
        known = self._seconds_per_unit
        self._seconds_per_unit = taken if known is None or taken > known else 0.8 * known + 0.2 * taken

    def predict(self, amount: int) -> float:
        """Return the seconds that an amount of work will take; 0 before the first was seen."""
        return (self._seconds_per_unit or 0.0) * amount
