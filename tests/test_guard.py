"""The harm guard: the best state seen is handed out, the base weights where nothing helps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import tttnn
from tests.conftest import TEXTS, FakeRetriever, assert_same_state, state_of, tiny_gpt2

QUERY = "def quicksort(items):\n    return sorted(items) if len(items) > 1 else items\n# Bits per byte"


def trainer_for(tokenizer: Any, **settings: Any) -> tttnn.TestTimeTrainer:
    config = {"num_neighbors": 5, "max_length": 64, "max_neighbor_tokens": 40, "learning_rate": 1e-3, "guard": "query"}
    config["precision"] = "float32"
    return tttnn.TestTimeTrainer(tiny_gpt2(), tokenizer, FakeRetriever(TEXTS), tttnn.AdaptConfig(**(config | settings)))


def scripted(trainer: tttnn.TestTimeTrainer, monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """Let the guard see these scores; training keeps its own losses."""
    values: Iterator[float] = iter(scores)
    real = trainer.engine.objective

    def loss(ids: torch.Tensor) -> torch.Tensor:
        return real(ids) if torch.is_grad_enabled() else torch.tensor(next(values), dtype=torch.float64)

    monkeypatch.setattr(trainer.engine, "objective", loss)


def states_of(trainer: tttnn.TestTimeTrainer) -> list[dict[str, torch.Tensor]]:
    """The state after each number of neighbors, by a trainer without a guard in its way."""
    states: list[dict[str, torch.Tensor]] = []
    with trainer.adapt(QUERY, observe=lambda *_: states.append(state_of(trainer.model))):
        pass
    return states


@pytest.mark.parametrize("optimizer", ["adamw", "torch_adamw"])
@pytest.mark.parametrize(
    ("scores", "every", "after", "kept"),
    [
        ([3.0, 2.0, 1.5, 2.5, 2.6, 2.7], 1, [0, 1, 2, 3, 4, 5], 2),
        ([3.0, 2.9, 2.8, 2.7, 2.6, 2.5], 1, [0, 1, 2, 3, 4, 5], 5),
        ([3.0, 3.1, 3.2, 3.3, 3.4, 3.5], 1, [0, 1, 2, 3, 4, 5], 0),
        ([3.0, 3.0, 3.0, 3.0, 3.0, 3.0], 1, [0, 1, 2, 3, 4, 5], 0),
        ([3.0, 2.0, 2.0, 2.0, 1.0, 1.0], 1, [0, 1, 2, 3, 4, 5], 4),
        ([3.0, float("nan"), 2.0, float("inf"), 2.0, 4.0], 1, [0, 1, 2, 3, 4, 5], 2),
        ([3.0, 2.0, 2.5, 1.0], 2, [0, 2, 4, 5], 5),
        ([3.0, 2.0, 2.5, 2.2], 2, [0, 2, 4, 5], 2),
        ([3.0, 2.0], 9, [0, 5], 5),
    ],
)
def test_the_best_state_is_used(
    scores: list[float],
    every: int,
    after: list[int],
    kept: int,
    optimizer: str,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = trainer_for(tokenizer, guard_every=every, optimizer=optimizer)
    states = states_of(trainer)
    before = state_of(trainer.model)
    assert_same_state(trainer.model, states[0])
    scripted(trainer, monkeypatch, scores)
    with trainer.adapt(QUERY) as adapted:
        assert_same_state(trainer.model, states[kept])
        report = adapted.report
    assert report.guard is not None
    assert report.guard.scores == pytest.approx(scores, nan_ok=True)
    assert (report.guard.after, report.guard.kept, report.guard.reason) == (after, kept, None)
    assert report.seconds["guard"] > 0
    assert report.steps == 5
    assert_same_state(trainer.model, before)
    trainer.verify()
    trainer.release()


def test_scores_are_the_loss_of_the_query(tokenizer: Any) -> None:
    trainer = trainer_for(tokenizer)
    seen: list[float] = []

    def observe(adapted: Any, _: int) -> None:
        tokens = tokenizer(QUERY)["input_ids"][-64:]
        ids = torch.tensor([tokens])
        with torch.no_grad():
            seen.append(trainer.model(input_ids=ids, labels=ids).loss.item())

    with trainer.adapt(QUERY, observe=observe) as adapted:
        assert adapted.report.guard.scores == pytest.approx(seen, rel=1e-6)
        best = min(range(6), key=adapted.report.guard.scores.__getitem__)
        assert adapted.report.guard.kept == best
    trainer.release()


def test_a_guard_never_hands_out_a_state_worse_than_base(tokenizer: Any) -> None:
    for rate in (1e-4, 1e-2, 1.0):
        trainer = trainer_for(tokenizer, learning_rate=rate)
        with trainer.adapt(QUERY) as adapted:
            scores, kept = adapted.report.guard.scores, adapted.report.guard.kept
            assert scores[adapted.report.guard.after.index(kept)] <= scores[0]
        trainer.release()


def test_a_short_query_has_no_guard_and_the_report_says_why(tokenizer: Any) -> None:
    trainer = trainer_for(tokenizer)
    with trainer.adapt("def quicksort(") as adapted:
        assert adapted.report.guard.reason == "the query has 14 tokens, fewer than guard_min_tokens (64)"
        assert (adapted.report.guard.scores, adapted.report.guard.kept) == ([], None)
        assert adapted.report.steps == 5
        inside, report = state_of(trainer.model), adapted.report
    assert "guard" not in report.seconds
    with trainer.replay(report):
        assert_same_state(trainer.model, inside)
    trainer.release()


@pytest.mark.parametrize("trainable", ["all", "last-layers", "lora"])
@pytest.mark.parametrize("kept", [0, 2, 5])
def test_a_replay_keeps_what_was_kept_without_the_query(
    trainable: str, kept: int, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_for(tokenizer, trainable=trainable, last_layers=1)
    with monkeypatch.context() as patch:
        scripted(trainer, patch, [3.0 - (k == kept) for k in range(6)])
        with trainer.adapt(QUERY) as adapted:
            inside, report = state_of(trainer.model), adapted.report
    held = json.loads(json.dumps(report.to_dict()))
    assert QUERY not in json.dumps(held)
    with trainer.replay(held) as again:
        assert_same_state(trainer.model, inside)
        assert again.report.losses == report.losses
        assert again.report.guard == report.guard
    trainer.release()


def test_a_parameter_without_elements_is_guarded_with_the_others(tokenizer: Any) -> None:
    model = tiny_gpt2()
    model.transformer.h[0].empty = torch.nn.Parameter(torch.zeros(0, 4))
    before = state_of(model)
    config = tttnn.AdaptConfig(num_neighbors=3, max_neighbor_tokens=40, learning_rate=1e-3, guard="query")
    for precision in ("float32", "bfloat16"):
        trainer = tttnn.TestTimeTrainer(model, tokenizer, FakeRetriever(TEXTS), config.with_(precision=precision))
        for _ in range(2):
            with trainer.adapt(QUERY) as adapted:
                assert adapted.report.guard.kept > 0
            assert_same_state(model, before)
        trainer.verify()
        trainer.release()


def clocked(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock of our own: each look at it takes 10 ms."""
    now = [0.0]

    def clock() -> float:
        now[0] += 0.01
        return now[0]

    monkeypatch.setattr("time.perf_counter", clock)
    return now


def test_the_guards_time_counts_against_the_deadline(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch)
    steps = {}
    for guard in ("none", "query"):
        trainer = trainer_for(tokenizer, guard=guard)
        with trainer.adapt(QUERY):  # so that the pace is known
            pass
        with trainer.adapt(QUERY, deadline_ms=200) as adapted:
            assert adapted.report.stopped_by == "deadline"
            steps[guard] = adapted.report.steps
        trainer.release()
    assert 0 < steps["query"] < steps["none"]


def test_no_time_for_the_first_score_means_no_training(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch)
    trainer = trainer_for(tokenizer)
    before = state_of(trainer.model)
    with trainer.adapt(QUERY, deadline_ms=1) as adapted:
        assert_same_state(trainer.model, before)
        assert (adapted.report.stopped_by, adapted.report.steps) == ("deadline", 0)
        assert "no time" in adapted.report.guard.reason
        report = adapted.report
    with trainer.replay(report):
        assert_same_state(trainer.model, before)
    trainer.release()


def test_a_state_unscored_at_the_deadline_is_not_used(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = clocked(monkeypatch)
    trainer = trainer_for(tokenizer)
    states = states_of(trainer)
    scripted(trainer, monkeypatch, [3.0, 2.0, 1.0])
    real, calls = trainer.engine.optimizer.step, iter(range(10))

    def slow(rate: float) -> Any:
        if next(calls) == 2:
            now[0] += 60
        return real(rate)

    monkeypatch.setattr(trainer.engine.optimizer, "step", slow)
    with trainer.adapt(QUERY, config=trainer.config.with_(guard_every=2), deadline_ms=50_000) as adapted:
        report = adapted.report
        assert report.stopped_by == "deadline"
        assert (report.steps, report.guard.after, report.guard.kept) == (3, [0, 2], 2)
        assert "passed" in report.guard.reason
        assert_same_state(trainer.model, states[2])
    monkeypatch.undo()
    with trainer.replay(report) as again:
        assert again.report.steps == 3
        assert_same_state(trainer.model, states[2])
    trainer.release()


def test_an_observer_sees_states_as_they_come(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_for(tokenizer)
    states = states_of(trainer)
    scripted(trainer, monkeypatch, [1.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    seen: list[dict[str, torch.Tensor]] = []
    with trainer.adapt(QUERY, observe=lambda *_: seen.append(state_of(trainer.model))):
        assert_same_state(trainer.model, states[0])
    for state, expected in zip(seen, states, strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    trainer.release()
