"""What a trainer asks for neighbors: a datastore, a selection before it, a cluster, a fake.

Knows queries and answers; does not know how they are found.
"""

from __future__ import annotations

from typing import Protocol

from .neighbors import Neighbor


class Retriever(Protocol):
    """Anything that finds neighbors: a datastore, a cluster, a fake."""

    def search(self, query: str, k: int) -> list[Neighbor]:
        """Return at most `k` documents, nearest first."""
