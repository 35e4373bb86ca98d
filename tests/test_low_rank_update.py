"""Weights changed by a low-rank update for one query: exact, with any threads, trained on from there, undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tttnn
from tests.conftest import TEXTS, FakeRetriever, assert_same_state, state_of, tiny_gpt2, tiny_llama
from tests.test_optim import Weights, give, gradients
from tttnn.errors import AdaptError
from tttnn.stages import Stages
from tttnn.training.optimizer import build_optimizer
from tttnn.training.transaction import Transaction
from tttnn.weights.arena import WeightArena
from tttnn.weights.lora import chosen_layers, is_transposed, shape_of
from tttnn.weights.low_rank_update import LowRankUpdate, digest_of_matrices, shared_a

TOKENS = list(range(40, 80))


def update_for(model: Any, *, rank: int = 4, size: float = 0.05) -> LowRankUpdate:
    shapes = {name: shape_of(model.get_submodule(name)) for name in chosen_layers(model, ())}
    a = shared_a(shapes, rank=rank, seed=3)
    generator = torch.Generator().manual_seed(11)
    b = {name: torch.randn(shapes[name][0], rank, generator=generator) * size for name in shapes}
    return LowRankUpdate({name: (a[name], b[name]) for name in shapes}, 2.0)


def trainer_of(model: Any, tokenizer: Any, **settings: Any) -> tttnn.TestTimeTrainer:
    config = tttnn.AdaptConfig(num_neighbors=3, max_length=64, learning_rate=1e-3, precision="float32")
    return tttnn.TestTimeTrainer(model, tokenizer, FakeRetriever(TEXTS), config.with_(**settings))


class Opened:
    """A transaction over a trainer's engine."""

    def __init__(self, trainer: tttnn.TestTimeTrainer) -> None:
        self.engine = trainer.engine
        self._transaction = Transaction(self.engine)

    def __enter__(self) -> Any:
        self._transaction.open()
        self._transaction.begin(0)
        return self.engine

    def __exit__(self, *_: object) -> None:
        self._transaction.end(Stages(), verify=True)


def expected(model: Any, update: LowRankUpdate) -> dict[str, torch.Tensor]:
    """The weights of the changed layers in float64."""
    found = {}
    for name, (a, b) in update.layers.items():
        product = update.scale * (b.double() @ a.double())
        layer = model.get_submodule(name)
        found[name] = layer.weight.detach().double() + (product.t() if is_transposed(layer) else product)
    return found


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("steps_follow", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "torch_adamw"])
def test_the_changed_weights_are_those_of_float64_and_are_put_back(
    make: Any, steps_follow: bool, optimizer: str, tokenizer: Any
) -> None:
    trainer = trainer_of(make(), tokenizer, optimizer=optimizer)
    update = update_for(trainer.model)
    before, wanted = state_of(trainer.model), expected(trainer.model, update)
    for _ in range(2):  # the second query must not see the first
        with Opened(trainer) as engine:
            engine.change(update, steps_follow=steps_follow)
            for name, weight in wanted.items():
                found = engine.model.get_submodule(name).weight.detach().double()
                # Two roundings of float32: of the product's sum and of the sum with the weight.
                assert torch.allclose(found, weight, rtol=3e-7, atol=3e-8), name
            changed = {f"{name}.weight" for name in wanted}
            for name, parameter in engine.model.named_parameters():
                assert torch.equal(parameter, before[name]) == (name not in changed), name
        assert_same_state(trainer.model, before)
    trainer.release()


def test_the_change_is_bit_equal_for_any_number_of_threads(tokenizer: Any) -> None:
    threads = torch.get_num_threads()
    trainer = trainer_of(tiny_llama(hidden_size=96, intermediate_size=200), tokenizer)
    update = update_for(trainer.model, rank=16)
    states = []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            with Opened(trainer) as engine:
                engine.change(update, steps_follow=False)
                states.append(state_of(engine.model))
    finally:
        torch.set_num_threads(threads)
    for state in states[1:]:
        assert all(torch.equal(tensor, states[0][name]) for name, tensor in state.items())
    trainer.release()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_begin_at_the_changed_weights(dtype: torch.dtype, tokenizer: Any) -> None:
    """The fused step after a change does what it does in a model that was loaded with these weights."""
    update = update_for(tiny_llama())
    trainer = trainer_of(tiny_llama().to(dtype), tokenizer)
    merged = tiny_llama().to(dtype)
    with torch.no_grad():
        for name in update.layers:
            weight = merged.get_submodule(name).weight
            weight.copy_(update.changed(name, weight, False))
    other = trainer_of(merged, tokenizer)
    before = state_of(trainer.model)
    for _ in range(2):
        with Opened(trainer) as engine, Opened(other) as plain:
            engine.change(update, steps_follow=True)
            losses = [(engine.step(TOKENS, 1e-3).loss, plain.step(TOKENS, 1e-3).loss) for _ in range(3)]
            ours, theirs = state_of(engine.model), state_of(plain.model)
        assert losses[0][0] == losses[0][1]
        assert losses[-1][0] < losses[0][0]
        if dtype is torch.float32:
            assert all(a == b for a, b in losses)
            assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
        else:  # the masters of the changed model were never rounded to bfloat16
            assert all(abs(a - b) < 0.02 for a, b in losses)
        assert_same_state(trainer.model, before)
    trainer.release()
    other.release()


def test_a_layer_that_is_not_trained_is_refused_by_name(tokenizer: Any) -> None:
    trainer = trainer_of(tiny_llama(), tokenizer, trainable="last-layers", last_layers=1)
    before = state_of(trainer.model)
    with Opened(trainer) as engine, pytest.raises(AdaptError, match=r"layers\.0\..*must be a trained parameter"):
        engine.change(update_for(engine.model), steps_follow=True)
    assert_same_state(trainer.model, before)
    trainer.release()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_that_are_carried_outlive_a_start_at_other_weights(dtype: torch.dtype) -> None:
    """Moments are made of gradients alone: a model with the other weights from the start ends at the same ones."""
    config = tttnn.AdaptConfig(optimizer_state="carried", clip_norm=None)
    ended = []
    for starts_there in (False, True):
        model = Weights(dtype)
        if starts_there:
            with torch.no_grad():
                next(model.parameters()).add_(1)
        arena = WeightArena(model)
        optimizer = build_optimizer(arena, config)
        for query in range(2):
            arena.begin()
            if query == 1 and not starts_there:
                first = arena.parameters[0].detach().clone()
                optimizer.start_from([0], lambda _, first=first: (first + 1).float())
            for step in range(2):
                give(arena.parameters, list(gradients(step, dtype)))
                optimizer.step(1e-2)
            ended.append([parameter.detach().clone() for parameter in arena.parameters])
            arena.restore()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(ended[1], ended[3], strict=True))
    assert not torch.equal(ended[1][0], ended[0][0])


def test_a_is_drawn_by_seed_and_name_alone() -> None:
    every = shared_a({"x": (3, 5), "y": (2, 4)}, rank=2, seed=1)
    assert torch.equal(shared_a({"y": (9, 4)}, rank=2, seed=1)["y"], every["y"])
    assert digest_of_matrices(shared_a({"x": (3, 5)}, rank=2, seed=2)) != digest_of_matrices({"x": every["x"]})


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's use of transformers
@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_peft_loads_a_saved_update_with_the_same_logits(make: Any, tokenizer: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    trainer = trainer_of(make(), tokenizer)
    update = update_for(trainer.model)
    update.save(tmp_path, trainer.model)
    ids = torch.tensor([TOKENS])
    with Opened(trainer) as engine, torch.no_grad():
        engine.change(update, steps_follow=False)
        ours = engine.model(input_ids=ids).logits.clone()
    theirs = peft.PeftModel.from_pretrained(make().eval(), str(tmp_path))
    with torch.no_grad():
        found = theirs(input_ids=ids).logits
        base = make().eval()(input_ids=ids).logits
    assert torch.allclose(ours, found, atol=1e-4)
    assert not torch.allclose(ours, base, atol=1e-3)
    trainer.release()
