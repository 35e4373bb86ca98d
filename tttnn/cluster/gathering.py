"""Asks many shards at once, each of them again at another replica when it is late or fails, until a deadline.

Knows replicas and time. Does not know what is asked, nor what carries a question.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..retrieval.coverage import ShardFailure


class Carrier(Protocol):
    """What brings a question to a replica of a shard: threads of this process, or Ray."""

    def replicas(self, shard: int) -> int:
        """Return how many there are."""

    def submit(self, shard: int, replica: int, method: str, arguments: tuple[Any, ...]) -> Any:
        """Send a question; return its handle at once."""

    def wait(self, handles: Sequence[Any], seconds: float) -> list[Any]:
        """Return those of the handles that have an answer or an error; none where there was none in time."""

    def result(self, handle: Any) -> Any:
        """Return the answer, or raise its error."""

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
    of them once, and the first answer counts.

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
    asked: dict[int, int] = dict.fromkeys(questions, 0)

    def ask(shard: int) -> bool:
        if asked[shard] >= carrier.replicas(shard):
            return False
        replica = (first_replica + asked[shard]) % carrier.replicas(shard)
        asked[shard] += 1
        open_attempts[carrier.submit(shard, replica, method, questions[shard])] = _Attempt(shard, replica, clock())
        return True

    def latest(shard: int) -> float:
        return max((a.began for a in open_attempts.values() if a.shard == shard), default=0.0)

    waiting = set(questions)
    for shard in questions:
        if not ask(shard):
            gathered.failures.append(ShardFailure(shard, "has no replica", 0, 0.0))
            gathered.failed.add(shard)
            waiting.discard(shard)
    while waiting:
        now = clock()
        if now >= deadline:
            break
        for shard in sorted(waiting):
            if now - latest(shard) >= retry_seconds:
                ask(shard)
        due = [latest(s) + retry_seconds for s in waiting if asked[s] < carrier.replicas(s)]
        for handle in carrier.wait(list(open_attempts), max(0.0, min([deadline, *due]) - clock())):
            attempt = open_attempts.pop(handle)
            shard = attempt.shard
            try:
                answer = carrier.result(handle)
            except Exception as error:  # whatever a shard fails with is a reason, and is told
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                gathered.failures.append(ShardFailure(shard, reason, attempt.replica, clock() - attempt.began))
                if shard in waiting and not ask(shard) and all(a.shard != shard for a in open_attempts.values()):
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
