"""No expert is begun that would probably be late, in one process or in several."""

from __future__ import annotations

import pytest

from tttnn.instant.leaf_training import LeafJob
from tttnn.instant.time_limit import TimeLimit

SECONDS = 10.0


def begun_in(limit: float, workers: int) -> tuple[list[int], float]:
    """Do jobs of ten seconds, so many at a time; return those begun, and when the last one was done."""
    now = 0.0
    clock = TimeLimit(limit, lambda: now)
    jobs = clock.begun(LeafJob(cluster, (), ()) for cluster in range(100))
    running = [(SECONDS + worker, job.cluster) for worker, job in zip(range(workers), jobs, strict=False)]
    begun = [cluster for _, cluster in running]
    while running:
        now, cluster = min(running)
        running.remove((now, cluster))
        clock.done(cluster)
        following = next(jobs, None)
        if following is not None:
            begun.append(following.cluster)
            running.append((now + SECONDS, following.cluster))
    return begun, now


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_what_is_begun_is_done_in_time(workers: int) -> None:
    begun, end = begun_in(60.0, workers)
    assert begun == list(range(len(begun)))
    assert len(begun) >= 5 * workers - workers + 1
    assert end <= 60.0


def test_without_time_the_first_is_not_begun() -> None:
    limit = TimeLimit(5.0, lambda: 6.0)
    assert list(limit.begun([LeafJob(0, (), ())])) == []
