"""How long the next piece of work will take, from those seen.

Knows seconds and amounts only.
"""

from __future__ import annotations

import math


class Pace:
    """Predicts seconds in proportion to an amount of work: tokens, or bytes.

    Quick to believe that work got slower, slow to believe that it got faster: a deadline must hold.
    """

    def __init__(self) -> None:
        self._per_unit: float | None = None
        self._fastest = math.inf
        self._seen = 0

    def saw(self, seconds: float, amount: int) -> None:
        """Take note of a piece of work that is done; `amount` is at least 1."""
        taken = seconds / amount
        known = self._per_unit
        self._per_unit = taken if known is None or taken > known else 0.8 * known + 0.2 * taken
        self._fastest = min(self._fastest, taken)
        self._seen += 1

    def doubt(self) -> None:
        """Believe less in the prediction, because work was given up for it and nothing new was learned.

        Otherwise one slow first piece, as in a process that just began, would keep all later work from being tried.
        Nothing faster than the fastest piece is believed once three were seen, so that hopeless work is not tried.
        """
        if self._per_unit is not None:
            self._per_unit = max(0.7 * self._per_unit, self._fastest if self._seen >= 3 else 0.0)

    def predict(self, amount: int) -> float:
        """Return the seconds that an amount of work will take; 0 before the first was seen."""
        return (self._per_unit or 0.0) * amount
