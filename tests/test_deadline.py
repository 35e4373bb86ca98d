"""Deadlines on SmolLM2: training stops before the step that would overrun, and the answer is usable."""

from __future__ import annotations

import math
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tttnn
from tests.conftest import assert_same_state, state_of
from tttnn.retrieval.neighbors import Neighbor

pytestmark = [pytest.mark.models, pytest.mark.slow]

QUERY = (
    "def heapsort(iterable):\n    h = []\n    for value in iterable:\n        heappush(h, value)\n"
    "    return [heappop(h) for _ in range(len(h))]\n\n\ndef merge(*iterables, key=None, reverse=False):\n"
)
DEADLINES = [500, 1500, 5000]


@pytest.fixture(scope="module")
def neighbors() -> list[Neighbor]:
    text = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text(encoding="utf-8")
    return [Neighbor(i, 0.1 * (i + 1), text[i * 2000 : (i + 1) * 2000]) for i in range(40)]


@pytest.fixture(scope="module", params=["none", "query"])
def trainer(request: pytest.FixtureRequest) -> Iterator[tttnn.TestTimeTrainer]:
    config = tttnn.AdaptConfig(max_neighbor_tokens=96, guard=request.param, guard_min_tokens=32)
    made = tttnn.TestTimeTrainer.load("smollm2-135m", None, config)
    yield made
    made.release()


def test_a_deadline_is_overrun_by_less_than_one_step(trainer: tttnn.TestTimeTrainer, neighbors: list[Neighbor]) -> None:
    """No step is begun that is not expected to end in time, so what is over can only be what one step took longer."""
    before = state_of(trainer.model)
    with trainer.adapt(QUERY, neighbors=neighbors[:2]) as adapted:
        longest = max(adapted.report.step_seconds)
    for deadline in [*DEADLINES, None]:
        roomy = deadline is None
        if deadline is None:  # room for a step on any machine
            deadline = 4000 * (trainer.engine.training_pace.predict(96) + trainer.engine.guard_pace.predict(96))
        started = time.perf_counter()
        with trainer.adapt(QUERY, neighbors=neighbors, deadline_ms=deadline) as adapted:
            taken = time.perf_counter() - started
            report = adapted.report
            longest = max([longest, *report.step_seconds])
            assert taken <= deadline / 1000 + longest
            assert report.stopped_by == ("neighbors" if len(report.neighbors) == len(neighbors) else "deadline")
            assert len(report.step_seconds) == report.steps
            assert math.isfinite(adapted.bits_per_byte(QUERY))
            assert report.steps > 0 or not roomy
    assert_same_state(trainer.model, before)
    trainer.verify()


def test_a_deadline_that_has_passed_gives_the_base_model(
    trainer: tttnn.TestTimeTrainer, neighbors: list[Neighbor]
) -> None:
    base: Any = trainer.scorer.score(QUERY)
    with trainer.adapt(QUERY, neighbors=neighbors, deadline_ms=0) as adapted:
        assert (adapted.report.stopped_by, adapted.report.steps) == ("deadline", 0)
        assert adapted.score(QUERY) == base
