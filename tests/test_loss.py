"""The sliced loss: the model's own numbers, or no sliced loss at all."""

import pytest
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from tttnn.lm import loss as module
from tttnn.lm.loss import SlicedLoss, causal_lm_loss

SIZES = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=64, n_embd=24, n_layer=2, n_head=2)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **SIZES)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
}
INPUT = torch.arange(40).reshape(1, 40) * 7 % 61


def build(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().to(dtype).eval()


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLICE", 61 * 7)  # several slices and a rest


# Relative error of the loss and of the whole gradient. bfloat16 keeps 8 bits, and both ways round gradients to it.
@pytest.mark.parametrize(
    ("dtype", "autocast", "of_loss", "of_gradient"),
    [
        (torch.float32, False, 1e-6, 1e-5),
        (torch.float32, True, 1e-3, 2e-2),
        (torch.bfloat16, False, 1e-3, 2e-2),
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_same_loss_and_gradients(
    name: str, dtype: torch.dtype, autocast: bool, of_loss: float, of_gradient: float
) -> None:
    model = build(name, dtype)
    sliced = SlicedLoss.for_model(model)
    assert sliced is not None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = causal_lm_loss(model, INPUT)
    expected.backward()
    gradients = [parameter.grad.double() for parameter in model.parameters()]
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = sliced(INPUT)
    assert found.dtype is torch.float32
    (3 * found).backward()
    assert found.item() == pytest.approx(expected.item(), rel=of_loss)
    error = sum((p.grad.double() / 3 - g).square().sum() for p, g in zip(model.parameters(), gradients, strict=True))
    assert error.sqrt() <= of_gradient * sum(g.square().sum() for g in gradients).sqrt()


def test_a_frozen_head_gets_no_gradient() -> None:
    model = build("llama")
    model.lm_head.weight.requires_grad_(False)
    SlicedLoss.for_model(model)(INPUT).backward()
    assert model.lm_head.weight.grad is None
    assert model.model.embed_tokens.weight.grad is not None
    with torch.no_grad():
        assert not SlicedLoss.for_model(model)(INPUT).requires_grad


def test_soft_caps_and_unknown_models_are_left_to_the_model() -> None:
    capped = Gemma2ForCausalLM(Gemma2Config(num_key_value_heads=1, head_dim=12, **SIZES)).train()
    assert SlicedLoss.for_model(capped) is None
    assert all(child.training for child in capped.modules())
    assert SlicedLoss.for_model(nn.Linear(2, 2)) is None


def test_a_window_needs_two_tokens() -> None:
    model = build("gpt2")
    for bad in (INPUT[:, :1], INPUT[0]):
        with pytest.raises(ValueError, match="input_ids must have shape"):
            causal_lm_loss(model, bad)
        with pytest.raises(ValueError, match="input_ids must have shape"):
            SlicedLoss.for_model(model)(bad)
