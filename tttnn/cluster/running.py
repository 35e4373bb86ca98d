"""Starts, describes and ends the actors of a cluster.

Knows which actors a cluster has. Does not know what they are asked.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import ClusterError
from .manifest import open_cluster
from .ray_build import reason_of
from .ray_session import NAMESPACE, joined, versions
from .ray_shards import Catalog, actor_name, begin_replica

_READY_SECONDS = 600.0  # files of a hundred gigabytes are compared with their checksums when they are opened
_STATUS_SECONDS = 5.0


def start_cluster(
    place: str | os.PathLike[str], name: str, *, replicas: int = 2, address: str = "auto"
) -> dict[str, Any]:
    """Start the replicas of all shards and wait until each has opened its shard; return `describe_cluster`.

    Args:
        place: The cluster's directory, the same on all machines.
        name: What clients call it.
        replicas: Of each shard.
        address: As of `ray_session.joined`.

    Raises:
        FileNotFoundError: There is no cluster.
        ClusterError: A cluster of this name runs, or a replica could not begin; then none is left.
    """
    path = Path(place).absolute()
    manifest = open_cluster(path)
    if not name or "/" in name:
        raise ClusterError(f"name must be a word without /, got {name!r}")
    if replicas < 1:
        raise ClusterError(f"replicas must be at least 1, got {replicas}")
    ray = joined(address)
    if _catalog(ray, name) is not None:
        raise ClusterError(f"{name}: a cluster of this name runs already. Stop it with: tttnn cluster stop {name}")
    ray.remote(Catalog).options(
        # Asked again by Ray when its machine is lost: whoever connects then waits until it is back.
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        max_task_retries=-1,
        num_cpus=0,
    ).remote(str(path), replicas, versions())
    begun = {
        begin_replica(ray, name, str(path), shard, replica).ready.remote(): (shard, replica)
        for shard in range(len(manifest.shards))
        for replica in range(replicas)
    }
    _, late = ray.wait(list(begun), num_returns=len(begun), timeout=_READY_SECONDS)
    problems = [f"{manifest.name_of(begun[one][0])}, replica {begun[one][1]}: not ready in time" for one in late]
    for reference, (shard, replica) in begun.items():
        if reference not in late:
            try:
                ray.get(reference)
            except Exception as error:  # whatever a replica fails with is a reason, and is told
                problems.append(f"{manifest.name_of(shard)}, replica {replica}: {reason_of(error)}")
    if problems:
        stop_cluster(name, address=address)
        raise ClusterError(f"{path}: {len(problems)} of {len(begun)} replicas could not begin: {'; '.join(problems)}")
    return describe_cluster(name, address=address)


def running_cluster(name: str, *, address: str = "auto") -> dict[str, Any]:
    """Return the directory of a running cluster and the replicas of each shard.

    Raises:
        ClusterError: None of this name runs.
    """
    ray = joined(address)
    catalog = _catalog(ray, name)
    if catalog is None:
        raise ClusterError(
            f"{name}: no cluster of this name runs. Start it with: tttnn cluster start PLACE --name {name}"
        )
    try:
        facts: dict[str, Any] = ray.get(catalog.facts.remote(), timeout=60)
    except ray.exceptions.RayError as error:
        raise ClusterError(f"{name}: the cluster does not answer ({reason_of(error)})") from error
    return facts


def describe_cluster(name: str, *, address: str = "auto") -> dict[str, Any]:
    """Return shards and replicas of a running cluster: where each is, its memory and its queries.

    A replica that gives no answer within five seconds has an `error` instead.
    """
    facts = running_cluster(name, address=address)
    ray = joined(address)
    manifest = open_cluster(Path(facts["place"]))
    asked: dict[tuple[int, int], Any] = {}
    for shard in range(len(manifest.shards)):
        for replica in range(facts["replicas"]):
            try:
                actor = ray.get_actor(actor_name(name, shard, replica), namespace=NAMESPACE)
            except ValueError:
                continue  # of a shard that was added and has not been asked
            asked[shard, replica] = actor.facts.remote()
    done = ray.wait(list(asked.values()), num_returns=len(asked), timeout=_STATUS_SECONDS)[0] if asked else []
    shards = []
    for shard, entry in enumerate(manifest.shards):
        replicas = [
            {"replica": replica, **_told(ray, asked.get((shard, replica)), done)}
            for replica in range(facts["replicas"])
        ]
        shards.append({"shard": shard, "path": entry.path, "documents": entry.documents, "replicas": replicas})
    nodes = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    return {
        "name": name,
        "place": facts["place"],
        "id": manifest.id,
        "documents": manifest.documents,
        "nodes": nodes,
        "shards": shards,
    }


def _told(ray: Any, reference: Any, done: list[Any]) -> dict[str, Any]:
    if reference is None:
        return {"error": "has not begun"}
    if reference not in done:
        return {"error": f"gave no answer in {_STATUS_SECONDS:.0f} s"}
    try:
        facts: dict[str, Any] = ray.get(reference)
    except Exception as error:  # whatever it fails with is told
        return {"error": reason_of(error)}
    return facts


def stop_cluster(name: str, *, address: str = "auto") -> int:
    """End all actors of a cluster; return how many replicas there were.

    Raises:
        ClusterError: None of this name runs.
    """
    ray = joined(address)
    catalog = _catalog(ray, name)
    if catalog is None:
        raise ClusterError(f"{name}: no cluster of this name runs")
    ray.kill(catalog, no_restart=True)  # first, so that no client begins replicas again
    mine = [other for other in ray.util.list_named_actors() if other.startswith(f"{name}/")]
    for other in mine:
        try:
            ray.kill(ray.get_actor(other, namespace=NAMESPACE), no_restart=True)
        except ValueError:
            continue  # has ended meanwhile
    return len(mine)


def _catalog(ray: Any, name: str) -> Any:
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None
