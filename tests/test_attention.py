"""Native attention: as near to float32 as torch's own bfloat16; packed sequences that know nothing of each other; and a
switch that leaves nothing behind."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from tttnn.kernels import attention as module
from tttnn.kernels import hf_attention
from tttnn.kernels.attention import causal_attention, packed_attention
from tttnn.kernels.hf_attention import NAME, NativeAttention

needs_instructions = pytest.mark.skipif(not module.supported(), reason="no AVX-512 with bfloat16 on this processor")

SIZES = {"vocab_size": 61, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(num_attention_heads=2, num_key_value_heads=1, **SIZES)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(num_attention_heads=2, **SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=128, n_embd=64, n_layer=2, n_head=2)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(num_attention_heads=2, num_key_value_heads=1, head_dim=48, **SIZES)),
}
INPUT = torch.arange(100).reshape(1, 100) * 7 % 61


pytestmark = pytest.mark.usefixtures("one_thread")


def build(name: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():  # so that attention has something to choose
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model.to(torch.bfloat16).to(dtype).eval()


def tensors(heads: int, kv_heads: int, tokens: int, dim: int, spread: float = 2.0) -> list[Tensor]:
    """Queries, keys, values (1, heads, tokens, dim) and the output's gradient, with a projection's strides."""
    torch.manual_seed(tokens)
    shapes = [(heads, spread), (kv_heads, spread), (kv_heads, 1.0)]
    made = [(s * torch.randn(1, tokens, h, dim)).bfloat16().transpose(1, 2) for h, s in shapes]
    return [*made, torch.randn(1, tokens, heads, dim).bfloat16()]


def of_torch(query: Tensor, key: Tensor, value: Tensor, upstream: Tensor, scale: float | None = None) -> list[Tensor]:
    group = query.shape[1] // key.shape[1]
    leaves = [t.detach().requires_grad_() for t in (query, key, value)]
    q, k, v = leaves
    out = nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), is_causal=True, scale=scale
    ).transpose(1, 2)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


def of_core(query: Tensor, key: Tensor, value: Tensor, upstream: Tensor, scale: float | None = None) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (query, key, value)]
    out = causal_attention(*leaves, scale=scale)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@needs_instructions
@pytest.mark.parametrize(
    ("heads", "kv_heads", "tokens", "dim"),
    [
        (9, 3, 512, 64),
        (2, 2, 17, 48),
        (4, 2, 70, 80),
        (1, 1, 130, 256),
        (3, 1, 200, 128),
        (5, 5, 63, 32),
        (2, 1, 65, 96),
    ],
)
def test_as_near_to_float32_as_torch(heads: int, kv_heads: int, tokens: int, dim: int) -> None:
    given = tensors(heads, kv_heads, tokens, dim)
    for scale in (None, 0.3):
        expected = of_torch(*(t.float() for t in given), scale=scale)
        rival = of_torch(*given, scale=scale)
        found = of_core(*given, scale=scale)
        # bfloat16 rounds to 2^-9: once for an output; for gradients also probabilities and their slopes.
        limits = (3e-3, 1e-2, 1e-2, 5e-3)
        for mine, theirs, truth, limit in zip(found, rival, expected, limits, strict=True):
            assert mine.dtype is torch.bfloat16
            assert mine.shape == truth.shape
            assert error(mine, truth) <= min(limit, 1.5 * error(theirs, truth))


@needs_instructions
@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 33, 64, 127, 129])
def test_every_length(tokens: int) -> None:
    given = tensors(2, 1, tokens, 32)
    expected = of_torch(*(t.double() for t in given))
    for mine, truth in zip(of_core(*given), expected, strict=True):
        # A single token has a slope of 0, which rounding of the output leaves near 0: hence the absolute part.
        assert (mine.double() - truth).norm() <= 1e-2 * truth.norm() + 1e-2


@needs_instructions
def test_large_scores_do_not_overflow() -> None:
    given = tensors(2, 1, 150, 64, spread=60.0)
    expected = of_torch(*(t.float() for t in given))
    found = of_core(*given)
    assert all(t.isfinite().all() for t in found)
    assert error(found[0], expected[0]) <= 3e-3
    assert error(found[3], expected[3]) <= 5e-3


@needs_instructions
def test_same_bits_for_any_threads_and_strides() -> None:
    given = tensors(6, 2, 300, 64)
    first = of_core(*given)
    torch.set_num_threads(3)
    again = of_core(*given)
    dense = of_core(*(t.contiguous() for t in given))
    # A slice of a wider projection, and values whose last dimension is not the innermost.
    wide = torch.zeros(1, 300, 6, 3 * 64 + 1, dtype=torch.bfloat16)
    wide[..., 64:128] = given[0].transpose(1, 2)
    turned = given[2].transpose(2, 3).contiguous().transpose(2, 3)
    sliced = of_core(wide[..., 64:128].transpose(1, 2), given[1], turned, given[3])
    for others in (again, dense, sliced):
        assert all(torch.equal(a, b) for a, b in zip(first, others, strict=True))


@needs_instructions
def test_later_tokens_are_not_seen() -> None:
    query, key, value, _ = tensors(2, 1, 100, 64)
    before = causal_attention(query, key, value)
    for tensor in (query, key, value):
        tensor[:, :, 70:] = 3.0
    assert torch.equal(causal_attention(query, key, value)[:, :70], before[:, :70])


@needs_instructions
def test_an_upstream_of_any_strides() -> None:
    query, key, value, _ = tensors(2, 1, 40, 32)
    leaf = query.detach().requires_grad_()
    causal_attention(leaf, key, value).sum().backward()  # a gradient with strides of 0
    ones = torch.ones(1, 40, 2, 32, dtype=torch.bfloat16)
    assert torch.equal(leaf.grad, of_core(query, key, value, ones)[1])


PACKED = (1, 254, 64, 65, 2, 130, 1)


def of_each(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Torch's attention of one sequence after the other: (1, tokens, heads, dim)."""
    parts = zip(*(t.split(lengths, 2) for t in (query, key, value)), strict=True)
    found = [nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True) for q, k, v in parts]
    return torch.cat(found, 2).transpose(1, 2)


def bounds(lengths: tuple[int, ...]) -> list[int]:
    return [0, *torch.tensor(lengths).cumsum(0).tolist()]


@needs_instructions
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(12, 12, 32), (4, 2, 64), (2, 1, 48), (1, 1, 256)])
def test_packed_as_near_to_float32_as_torch(heads: int, kv_heads: int, dim: int) -> None:
    given = tensors(heads, kv_heads, sum(PACKED), dim)[:3]
    truth = of_each(*(t.float() for t in given), PACKED)
    found = packed_attention(*given, bounds(PACKED))
    assert found.dtype is torch.bfloat16
    assert found.shape == truth.shape
    assert error(found, truth) <= min(3e-3, 1.5 * error(of_each(*given, PACKED), truth))


@needs_instructions
def test_a_packed_sequence_does_not_know_the_others() -> None:
    """Alone, among others, and on any number of threads it has the same bits, also with others that are not finite."""
    query, key, value = tensors(3, 3, sum(PACKED), 32)[:3]
    together = packed_attention(query, key, value, bounds(PACKED))
    torch.set_num_threads(3)
    assert torch.equal(packed_attention(query, key, value, bounds(PACKED)), together)
    for begin, length in zip(bounds(PACKED), PACKED, strict=False):
        own = slice(begin, begin + length)
        alone = packed_attention(query[:, :, own], key[:, :, own], value[:, :, own], [0, length])
        assert torch.equal(alone, together[:, own])
    value[:, :, 255:] = float("nan")
    key[:, :, 255:] = float("inf")
    spoiled = packed_attention(query, key, value, bounds(PACKED))
    assert torch.equal(spoiled[:, :255], together[:, :255])
    assert spoiled[:, 255:].isnan().all()


@needs_instructions
def test_packed_scores_that_are_large_do_not_overflow() -> None:
    given = tensors(2, 1, 150, 64, spread=60.0)[:3]
    truth = of_each(*(t.float() for t in given), (150,))
    assert error(packed_attention(*given, [0, 150]), truth) <= 3e-3


@needs_instructions
def test_a_scale_and_sequences_without_tokens() -> None:
    query, key, value = tensors(2, 2, 30, 32)[:3]
    truth = of_each(query.float() * 0.3 * 32**0.5, key.float(), value.float(), (10, 20))
    found = packed_attention(query, key, value, [0, 0, 10, 10, 30, 30], scale=0.3)
    assert error(found, truth) <= 3e-3


@needs_instructions
def test_wrong_offsets_are_refused() -> None:
    query, key, value = tensors(2, 2, 30, 32)[:3]
    for wrong in ([], [0, 29], [1, 30]):
        with pytest.raises(ValueError, match=r"offsets must begin with 0 and end with 30 \(tokens\)"):
            packed_attention(query, key, value, wrong)
    for wrong in ([0, 20, 10, 30], [0, -1, 30], [0, 31, 30]):
        with pytest.raises(ValueError, match="offsets must not fall and be between 0 and 30"):
            packed_attention(query, key, value, wrong)
    with pytest.raises(ValueError, match="key must be bfloat16 on cpu"):
        packed_attention(query, key.float(), value, [0, 30])


@needs_instructions
def test_wrong_tensors_are_refused() -> None:
    query, key, value, _ = tensors(4, 2, 20, 32)
    with pytest.raises(ValueError, match=r"key must be bfloat16 on cpu, got torch\.float32"):
        causal_attention(query, key.float(), value)
    with pytest.raises(ValueError, match=r"query must have shape \(1, heads, tokens, dim\), got \(4, 20, 32\)"):
        causal_attention(query[0], key, value)
    with pytest.raises(ValueError, match="key and value must have shape"):
        causal_attention(query, key[:, :, :10], value[:, :, :10])
    with pytest.raises(ValueError, match="key and value must have shape"):
        causal_attention(query[:, :3], key, value)
    with pytest.raises(ValueError, match="dim must be a multiple of 16 from 32 to 256, got 24"):
        causal_attention(query[..., :24], key[..., :24], value[..., :24])
    with pytest.raises(ValueError, match="scale must be finite and above 0, got -1"):
        causal_attention(query, key, value, scale=-1.0)


def trained(model: Any, switch: NativeAttention | None) -> tuple[float, Tensor]:
    """Loss and all gradients of one step."""
    model.zero_grad()
    if switch is None:
        loss = model(input_ids=INPUT, labels=INPUT, use_cache=False).loss
        loss.backward()
    else:
        with switch.enabled():
            loss = model(input_ids=INPUT, labels=INPUT, use_cache=False).loss
            loss.backward()
    return loss.item(), torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


@needs_instructions
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_of_each_family(name: str, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    exact_loss, exact = trained(build(name, torch.float32), None)
    model = build(name, torch.float32 if autocast else torch.bfloat16)
    model.train()
    for child in model.modules():
        if isinstance(child, nn.Dropout):
            child.p = 0.0
    switch = NativeAttention.for_model(model)
    assert switch is not None
    assert all(child.training for child in model.modules())
    calls = []
    native = hf_attention.causal_attention
    monkeypatch.setattr(hf_attention, "causal_attention", lambda *a, **k: calls.append(1) or native(*a, **k))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        rival_loss, rival = trained(model, None)
        assert calls == []
        loss, gradient = trained(model, switch)
    assert len(calls) == 2
    assert model.config._attn_implementation == "sdpa"
    assert abs(loss - exact_loss) <= 1.5 * abs(rival_loss - exact_loss) + 2e-3 * exact_loss
    assert error(gradient, exact) <= 1.5 * error(rival, exact)


@needs_instructions
@pytest.mark.parametrize("kind", [ArithmeticError, KeyboardInterrupt])
def test_the_switch_leaves_nothing_behind(kind: type[BaseException]) -> None:
    model = build("llama")
    switch = NativeAttention.for_model(model)
    config = model.config
    before = dict(vars(config))

    def interrupted() -> None:
        with switch.enabled():
            assert config._attn_implementation == NAME
            with switch.enabled():  # the inner one has nothing left to switch
                assert config._attn_implementation == NAME
            assert config._attn_implementation == NAME
            raise kind

    with pytest.raises(kind):
        interrupted()
    assert dict(vars(config)) == before
    config._attn_implementation = "eager"
    with switch.enabled():
        assert config._attn_implementation == "eager"
    assert config._attn_implementation == "eager"


@needs_instructions
def test_configurations_below_a_configuration() -> None:
    class Two(nn.Module):
        """A model of two parts, each with its own configuration; only one is switched."""

        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = build("llama"), build("neox")
            self.right.config._attn_implementation = "eager"

        def get_input_embeddings(self) -> nn.Module:
            return self.left.get_input_embeddings()

        def forward(self, **inputs: Any) -> Any:
            out = self.left(**inputs)
            out.logits = out.logits + self.right(**inputs).logits
            return out

    model = Two()
    switch = NativeAttention.for_model(model)
    with switch.enabled():
        assert model.left.config._attn_implementation == NAME
        assert model.right.config._attn_implementation == "eager"
    assert model.left.config._attn_implementation == "sdpa"
    assert model.right.config._attn_implementation == "eager"


@needs_instructions
def test_models_that_it_would_not_help() -> None:
    assert NativeAttention.for_model(nn.Linear(2, 2)) is None
    eager = build("llama")
    eager.config._attn_implementation = "eager"
    assert NativeAttention.for_model(eager) is None
    narrow = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=1, **SIZES))  # heads of 16
    assert NativeAttention.for_model(narrow.bfloat16()) is None
    capped = Gemma2ForCausalLM(Gemma2Config(num_attention_heads=2, num_key_value_heads=1, head_dim=32, **SIZES))
    assert NativeAttention.for_model(capped.bfloat16()) is None


def test_a_processor_without_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tttnn._core.attention_supported", lambda: False)
    assert NativeAttention.for_model(build("llama")) is None


@needs_instructions
def test_the_rest_goes_to_the_model_s_own_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("native attention was asked for what it does not do")

    def same(model: Any, **inputs: Any) -> None:
        expected = model(**inputs).logits
        with switch.enabled():
            assert torch.equal(model(**inputs).logits, expected)

    model = build("llama")
    switch = NativeAttention.for_model(model)
    window = MistralForCausalLM(
        MistralConfig(num_attention_heads=2, num_key_value_heads=1, sliding_window=90, **SIZES)
    ).bfloat16()
    of_window = NativeAttention.for_model(window)
    parameters = inspect.signature(model.forward).parameters
    cache = "cache" if "cache" in parameters else "past_key_values"  # the name before transformers 5.24
    monkeypatch.setattr(hf_attention, "causal_attention", refuse)
    padding = torch.ones_like(INPUT)
    padding[:, :9] = 0
    with torch.no_grad():
        same(model, input_ids=INPUT, attention_mask=padding)
        same(model, input_ids=INPUT.repeat(2, 1))
        packed = (torch.arange(100) % 50).unsqueeze(0)
        same(model, input_ids=INPUT, position_ids=packed, use_cache=False)
        held = model(input_ids=INPUT[:, :60], use_cache=True)
        with switch.enabled():
            model(input_ids=INPUT[:, 60:], **{cache: held[cache]})
        with pytest.raises(AssertionError, match="does not do"), switch.enabled():
            model(input_ids=INPUT)
        assert of_window is not None  # shorter than its window
        switch = of_window
        same(window, input_ids=INPUT)
        other = build("llama", torch.float32)
        switch = NativeAttention([other.config])
        same(other, input_ids=INPUT)
        with torch.autocast("cpu", torch.float16):
            same(other, input_ids=INPUT)


@needs_instructions
def test_dropout_goes_to_the_model_s_own_attention() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=61, n_positions=128, n_embd=64, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0)
    ).bfloat16()
    switch = NativeAttention.for_model(model)
    model.train()
    torch.manual_seed(1)
    expected = model(input_ids=INPUT).logits
    torch.manual_seed(1)
    with switch.enabled():
        assert torch.equal(model(input_ids=INPUT).logits, expected)


@needs_instructions
@pytest.mark.models
def test_a_real_model(smollm2: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16).eval()
    switch = NativeAttention.for_model(model)
    assert switch is not None
    ids = torch.arange(200).unsqueeze(0) * 7
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with switch.enabled():
            found = model(input_ids=ids).logits
    # Thirty layers multiply the rounding: torch's own attention is as far from float32.
    assert 0 < error(found, expected) <= 0.05


def test_transformers_has_every_name_that_is_not_promised() -> None:
    assert hf_attention.missing_name() is None


@pytest.mark.parametrize(
    "name",
    [
        "transformers.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS",
        "transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS",
        "transformers.PreTrainedConfig._attn_implementation",
    ],
)
def test_a_name_that_is_gone_leaves_the_model_s_own_attention_and_is_told(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = build("llama")
    monkeypatch.setattr(hf_attention, "supported", lambda: True)
    monkeypatch.delattr(name)
    with caplog.at_level("WARNING", logger="tttnn"):
        assert NativeAttention.for_model(model) is None
    assert "training attends by the model's own means: this transformers has no" in caplog.text
    assert name.rpartition(".")[2] in caplog.text


def test_a_probe_that_fails_leaves_the_model_s_own_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_attention, "supported", lambda: True)
    model = build("llama")

    def fail(**_: object) -> None:
        raise RuntimeError("not in bfloat16")

    model.forward = fail
    assert NativeAttention.for_model(model) is None
