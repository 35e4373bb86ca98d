"""One whole query: train on k neighbors, score, put the weights back. Rival: the plain PyTorch loop of the paper.

    python -m pytest benchmarks/bench_adapt.py

The rival keeps a copy of the state, trains in float32 with AdamW's default implementation, clips, and loads the copy.
Both train the same tokens; bits per byte of the same text stand beside the time (`extra_info`).
"""

from __future__ import annotations

import copy
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import tttnn
from tttnn.datastore import Neighbor
from tttnn.score import Scorer, token_ids

LEARNING_RATE = 2e-5


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
def texts(tokenizer: Any, smoke: bool) -> list[str]:
    """Real text of every Python installation: windows of 512 tokens; the last one is scored, the others trained."""
    length = 64 if smoke else 512
    text = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text()
    ids = token_ids(tokenizer, text)
    return [tokenizer.decode(ids[i : i + length]) for i in range(0, 21 * length, length)]


@pytest.mark.parametrize("k", [1, 5, 20])
class TestWholeQuery:
    def test_tttnn(self, benchmark: Any, k: int, tokenizer: Any, texts: list[str], smoke: bool) -> None:
        config = tttnn.AdaptConfig(learning_rate=LEARNING_RATE, schedule="constant", max_neighbor_tokens=None)
        trainer = tttnn.TestTimeTrainer(load_model(smoke), tokenizer, None, config)
        neighbors = [Neighbor(i, float(i), text) for i, text in enumerate(texts[:k])]
        base = trainer.scorer.score(texts[-1]).bits_per_byte

        def query() -> tuple[float, int]:
            with trainer.adapt("query", neighbors=neighbors) as adapted:
                return adapted.bits_per_byte(texts[-1]), adapted.report.tokens

        benchmark.group = f"one query, {k} neighbors of 512 tokens"
        bits, tokens = benchmark.pedantic(query, rounds=1 if smoke else 3, warmup_rounds=0 if smoke else 1)
        trainer.verify()
        benchmark.extra_info |= {"bits_per_byte": bits, "base": base, "tokens": tokens}
        assert bits != base if smoke else bits < base

    def test_plain_loop(self, benchmark: Any, k: int, tokenizer: Any, texts: list[str], smoke: bool) -> None:
        model = load_model(smoke)
        scorer = Scorer(model, tokenizer)
        base = scorer.score(texts[-1]).bits_per_byte

        def query() -> float:
            saved = copy.deepcopy(model.state_dict())
            optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
            for text in texts[:k]:
                ids = torch.tensor([token_ids(tokenizer, text)])
                optimizer.zero_grad()
                model(input_ids=ids, labels=ids).loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            bits = scorer.score(texts[-1]).bits_per_byte
            model.load_state_dict(saved)
            return bits

        benchmark.group = f"one query, {k} neighbors of 512 tokens"
        bits = benchmark.pedantic(query, rounds=1 if smoke else 3, warmup_rounds=0 if smoke else 1)
        benchmark.extra_info |= {"bits_per_byte": bits, "base": base}
        assert bits != base if smoke else bits < base
