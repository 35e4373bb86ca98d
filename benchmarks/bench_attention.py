"""Attention beside torch's: causal and of one sequence, forward and with gradients, SmolLM2-135M's heads (9 on 3 of
64); and inside each text of an encoder's batch, MiniLM-L6's heads (12 of 32) and BERT's (12 of 64).

    python -m pytest benchmarks/bench_attention.py

Rivals: torch's scaled_dot_product_attention in bfloat16, with shared and with repeated key/value heads, and in float32.
`error` in the extra information is the relative distance of all answers from float32. The last two tests call all of
them in turn and keep the shortest time of each, which a busy machine disturbs least: `ratio_...` is a rival's over
ours. An encoder's batch comes to torch padded, with a mask, and text after text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from tttnn.kernels.attention import causal_attention, packed_attention, supported

pytestmark = pytest.mark.skipif(not supported(), reason="no AVX-512 with bfloat16 on this processor")

HEADS, KV_HEADS, DIM = 9, 3, 64
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def shared(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2).contiguous()


def repeated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    group = HEADS // KV_HEADS
    return shared(query, key.repeat_interleave(group, 1), value.repeat_interleave(group, 1))


ATTENTIONS: dict[str, tuple[Attend, torch.dtype]] = {
    "native": (causal_attention, torch.bfloat16),
    "torch": (shared, torch.bfloat16),
    "torch_repeated": (repeated, torch.bfloat16),
    "torch_float32": (shared, torch.float32),
}


class Call:
    """One attention on given input."""

    def __init__(self, name: str, tokens: int, gradients: bool) -> None:
        self._attend, dtype = ATTENTIONS[name]
        torch.manual_seed(0)
        made = [2 * torch.randn(1, tokens, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
        made[2] /= 2
        rounded = [tensor.bfloat16().to(dtype).transpose(1, 2) for tensor in made]
        self._leaves = [tensor.requires_grad_(gradients) for tensor in rounded]
        self._upstream = torch.randn(1, tokens, HEADS, DIM).bfloat16().to(dtype)
        self._gradients = gradients

    def __call__(self) -> list[Tensor]:
        out = self._attend(*self._leaves)
        if not self._gradients:
            return [out]
        return [out, *torch.autograd.grad(out, self._leaves, self._upstream)]


def error(found: list[Tensor], tokens: int, gradients: bool) -> float:
    exact = [tensor.detach().double() for tensor in Call("torch_float32", tokens, gradients)()]
    distance = sum((a.detach() - b).square().sum() for a, b in zip(found, exact, strict=True))
    return float((distance / sum(b.square().sum() for b in exact)).sqrt())


@pytest.fixture(params=[512, 1024])
def tokens(request: pytest.FixtureRequest, smoke: bool) -> int:
    return int(request.param) // 8 if smoke else int(request.param)


@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(benchmark: Any, name: str, gradients: bool, tokens: int) -> None:
    call = Call(name, tokens, gradients)
    benchmark.group = f"attention {'forward and backward' if gradients else 'forward'}, {tokens} tokens"
    found = benchmark(call)
    benchmark.extra_info |= {"error": error(found, tokens, gradients), "threads": torch.get_num_threads()}
    assert benchmark.extra_info["error"] <= 0.006


@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "both"])
def test_in_turn(benchmark: Any, gradients: bool, tokens: int, smoke: bool) -> None:
    calls = {name: Call(name, tokens, gradients) for name in ATTENTIONS}
    errors = {name: error(call(), tokens, gradients) for name, call in calls.items()}
    benchmark.group = f"attention in turn, {tokens} tokens"
    in_turn(benchmark, calls, rounds=1 if smoke else 20)
    assert errors["native"] <= 1.2 * errors["torch"]


def in_turn(benchmark: Any, calls: Mapping[str, Callable[[], Any]], *, rounds: int) -> None:
    shortest = dict.fromkeys(calls, float("inf"))

    def all_in_turn() -> None:
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            shortest[name] = min(shortest[name], time.perf_counter() - begin)

    benchmark.pedantic(all_in_turn, rounds=rounds)
    for name in calls:
        benchmark.extra_info[f"ms_{name}"] = round(shortest[name] * 1e3, 3)
        benchmark.extra_info[f"ratio_{name}"] = round(shortest[name] / shortest["native"], 2)
    benchmark.extra_info["threads"] = torch.get_num_threads()


@pytest.mark.parametrize("dim", [32, 64])
def test_texts_of_an_encoder_in_turn(benchmark: Any, dim: int, smoke: bool) -> None:
    heads, texts, longest = 12, 16, 32 if smoke else 256
    torch.manual_seed(0)
    lengths = torch.randint(longest * 4 // 5, longest + 1, (texts,))
    lengths[0] = longest
    offsets = [0, *lengths.cumsum(0).tolist()]
    real = torch.arange(longest) < lengths[:, None]
    padded = [s * torch.randn(texts, longest, heads, dim) for s in (2.0, 2.0, 1.0)]
    padded = [tensor.bfloat16() for tensor in padded]
    packed = [tensor[real].unsqueeze(0).transpose(1, 2) for tensor in padded]
    padded = [tensor.transpose(1, 2) for tensor in padded]
    mask = real[:, None, None, :]

    def each_text() -> Tensor:
        parts = zip(*(tensor.split(lengths.tolist(), 2) for tensor in packed), strict=True)
        found = [torch.nn.functional.scaled_dot_product_attention(*part) for part in parts]
        return torch.cat(found, 2).transpose(1, 2).contiguous()

    def of_torch(dtype: torch.dtype = torch.bfloat16) -> Tensor:
        query, key, value = (tensor.to(dtype) for tensor in padded)
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return found.transpose(1, 2).contiguous()

    calls: dict[str, Callable[[], Tensor]] = {
        "native": lambda: packed_attention(*packed, offsets),
        "torch_padded": of_torch,
        "torch_each_text": each_text,
    }
    exact = of_torch(torch.float64)[real]
    errors = {
        name: float((found.double() - exact).norm() / exact.norm())
        for name, found in (("native", calls["native"]()[0]), ("torch", calls["torch_padded"]()[real]))
    }
    benchmark.group = f"attention in turn, 16 texts of at most {longest} tokens, heads of {dim}"
    in_turn(benchmark, calls, rounds=1 if smoke else 20)
    benchmark.extra_info |= {f"error_{name}": error for name, error in errors.items()}
    benchmark.extra_info["tokens"] = offsets[-1]
    assert errors["native"] <= 1.2 * errors["torch"]
