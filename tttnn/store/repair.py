"""Rebuilds a store from what is intact in a damaged one.

Knows what the core's repair returns. Does not know corpora.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import tttnn._core as _core

from ..config import Progress
from ..files import check_target
from .writer import StoreSummary


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What `repair_store` kept and what it could not."""

    summary: StoreSummary
    lost_texts: list[int]
    """Ids of documents that are empty texts now, with the metadata ``{"lost": true}``."""
    lost_metas: list[int]
    """Ids of documents whose text was kept, but not their metadata or source."""
    header_intact: bool
    tail_known: bool
    """Whether the file still says how many documents it held; otherwise more may be lost at its end."""


def repair_store(
    path: str | os.PathLike[str], target: str | os.PathLike[str], *, progress: Progress | None = None
) -> RepairReport:
    """Rebuild a store from what is intact in a damaged one, or in the partial file of a writer.

    Document ids stay what they were. Where nothing but tables was damaged, the new file is the old one as it was.

    Args:
        path: The damaged file; it is not changed.
        target: The file to write; another one.
        progress: Called as ``progress("repair", done, total)`` in bytes.

    Raises:
        StoreCorruptError: Nothing can be rebuilt.
        FileExistsError: What stands at `target` is no regular file.
    """
    if os.path.exists(target) and os.path.samefile(path, target):
        raise ValueError(f"target must be another file than {os.fspath(path)}")
    if os.path.exists(target):
        check_target(Path(target), force=True)
    report = None if progress is None else lambda done, total: progress("repair", done, total)
    result = _core.repair_store(os.fspath(path), os.fspath(target), len(os.sched_getaffinity(0)), report)
    return RepairReport(StoreSummary(**result.pop("summary")), **result)
