"""Linear layers with the bias inside of the product: the same answer, and only where it is theirs to give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tttnn.kernels import linear as module
from tttnn.kernels.attention import supported
from tttnn.kernels.linear import FusedLinear, fuse_biases

needs_instructions = pytest.mark.skipif(not supported(), reason="no AVX-512 with bfloat16 on this processor")


@pytest.fixture(autouse=True)
def _ask_again() -> Iterator[None]:
    module._works.cache_clear()
    yield
    module._works.cache_clear()


def layers(dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 48, bias=False), nn.Linear(48, 33))
    return made.to(torch.bfloat16).to(dtype).requires_grad_(False)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a torch without oneDNN")
def test_torch_has_the_operator() -> None:
    assert hasattr(torch.ops.mkldnn, "_linear_pointwise")


@needs_instructions
@pytest.mark.parametrize("shape", [(1, 1, 64), (7, 64), (2, 130, 64)])
def test_the_same_but_for_rounding(shape: tuple[int, ...]) -> None:
    fused, own, exact = layers(), layers(), layers(torch.float32)
    fuse_biases(fused)
    assert [type(layer) for layer in fused] == [FusedLinear, nn.GELU, nn.Linear, FusedLinear]
    states = torch.randn(shape).bfloat16()
    with torch.inference_mode():
        truth = exact(states.float())
        found, theirs = fused(states), own(states)
    assert found.dtype is torch.bfloat16
    assert found.shape == truth.shape
    distance = (found.float() - truth).norm()
    assert 0 < distance <= 1.2 * (theirs.float() - truth).norm()
    assert list(fused.state_dict()) == list(own.state_dict())


@needs_instructions
def test_what_is_left_alone() -> None:
    class Scaled(nn.Linear):
        """A layer that does more than a product."""

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    of_user = nn.Sequential(Scaled(8, 8)).bfloat16().requires_grad_(False)
    trained = layers().requires_grad_(True)
    wide = layers(torch.float32)
    for model, kind in ((of_user, Scaled), (trained, nn.Linear), (wide, nn.Linear)):
        fuse_biases(model)
        assert type(model[0]) is kind


@pytest.mark.parametrize("fault", [AttributeError, RuntimeError, TypeError, "wrong"])
def test_a_torch_without_the_operator(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if fault == "wrong":
            return nn.functional.linear(states, weight)
        raise fault

    monkeypatch.setattr(module, "_product", other)
    model = layers()
    fuse_biases(model)
    assert type(model[0]) is nn.Linear


def test_a_processor_without_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "supported", lambda: False)
    model = layers()
    fuse_biases(model)
    assert type(model[0]) is nn.Linear
