"""The sliced loss beside the model's own: forward and backward of one window, bf16 autocast, SmolLM2-135M's shape.

Run: python benchmarks/bench_loss.py [--tokens 512] [--repeats 7] [--memory sliced|model]

Without --memory the two are timed in turn and their losses compared. Peak memory needs a process each: --memory runs
one of them alone and prints its peak beside that of the model and its gradients.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import torch
from bench_arena import smollm2

from tttnn import _core
from tttnn.lm.loss import SlicedLoss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", choices=["sliced", "model"])
    parser.add_argument("--keep-freed-memory", action="store_true", help="as the trainer may ask the C library to")
    options = parser.parse_args()
    if options.keep_freed_memory:
        assert _core.keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = smollm2().eval()
    sliced = SlicedLoss.for_model(model)
    assert sliced is not None
    input_ids = torch.randint(0, 49152, (1, options.tokens))
    losses = {"sliced": sliced, "model": lambda ids: model(input_ids=ids, labels=ids, use_cache=False).loss}

    def run(name: str) -> tuple[float, float, int]:
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = losses[name](input_ids)
        loss.backward()
        seconds = time.perf_counter() - begin
        model.zero_grad()
        return seconds, loss.item(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults

    if options.memory:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(2):
            run(options.memory)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{options.memory}: peak {after / 1024:.0f} MB, {(after - before) / 1024:.0f} MB above the loaded model")
        return
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    faults: dict[str, int] = {}
    for repeat in range(options.repeats + 1):
        values = {}
        for name in losses:
            took, values[name], faults[name] = run(name)
            if repeat > 0:
                seconds[name].append(took)
        assert abs(values["sliced"] - values["model"]) < 1e-3 * values["model"]
    base = statistics.median(seconds["sliced"])
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(
            f"{name:8} {middle * 1e3:8.1f} ms (min {min(times) * 1e3:.1f})  {middle / base:.2f}  {faults[name]} faults"
        )


if __name__ == "__main__":
    main()
