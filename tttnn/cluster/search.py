"""One search in the shards of a cluster: what each of them finds, merged, and the texts of the nearest.

Knows the merge of answers and what may be missing. Does not know embedders, nor where shards run.

Every shard says which of its documents are nearest and how far they are; only the owners of the k nearest of all read
texts. No vector comes back, and none but the query's is sent.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ClusterConfig
from ..datastore.searcher import Hit
from ..errors import ClusterError
from ..retrieval.coverage import Coverage, DocumentCounts, ShardCounts, ShardFailure
from ..retrieval.neighbors import Neighbor
from ..retrieval.where import Where, check_sources
from .document_id import DocumentId
from .gathering import Carrier, gather
from .manifest import ClusterManifest
from .shard import Near, Row


@dataclass
class ClusterSearch:
    """What is asked, of which state; and, while it goes on, what went wrong."""

    place: Path
    manifest: ClusterManifest
    shards: Carrier
    config: ClusterConfig
    vector: NDArray[np.float32]
    """(dim,), of the query."""
    ef: int | None
    where: Where
    first_replica: int
    seconds: dict[str, float] = field(default_factory=lambda: {"search": 0.0, "read": 0.0})
    missing: dict[int, str] = field(default_factory=dict)
    """Shards without an answer: "failed" or "timed out"."""
    failures: list[ShardFailure] = field(default_factory=list)

    def nearest(self, wanted: int) -> tuple[list[Neighbor], bool]:
        """Return the nearest documents with their texts, and whether there are no more.

        Raises:
            ValueError: No document has a source that was named.
            ClusterError: Shards are missing, and that is not allowed.
        """
        started = time.perf_counter()
        states = {n: shard.id for n, shard in enumerate(self.manifest.shards) if n not in self.missing}
        arguments = {n: (state, self.vector, wanted, self.ef, self.where) for n, state in states.items()}
        near: dict[int, Near] = {n: Near(*a) for n, a in self._ask("nearest", arguments).items()}
        if self.where.sources is not None and not self.missing:
            known: set[str] = set()
            check_sources(self.where.sources, known.union(*(answer.sources or () for answer in near.values())))
        while True:
            # A shard gives its documents in the order of distance, then id, so that this is the order of all of them.
            merged = sorted(
                (found.distance, shard, rank, found)
                for shard, answer in near.items()
                for rank, found in enumerate(Hit(*row) for row in answer.found)
            )
            chosen = merged[:wanted]
            searched = time.perf_counter()
            self.seconds["search"] += searched - started
            owned: dict[int, list[Hit]] = {}
            for _, shard, _, found in chosen:
                owned.setdefault(shard, []).append(found)
            questions = {shard: (states[shard], found) for shard, found in owned.items()}
            texts = {n: iter(rows) for n, rows in self._ask("read", questions).items()}
            started = time.perf_counter()
            self.seconds["read"] += started - searched
            if len(texts) == len(owned):
                break
            # An owner was lost between its two answers: what it found is left out, and the others' come up.
            near = {n: answer for n, answer in near.items() if n not in self.missing}
        neighbors = []
        for distance, shard, _, found in chosen:
            row = Row(*next(texts[shard]))
            document = DocumentId.of(shard, found.document)
            neighbors.append(Neighbor(document, distance, row.text, row.meta, row.source, row.span))
        return neighbors, len(merged) < wanted

    def _ask(self, method: str, arguments: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Ask shards; note those without an answer, and refuse to go on where that is not allowed."""
        gathered = gather(
            self.shards,
            method,
            arguments,
            deadline=time.monotonic() + self.config.shard_deadline_seconds,
            retry_seconds=self.config.shard_retry_seconds,
            first_replica=self.first_replica,
        )
        self.failures += gathered.failures
        self.missing |= dict.fromkeys(gathered.failed, "failed") | dict.fromkeys(gathered.timed_out, "timed out")
        if self.missing:
            self._require()
        return gathered.answers

    def _require(self) -> None:
        coverage = self.coverage()
        reasons = {failure.shard: failure.reason for failure in self.failures}
        missing = "; ".join(
            f"{self.manifest.name_of(n)}: {reasons.get(n, how)}" for n, how in sorted(self.missing.items())
        )
        said = f"{self.place}: {len(self.missing)} of {coverage.shards.total} shards gave no answer: {missing}"
        if self.config.on_missing_shard == "error":
            raise ClusterError(
                f"{said}. Restore them, or accept partial answers (--on-missing-shard partial, "
                "on_missing_shard='partial')."
            )
        if coverage.documents.ratio < self.config.min_coverage or coverage.shards.answered == 0:
            raise ClusterError(
                f"coverage must be at least {self.config.min_coverage} of the documents and one shard, "
                f"got {coverage.documents.ratio:.4f}. {said}"
            )

    def coverage(self) -> Coverage:
        """Return what the answer was taken from."""
        shards = self.manifest.shards
        late = sum(how == "timed out" for how in self.missing.values())
        total = self.manifest.documents
        searched = sum(shard.documents for n, shard in enumerate(shards) if n not in self.missing)
        return Coverage(
            ShardCounts(len(shards), len(shards) - len(self.missing), len(self.missing) - late, late),
            DocumentCounts(searched, total, searched / total if total else 1.0),
            not self.missing,
            tuple(self.failures),
        )
