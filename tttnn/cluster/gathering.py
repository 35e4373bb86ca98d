"""Asks many shards at once, each of them again at another replica when it is late or fails, until a deadline.

Knows replicas and time. Does not know what is asked, nor what carries a question.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import ClusterError
from ..retrieval.coverage import ShardFailure


class ReplicaLostError(ClusterError):
    """A replica's process or machine is gone; it begins again somewhere."""


class Carrier(Protocol):
    """What brings a question to a replica of a shard: threads of this process, or Ray."""

    def order(self, shard: int, first: int) -> list[int]:
        """Return the replicas in the order in which to ask them, beginning with number `first` in turn."""

    def submit(self, shard: int, replica: int, method: str, arguments: tuple[Any, ...]) -> Any:
        """Send a question; return its handle at once."""

    def wait(self, handles: Sequence[Any], seconds: float) -> list[Any]:
        """Return those of the handles that have an answer or an error; none where there was none in time.

        Without handles it waits all the seconds.
        """

    def result(self, handle: Any) -> Any:
        """Return the answer, or raise its error: a `ReplicaLostError` where the replica may be back soon."""

    def forget(self, handle: Any) -> None:
        """Say that nobody waits for an answer any more."""


@dataclass
class Gathered:
    """Answers by shard; every attempt that failed; and the shards without an answer, of which some were late."""

    answers: dict[int, Any] = field(default_factory=dict)
    failures: list[ShardFailure] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)
    timed_out: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _Attempt:
    shard: int
    replica: int
    began: float


def gather(
    carrier: Carrier,
    method: str,
    questions: Mapping[int, tuple[Any, ...]],
    *,
    deadline: float,
    retry_seconds: float,
    first_replica: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Gathered:
    """Ask each shard its question.

    A replica that fails, or gives nothing for `retry_seconds`, is not waited for alone: the next one is asked too, each
    of them once, and the first answer counts. One whose process was lost begins again somewhere, and is asked again.

    Args:
        carrier: Brings the questions.
        method: What is asked.
        questions: The arguments, by shard.
        deadline: When to end, as `clock` counts.
        retry_seconds: See above.
        first_replica: Which one is asked first, so that queries in turn use all of them.
        clock: Seconds.
    """
    gathered = Gathered()
    open_attempts: dict[Any, _Attempt] = {}
    orders = {shard: carrier.order(shard, first_replica) for shard in questions}
    replicas = {shard: len(order) for shard, order in orders.items()}
    asked: dict[int, int] = dict.fromkeys(questions, 0)
    asked_at: dict[int, float] = {}

    def ask(shard: int) -> None:
        replica = orders[shard][asked[shard]]
        asked[shard] += 1
        asked_at[shard] = clock()
        open_attempts[carrier.submit(shard, replica, method, questions[shard])] = _Attempt(shard, replica, clock())

    def may_ask(shard: int) -> bool:
        return asked[shard] < len(orders[shard])

    waiting = set(questions)
    for shard in questions:
        if may_ask(shard):
            ask(shard)
            continue
        gathered.failures.append(ShardFailure(shard, "has no replica", 0, 0.0))
        gathered.failed.add(shard)
        waiting.discard(shard)
    while waiting:
        now = clock()
        if now >= deadline:
            break
        for shard in sorted(waiting):
            if now - asked_at[shard] >= retry_seconds and may_ask(shard):
                ask(shard)
        due = [asked_at[shard] + retry_seconds for shard in waiting if may_ask(shard)]
        for handle in carrier.wait(list(open_attempts), max(0.0, min([deadline, *due]) - clock())):
            attempt = open_attempts.pop(handle)
            shard = attempt.shard
            try:
                answer = carrier.result(handle)
            except Exception as error:  # whatever a shard fails with is a reason, and is told
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                gathered.failures.append(ShardFailure(shard, reason, attempt.replica, clock() - attempt.began))
                if shard not in waiting:
                    continue
                if isinstance(error, ReplicaLostError):
                    orders[shard].append(attempt.replica)  # once more, when its turn comes
                if asked[shard] < replicas[shard]:
                    ask(shard)
                elif not may_ask(shard) and all(a.shard != shard for a in open_attempts.values()):
                    gathered.failed.add(shard)
                    waiting.discard(shard)
                continue
            if shard in waiting:
                gathered.answers[shard] = answer
                waiting.discard(shard)
    for handle, attempt in open_attempts.items():
        carrier.forget(handle)
        if attempt.shard in waiting:
            seconds = clock() - attempt.began
            gathered.failures.append(ShardFailure(attempt.shard, "gave no answer in time", attempt.replica, seconds))
    gathered.timed_out |= waiting
    return gathered
