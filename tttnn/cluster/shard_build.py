"""One shard of a build, in whatever process: built under a temporary name, renamed, its progress in a file beside it.

Knows datastores, plans and the file of progress. Does not know Ray.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import CorpusConfig, DatastoreConfig, EmbedConfig, IndexConfig, StoreConfig
from ..datastore.build_report import BuildReport
from ..datastore.datastore import Datastore
from ..errors import DatastoreLockedError
from ..files import sync_directory, write_file
from .build_plan import BuildPlan, shard_path, unfinished_path

_LOCK_SECONDS = 120.0  # a task of a driver that was killed lets go of its datastore after its last batch at the latest
_PROGRESS_SECONDS = 1.0


@dataclass
class ShardProgress:
    """How far a shard is: its stage, what is done of it, and rates of this run."""

    stage: str = "waiting"
    done: int = 0
    total: int | None = None
    seconds: float = 0.0
    resumed: int = 0
    rates: dict[str, float] = field(default_factory=dict)
    """Documents, tokens and bytes a second."""

    @property
    def remaining_seconds(self) -> float | None:
        """Of this stage; None where it is not known."""
        fresh = self.done - self.resumed
        return None if self.total is None or fresh <= 0 else self.seconds / fresh * (self.total - self.done)


def build_shard(
    place: Path,
    plan: BuildPlan,
    number: int,
    *,
    device: str = "cpu",
    threads: int | None = None,
    cache_dir: str | None = None,
) -> None:
    """Build one shard, or go on with it; one that is finished is left as it is.

    Raises:
        ValueError: There are no documents in it, or others than when it was begun.
        DatastoreLockedError: Another process builds it.
    """
    from ..embedding.embedder import Embedder

    finished, unfinished = shard_path(place, number), unfinished_path(place, number)
    if finished.exists():
        return
    embedder = Embedder.load(
        plan.embedder, EmbedConfig(**plan.embed), device=device, threads=threads, cache_dir=cache_dir
    )
    report = BuildReport()
    said = 0.0

    def progress(stage: str, done: int, total: int | None) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said < _PROGRESS_SECONDS and done != total:
            return
        said = now
        counts = report.stages.get(stage)
        fields = {"stage": stage, "done": done, "total": total}
        if counts is not None:
            fields |= {"seconds": counts.seconds, "resumed": counts.resumed, "rates": counts.rates}
        write_file(_progress_file(place, number), json.dumps(fields).encode())

    documents = plan.shards[number].documents(CorpusConfig(**plan.corpus))
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            Datastore.build(
                unfinished,
                documents,
                embedder,
                config=DatastoreConfig(**plan.datastore),
                index=IndexConfig(**plan.index),
                store=StoreConfig(**plan.store),
                progress=progress,
                report=report,
            ).close()
            break
        except DatastoreLockedError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.5)
        except FileNotFoundError:
            if not finished.exists():  # the task that held the lock has finished it and renamed it
                raise
            return
    os.rename(unfinished, finished)
    sync_directory(finished.parent)


def read_progress(place: Path, number: int) -> ShardProgress:
    """Return how far a shard is, as its process wrote it last."""
    if shard_path(place, number).exists():
        return ShardProgress("done")
    try:
        fields: dict[str, Any] = json.loads(_progress_file(place, number).read_bytes())
    except (FileNotFoundError, ValueError):
        return ShardProgress()
    return ShardProgress(**fields)


def forget_progress(place: Path, number: int) -> None:
    """Remove the file of progress."""
    _progress_file(place, number).unlink(missing_ok=True)


def _progress_file(place: Path, number: int) -> Path:
    return unfinished_path(place, number).with_suffix(".progress")
