"""Faults at every stage, for each way of restoring and each subset: weights whole, the next query exact."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import tttnn
from tests.conftest import TEXTS, FakeRetriever, assert_same_state, state_of, tiny_gpt2

QUERY = "def quicksort(items):\n    return sorted(items) if len(items) > 1 else items\n# Bits per byte"
CONFIG = tttnn.AdaptConfig(
    num_neighbors=3, max_neighbor_tokens=40, learning_rate=1e-3, precision="float32", guard="query", last_layers=1
)
ERRORS = {
    "MemoryError": MemoryError("out of memory"),
    "torch": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
}


class Bench:
    """A trainer, what its model was, and what a query without faults gives."""

    def __init__(self, tokenizer: Any, trainable: str) -> None:
        self.model = tiny_gpt2()
        config = CONFIG.with_(trainable=trainable, reuse=2)
        self.trainer = tttnn.TestTimeTrainer(self.model, tokenizer, FakeRetriever(TEXTS), config)
        self.before = state_of(self.model)
        self.about = self.everything_else()
        with self.trainer.adapt(QUERY) as adapted:
            self.adapted = state_of(self.model)
        assert adapted.report.guard.kept > 0, "nothing was kept: faults there would not be met"
        self.trainer.engine.states.clear()

    def everything_else(self) -> list[Any]:
        flags = [(p.requires_grad, p.grad) for p in self.model.parameters()]
        return [flags, [m.training for m in self.model.modules()], torch.random.get_rng_state().tolist()]

    def is_whole(self) -> None:
        assert_same_state(self.model, self.before)
        assert self.everything_else() == self.about
        self.trainer.verify()
        with self.trainer.adapt(QUERY):
            assert_same_state(self.model, self.adapted)
        assert_same_state(self.model, self.before)


@pytest.fixture(params=["all", "last-layers", "lora"])
def bench(request: pytest.FixtureRequest, tokenizer: Any) -> Iterator[Bench]:
    made = Bench(tokenizer, request.param)
    yield made
    made.trainer.release()


def at_call(number: int, real: Callable[..., Any], fault: Callable[[], Any]) -> Callable[..., Any]:
    """Wrap a function so that its n-th call, from 0, meets the fault."""
    calls = iter(range(1000))
    return lambda *args, **options: fault() if next(calls) == number else real(*args, **options)


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("stage", ["forward", "backward", "step", "guard", "keep", "hold", "reuse"])
def test_memory_running_out(bench: Bench, stage: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = bench.trainer

    def full(*_: Any) -> Any:
        raise error

    handle = None
    if stage == "forward":
        hook = at_call(4, lambda *_: None, full)  # the guard's forward passes count too
        handle = bench.model.transformer.h[1].register_forward_hook(hook)
    elif stage == "backward":
        handle = trainer.engine.arena.parameters[-1].register_hook(at_call(1, lambda gradient: gradient, full))
    elif stage == "step":
        monkeypatch.setattr(trainer.engine.optimizer, "step", at_call(1, trainer.engine.optimizer.step, full))
    elif stage == "guard":
        monkeypatch.setattr("tttnn.training.guard.Guard._scored", full)
    elif stage == "keep":
        monkeypatch.setattr(trainer.engine.arena, "keep", full)
    elif stage == "hold":
        # The last block that a query asks for is the one of the state it leaves behind.
        monkeypatch.setattr(trainer.engine.states, "make_room", lambda: monkeypatch.setattr("tttnn._core.Block", full))
    else:
        with trainer.adapt(QUERY):
            pass
        monkeypatch.setattr(trainer.engine.arena, "load", full)
    with pytest.raises(type(error), match="memory"), trainer.adapt(QUERY):
        pytest.fail("the fault was never met")
    if handle is not None:
        handle.remove()
    monkeypatch.undo()
    bench.is_whole()


def test_one_nan_in_a_gradient(bench: Bench) -> None:
    def poisoned(gradient: torch.Tensor) -> torch.Tensor:
        if next(calls) != 1:
            return gradient
        gradient = gradient.clone()
        gradient.view(-1)[-1] = float("nan")
        return gradient

    calls = iter(range(100))
    handle = bench.trainer.engine.arena.parameters[-1].register_hook(poisoned)
    with pytest.raises(tttnn.NonFiniteLossError, match=r"neighbor 1 \(document 1\)"), bench.trainer.adapt(QUERY):
        pytest.fail("the gradient was taken")
    handle.remove()
    bench.is_whole()


def test_ctrl_c_during_backward(bench: Bench) -> None:
    def interrupted(gradient: torch.Tensor) -> torch.Tensor:
        if next(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return gradient

    calls = iter(range(100))
    handle = bench.trainer.engine.arena.parameters[-1].register_hook(interrupted)
    with pytest.raises(KeyboardInterrupt), bench.trainer.adapt(QUERY):
        pytest.fail("the interrupt was lost")
    handle.remove()
    bench.is_whole()


def test_two_threads_at_once(bench: Bench) -> None:
    start, refused = threading.Barrier(2), threading.Event()
    errors: list[BaseException] = []
    states: list[dict[str, torch.Tensor]] = []

    def query() -> None:
        start.wait()
        try:
            with bench.trainer.adapt(QUERY):
                assert refused.wait(60)
                states.append(state_of(bench.model))
        except tttnn.AdaptError as error:
            errors.append(error)
            refused.set()

    threads = [threading.Thread(target=query) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 1
    assert "one query at a time" in str(errors[0])
    assert len(states) == 1
    assert all(torch.equal(states[0][name], tensor) for name, tensor in bench.adapted.items())
    bench.is_whole()
