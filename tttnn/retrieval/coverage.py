"""What share of a corpus was searched for one answer, and what was missing.

Knows counts and reasons. Does not know how shards are asked.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ShardCounts:
    """Shards by what became of the question: every one of them answered, failed or timed out."""

    total: int
    answered: int
    failed: int
    timed_out: int


@dataclass(frozen=True, slots=True)
class DocumentCounts:
    """Documents that are not deleted, in shards that answered and in all; `ratio` is 1.0 where there are none."""

    searched: int
    total: int
    ratio: float


@dataclass(frozen=True, slots=True)
class ShardFailure:
    """One attempt that gave no answer; another replica may have given it."""

    shard: int
    reason: str
    replica: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Coverage:
    """What one answer was taken from. `full`: every shard answered."""

    shards: ShardCounts
    documents: DocumentCounts
    full: bool
    failures: tuple[ShardFailure, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        plain = asdict(self)
        return plain | {"failures": list(plain["failures"])}
