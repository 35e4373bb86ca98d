"""The shards of a cluster in this process, asked by threads.

Knows shards and threads. Does not know deadlines.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from .manifest import ClusterManifest
from .shard import Shard

_MOST_THREADS = 32


class LocalShards:
    """Opens every shard here, once; a `Carrier` with one replica of each."""

    def __init__(self, place: Path, manifest: ClusterManifest, *, partial: bool = False) -> None:
        """Open the shards.

        Args:
            place: The cluster's directory.
            manifest: Its state.
            partial: A shard that cannot be opened is no error here: each question to it tries again.
        """
        self._place = place
        self._partial = partial
        self._pool = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="tttnn-shard")
        self._shards: list[Shard] = []
        try:
            self.update(manifest)
        except BaseException:
            self.close()
            raise

    def update(self, manifest: ClusterManifest) -> None:
        """Take over another state of the cluster; shards that are new are opened."""
        for number in range(len(self._shards), len(manifest.shards)):
            shard = Shard(str(self._place), number)
            if not self._partial:
                shard.ready()
            self._shards.append(shard)

    def order(self, shard: int, first: int) -> list[int]:
        """Return the one there is."""
        return [0]

    def submit(self, shard: int, replica: int, method: str, arguments: tuple[Any, ...]) -> Future[Any]:
        """Ask a shard in another thread."""
        return self._pool.submit(getattr(self._shards[shard], method), *arguments)

    def wait(self, handles: Sequence[Future[Any]], seconds: float) -> list[Future[Any]]:
        """Return those that are done."""
        if not handles:
            time.sleep(seconds)
        return list(wait(handles, seconds, FIRST_COMPLETED).done)

    def result(self, handle: Future[Any]) -> Any:
        """Return an answer, or raise its error."""
        return handle.result()

    def forget(self, handle: Future[Any]) -> None:
        """Do not begin what has not begun."""
        handle.cancel()

    def close(self) -> None:
        """Close the shards' files."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for shard in self._shards:
            shard.close()
