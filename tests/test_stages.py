"""Seconds of stages: they add up, and a stage inside another counts for itself alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

import pytest

from tttnn.stages import Stages


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def test_a_stage_adds_up_and_an_inner_one_counts_alone(clock: list[float]) -> None:
    stages = Stages({"read": 1.0})
    with stages("train"):
        clock[0] += 2
        with stages("score"):
            clock[0] += 3
            with stages("train"):
                clock[0] += 5
        clock[0] += 7
    clock[0] += 100
    with stages("score"):
        clock[0] += 11
    stages.add({"read": 0.5, "embed": 4.0})
    assert stages == {"read": 1.5, "train": 14.0, "score": 14.0, "embed": 4.0}


def test_an_exception_ends_a_stage_and_those_inside_that_were_never_ended(clock: list[float]) -> None:
    stages = Stages()

    def interrupted() -> None:
        with stages("outer"):
            stages.enter("inner")
            clock[0] += 2
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    clock[0] += 50
    with stages("outer"):
        clock[0] += 1
    assert stages == {"outer": 1.0, "inner": 2.0}


def test_stages_in_a_report_are_plain_values() -> None:
    @dataclass
    class Report:
        seconds: Stages = field(default_factory=Stages)

    report = Report()
    with report.seconds("work"):
        pass
    assert json.loads(json.dumps(asdict(report)))["seconds"].keys() == {"work"}
