"""Deadlines of 500 to 5,000 ms on SmolLM2-135M: by how much are they overrun, in units of one step?

    python benchmarks/bench_deadline.py [--queries 100] [--busy] [--guard]

Neighbors are pieces of Python's standard library, given, so that no search is in the time. `--busy` keeps a second
process multiplying matrices all along. Every answer is asserted usable: a finite score, and the weights as before.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import tttnn
from tttnn.retrieval.neighbors import Neighbor

_BUSY = "import torch\na = torch.rand(1024, 1024)\nwhile True:\n    a = torch.tanh(a @ a)\n"

FILES = ["argparse", "ast", "calendar", "configparser", "csv", "datetime", "difflib", "doctest", "heapq", "inspect"]


def pieces(length: int) -> list[str]:
    """Texts of the standard library, `length` characters each."""
    place = Path(sysconfig.get_paths()["stdlib"])
    texts = [(place / f"{name}.py").read_text(encoding="utf-8") for name in FILES]
    return [text[i : i + length] for text in texts for i in range(0, len(text) - length, length)]


def percentile(values: list[float], share: float) -> float:
    """The smallest value that this share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def measure(trainer: tttnn.TestTimeTrainer, queries: int, seed: int) -> dict[str, float | int]:
    """Adapt to `queries` texts, deadlines evenly from 500 to 5,000 ms in drawn order, and compare with the clock."""
    draw = random.Random(seed)
    texts = pieces(4000)
    with trainer.adapt(texts[0], neighbors=[Neighbor(0, 0.0, texts[1])] * 2) as adapted:
        assert adapted.report.steps == 2  # the pace is known from here on, as in a process that has served a query
    deadlines = [500 + 4500 * i / max(1, queries - 1) for i in range(queries)]
    draw.shuffle(deadlines)
    overruns, steps, stopped = [], [], 0
    for deadline in deadlines:
        chosen = draw.sample(texts, 21)
        neighbors = [Neighbor(i, float(i), text) for i, text in enumerate(chosen[1:])]
        started = time.perf_counter()
        with trainer.adapt(chosen[0], neighbors=neighbors, deadline_ms=deadline) as adapted:
            taken = time.perf_counter() - started
            assert math.isfinite(adapted.bits_per_byte(chosen[0][:200])), "the answer is not usable"
            report = adapted.report
        step = max(report.step_seconds, default=math.nan)
        over = taken - deadline / 1000
        # A query without a step has nothing to be measured in; it must not be late at all, but for what a call costs.
        overruns.append(max(0.0, over) / step if report.steps else 0.0 if over < 0.05 else math.inf)
        steps.append(report.steps)
        stopped += report.stopped_by == "deadline"
    trainer.verify()
    return {
        "queries": queries,
        "stopped_by_deadline": stopped,
        "overrun_max_steps": round(max(overruns), 4),
        "overrun_p95_steps": round(percentile(overruns, 0.95), 4),
        "late": sum(over > 0 for over in overruns),
        "steps_min": min(steps),
        "steps_median": int(percentile([float(count) for count in steps], 0.5)),
        "steps_max": max(steps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--busy", action="store_true", help="beside a second busy process")
    parser.add_argument("--guard", action="store_true", help="with guard=query, whose time counts")
    parser.add_argument("--neighbor-tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = tttnn.AdaptConfig(
        max_neighbor_tokens=arguments.neighbor_tokens, guard="query" if arguments.guard else "none"
    )
    trainer = tttnn.TestTimeTrainer.load("smollm2-135m", None, config, threads=arguments.threads)
    other = subprocess.Popen([sys.executable, "-c", _BUSY]) if arguments.busy else None
    try:
        result = measure(trainer, arguments.queries, arguments.seed)
    finally:
        if other is not None:
            other.kill()
            other.wait()
    print(json.dumps(result | {"busy": arguments.busy, "guard": arguments.guard}))
    assert result["overrun_max_steps"] <= 1, "a deadline was overrun by more than one step"


if __name__ == "__main__":
    main()
