from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import tttnn
from tests.conftest import tiny_gpt2, tiny_llama
from tttnn.lm.score import Score, Scorer

TEXT = "Perplexity of a text, with Ünïcödé and 🐍, " * 12


def direct_nats(model: Any, ids: list[int], first: int) -> float:
    """One forward pass over everything, in float64."""
    with torch.no_grad():
        logits = model.double()(input_ids=torch.tensor([ids[:-1]])).logits[0]
    log_probs = logits.log_softmax(-1)
    return -sum(float(log_probs[i - 1, ids[i]]) for i in range(first, len(ids)))


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("context", ["", "before it: "])
def test_score_is_the_direct_float64_log_likelihood(tokenizer: Any, make: Any, context: str) -> None:
    model = make().eval()
    text = TEXT[:90]
    score = Scorer(model, tokenizer).score(text, context=context)
    ids = [256, *tokenizer(context)["input_ids"], *tokenizer(text)["input_ids"]]
    assert score.nats == pytest.approx(direct_nats(model, ids, 1 + len(context)), rel=1e-6)
    assert score.num_bytes == len(text.encode())
    assert score.tokens == len(text.encode())


@pytest.mark.parametrize("max_length", [16, 33, None])
def test_windows_agree_with_lm_evaluation_harness(tokenizer: Any, max_length: int | None) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    model = tiny_gpt2().eval()
    score = Scorer(model, tokenizer, tttnn.ScoreConfig(max_length=max_length)).score(TEXT)
    ids = tokenizer(TEXT)["input_ids"]
    total = 0.0
    for context, target in map(make_disjoint_window, get_rolling_token_windows(ids, 256, max_length or 128, 1)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*context, *target][:-1]])).logits[0, -len(target) :]
        total -= float(logits.log_softmax(-1).gather(-1, torch.tensor(target)[:, None]).double().sum())
    assert score.nats == pytest.approx(total, rel=1e-6)


def test_empty_and_one_byte_texts(model: Any, tokenizer: Any) -> None:
    scorer = Scorer(model, tokenizer)
    assert scorer.score("").nats == 0
    assert math.isnan(scorer.score("").bits_per_byte)
    assert scorer.score("x").tokens == 1
    assert scorer.score("x").nats > 0


def test_scoring_leaves_train_mode_and_dropout_out_of_it(model: Any, tokenizer: Any) -> None:
    model.train()
    scorer = Scorer(model, tokenizer)
    assert scorer.score(TEXT) == scorer.score(TEXT)
    assert model.training


def test_score_units() -> None:
    score = Score(nats=8 * math.log(2), tokens=2, num_bytes=4, words=1)
    assert score.bits_per_byte == pytest.approx(2)
    assert score.byte_perplexity == pytest.approx(4)
    assert score.word_perplexity == pytest.approx(256)


def test_a_tokenizer_without_first_token_is_refused(model: Any) -> None:
    class Bare:
        bos_token_id = None
        eos_token_id = None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [1, 2]}

    with pytest.raises(ValueError, match="bos or an eos"):
        Scorer(model, Bare()).score("x")
