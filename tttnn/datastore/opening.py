"""Opening what a manifest names while a writer may replace it, and noticing that it was replaced.

Knows the manifest and segments. Does not know searches or embedders.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .manifest import MANIFEST, Manifest, open_manifest
from .segment import Segment, open_segments

_OPEN_TRIES = 5  # a writer may replace the manifest between reading it and opening its files


def stamp_of(path: Path) -> tuple[int, ...] | None:
    """Return what tells one manifest file from the next; None where there is none now."""
    try:
        status = os.stat(path / MANIFEST)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def open_current(path: Path, opened: Sequence[Segment] = ()) -> tuple[Manifest, list[Segment]]:
    """Open what the manifest names; again where a writer has replaced it meanwhile."""
    for remaining in reversed(range(_OPEN_TRIES)):
        manifest = open_manifest(path)
        try:
            return manifest, open_segments(path, manifest, opened)
        except FileNotFoundError:
            if remaining == 0 or open_manifest(path).id == manifest.id:
                raise
    raise AssertionError("the last try returns or raises")
