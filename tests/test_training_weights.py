"""Weights rounded to bfloat16 for training alone, and states kept on the way: nothing of either is left afterwards."""

import pytest
import torch
from torch import nn

from tests.test_arena import INPUT, MODELS, backward, build, state
from tests.test_optim import Weights, distance, give, gradients
from tttnn.config import AdaptConfig
from tttnn.errors import AdaptError
from tttnn.training.optimizer import Optimizer, build_optimizer
from tttnn.weights.arena import WeightArena


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype is right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


@pytest.mark.parametrize("name", MODELS)
def test_models_train_in_bfloat16_and_answer_in_float32(name: str) -> None:
    model = build(name)
    before = state(model)
    with torch.no_grad():
        exact = model(input_ids=INPUT).logits
    arena = WeightArena(model, rounded=True)
    optimizer = build_optimizer(arena, AdaptConfig())
    for _query in range(2):
        arena.begin()
        for _step in range(3):
            with arena.training_weights():
                backward(model)
                assert all(p.grad is not None and p.grad.dtype is torch.bfloat16 for p in arena.parameters)
                optimizer.step(1e-2)
            assert all(parameter.dtype is torch.float32 for parameter in arena.parameters)
            trained = [parameter.detach().clone() for parameter in arena.parameters]
            with arena.training_weights():
                for parameter, value in zip(arena.parameters, trained, strict=True):
                    assert torch.equal(parameter.detach(), value.bfloat16())
        with torch.no_grad():
            assert not torch.allclose(model(input_ids=INPUT).logits, exact, atol=1e-3)
        arena.restore()
        assert same(state(model), before)
        with torch.no_grad():
            assert torch.equal(model(input_ids=INPUT).logits, exact)
    arena.verify()
    arena.release()
    assert same(state(model), before)


def test_fifty_steps_as_torch_from_rounded_gradients() -> None:
    arena = WeightArena(Weights(), rounded=True)
    optimizer = build_optimizer(arena, AdaptConfig(weight_decay=0.1))
    plain = list(Weights().parameters())
    start = [p.detach().clone() for p in plain]
    reference = torch.optim.AdamW(plain, lr=1e-3, weight_decay=0.1)
    arena.begin()
    moved = []
    for step in range(50):
        values = gradients(step, torch.bfloat16)
        give(plain, [value.float() for value in values])
        with arena.training_weights():
            give(arena.parameters, list(values))
            moved.append(optimizer.step(1e-3).bytes_moved)
        torch.nn.utils.clip_grad_norm_(plain, 1.0)
        reference.step()
    updates = distance([p.detach() for p in plain], start)
    assert distance([p.detach() for p in arena.parameters], [p.detach() for p in plain]) <= 1e-6 * updates
    # A gradient in bfloat16 is read twice, weights in float32 read and written, and the rounded ones written; the first
    # step writes both moments, the later ones read them too.
    size = sum(parameter.numel() for parameter in arena.parameters)
    assert moved[:2] == [(4 + 8 + 2 + 8) * size, (4 + 8 + 2 + 16) * size]
    arena.restore()


def test_what_is_not_trained_is_rounded_too() -> None:
    model = build("llama")
    arena = WeightArena(model, trainable=["*layers.1.*"], rounded=True)
    optimizer = build_optimizer(arena, AdaptConfig())
    before = state(model)
    arena.begin()
    with arena.training_weights():
        assert all(parameter.dtype is torch.bfloat16 for parameter in model.parameters())
        backward(model)
        optimizer.step(1e-2)
    changed = {name for name, tensor in state(model).items() if not torch.equal(tensor, before[name])}
    assert changed == {tensor.name for tensor in arena.trained}
    arena.restore()
    assert same(state(model), before)


def interrupted(
    arena: WeightArena, model: nn.Module, optimizer: Optimizer, steps: int, error: type[BaseException]
) -> None:
    """Raise after some steps and one more backward."""
    with arena.training_weights():
        for _ in range(steps):
            backward(model)
            optimizer.step(1e-2)
        backward(model)
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_error_while_training_leaves_float32(error: type[BaseException]) -> None:
    model = build("gpt2")
    before = state(model)
    arena = WeightArena(model, rounded=True)
    optimizer = build_optimizer(arena, AdaptConfig())
    for steps in range(3):
        arena.begin()
        with pytest.raises(error):
            interrupted(arena, model, optimizer, steps, error)
        assert all(parameter.dtype is torch.float32 for parameter in model.parameters())
        arena.restore()
        assert same(state(model), before)
    arena.verify()


def test_bfloat16_models_have_nothing_to_round() -> None:
    arena = WeightArena(build("llama", torch.bfloat16), rounded=True)
    plain = WeightArena(build("llama", torch.bfloat16))
    assert arena.nbytes == plain.nbytes
    optimizer = build_optimizer(arena, AdaptConfig())
    arena.begin()
    with arena.training_weights():
        give_all(arena)
        optimizer.step(1e-2)
    arena.restore()
    arena.verify()


def give_all(arena: WeightArena) -> None:
    for parameter in arena.parameters:
        parameter.grad = torch.ones_like(parameter)


@pytest.mark.parametrize("name", ["sgd", "torch_adamw"])
def test_only_the_native_step_writes_rounded_weights(name: str) -> None:
    with pytest.raises(AdaptError, match=f"{name} must have an arena without rounded weights"):
        build_optimizer(WeightArena(Weights(), rounded=True), AdaptConfig(optimizer=name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "rounded"), [("adamw", False), ("adamw", True), ("sgd", False), ("torch_adamw", False)]
)
@pytest.mark.parametrize("kept", [(), (0,), (2, 3), (1, 4), (0, 2, 5)])
def test_keeping_changes_no_step_and_loses_no_state(
    kept: tuple[int, ...], name: str, dtype: torch.dtype, rounded: bool
) -> None:
    """`kept`: after how many of five steps keep() is called."""
    model, plain = Weights(dtype), Weights(dtype)
    before = state(model)
    arena = WeightArena(model, keeps_best=True, rounded=rounded)
    optimizer = build_optimizer(arena, AdaptConfig(optimizer=name))
    reference_arena = WeightArena(plain, rounded=rounded)
    reference = build_optimizer(reference_arena, AdaptConfig(optimizer=name))
    for _ in range(2):
        arena.begin()
        reference_arena.begin()
        expected = before
        for step in range(6):
            if step in kept:
                arena.keep()
                expected = state(plain)
            if step < 5:
                for holder, trained in ((arena, optimizer), (reference_arena, reference)):
                    with holder.training_weights():
                        give(holder.parameters, list(gradients(step, torch.bfloat16 if rounded else dtype)))
                        trained.step(1e-2)
                assert same(state(model), state(plain))
        arena.use_kept()
        assert same(state(model), expected)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()  # a user's own write inside the block
        arena.restore()
        assert same(state(model), before)
        reference_arena.restore()
    arena.verify()


def test_keep_needs_its_room() -> None:
    arena = WeightArena(nn.Linear(3, 3))
    arena.begin()
    with pytest.raises(AdaptError, match="keeps_best=True"):
        arena.keep()
    arena.restore()
