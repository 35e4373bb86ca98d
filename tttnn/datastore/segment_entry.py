"""What the manifest says of a segment that is finished: its ids, its sizes, its estimated recall, its files.

Knows a segment's folder and its index. Does not know how they were made.
"""

from __future__ import annotations

from pathlib import Path

from ..files import describe_file
from .index import MANIFEST as INDEX_MANIFEST
from .index import NeighborIndex
from .manifest import TEXTS, EmbeddedCounts, FileEntry, IngestedSegment, SegmentEntry

RECALL_QUERIES = 100
"""Vectors of a segment that are searched for to estimate its recall."""


def describe_segment(
    folder: Path, base: int, segment: IngestedSegment, counts: EmbeddedCounts, names: list[str]
) -> SegmentEntry:
    """Return what the manifest says of a finished segment.

    Args:
        folder: The segment's.
        base: Its first id; its ids end where as many more are given.
        segment: Its number of documents and the id of its store.
        counts: Rows, tokens, truncated and empty texts that were embedded.
        names: Files beside the index whose content the manifest answers for.
    """
    index = NeighborIndex.open(folder)
    texts = describe_file(folder / TEXTS)
    return SegmentEntry(
        folder.name,
        base,
        base + segment.documents,
        segment.documents,
        segment.store_id,
        texts["size"],
        counts.rows,
        counts.tokens,
        counts.truncated,
        counts.empty,
        round(index.estimate_recall(20, sample=RECALL_QUERIES), 4),
        {name: FileEntry(**describe_file(folder / name)) for name in [INDEX_MANIFEST, *names]},
        store_sha256=texts["sha256"],
    )
