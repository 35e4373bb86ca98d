"""Nats of a sequence under the weights as they are, window by window.

Knows scorers and turns. Does not know where a sequence comes from.
"""

from __future__ import annotations

import time

from ..lm.windows import scoring_windows
from .session import Session
from .turn import Turn


def nats_of(session: Session, turn: Turn, sequence: list[int], first: int) -> float:
    """Score window by window, as `Scorer.token_nats` does, so that nobody waits for more than one that has left."""
    nats = 0.0
    for window in scoring_windows(len(sequence), session.trainer.scorer.max_length, first=first):
        turn.check()
        started = time.perf_counter()
        part = sequence[window.begin : window.end]
        nats += float(session.trainer.scorer.token_nats(part, first=window.first - window.begin).sum())
        taken = time.perf_counter() - started
        turn.stage("score", taken)
        turn.cost("read", taken, len(part))
    return nats
