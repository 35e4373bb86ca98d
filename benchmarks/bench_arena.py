"""Restore and optimizer step of the weight arena beside what torch offers, interleaved, answers asserted.

Run: python benchmarks/bench_arena.py [--model smollm2|small-tensors] [--threads 2] [--repeats 9] [--json FILE]

Every rival does its work once per round, in turn (A B C A B C), so that drift of a shared machine hits all alike; the
table shows medians, the spread (quartiles) and the ratio to the first row. Weights are random: neither a copy nor an
elementwise step depends on their values.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tttnn.config import AdaptConfig
from tttnn.training.optimizer import build_optimizer
from tttnn.weights.arena import WeightArena

LEARNING_RATE = 1e-4


@dataclass
class Rival:
    """One way to do the job: `prepare` is not timed, `act` is, `check` asserts the answer."""

    name: str
    prepare: Callable[[], None]
    act: Callable[[], object]
    check: Callable[[], None]


def smollm2() -> nn.Module:
    """Return a model of SmolLM2-135M's shape (its published config.json)."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        )
    )


def small_tensors() -> nn.Module:
    """Return 2,000 tensors of 1 to 4,096 values: overhead per tensor, not memory traffic."""
    sizes = [1 + (i * 2654435761) % 4096 for i in range(2000)]
    return nn.ParameterList(nn.Parameter(torch.randn(size) * 0.02) for size in sizes)


MODELS = {"smollm2": smollm2, "small-tensors": small_tensors}


def measure(
    rivals: list[Rival], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    for round_ in range(repeats + 1):
        for rival in rivals:
            rival.prepare()
            begin = clock()
            rival.act()
            took = clock() - begin
            rival.check()
            if round_ > 0:  # the first round touches memory for the first time
                seconds[rival.name].append(took)
    return seconds


def table(title: str, seconds: dict[str, list[float]]) -> dict[str, float]:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = next(iter(medians.values()))
    print(f"\n{title}\n{'':44}{'median':>11}{'quartiles':>22}{'ratio':>9}")
    for name, values in seconds.items():
        low, _, high = statistics.quantiles(values, n=4)
        spread = f"{low * 1e3:.3f} - {high * 1e3:.3f}"
        print(f"{name:44}{medians[name] * 1e3:>8.3f} ms{spread:>22}{medians[name] / first:>9.2f}")
    return medians


def fill_gradients(parameters: list[nn.Parameter], values: list[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = value.clone()


def restore_rivals(make: Callable[[], nn.Module]) -> list[Rival]:
    """Every rival starts from weights that one step has changed."""

    def arena_rival() -> Rival:
        torch.manual_seed(0)
        model = make()
        before = [p.detach().clone() for p in model.parameters()]
        arena = WeightArena(model)
        optimizer = build_optimizer(arena, AdaptConfig())
        values = [torch.full_like(p, 1e-3) for p in arena.parameters]

        def prepare() -> None:
            arena.begin()
            fill_gradients(arena.parameters, values)
            optimizer.step(LEARNING_RATE)

        def check() -> None:
            assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))

        return Rival("arena", prepare, arena.restore, check)

    def plain_rival(name: str) -> Rival:
        torch.manual_seed(0)
        model = make()
        parameters = [p.detach() for p in model.parameters()]
        saved = copy.deepcopy(model.state_dict())
        copies = [p.clone() for p in parameters]
        if name == "flat copy_":
            flat = torch.cat([p.reshape(-1) for p in parameters])
            source = flat.clone()
            parameters = [flat]
            copies = [source]

        def prepare() -> None:
            for parameter in parameters:
                parameter.add_(1e-3)

        actions: dict[str, Callable[[], object]] = {
            "load_state_dict(deepcopy)": lambda: model.load_state_dict(saved),
            "torch._foreach_copy_": lambda: torch._foreach_copy_(parameters, copies),
            "flat copy_": lambda: parameters[0].copy_(copies[0]),
        }

        def check() -> None:
            assert all(torch.equal(p, c) for p, c in zip(parameters, copies, strict=True))

        return Rival(name, prepare, actions[name], check)

    return [
        arena_rival(),
        plain_rival("flat copy_"),
        plain_rival("torch._foreach_copy_"),
        plain_rival("load_state_dict(deepcopy)"),
    ]


class Gradients:
    """The same gradients for every rival, and the weights that the first of them had after each step."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        torch.manual_seed(0)
        self.rounded = [(torch.randn_like(p) * 1e-3).bfloat16() for p in make().parameters()]
        self.exact = [gradient.float() for gradient in self.rounded]
        self._answers: dict[int, list[torch.Tensor]] = {}

    def agree(self, step: int, parameters: list[torch.Tensor]) -> None:
        """Compare a sample of weights with those of the rival that came first."""
        sample = [p.detach().reshape(-1)[:1000].clone() for p in parameters[:50]]
        for ours, theirs in zip(sample, self._answers.setdefault(step, sample), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def arena_steps(make: Callable[[], nn.Module], given: Gradients, *, first: bool, rounded: bool = False) -> Rival:
    """Return the arena's own step."""
    torch.manual_seed(0)
    arena = WeightArena(make(), rounded=rounded)
    optimizer = build_optimizer(arena, AdaptConfig())
    count = 0
    if not first:
        arena.begin()

    def prepare() -> None:
        nonlocal count
        if first:
            arena.restore()
            arena.begin()
            count = 0
        count += 1
        with arena.training_weights():
            fill_gradients(arena.parameters, given.rounded if rounded else given.exact)

    def act() -> None:
        with arena.training_weights():
            optimizer.step(LEARNING_RATE)

    name = "arena" + ", bfloat16 gradients and copies" * rounded
    return Rival(name, prepare, act, lambda: given.agree(count, arena.parameters))


class TorchSteps:
    """torch.optim.AdamW behind `clip_grad_norm_`, or its fused kernel that clips while it reads."""

    def __init__(self, make: Callable[[], nn.Module], given: Gradients, *, first: bool, fused: bool) -> None:
        torch.manual_seed(0)
        self._parameters = list(make().parameters())
        self._start = [p.detach().clone() for p in self._parameters] if first else []
        self._given = given
        self._fused = fused
        self._first = first
        self._count = 0
        self._optimizer = self._new()

    def _new(self) -> torch.optim.AdamW:
        decay = AdaptConfig().weight_decay
        return torch.optim.AdamW(self._parameters, lr=LEARNING_RATE, weight_decay=decay, fused=self._fused)

    def rival(self, name: str, act: Callable[[], None]) -> Rival:
        """Return the rival that steps by `act`, one of the two below."""
        return Rival(name, self._prepare, act, lambda: self._given.agree(self._count, self._parameters))

    def _prepare(self) -> None:
        if self._first:
            with torch.no_grad():
                torch._foreach_copy_(self._parameters, self._start)
            self._optimizer = self._new()
            self._count = 0
        self._count += 1
        fill_gradients(self._parameters, self._given.exact)

    def clip_and_step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._parameters, AdaptConfig().clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def scaled(self) -> None:
        config, parameters, optimizer = AdaptConfig(), self._parameters, self._optimizer
        grads = [p.grad for p in parameters]
        norm = torch.nn.utils.get_total_norm(grads)
        # grad_scale divides gradients inside the fused kernel: clipping without passes of its own.
        scale = torch.clamp((norm + 1e-6) / config.clip_norm, min=1.0)
        if not optimizer.state:
            for p in parameters:
                optimizer.state[p] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [optimizer.state[p] for p in parameters]
        steps = [s["step"] for s in states]
        torch._foreach_add_(steps, 1)
        with torch.no_grad():
            torch._fused_adamw_(
                parameters,
                grads,
                [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states],
                [],
                steps,
                amsgrad=False,
                lr=LEARNING_RATE,
                beta1=config.beta1,
                beta2=config.beta2,
                weight_decay=config.weight_decay,
                eps=config.epsilon,
                maximize=False,
                grad_scale=scale,
            )
        optimizer.zero_grad(set_to_none=True)


def step_rivals(make: Callable[[], nn.Module], *, first: bool) -> list[Rival]:
    """Steps on the same gradients; `first` makes every step the first of a query, with fresh moments."""
    given = Gradients(make)
    scaled, fused, plain = (TorchSteps(make, given, first=first, fused=fused) for fused in (True, True, False))
    return [
        arena_steps(make, given, first=first),
        arena_steps(make, given, first=first, rounded=True),
        scaled.rival("_fused_adamw_(grad_scale=)", scaled.scaled),
        fused.rival("clip_grad_norm_ + AdamW(fused=True)", fused.clip_and_step),
        plain.rival("clip_grad_norm_ + AdamW", plain.clip_and_step),
    ]


def bandwidth(nbytes: int, repeats: int) -> float:
    """Return bytes per second of a flat copy, read and write counted: the yardstick of the step's traffic."""
    source, target = torch.zeros(nbytes, dtype=torch.uint8), torch.ones(nbytes, dtype=torch.uint8)
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - begin)
    assert torch.equal(source, target)
    return 2 * nbytes / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    make = MODELS[options.model]
    size = sum(p.numel() * p.element_size() for p in make().parameters())
    print(f"{options.model}: {size / 1e6:.0f} MB of weights, {options.threads} threads, torch {torch.__version__}")
    results: dict[str, object] = {"model": options.model, "threads": options.threads, "machine": platform.processor()}
    results["restore"] = table("restore", measure(restore_rivals(make), options.repeats))
    for first in (False, True):
        name = "first step of a query" if first else "later steps"
        medians = table(name, measure(step_rivals(make, first=first), options.repeats))
        results[name] = medians
        moved = (6 if first else 8) * size
        print(f"the arena moves {moved / medians['arena'] / 1e9:.1f} GB/s")
    rate = bandwidth(min(size, 1 << 29), options.repeats)
    results["copy bandwidth"] = rate
    print(f"\nflat copy_ {rate / 1e9:.1f} GB/s read and written; peak memory {peak_mb():.0f} MB")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def peak_mb() -> float:
    return math.ceil(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
