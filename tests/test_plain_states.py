"""What a model writes into itself as it runs, beside weights, goes with the text that it was written for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

import tttnn
from tests.conftest import TEXTS, FakeRetriever, assert_same_state, state_of
from tttnn.errors import RestoreError

SIZES = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": 257,
    "initializer_range": 0.3,
}
SHORT, LONG = "a cat sat", "a cat sat on the mat. " * 8


def long_rope() -> Any:
    """Writes a buffer in each pass, another one above 64 tokens."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    sizes = SIZES | {"max_position_embeddings": 256, "original_max_position_embeddings": 64}
    return Phi3ForCausalLM(Phi3Config(**sizes, rope_scaling=rope))


def dynamic_rope() -> Any:
    """Writes another buffer, and its length, above 64 tokens."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(**SIZES | {"max_position_embeddings": 256}, rope_scaling=rope))


def rescaling() -> Any:
    """Divides weights in evaluation mode, once, and keeps that it did."""
    sizes = {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 3, "context_length": 256, "rescale_every": 1}
    return RwkvForCausalLM(RwkvConfig(**sizes, bos_token_id=256, eos_token_id=256))


def recurrent() -> Any:
    """Keeps the state of the last text as an attribute."""
    return RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(**SIZES, lru_width=32, block_types=["recurrent", "attention"], attention_window_size=32)
    )


class Remembering(LlamaForCausalLM):
    """Keeps what it computed last, counts its passes, and makes a buffer."""

    passes = 0

    def forward(self, *arguments: Any, **named: Any) -> Any:
        made = super().forward(*arguments, **named)
        self.passes += 1
        self.last = [made.logits]
        self.register_buffer("seen", torch.ones(1) * self.passes, persistent=False)
        return made


def remembering() -> Any:
    return Remembering(LlamaConfig(**SIZES))


def attributes_of(model: Any) -> dict[str, Any]:
    return {
        f"{path}.{name}": value if isinstance(value, int | float | str) else id(value)
        for path, module in model.named_modules()
        for name, value in [*vars(module).items(), *module.named_buffers(recurse=False)]
    }


def direct_nats(model: Any, tokenizer: Any) -> float:
    ids = torch.tensor([[256, *tokenizer(SHORT)["input_ids"]]])
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0]
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))


@pytest.mark.parametrize("build", [long_rope, dynamic_rope, recurrent, rescaling, remembering])
def test_nothing_of_a_text_stays_in_a_model(build: Callable[[], Any], tokenizer: Any) -> None:
    torch.manual_seed(0)
    model = build().eval()
    held, expected = attributes_of(model), direct_nats(copy.deepcopy(model), tokenizer)
    config = tttnn.AdaptConfig(num_neighbors=2, max_length=40, learning_rate=1e-3, precision="float32")
    trainer = tttnn.TestTimeTrainer(model, tokenizer, FakeRetriever(TEXTS), config)
    assert build is rescaling or attributes_of(model) == held
    before, weights = attributes_of(model), state_of(model)
    alone = trainer.scorer.score(SHORT).nats
    assert alone == pytest.approx(expected, rel=1e-5)
    for _ in range(2):
        trainer.scorer.score(LONG)
        trainer.generate(LONG[:40], max_new_tokens=2)
        assert attributes_of(model) == before
        assert trainer.scorer.score(SHORT).nats == alone
        with trainer.adapt("cats") as adapted:
            assert adapted.report.steps > 1
            adapted.score(LONG)
        assert attributes_of(model) == before
        assert_same_state(model, weights)
    trainer.verify()
    trainer.release()
    assert_same_state(copy.deepcopy(model), weights)


def test_what_a_caller_writes_into_a_buffer_is_found(tokenizer: Any) -> None:
    trainer = tttnn.TestTimeTrainer(long_rope(), tokenizer, FakeRetriever(TEXTS), tttnn.AdaptConfig(num_neighbors=1))
    trainer.model.model.rotary_emb.inv_freq.mul_(2)
    trainer.scorer.score(SHORT)
    with pytest.raises(RestoreError, match="inv_freq must stay as the arena left it"):
        trainer.adapt("cats").__enter__()
