"""Train and eval modes come back module by module, whatever was computed and however it ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import tttnn
from tests.conftest import tiny_gpt2, tiny_llama
from tttnn.kernels.hf_attention import NativeAttention
from tttnn.lm.generate import continued
from tttnn.lm.loss import SlicedLoss
from tttnn.lm.modes import eval_mode
from tttnn.lm.score import Scorer

Modes = list[tuple[str, bool]]


def mixed(model: Any) -> Modes:
    """Put a model partly into train mode: the root, every second module and no other."""
    for i, module in enumerate(model.modules()):
        module.training = i % 2 == 0
    return modes_of(model)


def modes_of(model: Any) -> Modes:
    return [(name, module.training) for name, module in model.named_modules()]


@pytest.mark.parametrize("root", [True, False])
def test_each_module_is_in_its_own_mode_after_the_block(root: bool) -> None:
    model = tiny_gpt2()
    mixed(model)
    model.training = root
    before = modes_of(model)
    with eval_mode(model):
        assert not any(training for _, training in modes_of(model))
    assert modes_of(model) == before
    with pytest.raises(KeyError), eval_mode(model):
        raise KeyError
    assert modes_of(model) == before


def test_a_module_that_does_more_when_its_mode_changes_is_left_alone() -> None:
    model = tiny_gpt2()

    def train(self: Any, mode: bool = True) -> Any:
        raise AssertionError("train() was called")

    model.transformer.h[1].train = train.__get__(model.transformer.h[1])
    with eval_mode(model):
        assert not model.transformer.h[1].training
    assert model.transformer.h[1].training


def scored(model: Any, tokenizer: Any) -> object:
    return Scorer(model, tokenizer).score("a text").nats


def written(model: Any, tokenizer: Any) -> object:
    return continued(model, tokenizer, [65, 66], window=64, max_new_tokens=3).text


def written_by_trainer(model: Any, tokenizer: Any) -> object:
    trainer = tttnn.TestTimeTrainer(model, tokenizer, None)
    try:
        return trainer.generate("a prompt", max_new_tokens=3)
    finally:
        trainer.release()


def written_by_harness(model: Any, tokenizer: Any) -> object:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    from lm_eval.api.instance import Instance

    from tttnn.evaluation.harness import TttnnLM

    trainer = tttnn.TestTimeTrainer(model, tokenizer, None, tttnn.AdaptConfig(num_neighbors=0))
    request = Instance("generate_until", {}, ("abc", {"max_gen_toks": 3}), 0)
    try:
        return TttnnLM(trainer).generate_until([request], disable_tqdm=True)
    finally:
        trainer.release()


def probed_loss(model: Any, tokenizer: Any) -> object:
    return SlicedLoss.for_model(model)


def probed_attention(model: Any, tokenizer: Any) -> object:
    return NativeAttention.for_model(model)


@pytest.mark.parametrize(
    "compute", [scored, written, written_by_trainer, written_by_harness, probed_loss, probed_attention]
)
@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_modes_survive(make: Callable[[], Any], compute: Callable[[Any, Any], object], tokenizer: Any) -> None:
    model = make()
    before = mixed(model)
    compute(model, tokenizer)
    assert modes_of(model) == before
