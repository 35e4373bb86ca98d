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
from .writer import StoreSummary, check_begun


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


class _TwoPasses:
    """Progress of the core, which reads a file once to see what is intact and once to write it, as one."""

    def __init__(self, progress: Progress, size: int) -> None:
        self._progress, self._size = progress, size
        self._last = self._before = 0

    def __call__(self, done: int, total: int) -> None:
        if done < self._last:
            self._before = self._size
        self._last = done
        self._progress("repair", self._before + min(done, self._size), 2 * self._size)

    def end(self) -> None:
        self._progress("repair", 2 * self._size, 2 * self._size)


def repair_store(
    path: str | os.PathLike[str], target: str | os.PathLike[str], *, progress: Progress | None = None
) -> RepairReport:
    """Rebuild a store from what is intact in a damaged one, or in the partial file of a writer.

    Document ids stay what they were. Where nothing but tables was damaged, the new file is the old one as it was.

    Args:
        path: The damaged file; it is not changed.
        target: The file to write; another one.
        progress: Called as ``progress("repair", done, total)`` in bytes, each of which counts when it is looked at and
            when it is kept.

    Raises:
        StoreCorruptError: Nothing can be rebuilt.
        FileExistsError: What stands at `target` is no regular file, or what stands at ``TARGET.partial`` is no store.
    """
    if os.path.exists(target) and os.path.samefile(path, target):
        raise ValueError(f"target must be another file than {os.fspath(path)}")
    if os.path.exists(target):
        check_target(Path(target), force=True)
    check_begun(Path(target))
    size = os.path.getsize(path)
    told = _TwoPasses(progress, size) if progress is not None else None
    result = _core.repair_store(os.fspath(path), os.fspath(target), len(os.sched_getaffinity(0)), told)
    if told is not None:
        told.end()
    return RepairReport(StoreSummary(**result.pop("summary")), **result)
