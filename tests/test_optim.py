"""The fused step: torch's numbers, the same bits for any number of threads, no harm from bad gradients."""

import math
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tttnn.config import AdaptConfig
from tttnn.errors import AdaptError, NonFiniteLossError
from tttnn.training.optimizer import build_optimizer
from tttnn.weights.arena import WeightArena

# Sizes around vector lanes, pieces and tasks of the kernel.
SHAPES = [(1,), (7,), (33, 5), (128, 129), (300, 333), (64,), (2, 3, 4), (70000,)]


class Weights(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weights = nn.ParameterList(
            nn.Parameter((torch.randn(shape, generator=generator) * 0.1).to(dtype)) for shape in SHAPES
        )


def gradients(step: int, dtype: torch.dtype = torch.float32, scale: float = 0.01) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [(torch.randn(shape, generator=generator) * scale).to(dtype) for shape in SHAPES]


def give(parameters: list[nn.Parameter], values: list[torch.Tensor | None]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = None if value is None else value.clone()


def distance(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    return math.sqrt(sum((a.double() - b.double()).square().sum().item() for a, b in zip(left, right, strict=True)))


@pytest.fixture(autouse=True)
def _keep_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("clip_norm", [1.0, None, 1e6])
def test_fifty_steps_as_torch(clip_norm: float | None) -> None:
    config = AdaptConfig(weight_decay=0.1, clip_norm=clip_norm)
    arena = WeightArena(Weights())
    optimizer = build_optimizer(arena, config)
    plain = list(Weights().parameters())
    start = [p.detach().clone() for p in plain]
    reference = torch.optim.AdamW(
        plain, lr=1.0, betas=(config.beta1, config.beta2), eps=config.epsilon, weight_decay=config.weight_decay
    )
    arena.begin()
    for step in range(50):
        learning_rate = 1e-3 / math.sqrt(1 + step)
        values: list[torch.Tensor | None] = list(gradients(step))
        if step % 5 == 2:
            values[4] = None  # torch leaves weight, moments and step count of such a parameter alone
        give(arena.parameters, values)
        give(plain, values)
        norm = torch.nn.utils.clip_grad_norm_(plain, math.inf if clip_norm is None else clip_norm).item()
        reference.param_groups[0]["lr"] = learning_rate
        reference.step()
        stats = optimizer.step(learning_rate)
        assert stats.grad_norm == pytest.approx(norm, rel=1e-5)  # torch sums in float32
        assert all(parameter.grad is None for parameter in arena.parameters)
    updates = distance([p.detach() for p in plain], start)
    # Both compute in float32 in the same order; only the norms, so the clip coefficient, differ in the last bits.
    assert distance([p.detach() for p in arena.parameters], [p.detach() for p in plain]) <= 1e-6 * updates
    arena.restore()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        arena = WeightArena(Weights(dtype))
        optimizer = build_optimizer(arena, AdaptConfig())
        arena.begin()
        norms = []
        for step in range(3):
            give(arena.parameters, list(gradients(step, dtype, scale=1.0)))
            norms.append(optimizer.step(1e-3).grad_norm)
        results.append((norms, [p.detach().clone() for p in arena.parameters]))
        arena.restore()
    for norms, weights in results[1:]:
        assert norms == results[0][0]
        assert all(torch.equal(a, b) for a, b in zip(weights, results[0][1], strict=True))


@pytest.mark.parametrize("name", ["adamw", "sgd", "torch_adamw"])
def test_every_query_starts_fresh(name: str) -> None:
    arena = WeightArena(Weights())
    optimizer = build_optimizer(arena, AdaptConfig(optimizer=name))
    results = []
    for _ in range(3):
        arena.begin()
        for step in range(4):
            give(arena.parameters, list(gradients(step)))
            optimizer.step(1e-3)
        results.append([p.detach().clone() for p in arena.parameters])
        arena.restore()
    for weights in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights, results[0], strict=True))


@pytest.mark.parametrize("name", ["adamw", "torch_adamw"])
def test_carried_moments_outlive_a_query_until_reset(name: str) -> None:
    arena = WeightArena(Weights())
    optimizer = build_optimizer(arena, AdaptConfig(optimizer=name, optimizer_state="carried", clip_norm=None))
    plain = list(Weights().parameters())
    start = [p.detach().clone() for p in plain]
    reference = torch.optim.AdamW(plain, lr=1e-3, weight_decay=0.01)
    for query in range(3):
        arena.begin()
        with torch.no_grad():
            for parameter, value in zip(plain, start, strict=True):
                parameter.copy_(value)
        for step in range(3):
            values = list(gradients(3 * query + step))
            give(arena.parameters, list(values))
            give(plain, list(values))
            reference.step()
            optimizer.step(1e-3)
        updates = distance([p.detach() for p in plain], start)
        assert distance([p.detach() for p in arena.parameters], [p.detach() for p in plain]) <= 1e-6 * updates
        arena.restore()
    arena.begin()
    optimizer.reset()
    give(arena.parameters, list(gradients(0)))
    optimizer.step(1e-3)
    trained = [p.detach().clone() for p in arena.parameters]
    arena.restore()
    fresh = WeightArena(Weights())
    other = build_optimizer(fresh, AdaptConfig(clip_norm=None, optimizer=name))
    fresh.begin()
    give(fresh.parameters, list(gradients(0)))
    other.step(1e-3)
    assert all(torch.equal(a, b) for a, b in zip(trained, fresh.parameters, strict=True))


def test_reset_inside_a_query_keeps_weights() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        arena = WeightArena(Weights(dtype))
        optimizer = build_optimizer(arena, AdaptConfig(clip_norm=None, weight_decay=0.0))
        arena.begin()
        for _ in range(2):
            give(arena.parameters, list(gradients(0, dtype)))
            before = [p.detach().clone() for p in arena.parameters]
            optimizer.reset()
            optimizer.step(1e-2)
            # The first step of AdamW moves every weight by the learning rate, against the sign of its gradient.
            for parameter, old, gradient in zip(arena.parameters, before, gradients(0, dtype), strict=True):
                moved = parameter.detach().float() - old.float()
                # Within bfloat16's spacing of weights below 0.5, and 1 % for gradients near epsilon.
                slack = 4e-3 if dtype is torch.bfloat16 else 1e-4
                clear = gradient.abs() > 1e-5
                assert torch.allclose(moved[clear], -1e-2 * gradient[clear].float().sign(), atol=slack)
        arena.restore()


def test_bfloat16_trains_on_float32_masters() -> None:
    """Steps of 2e-5 are below bfloat16's spacing: added to bfloat16 weights most are lost, on masters none."""
    arena = WeightArena(Weights(torch.bfloat16))
    optimizer = build_optimizer(arena, AdaptConfig(weight_decay=0.0))
    start = [p.detach().float().clone() for p in arena.parameters]
    plain = [nn.Parameter(value.clone()) for value in start]
    reference = torch.optim.AdamW(plain, lr=2e-5, weight_decay=0.0)
    lossy = list(Weights(torch.bfloat16).parameters())
    lossy_optimizer = torch.optim.AdamW(lossy, lr=2e-5, weight_decay=0.0)
    arena.begin()
    for _ in range(50):
        values = gradients(0, torch.bfloat16)
        give(arena.parameters, list(values))
        give(plain, [value.float() for value in values])
        give(lossy, list(values))
        torch.nn.utils.clip_grad_norm_(plain, 1.0)
        reference.step()
        lossy_optimizer.step()
        optimizer.step(2e-5)
    wanted = [p.detach() - s for p, s in zip(plain, start, strict=True)]
    size = distance([p.detach() for p in plain], start)

    def progress(parameters: list[nn.Parameter]) -> float:
        """How far along the wanted update the weights have come: 1 is all the way."""
        return sum(
            ((p.detach().float() - s) * w).sum().item() for p, s, w in zip(parameters, start, wanted, strict=True)
        ) / (size * size)

    assert progress(arena.parameters) == pytest.approx(1.0, abs=0.02)
    assert progress(lossy) < 0.5
    # Every weight is its master, rounded once: within half of bfloat16's spacing (2^-9 of the value).
    for parameter, exact in zip(arena.parameters, plain, strict=True):
        assert torch.allclose(parameter.detach().float(), exact.detach(), rtol=2**-8, atol=1e-7)
    arena.restore()


def test_sgd_as_torch() -> None:
    arena = WeightArena(Weights())
    optimizer = build_optimizer(arena, AdaptConfig(optimizer="sgd", weight_decay=0.1, clip_norm=0.5))
    plain = list(Weights().parameters())
    reference = torch.optim.SGD(plain, lr=0.1, weight_decay=0.1)
    arena.begin()
    for step in range(5):
        give(arena.parameters, list(gradients(step)))
        give(plain, list(gradients(step)))
        torch.nn.utils.clip_grad_norm_(plain, 0.5)
        reference.step()
        optimizer.step(0.1)
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(arena.parameters, plain, strict=True))
    arena.restore()


@pytest.mark.parametrize("name", ["adamw", "sgd", "torch_adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_gradient_changes_nothing(value: float, dtype: torch.dtype, name: str) -> None:
    arena = WeightArena(Weights(dtype))
    optimizer = build_optimizer(arena, AdaptConfig(optimizer=name))
    arena.begin()
    for step in range(2):
        before = [p.detach().clone() for p in arena.parameters]
        bad = gradients(step, dtype)
        bad[4][299, 332] = value
        give(arena.parameters, list(bad))
        with pytest.raises(NonFiniteLossError, match="gradient norm must be finite"):
            optimizer.step(1e-3)
        assert all(torch.equal(a, b) for a, b in zip(arena.parameters, before, strict=True))
        give(arena.parameters, list(gradients(step, dtype)))
        optimizer.step(1e-3)
        assert all(torch.isfinite(parameter).all() for parameter in arena.parameters)
    arena.restore()


def test_gradients_of_another_order_or_layout_are_taken() -> None:
    model = nn.ModuleList([nn.Embedding(11, 3, sparse=True), nn.Linear(3, 4)])
    arena = WeightArena(model)
    optimizer = build_optimizer(arena, AdaptConfig(weight_decay=0.0))
    before = [p.detach().clone() for p in arena.parameters]
    arena.begin()
    model[1](model[0](torch.tensor([1, 5, 5]))).sum().backward()
    model[1].weight.grad = model[1].weight.grad.t().contiguous().t()
    signs = [p.grad.to_dense().sign() for p in arena.parameters]
    optimizer.step(1e-3)
    for parameter, old, sign in zip(arena.parameters, before, signs, strict=True):
        assert torch.allclose(parameter - old, -1e-3 * sign, atol=1e-5)
    arena.restore()


def test_a_step_needs_a_query() -> None:
    for name in ("adamw", "sgd", "torch_adamw"):
        optimizer = build_optimizer(WeightArena(Weights()), AdaptConfig(optimizer=name))
        with pytest.raises(AdaptError, match="inside a query"):
            optimizer.step(1e-3)


def test_other_types_are_refused_by_name() -> None:
    with pytest.raises(AdaptError, match=r"weights\.0 must be float32 or bfloat16"):
        build_optimizer(WeightArena(Weights(torch.float64)), AdaptConfig())


def test_bytes_moved_are_counted() -> None:
    arena = WeightArena(Weights())
    optimizer = build_optimizer(arena, AdaptConfig())
    size = 4 * sum(parameter.numel() for parameter in arena.parameters)
    arena.begin()
    moved = []
    for step in range(3):
        give(arena.parameters, list(gradients(step)))
        moved.append(optimizer.step(1e-3).bytes_moved)
    # NATIVE.md, C: the first step neither reads moments nor fetches what it writes.
    assert moved == [6 * size, 8 * size, 8 * size]
    arena.restore()


def test_kept_memory_takes_no_page_faults() -> None:
    """In a process of its own: the setting is for good."""
    program = """
import resource, torch
from tttnn import _core
assert _core.keep_freed_memory()
def step():
    for _ in range(3):
        torch.empty(16 << 20, dtype=torch.uint8).fill_(1)
for _ in range(10):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000  # 4,096 a tensor without it: 245,760
