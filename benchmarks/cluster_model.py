"""A seeded discrete-event model of a cluster: machines with cores, shards with replicas, one client.

    from cluster_model import Cluster, simulate
    waits = simulate(Cluster(machines=10, cores=32, shards=30, replicas=2, ...), queries=2000, rate=20.0, seed=1)

The client sends its questions one after the other, each of which waits for a core of the machine that holds the asked
replica, is worked on for a time drawn around the measured one, and is taken in by the client, again one by one.
The owners of the nearest documents are asked for texts in the same way. A question that is not answered in `retry`
seconds goes to another replica too; a replica that owes an answer is asked last.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cluster:
    """What a query costs, in seconds, and where shards lie."""

    machines: int
    cores: int
    shards: int
    replicas: int
    embed: float
    """Of the query, in the client."""
    client: float
    """Of the client for one question and its answer."""
    search: float
    """Median of one shard's search, on one core."""
    read: float
    """Median of one owner's reading of texts."""
    spread: float = 0.3
    """Standard deviation of the logarithm of both."""
    carry: float = 0.0
    """Of one question between client and shard and back, in which neither computes."""
    owners: int = 10
    """Shards that own one of the nearest documents, at most."""
    straggle: float = 0.0
    """Share of questions that take `straggle_factor` times as long."""
    straggle_factor: float = 10.0
    retry: float = 0.5


@dataclass
class _Machine:
    free: list[float] = field(default_factory=list)
    """When each core is free."""
    lost_at: float = math.inf

    def work(self, now: float, seconds: float) -> float:
        """Return when work that arrives now is done; never where the machine is lost before."""
        if now >= self.lost_at:
            return math.inf
        begin = max(now, heapq.heappop(self.free))
        heapq.heappush(self.free, begin + seconds)
        return begin + seconds if begin + seconds < self.lost_at else math.inf


def simulate(
    cluster: Cluster, *, queries: int, rate: float, seed: int, lose: float | None = None, warm: int = 0
) -> list[float]:
    """Return the seconds of each query, in the order in which they came.

    Args:
        cluster: Costs and places.
        queries: How many; the first `warm` of them are left out.
        rate: Queries a second, at random moments; 0: each when the one before is answered.
        seed: Of everything that is drawn.
        lose: When the first machine is lost.
        warm: See above.
    """
    draw = random.Random(seed)
    machines = [_Machine([0.0] * cluster.cores) for _ in range(cluster.machines)]
    if lose is not None:
        machines[0].lost_at = lose
    owing: set[tuple[int, int]] = set()
    client = now = 0.0
    waits = []
    for number in range(queries):
        now = client if rate == 0 else now + draw.expovariate(rate)
        client = max(client, now) + cluster.embed
        for seconds, asked in ((cluster.search, cluster.shards), (cluster.read, min(cluster.owners, cluster.shards))):
            shards = draw.sample(range(cluster.shards), asked)
            client = _ask_all(cluster, machines, shards, seconds, client, number, owing, draw)
        waits.append(client - now)
    return waits[warm:]


def _ask_all(
    cluster: Cluster,
    machines: list[_Machine],
    shards: list[int],
    median: float,
    client: float,
    number: int,
    owing: set[tuple[int, int]],
    draw: random.Random,
) -> float:
    """Return when the client has the answers of all shards."""
    send = cluster.client / 2

    def seconds() -> float:
        slow = cluster.straggle_factor if draw.random() < cluster.straggle else 1.0
        return median * slow * math.exp(draw.gauss(0.0, cluster.spread))

    def answered(shard: int, replica: int, sent: float) -> float:
        machine = machines[(shard + replica) % cluster.machines]
        return machine.work(sent + cluster.carry / 2, seconds()) + cluster.carry / 2

    arrivals = []
    for shard in shards:
        order = [(number + i) % cluster.replicas for i in range(cluster.replicas)]
        order.sort(key=lambda replica, shard=shard: (shard, replica) in owing)  # type: ignore[misc]
        client += send
        first = answered(shard, order[0], client)
        if first - client > cluster.retry and cluster.replicas > 1:
            second = answered(shard, order[1], client + cluster.retry)
            if first == math.inf:
                owing.add((shard, order[0]))
            first = min(first, second)
        arrivals.append(first)
    for arrival in sorted(arrivals):
        client = max(client, arrival) + send
    return client


def quantile(values: list[float], share: float) -> float:
    """Return the value below which a share of all lie."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def fitted(model: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Return the argument between two at which a rising model gives what was measured."""
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if model(middle) < wanted else (low, middle)
    return (low + high) / 2
