"""The sliced loss: the model's own numbers, or no sliced loss at all."""

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PegasusConfig,
    PegasusForCausalLM,
    ProphetNetConfig,
    ProphetNetForCausalLM,
    TrOCRConfig,
    TrOCRForCausalLM,
)

from tttnn.kernels import cross_entropy
from tttnn.lm.loss import LogitsLoss, SlicedLoss, loss_of
from tttnn.weights.lora import LowRankLayers

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
    monkeypatch.setattr(cross_entropy, "_SLICE", 61 * 7)  # several slices and a rest


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
        expected = LogitsLoss(model)(INPUT)
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


SMALL = {"d_model": 24, "decoder_layers": 1, "encoder_layers": 1, "vocab_size": 61, "max_position_embeddings": 64}
HEADS = {"decoder_attention_heads": 2, "encoder_attention_heads": 2, "decoder_ffn_dim": 40, "encoder_ffn_dim": 40}
DECODERS = {
    "bart": lambda: BartForCausalLM(BartConfig(**SMALL, **HEADS)),
    "pegasus": lambda: PegasusForCausalLM(PegasusConfig(**SMALL, **HEADS)),
    "trocr": lambda: TrOCRForCausalLM(
        TrOCRConfig(vocab_size=61, d_model=24, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=40)
    ),
    "prophetnet": lambda: ProphetNetForCausalLM(
        ProphetNetConfig(
            vocab_size=61,
            hidden_size=24,
            num_decoder_layers=1,
            num_decoder_attention_heads=2,
            decoder_ffn_dim=40,
            is_decoder=True,
            add_cross_attention=False,
        )
    ),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(num_key_value_heads=1, head_dim=12, **SIZES)),
}


HEAD_OF = {"trocr": "output_projection"}


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("name", DECODERS)
def test_the_loss_is_that_of_the_next_token(name: str, lora: bool) -> None:
    """Whatever a family's own loss is, which for encoder-decoders predicts the token that was read."""
    torch.manual_seed(0)
    model = DECODERS[name]().eval()
    with torch.no_grad():
        logits = model(input_ids=INPUT, use_cache=False).logits
    expected = nn.functional.cross_entropy(logits[0, :-1].double(), INPUT[0, 1:]).item()
    layers = None
    if lora:
        layers = LowRankLayers(model, rank=2, alpha=4.0, targets=[HEAD_OF.get(name, "lm_head")]).insert()
    found = loss_of(model)(INPUT)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    if layers is not None:
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "lora_" in n)
        layers.remove()


def test_terms_that_a_model_adds_to_its_loss_are_left_out() -> None:
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(num_key_value_heads=1, output_router_logits=True, **SIZES)).eval()
    with torch.no_grad():
        out = model(input_ids=INPUT, labels=INPUT, use_cache=False)
    expected = nn.functional.cross_entropy(out.logits[0, :-1], INPUT[0, 1:]).item()
    assert out.loss.item() != pytest.approx(expected, rel=1e-4)
    assert loss_of(model)(INPUT).item() == pytest.approx(expected, rel=1e-5)
    assert LogitsLoss(model)(INPUT).item() == pytest.approx(expected, rel=1e-5)


def test_a_probe_that_fails_is_no_sliced_loss() -> None:
    model = build("llama")
    backbone = model.model.forward

    def forward(**inputs: object) -> object:
        if inputs.get("logits_to_keep") is None and "labels" not in inputs and len(inputs) == 2:
            raise RuntimeError("this backbone does not run alone")
        return backbone(**inputs)

    model.model.forward = forward
    assert SlicedLoss.for_model(model) is None


def test_a_window_needs_two_tokens() -> None:
    model = build("gpt2")
    for bad in (INPUT[:, :1], INPUT[0]):
        with pytest.raises(ValueError, match="input_ids must have shape"):
            LogitsLoss(model)(bad)
        with pytest.raises(ValueError, match="input_ids must have shape"):
            SlicedLoss.for_model(model)(bad)
