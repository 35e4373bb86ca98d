"""What training experts will take, and what was done, as plain values.

Knows nothing of how it is done.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PrecomputeEstimate:
    """What training all experts anew will take: steps, seconds of one process (measured on two steps), bytes on disk.

    `documents` are the root's, `leaves` the experts of clusters, `numbers` those of all B of an expert.
    """

    documents: int
    leaves: int
    steps: int
    seconds: float
    bytes_on_disk: int
    numbers: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PrecomputeReport:
    """What was done, and what is there now. Losses are in nats per token.

    `trained`: whether the root was trained by this call; `documents` and losses are the root's. `leaves` are all
    experts of clusters that there will be, `leaves_there` those that are trained, `leaves_trained` those trained by
    this call; `leaf_loss_before` and `leaf_loss_after` are means over those that are there. `steps` are this call's.
    """

    model: str
    folder: str
    trained: bool
    documents: int
    loss_before: float
    loss_after: float
    leaves: int
    leaves_there: int
    leaves_trained: int
    leaf_loss_before: float | None
    leaf_loss_after: float | None
    steps: int
    bytes_on_disk: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)
