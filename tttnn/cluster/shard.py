"""One shard of a cluster: answers vectors with ids and distances, and reads texts afterwards.

Knows a datastore's segments. Does not know the other shards, nor embedders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..datastore.documents import Documents
from ..datastore.searcher import Hit, Searcher
from ..datastore.segment import Segment, open_segments
from ..errors import DatastoreMismatchError
from ..retrieval.where import Where
from ..store.document import Document
from .document_id import DocumentId
from .manifest import check_shard, open_cluster

_HELD = 2  # states: the newest, and the one before, of which a search may still read the texts


class Near(NamedTuple):
    """A shard's answer: what was found, nearest first, and where a filter named sources all of its own."""

    found: list[Hit]
    sources: frozenset[str] | None


class Row(NamedTuple):
    """A document's text, metadata, source and the bytes that were near."""

    text: str
    meta: dict[str, object]
    source: str | None
    span: tuple[int, int] | None


class Shard:
    """A datastore that is searched by vector. Any number of threads may share it.

    Every call names the state that it is about, by the datastore's id: after a change the first call opens the new
    one, and a search that began before it still reads its texts. Where the datastore lies, the cluster's manifest says,
    so that a shard that begins again finds what was put in its place.
    """

    def __init__(self, place: str, number: int) -> None:
        """Name a shard by the cluster's directory and its number; nothing is opened yet."""
        self._place = Path(place)
        self._number = number
        self._held: dict[str, tuple[Searcher, int]] = {}
        self._newest: tuple[Path, Sequence[Segment]] = (self._place, ())

    def ready(self) -> str:
        """Open the state that the cluster names; return its id.

        Raises:
            FileNotFoundError: There is no datastore.
            DatastoreMismatchError: It is in another state, or a file is of another datastore.
            IndexCorruptError: A file is damaged.
            StoreCorruptError: The texts are.
        """
        state = open_cluster(self._place).shards[self._number].id
        self._state(state)
        return state

    def _state(self, state: str) -> tuple[Searcher, int]:
        held = self._held.get(state)
        if held is not None:
            return held
        cluster = open_cluster(self._place)
        named = cluster.shards[self._number].id if self._number < len(cluster.shards) else None
        if named != state:
            raise DatastoreMismatchError(
                f"{self._place}: shard {self._number} must be the datastore {state}, but the cluster names {named} now"
            )
        manifest = check_shard(self._place, cluster, self._number)
        path = cluster.path_of(self._place, self._number)
        segments = open_segments(path, manifest, self._newest[1] if self._newest[0] == path else ())
        opened = Searcher(segments, unit=manifest.unit, dim=manifest.dim), manifest.next_id
        self._newest = path, segments
        # Replaced whole, so that a thread that reads it sees the one or the other.
        self._held = {**dict(list(self._held.items())[1 - _HELD :]), state: opened}
        return opened

    def nearest(self, state: str, vector: NDArray[np.float32], k: int, ef: int | None, where: Where) -> Near:
        """Return the documents nearest to a vector (dim,)."""
        searcher, _ = self._state(state)
        searcher.check_files()
        # Ray gives arrays that cannot be written.
        here = where.shifted(DocumentId.of(self._number, 0))
        found = searcher.nearest(np.array(vector, np.float32)[None], k, ef=ef, where=here)[0]
        return Near(found, None if where.sources is None else searcher.sources)

    def read(self, state: str, found: Sequence[Hit]) -> list[Row]:
        """Return the texts of what `nearest` found in this state."""
        searcher, _ = self._state(state)
        searcher.check_files()
        return [Row(n.text, n.meta, n.source, n.span) for n in searcher.read([Hit(*f) for f in found])]

    def document(self, state: str, local: int) -> Document | None:
        """Return a document by its id in this shard; None where there is none."""
        searcher, next_id = self._state(state)
        try:
            return Documents(searcher.segments, next_id).read_many([local])[0]
        except IndexError:
            return None

    def close(self) -> None:
        """Close the files."""
        for searcher, _ in self._held.values():
            for segment in searcher.segments:
                segment.store.close()
