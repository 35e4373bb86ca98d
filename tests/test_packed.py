"""Packed encoders: the states of a text alone, whatever stands beside it; and who is left to the padded way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
)

from tests.encoders import tiny_bert
from tttnn.embedding import packed as module
from tttnn.embedding.packed import NAME, PackedEncoder, packed_offsets
from tttnn.kernels.attention import supported

SIZES = {"vocab_size": 61, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
LENGTHS = [64, 1, 33, 2, 1, 17, 33, 64]
TEXTS = [[2 + (5 * i + 7 * t * t) % 59 for t in range(length)] for i, length in enumerate(LENGTHS)]


pytestmark = pytest.mark.usefixtures("one_thread")


def bert(**settings: Any) -> Any:
    return BertModel(BertConfig(**SIZES | {"max_position_embeddings": 64} | settings))


class Deaf(BertModel):
    """It takes the bounds and keeps them to itself."""

    def forward(self, input_ids: Any, attention_mask: Any = None, position_ids: Any = None, **_: Any) -> Any:
        return super().forward(input_ids, attention_mask=attention_mask, position_ids=position_ids)


class Picky(BertModel):
    """It says that it takes anything, and does not."""

    def forward(self, input_ids: Any, attention_mask: Any = None, position_ids: Any = None, **options: Any) -> Any:
        if options:
            raise TypeError("unexpected argument")
        return super().forward(input_ids, attention_mask=attention_mask, position_ids=position_ids)


FIT: dict[str, tuple[Callable[[], Any], int]] = {
    "bert": (bert, 0),
    "bert of heads that only torch attends with": (lambda: bert(num_attention_heads=4), 0),
    "roberta": (lambda: RobertaModel(RobertaConfig(**SIZES, max_position_embeddings=66, pad_token_id=1)), 2),
    "distilbert": (
        lambda: DistilBertModel(
            DistilBertConfig(vocab_size=61, dim=64, hidden_dim=96, n_layers=2, n_heads=2, max_position_embeddings=64)
        ),
        0,
    ),
}
UNFIT: dict[str, Callable[[], Any]] = {
    "bias of relative positions": lambda: T5EncoderModel(
        T5Config(vocab_size=61, d_model=64, d_kv=32, d_ff=96, num_layers=2, num_heads=2)
    ),
    "positions of its own": lambda: MPNetModel(MPNetConfig(**SIZES, max_position_embeddings=66)),
    "window": lambda: ModernBertModel(
        ModernBertConfig(**SIZES, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    ),
    "causal": lambda: LlamaModel(LlamaConfig(**SIZES)),
    "causal bert": lambda: bert(is_decoder=True),
    "bounds not handed on": lambda: Deaf(BertConfig(**SIZES)),
    "bounds refused": lambda: Picky(BertConfig(**SIZES)),
    "eager": lambda: bert(attn_implementation="eager"),
}


def build(make: Callable[[], Any], dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():  # so that attention and positions have something to say
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model.to(dtype).eval().requires_grad_(False)


def alone(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        states: torch.Tensor = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return states


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FIT)
def test_states_are_those_of_each_text_alone(name: str, dtype: torch.dtype) -> None:
    make, first_position = FIT[name]
    model = build(make, dtype)
    exact = build(make, torch.bfloat16).float()
    expected = torch.cat([alone(exact, ids) for ids in TEXTS])
    theirs = torch.cat([alone(model, ids) for ids in TEXTS])
    packed = PackedEncoder.for_model(model, first_position=first_position)
    assert packed is not None
    assert model.config._attn_implementation == NAME
    found = packed(TEXTS)
    assert found.dtype is dtype
    if dtype is torch.float32:
        torch.testing.assert_close(found, theirs, atol=1e-5, rtol=1e-5)
    else:  # as far from float32 as the padded way is: bfloat16 keeps 8 bits, through two layers
        distance = (found.float() - expected).norm()
        assert 0 < distance <= min(0.02 * expected.norm(), 1.2 * (theirs.float() - expected).norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_text_does_not_know_the_others(dtype: torch.dtype) -> None:
    """To the bit as far as the core attends; linear layers of torch may round a product of another shape otherwise."""
    packed = PackedEncoder.for_model(build(bert, dtype))
    assert packed is not None
    together = torch.split(packed(TEXTS), LENGTHS)
    order = [3, 0, 7, 5]
    others = torch.split(packed([TEXTS[i] for i in order]), [LENGTHS[i] for i in order])
    for i, found in zip(order, others, strict=True):
        torch.testing.assert_close(found, together[i], atol=1e-5, rtol=0.0 if dtype is torch.float32 else 2**-7)
    torch.set_num_threads(2)
    assert torch.equal(packed(TEXTS), torch.cat(together))


@pytest.mark.skipif(not supported(), reason="no AVX-512 with bfloat16 on this processor")
def test_the_core_attends_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    own = module.packed_attention

    def watched(*tensors: Any, **options: Any) -> torch.Tensor:
        seen.append(tensors[3])
        return own(*tensors, **options)

    monkeypatch.setattr(module, "packed_attention", watched)
    packed = PackedEncoder.for_model(build(bert, torch.bfloat16))
    assert packed is not None
    seen.clear()
    packed([[1, 2, 3], [4]])
    assert seen == [[0, 3, 4]] * 2  # two layers
    monkeypatch.setattr(module, "supported", lambda: False)
    assert packed([[1, 2, 3], [4]]).shape == (4, 64)
    assert len(seen) == 2


@pytest.mark.parametrize("name", UNFIT)
def test_the_rest_is_left_to_the_padded_way(name: str) -> None:
    model = build(UNFIT[name], torch.bfloat16)
    before = model.config._attn_implementation
    assert PackedEncoder.for_model(model) is None
    assert model.config._attn_implementation == before


def test_wrong_positions_are_noticed() -> None:
    assert PackedEncoder.for_model(build(FIT["roberta"][0], torch.float32), first_position=3) is None


def test_without_bounds_the_model_attends_as_before() -> None:
    model = build(bert, torch.bfloat16)
    tokens = torch.tensor(TEXTS[:1] * 2)
    mask = torch.ones_like(tokens)
    mask[1, 20:] = 0
    with torch.inference_mode():
        expected = [model(tokens, attention_mask=m).last_hidden_state for m in (mask, None)]
        assert PackedEncoder.for_model(model) is not None
        found = [model(tokens, attention_mask=m).last_hidden_state for m in (mask, None)]
    assert all(map(torch.equal, found, expected))


def test_offsets() -> None:
    np.testing.assert_array_equal(packed_offsets([3, 0, 2]), [0, 3, 3, 5])
    assert packed_offsets([]).tolist() == [0]


def test_the_tiny_encoder_of_other_tests_is_packed() -> None:
    assert PackedEncoder.for_model(tiny_bert().eval()) is not None
