"""How far a call is: bars at every width, and lines where there is no terminal."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from tttnn.cli.bars import Bars

RATES = {"documents": 12_345.6, "tokens": 14_000.0, "bytes": 61_234_567.0}
REPORT = SimpleNamespace(stages={"embed": SimpleNamespace(rates=RATES)})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_bars_fit_and_keep_their_counts(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, color_system=None)
    with Bars(REPORT, console=console) as bars:
        for done in (0, 20_000, 1_500_000, 2_000_000):
            bars("embed", done, 2_000_000)
            bars._progress.refresh()
            bars("adapt (neighbors)", done // 50_000, 40)
            bars._progress.refresh()
    lines = [line for line in re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", out.getvalue()) if line.strip()]
    assert max(map(len, lines)) <= width
    shown = [int(found[1]) for line in lines if (found := re.search(r"embed .*?(\d+)/2000000", line))]
    assert shown
    assert shown[-1] == 2_000_000
    assert all(re.search(r"\d+/(2000000|40)\b|0/", line) for line in lines)
    assert any("14.0k tokens/s" in line for line in lines) == (width >= 80)
    assert any("documents/s" in line for line in lines) == (width >= 120)


def test_a_bar_never_goes_back() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Bars(console=console) as bars:
        seen = []
        for done in (5, 3, 9, 0, 10):
            bars("index", done, 10)
            seen.append(bars._progress.tasks[0].completed)
    assert seen == [5, 5, 9, 9, 10]


def test_without_a_terminal_there_is_a_line_every_tenth_or_thirty_seconds() -> None:
    out, clock = io.StringIO(), Clock()
    with Bars(REPORT, console=Console(file=out, width=80), clock=clock) as bars:
        for step in range(1001):  # 1000 seconds
            clock.now = float(step)
            bars("embed", step, 1000)
    lines = out.getvalue().splitlines()
    assert 30 < len(lines) < 45
    assert lines[0] == "embed: 30 of 1,000 (3%), 14.0k tokens/s, 30 s, about 970 s left"
    assert lines[-1].startswith("embed: 1,000 of 1,000 (100%)")
    out.truncate(0)
    clock.now = 0.0
    with Bars(console=Console(file=out, width=80), clock=clock) as bars:
        for step in range(101):  # 50 seconds
            clock.now = step / 2
            bars("index", step, 100)
    assert len(out.getvalue().splitlines()) == 10


def test_what_takes_a_moment_says_nothing_without_a_terminal() -> None:
    out, clock = io.StringIO(), Clock()
    with Bars(console=Console(file=out, width=80), clock=clock) as bars:
        for step in range(101):
            clock.now = step / 60
            bars("index", step, 100)
            bars("import", step, None)
    assert out.getvalue() == ""
    clock.now = 100.0
    bars("import", 12_345, None)
    assert out.getvalue() == "import: 12,345, 100 s\n"
