"""What a datastore says of itself: counts, sizes, settings and estimated recall.

Knows a manifest and open segments. Does not know searches, writers or embedders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .manifest import PASSAGES, Manifest
from .segment import Segment


def described(path: Path, manifest: Manifest, segments: Sequence[Segment]) -> dict[str, Any]:
    """Return plain values, ready for JSON; see `Datastore.info`."""
    entries = manifest.segments
    indexes = [segment.index.manifest["files"].values() for segment in segments]
    units = sum(entry.units for entry in entries)
    mapped = sum(segment.index.mapped_bytes for segment in segments)
    held = sum(segment.held_bytes for segment in segments)
    index_bytes = sum(described["size"] for files in indexes for described in files)
    recall = sum(entry.recall_at_20 * entry.units for entry in entries)
    return {
        "path": str(path),
        "id": manifest.id,
        "format": manifest.format,
        "documents": sum(len(segment) for segment in segments),
        "deleted": sum(entry.deleted.documents for entry in entries if entry.deleted is not None),
        "next_id": manifest.next_id,
        "unit": manifest.unit,
        "vectors": units,
        "dim": manifest.dim,
        "segments": len(entries),
        "sources": sorted({name for segment in segments for name in segment.sources}),
        "text_bytes": sum(segment.store.info()["text_bytes"] for segment in segments),
        "store_bytes": sum(entry.store_bytes for entry in entries),
        "index_bytes": index_bytes,
        "passage_bytes": sum(entry.files[PASSAGES].size for entry in entries if PASSAGES in entry.files),
        "memory": {
            "mapped_for_search_bytes": mapped,
            "held_bytes": held,
        },
        "bytes_per_vector": {
            "memory": round((mapped + held) / units, 1) if units else 0.0,
            "disk": round(index_bytes / units, 1) if units else 0.0,
        },
        "embedded_tokens": sum(entry.tokens for entry in entries),
        "truncated": sum(entry.truncated for entry in entries),
        "empty": sum(entry.empty for entry in entries),
        "recall_at_20": round(recall / units, 4) if units else 1.0,
        "embedder": manifest.embedder.to_dict(),
        "settings": manifest.settings,
    }
