"""The arena and the fused step on a CUDA device: torch's numbers, the processor's bits, exact restoration.

What a build without kernels, or a machine without a device, must say is tested at the end, everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import nn

import tttnn
from tttnn import _core
from tttnn.config import AdaptConfig
from tttnn.errors import AdaptError, DeviceError, NonFiniteLossError
from tttnn.training.cuda_step import require_native
from tttnn.training.optimizer import build_optimizer
from tttnn.weights.arena import WeightArena

from .conftest import FakeRetriever, assert_same_state, state_of, tiny_gpt2, tiny_llama

DEVICE = torch.device("cuda", 0)
QUERY = "The cat sat on"

# Sizes around warps, blocks and pieces of the kernels.
SHAPES = [(1,), (7,), (33, 5), (128, 128), (128, 129), (300, 333), (64,), (2, 3, 4), (70000,)]


def gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that launches kernels."""
    test = pytest.mark.skipif(not _core.build_info()["cuda"], reason="built without CUDA")(test)
    test = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")(test)
    return pytest.mark.cuda(test)


class Weights(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weights = nn.ParameterList(
            nn.Parameter((torch.randn(shape, generator=generator) * 0.1).to(dtype).to(device)) for shape in SHAPES
        )


def gradients(step: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [(torch.randn(shape, generator=generator) * 0.01).to(dtype) for shape in SHAPES]


def give(parameters: list[nn.Parameter], values: list[torch.Tensor | None]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = None if value is None else value.clone().to(parameter.device)


def trained(arena: WeightArena, config: AdaptConfig, dtype: torch.dtype, *, steps: int = 6) -> list[torch.Tensor]:
    """One query, one tensor without a gradient now and then; return norms and weights, on the CPU."""
    optimizer = build_optimizer(arena, config)
    arena.begin()
    norms = []
    for step in range(steps):
        values: list[torch.Tensor | None] = list(gradients(step, dtype))
        if step % 3 == 1:
            values[5] = None
        give(arena.parameters, values)
        norms.append(optimizer.step(1e-3 / (1 + step)).grad_norm)
    result = [torch.tensor(norms, dtype=torch.float64)] + [p.detach().cpu().clone() for p in arena.parameters]
    arena.restore()
    return result


@gpu
@pytest.mark.parametrize("clip_norm", [1.0, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_gives_the_bits_of_the_processor(dtype: torch.dtype, clip_norm: float | None) -> None:
    config = AdaptConfig(weight_decay=0.1, clip_norm=clip_norm)
    arena = WeightArena(Weights(dtype, DEVICE))
    expected = trained(WeightArena(Weights(dtype)), config, dtype)
    for _ in range(2):
        found = trained(arena, config, dtype)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)
        arena.verify()


@gpu
def test_fifty_steps_as_torch() -> None:
    config = AdaptConfig(weight_decay=0.1)
    arena = WeightArena(Weights(device=DEVICE))
    optimizer = build_optimizer(arena, config)
    plain = list(Weights(device=DEVICE).parameters())
    start = [p.detach().clone() for p in plain]
    reference = torch.optim.AdamW(
        plain, lr=1.0, betas=(config.beta1, config.beta2), eps=config.epsilon, weight_decay=config.weight_decay
    )
    arena.begin()
    for step in range(50):
        learning_rate = 1e-3 / math.sqrt(1 + step)
        values: list[torch.Tensor | None] = list(gradients(step))
        give(arena.parameters, values)
        give(plain, values)
        norm = torch.nn.utils.clip_grad_norm_(plain, 1.0).item()
        reference.param_groups[0]["lr"] = learning_rate
        reference.step()
        assert optimizer.step(learning_rate).grad_norm == pytest.approx(norm, rel=1e-5)  # torch sums in float32
    pairs = list(zip(arena.parameters, plain, start, strict=True))
    error = sum((a.detach().double() - b.detach().double()).square().sum().item() for a, b, _ in pairs)
    update = sum((b.detach().double() - s.double()).square().sum().item() for _, b, s in pairs)
    # Torch's kernels may fuse a product and a sum, and its norm is a float32: last bits of each update.
    assert math.sqrt(error) <= 1e-5 * math.sqrt(update)
    arena.restore()


@gpu
def test_a_step_runs_on_the_current_stream() -> None:
    expected = trained(WeightArena(Weights()), AdaptConfig(), torch.float32)
    arena = WeightArena(Weights(device=DEVICE))
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream(DEVICE)):
        found = trained(arena, AdaptConfig(), torch.float32)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_gradient_changes_nothing(value: float, dtype: torch.dtype) -> None:
    arena = WeightArena(Weights(dtype, DEVICE))
    optimizer = build_optimizer(arena, AdaptConfig())
    arena.begin()
    for step in range(2):
        before = [p.detach().clone() for p in arena.parameters]
        bad: list[torch.Tensor | None] = list(gradients(step, dtype))
        assert bad[5] is not None
        bad[5][299, 332] = value
        give(arena.parameters, bad)
        with pytest.raises(NonFiniteLossError, match="gradient norm must be finite"):
            optimizer.step(1e-3)
        assert all(torch.equal(a, b) for a, b in zip(arena.parameters, before, strict=True))
        give(arena.parameters, list(gradients(step, dtype)))
        optimizer.step(1e-3)
    arena.restore()
    arena.verify()


@gpu
def test_carried_moments_are_those_of_the_processor() -> None:
    config = AdaptConfig(optimizer_state="carried")
    results = []
    for device in (torch.device("cpu"), DEVICE):
        arena = WeightArena(Weights(device=device))
        optimizer = build_optimizer(arena, config)
        for query in range(3):
            arena.begin()
            for step in range(2):
                give(arena.parameters, list(gradients(2 * query + step)))
                optimizer.step(1e-3)
            weights = [p.detach().cpu().clone() for p in arena.parameters]
            arena.restore()
        results.append(weights)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


@gpu
def test_kept_and_rounded_weights_are_those_of_the_processor() -> None:
    results = []
    for device in (torch.device("cpu"), DEVICE):
        arena = WeightArena(Weights(device=device), keeps_best=True, rounded=True)
        optimizer = build_optimizer(arena, AdaptConfig())
        arena.begin()
        found = []
        for step in range(5):
            with arena.training_weights():
                found += [p.detach().cpu().clone() for p in arena.parameters]
                give(arena.parameters, list(gradients(step, torch.bfloat16)))
                optimizer.step(1e-3)
            if step in (1, 2):
                arena.keep()
        found += [p.detach().cpu().clone() for p in arena.parameters]
        arena.use_kept()
        found += [p.detach().cpu().clone() for p in arena.parameters]
        arena.restore()
        arena.verify()
        results.append(found)
    assert {value.dtype for value in results[0]} == {torch.float32, torch.bfloat16}
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


@gpu
def test_spans_are_copied_and_nothing_else() -> None:
    source = torch.randint(0, 256, (1 << 20,), dtype=torch.uint8, device=DEVICE)
    target = torch.zeros_like(source)
    spans = [(0, 1), (3, 61), (64, 64), (128, 0), (4096, 1 << 18), (4096 + (1 << 18), 77), (1 << 19, 1 << 19)]
    _core.copy_spans_cuda(
        target.data_ptr(),
        source.data_ptr(),
        [offset for offset, _ in spans],
        [size for _, size in spans],
        limit=source.numel(),
        device=0,
        stream=torch.cuda.current_stream(DEVICE).cuda_stream,
    )
    expected = torch.zeros_like(source)
    for offset, size in spans:
        expected[offset : offset + size] = source[offset : offset + size]
    assert torch.equal(target, expected)


@gpu
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "torch_adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_restore_is_bit_exact(
    make: Callable[[], Any], dtype: torch.dtype, optimizer: Literal["adamw", "sgd", "torch_adamw"]
) -> None:
    model = make().to(dtype).to(DEVICE).eval()
    before = state_of(model)
    arena = WeightArena(model)
    digest = arena.digest()
    steps = build_optimizer(arena, AdaptConfig(optimizer=optimizer))
    tokens = torch.arange(20, device=DEVICE).reshape(1, 20) * 7 % 61
    for _ in range(3):
        arena.begin()
        for _ in range(2):
            model(input_ids=tokens, labels=tokens).loss.backward()
            steps.step(1e-2)
        assert not torch.equal(next(model.parameters()), before[next(iter(before))])
        arena.restore()
        arena.check()
        arena.verify()
        assert_same_state(model, before)
        assert arena.digest() == digest
    arena.release()
    assert_same_state(model, before)


@gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_trainer_adapts_and_restores(
    precision: Literal["float32", "bfloat16"], tokenizer: Any, retriever: FakeRetriever
) -> None:
    model = tiny_gpt2().to(DEVICE)
    before = state_of(model)
    config = AdaptConfig(num_neighbors=5, max_length=64, learning_rate=1e-3, precision=precision)
    trainer = tttnn.TestTimeTrainer(model, tokenizer, retriever, config)
    losses = []
    for _ in range(2):
        with trainer.adapt(QUERY) as adapted:
            assert adapted.report.stopped_by == "neighbors"
            assert adapted.report.precision == precision
            assert math.isfinite(adapted.bits_per_byte(retriever.neighbors[0].text))
            losses.append(adapted.report.losses)
        assert_same_state(model, before)
    assert all(math.isfinite(loss) for loss in losses[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # torch's own kernels may add in another order
    trainer.release()
    assert_same_state(model, before)


@gpu
def test_a_deadline_holds(tokenizer: Any, retriever: FakeRetriever) -> None:
    model = tiny_gpt2().to(DEVICE)
    before = state_of(model)
    trainer = tttnn.TestTimeTrainer(model, tokenizer, retriever, AdaptConfig(num_neighbors=5, max_length=64))
    with trainer.adapt(QUERY):
        pass
    with trainer.adapt(QUERY, deadline_ms=0.001) as adapted:
        assert adapted.report.stopped_by == "deadline"
        assert adapted.report.steps <= 1
        assert math.isfinite(adapted.bits_per_byte(QUERY))
    assert_same_state(model, before)


def test_spans_must_lie_within_the_memory() -> None:
    with pytest.raises(ValueError, match=r"span must end within the block \(64 bytes\), got offset 60 and size 5"):
        _core.copy_spans_cuda(0, 0, [60], [5], limit=64, device=0, stream=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_without_kernels_or_device_the_core_says_so() -> None:
    settings = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.0, "clip_norm": 1.0}
    step = _core.AdamwCuda([_core.AdamwTensor(size=8, dtype="float32", m=0, v=0)], **settings)
    rule = "CUDA device" if _core.build_info()["cuda"] else "device must be cpu in this build"
    with pytest.raises(DeviceError, match=rule):
        step.step([1], [1], [1], 1e-3, scratch=0, device=0, stream=0)
    with pytest.raises(DeviceError, match=rule):
        _core.copy_spans_cuda(0, 0, [0], [8], limit=64, device=0, stream=0)


def test_devices_without_a_native_step_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    require_native(torch.device("cpu"))
    with pytest.raises(AdaptError, match=r"cpu or cuda, got mps:0\. Use torch_adamw"):
        require_native(torch.device("mps", 0))
    monkeypatch.setattr(_core, "build_info", lambda: {"cuda": False})
    with pytest.raises(DeviceError, match=r"cpu in this build, got cuda:0\. Use torch_adamw, or install"):
        require_native(DEVICE)
    monkeypatch.setattr(_core, "build_info", lambda: {"cuda": True})
    require_native(DEVICE)
