"""The build of a cluster: one Ray task for each shard, on as many machines as there are.

Knows Ray's tasks. Does not know how a shard is built.

A task that a machine takes down with it runs again elsewhere and goes on with what lies there; one that fails by an
error of its own does not, and the others go on. What is finished is not built again. The cluster's manifest is written
once, when every shard is finished.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..datastore.manifest import open_manifest
from ..errors import ClusterError
from .build_plan import BuildPlan, shard_path
from .manifest import ClusterManifest, add_shards, is_cluster, open_cluster
from .ray_session import LOCAL, check_versions, joined, versions
from .shard_build import ShardProgress, build_shard, forget_progress, read_progress

OnProgress = Callable[[list[ShardProgress]], None]
_POLL_SECONDS = 1.0


def build_cluster(
    place: str | os.PathLike[str],
    plan: BuildPlan,
    *,
    address: str = LOCAL,
    device: str = "cpu",
    threads: int = 1,
    cache_dir: str | None = None,
    on_progress: OnProgress | None = None,
) -> ClusterManifest:
    """Build the shards of a plan and enter them in a cluster; called again, go on.

    Args:
        place: The cluster's directory, the same on all machines.
        plan: The shards.
        address: As of `ray_session.joined`.
        device: Torch's name of the device that embeds; with cuda each task has a card of its own.
        threads: Of each task; as many tasks run at a time as there are cores for.
        cache_dir: Where demo models are kept.
        on_progress: Called every second with how far each shard is.

    Raises:
        ConfigError: Another build was begun in this place.
        ClusterError: A shard could not be built; each is named with its reason.
        MissingExtraError: Ray is not installed.
    """
    path = Path(place).absolute()
    path.mkdir(parents=True, exist_ok=True)
    plan.begin(path)
    count = len(plan.shards)
    missing = [n for n in range(count) if not shard_path(path, n).exists()]
    if missing:
        ray = joined(address)
        task = ray.remote(_task).options(
            num_cpus=threads, num_gpus=1 if device.startswith("cuda") else 0, max_retries=-1, retry_exceptions=False
        )
        options = {"device": device, "threads": threads, "cache_dir": cache_dir}
        pending = {task.remote(str(path), plan, n, options, versions()): n for n in missing}
        failed: dict[int, str] = {}
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1, timeout=_POLL_SECONDS)
            for reference in done:
                number = pending.pop(reference)
                try:
                    ray.get(reference)
                except Exception as error:  # whatever a task fails with is a reason, and is told
                    failed[number] = reason_of(error)
                forget_progress(path, number)
            if on_progress is not None:
                on_progress([read_progress(path, n) for n in range(count)])
        if failed:
            told = "; ".join(f"shard {n} ({', '.join(plan.shards[n].paths)}): {why}" for n, why in failed.items())
            raise ClusterError(f"{path}: {len(failed)} of {count} shards could not be built: {told}")
    if is_cluster(path):
        entered = {shard.id for shard in open_cluster(path).shards}
        left = [n for n in range(count) if open_manifest(shard_path(path, n)).id not in entered]
        if left:
            raise ClusterError(
                f"{path}: is a cluster that does not hold the shards {left} as they were built. "
                f"Enter them with: tttnn cluster add"
            )
        return open_cluster(path)
    return add_shards(path, [shard_path(path, n) for n in range(count)])


def reason_of(error: BaseException) -> str:
    """Return in a sentence why a task or a question failed: the error of its own code, where it is one."""
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0] if lines else 'no message'}"


def _task(
    place: str, plan: BuildPlan, number: int, options: dict[str, Any], wanted: tuple[str, str]
) -> None:  # pragma: no cover - runs in Ray's processes
    check_versions(wanted)
    build_shard(Path(place), plan, number, **options)
