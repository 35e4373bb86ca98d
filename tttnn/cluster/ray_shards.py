"""The shards of a cluster as Ray's actors: some replicas of each, on different machines.

Knows Ray's actors and their names. Does not know deadlines, nor what is asked.

Actors are named ``NAME/shard/replica`` and live until `running.stop`. One that is lost begins again on another machine;
meanwhile the client, which waits no longer than its own times say, asks another replica. A replica that has not
answered is asked last until it has.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ClusterError
from .gathering import ReplicaLostError
from .manifest import ClusterManifest
from .ray_session import NAMESPACE, check_versions, import_ray, versions
from .shard import Shard

_THREADS = 8  # questions that one actor answers at a time
_CORES = 0.001  # waiting takes none; but of an actor that asks for nothing Ray ignores on which machine it shall be


class ShardActor:
    """A `Shard` in a process of its own; answers are plain values."""

    def __init__(self, place: str, number: int, wanted: tuple[str, str]) -> None:
        """Refuse other versions; the shard is opened by the first call, so that one that is not there yet may come."""
        check_versions(wanted)
        self._shard = Shard(place, number)
        self._queries = 0
        self._began = time.time()

    def ready(self) -> str:
        """Open the shard; return the id of its state."""
        return self._shard.ready()

    def nearest(self, *question: Any) -> tuple[list[tuple[Any, ...]], frozenset[str] | None]:
        """See `Shard.nearest`."""
        self._queries += 1
        near = self._shard.nearest(*question)
        return [tuple(hit) for hit in near.found], near.sources

    def read(self, *question: Any) -> list[tuple[Any, ...]]:
        """See `Shard.read`."""
        return [tuple(row) for row in self._shard.read(*question)]

    def document(self, *question: Any) -> Any:
        """See `Shard.document`."""
        return self._shard.document(*question)

    def facts(self) -> dict[str, Any]:
        """Return what `status` tells: machine, process, memory that it holds, questions and seconds since it began."""
        ray = import_ray()
        return {
            "node": ray.util.get_node_ip_address(),
            "node_id": ray.get_runtime_context().get_node_id(),
            "pid": os.getpid(),
            "memory_bytes": _resident_bytes(),
            "queries": self._queries,
            "seconds": time.time() - self._began,
        }


class Catalog:
    """What clients must know of a running cluster; an actor of its name."""

    def __init__(self, place: str, replicas: int, wanted: tuple[str, str]) -> None:
        check_versions(wanted)
        self._facts = {"place": place, "replicas": replicas}

    def facts(self) -> dict[str, Any]:
        """Return the cluster's directory and the replicas of each shard."""
        return self._facts


@dataclass(frozen=True)
class _Failed:
    """A question that could not be sent."""

    error: Exception


class RayShards:
    """A `Carrier` to the actors of a running cluster."""

    def __init__(self, name: str, place: Path, replicas: int) -> None:
        self._ray = import_ray()
        self._name = name
        self._place = place
        self._replicas = replicas
        self._actors: dict[tuple[int, int], Any] = {}
        self._asked: dict[Any, tuple[int, int]] = {}
        self._late: dict[tuple[int, int], Any] = {}
        """Answers that nobody waits for any more, by the replica that owes them."""

    def update(self, manifest: ClusterManifest) -> None:
        """Nothing: the actors read the manifest themselves, and those of new shards begin with the first question."""

    def order(self, shard: int, first: int) -> list[int]:
        """Return the replicas in turn, those last that owe an answer."""
        turn = [(first + i) % self._replicas for i in range(self._replicas)]
        return sorted(turn, key=lambda replica: self._owes(shard, replica))

    def _owes(self, shard: int, replica: int) -> bool:
        late = self._late.get((shard, replica))
        if late is None:
            return False
        if not self._ray.wait([late], timeout=0)[0]:
            return True
        del self._late[shard, replica]
        try:
            self._ray.get(late)
        except Exception as error:  # its reason was of no use to anyone
            self._lost((shard, replica), error)
        return False

    def submit(self, shard: int, replica: int, method: str, arguments: tuple[Any, ...]) -> Any:
        """Send a question; an actor that is not there begins."""
        try:
            actor = self._actors.get((shard, replica))
            if actor is None:
                actor = self._actors[shard, replica] = self._found(shard, replica)
            reference = getattr(actor, method).remote(*arguments)
        except Exception as error:
            return _Failed(error)
        self._asked[reference] = shard, replica
        return reference

    def _found(self, shard: int, replica: int) -> Any:
        try:
            return self._ray.get_actor(actor_name(self._name, shard, replica), namespace=NAMESPACE)
        except ValueError:
            try:
                self._ray.get_actor(self._name, namespace=NAMESPACE)
            except ValueError:
                raise ClusterError(
                    f"{self._name}: the cluster does not run any more. Start it with: tttnn cluster start {self._place}"
                ) from None
            return begin_replica(self._ray, self._name, str(self._place), shard, replica)

    def wait(self, handles: Sequence[Any], seconds: float) -> list[Any]:
        """Return those that have an answer or an error."""
        failed = [handle for handle in handles if isinstance(handle, _Failed)]
        if failed:
            return failed
        if not handles:
            time.sleep(seconds)
            return []
        done, rest = self._ray.wait(list(handles), num_returns=1, timeout=seconds)
        if done and rest:
            done += self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return list(done)

    def result(self, handle: Any) -> Any:
        """Return an answer, or raise the error of the shard's own code."""
        if isinstance(handle, _Failed):
            raise handle.error
        asked = self._asked.pop(handle)
        try:
            return self._ray.get(handle)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            self._lost(asked, error)
            raise ReplicaLostError(f"its process or machine was lost ({type(error).__name__})") from None

    def _lost(self, asked: tuple[int, int], error: Exception) -> None:
        """Look for an actor again that is dead; one that only begins again keeps its handle."""
        if isinstance(error, self._ray.exceptions.ActorDiedError):
            self._actors.pop(asked, None)

    def forget(self, handle: Any) -> None:
        """Note that a replica owes an answer."""
        if not isinstance(handle, _Failed):
            self._late[self._asked.pop(handle)] = handle

    def close(self) -> None:
        """Let go of the actors, which live on."""
        self._actors.clear()
        self._late.clear()


def actor_name(name: str, shard: int, replica: int) -> str:
    """Return the name of an actor."""
    return f"{name}/{shard}/{replica}"


def begin_replica(ray: Any, name: str, place: str, shard: int, replica: int) -> Any:
    """Begin an actor, or return the one that has the name: replicas of a shard on different machines, if there are."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
    where = NodeAffinitySchedulingStrategy(nodes[(shard + replica) % len(nodes)], soft=True)
    return (
        ray.remote(ShardActor)
        .options(
            name=actor_name(name, shard, replica),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=_THREADS,
            num_cpus=_CORES,
            scheduling_strategy=where,
        )
        .remote(place, shard, versions())
    )


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
