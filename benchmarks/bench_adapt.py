"""One whole query: train on k neighbors, score, put the weights back. Rival: the plain PyTorch loop of the paper.

    python -m pytest benchmarks/bench_adapt.py

The rival keeps a copy of the state, trains in float32 with AdamW's default implementation, clips, and loads the copy.
Both train the same tokens; bits per byte of the same text stand beside the time (`extra_info`).
"""

from __future__ import annotations

import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import tttnn
from benchmarks.plain_loop import LEARNING_RATE, plain_query
from tttnn.lm.score import Scorer
from tttnn.lm.tokens import token_ids
from tttnn.retrieval.neighbors import Neighbor


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(tttnn.models.resolve("smollm2-135m"))


def load_model(smoke: bool) -> Any:
    if smoke:
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
            )
        ).eval()
    return AutoModelForCausalLM.from_pretrained(tttnn.models.resolve("smollm2-135m"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ids(tokenizer: Any) -> list[int]:
    """Tokens of real text of every Python installation."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = "".join((folder / name).read_text() for name in ("argparse.py", "inspect.py", "typing.py"))
    return token_ids(tokenizer, text)


def cut(tokenizer: Any, ids: list[int], length: int, count: int) -> list[str]:
    return [tokenizer.decode(ids[i * length : (i + 1) * length]) for i in range(count)]


@pytest.mark.parametrize("length", [512, 1024])
@pytest.mark.parametrize("k", [1, 5, 20])
class TestWholeQuery:
    """Trains on k windows of `length` tokens and scores 512 tokens that follow them."""

    def test_tttnn(self, benchmark: Any, k: int, length: int, tokenizer: Any, ids: list[int], smoke: bool) -> None:
        length = 64 if smoke else length
        texts, scored = cut(tokenizer, ids, length, k), tokenizer.decode(ids[k * length :][:512])
        config = tttnn.AdaptConfig(learning_rate=LEARNING_RATE, schedule="constant", max_neighbor_tokens=None)
        trainer = tttnn.TestTimeTrainer(load_model(smoke), tokenizer, None, config)
        neighbors = [Neighbor(i, float(i), text) for i, text in enumerate(texts)]
        base = trainer.scorer.score(scored).bits_per_byte

        def query() -> tuple[float, int]:
            with trainer.adapt("query", neighbors=neighbors) as adapted:
                return adapted.bits_per_byte(scored), adapted.report.tokens

        benchmark.group = f"one query, {k} neighbors of {length} tokens"
        bits, tokens = benchmark.pedantic(query, rounds=rounds(k, smoke), warmup_rounds=0 if smoke else 1)
        trainer.verify()
        benchmark.extra_info |= {"bits_per_byte": bits, "base": base, "tokens": tokens}
        assert bits != base if smoke else bits < base

    def test_plain_loop(self, benchmark: Any, k: int, length: int, tokenizer: Any, ids: list[int], smoke: bool) -> None:
        length = 64 if smoke else length
        texts, scored = cut(tokenizer, ids, length, k), tokenizer.decode(ids[k * length :][:512])
        model = load_model(smoke)
        scorer = Scorer(model, tokenizer)
        base = scorer.score(scored).bits_per_byte

        def query() -> float:
            windows = [token_ids(tokenizer, text) for text in texts]
            return plain_query(model, windows, lambda: scorer.score(scored).bits_per_byte)

        benchmark.group = f"one query, {k} neighbors of {length} tokens"
        bits = benchmark.pedantic(query, rounds=rounds(k, smoke), warmup_rounds=0 if smoke else 1)
        benchmark.extra_info |= {"bits_per_byte": bits, "base": base}
        assert bits != base if smoke else bits < base


def rounds(k: int, smoke: bool) -> int:
    return 1 if smoke or k == 20 else 3


@pytest.mark.parametrize("length", [512, 1024])
def test_share_of_matrix_product_rate(benchmark: Any, length: int, tokenizer: Any, ids: list[int], smoke: bool) -> None:
    """Forward and backward of one window: the time its products would take at the rate of a large one, over its own.

    Counted are the products of weights (6 operations for each weight and token, the head once) and of causal attention
    (7 products of tokens x tokens / 2 x width: two forward, five backward).
    """
    length = 64 if smoke else length
    model = load_model(smoke)
    trainer = tttnn.TestTimeTrainer(model, tokenizer, None, tttnn.AdaptConfig())
    window = torch.tensor([ids[:length]])
    side = 128 if smoke else 2048
    square = torch.randn(side, side, dtype=torch.bfloat16)
    rates: list[float] = []
    losses: list[float] = []

    def forward_and_backward() -> float:
        started = time.perf_counter()
        square @ square
        rates.append(2 * side**3 / (time.perf_counter() - started))
        trainer.engine.arena.begin()
        started = time.perf_counter()
        with trainer.engine.training():
            loss = trainer.engine.loss_of(window)
            loss.backward()
        taken = time.perf_counter() - started
        losses.append(loss.item())
        trainer.engine.arena.restore()
        return taken

    seconds = [forward_and_backward() for _ in range(2 if smoke else 8)]
    benchmark.pedantic(forward_and_backward, rounds=1)
    config = model.config
    weights = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    attention = 7 * length * length * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    operations = 6 * weights * length + attention
    benchmark.extra_info |= {
        "gigaoperations": round(operations / 1e9, 1),
        "rate_of_products": round(max(rates) / 1e9, 1),
        "seconds": round(min(seconds), 3),
        "share": round(operations / max(rates) / min(seconds), 3),
    }
    trainer.verify()
    assert len(set(losses)) == 1
