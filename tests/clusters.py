"""Small clusters: a corpus cut into shards, and the datastore of the whole of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tttnn
from tttnn.cluster.document_id import DocumentId
from tttnn.cluster.manifest import add_shards

CUTS = (0, 20, 45, 64)
"""Of the corpus: where each shard begins, and the end."""
ROWS = [
    tttnn.Document(f"moon {i % 7} cat {i} sort {'x' * (i % 5)}", {"pile_set_name": "AB"[i % 2]}) for i in range(60)
] + [tttnn.Document("moon 1 cat", {"pile_set_name": "C"})] * 4


def build_whole(
    folder: Path, embedder: tttnn.Embedder, *, backend: Any = "exact", unit: Any = "document"
) -> tttnn.Datastore:
    """Build one datastore of the whole corpus."""
    return build(folder / "whole", 0, len(ROWS), embedder, backend=backend, unit=unit)


def build(
    path: Path, begin: int, end: int, embedder: tttnn.Embedder, *, backend: Any = "exact", unit: Any = "document"
) -> tttnn.Datastore:
    """Build a datastore of a part of the corpus."""
    config, index = tttnn.DatastoreConfig(unit=unit), tttnn.IndexConfig(backend=backend)
    return tttnn.Datastore.build(path, ROWS[begin:end], embedder, config=config, index=index)


def build_cluster(folder: Path, embedder: tttnn.Embedder, **settings: Any) -> Path:
    """Build three shards and enter them in a cluster; return its place."""
    shards = [folder / f"shard-{i}" for i in range(len(CUTS) - 1)]
    for path, begin, end in zip(shards, CUTS[:-1], CUTS[1:], strict=True):
        build(path, begin, end, embedder, **settings).close()
    add_shards(folder / "cluster", shards)
    return folder / "cluster"


def rows_of(result: Any) -> list[tuple[int, float, str, Any]]:
    """Return what was found, with ids as the whole corpus has them, at one place each."""
    return [
        (CUTS[n.id.shard] + n.id.local if isinstance(n.id, DocumentId) else n.id, n.distance, n.text, n.source)
        for n in result
    ]


@dataclass
class FakeCarrier:
    """Replicas that answer when a test says so: a `Carrier` whose clock stands until somebody waits."""

    behaviour: dict[tuple[int, int], float | Exception | None]
    """By shard and replica: seconds until the answer, an error at once, or None: never."""
    number: int = 1
    now: float = 0.0
    asked: list[tuple[int, int, float]] = field(default_factory=list)
    forgotten: list[int] = field(default_factory=list)

    def order(self, shard: int, first: int) -> list[int]:
        return [(first + i) % self.number for i in range(self.number)]

    def submit(self, shard: int, replica: int, method: str, arguments: tuple[Any, ...]) -> int:
        self.asked.append((shard, replica, self.now))
        return len(self.asked) - 1

    def _due(self, handle: int) -> float:
        shard, replica, began = self.asked[handle]
        how = self.behaviour.get((shard, replica), 0.0)
        return began if isinstance(how, Exception) else float("inf") if how is None else began + how

    def wait(self, handles: Any, seconds: float) -> list[int]:
        until = min(self.now + seconds, max(self.now, min((self._due(h) for h in handles), default=float("inf"))))
        self.now = until
        return [h for h in handles if self._due(h) <= self.now]

    def result(self, handle: int) -> Any:
        shard, replica, _ = self.asked[handle]
        how = self.behaviour.get((shard, replica), 0.0)
        if isinstance(how, Exception):
            raise how
        return shard, replica

    def forget(self, handle: int) -> None:
        self.forgotten.append(handle)
