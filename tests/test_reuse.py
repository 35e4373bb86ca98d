"""Reuse: the same neighbors again cost one copy and give the same bits; what may differ is trained anew."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

import tttnn
from tests.conftest import TEXTS, FakeRetriever, assert_same_state, state_of, tiny_gpt2
from tttnn.retrieval.neighbors import Neighbor
from tttnn.training.report import AdaptReport

QUERY = "def quicksort("
LONG = "def quicksort(items):\n    return sorted(items) if len(items) > 1 else items\n# Bits per byte"


def trainer_for(tokenizer: Any, **settings: Any) -> tttnn.TestTimeTrainer:
    config = {"num_neighbors": 5, "max_neighbor_tokens": 40, "learning_rate": 1e-3, "reuse": 2}
    return tttnn.TestTimeTrainer(
        tiny_gpt2(),
        tokenizer,
        FakeRetriever(TEXTS),
        tttnn.AdaptConfig(**({"precision": "float32"} | config | settings)),
    )


def adapted(trainer: Any, query: str = QUERY, **options: Any) -> tuple[dict[str, torch.Tensor], AdaptReport]:
    with trainer.adapt(query, **options) as model:
        return state_of(trainer.model), model.report


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], tensor) for name, tensor in b.items())


@pytest.mark.parametrize("trainable", ["all", "last-layers", "lora"])
def test_a_hit_gives_the_same_bits_and_trains_nothing(
    trainable: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_for(tokenizer, trainable=trainable, last_layers=1)
    before = state_of(trainer.model)
    first, report = adapted(trainer)
    assert_same_state(trainer.model, before)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.engine, "objective", lambda _: pytest.fail("a hit trains nothing"))
        second, again = adapted(trainer, "another query with the same neighbors")
    assert same(first, second)
    assert_same_state(trainer.model, before)
    assert (report.reused, again.reused) == (False, True)
    assert again.losses == report.losses
    assert (again.steps, again.tokens, again.stopped_by) == (report.steps, report.tokens, report.stopped_by)
    assert [n.trained_span for n in again.neighbors] == [n.trained_span for n in report.neighbors]
    third, _ = adapted(trainer, neighbors=trainer.datastore.neighbors[:2])
    fourth, _ = adapted(trainer)
    assert same(fourth, first)
    assert not same(third, first)
    trainer.verify()
    with trainer.replay(again) as replayed:
        assert not replayed.report.reused
        assert same(state_of(trainer.model), first)
    trainer.release()


def test_ids_and_distances_are_those_of_this_query(tokenizer: Any) -> None:
    trainer = trainer_for(tokenizer)
    adapted(trainer)
    elsewhere = [Neighbor(n.id + 10, n.distance + 1, n.text) for n in trainer.datastore.neighbors]
    _, report = adapted(trainer, neighbors=elsewhere)
    assert report.reused
    assert [(n.id, n.distance) for n in report.neighbors] == [(n.id, n.distance) for n in elsewhere]
    trainer.release()


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 2e-3},
        {"max_neighbor_tokens": 30},
        {"max_tokens": 60},
        {"seed": 1},
        {"schedule": "inverse_sqrt"},
    ],
)
def test_other_settings_are_trained_anew(change: dict[str, Any], tokenizer: Any) -> None:
    trainer = trainer_for(tokenizer)
    adapted(trainer)
    config = trainer.config.with_(**change)
    assert not adapted(trainer, config=config)[1].reused
    assert adapted(trainer, config=config)[1].reused
    trainer.release()


def test_other_neighbors_are_trained_anew(tokenizer: Any) -> None:
    trainer = trainer_for(tokenizer, reuse=10)
    found = trainer.datastore.neighbors
    adapted(trainer)
    for other in (
        found[:4],
        [found[1], found[0], *found[2:]],
        [Neighbor(0, 0.0, TEXTS[0], span=(3, 9)), *found[1:]],
        [Neighbor(0, 0.0, TEXTS[0] + "!"), *found[1:]],
    ):
        assert not adapted(trainer, neighbors=other)[1].reused
    assert adapted(trainer)[1].reused
    trainer.release()


def test_distances_count_where_the_schedule_reads_them(tokenizer: Any) -> None:
    trainer = trainer_for(tokenizer, schedule="distance")
    found = trainer.datastore.neighbors
    adapted(trainer)
    farther = [Neighbor(n.id, n.distance**2, n.text) for n in found]
    assert not adapted(trainer, neighbors=farther)[1].reused
    assert adapted(trainer)[1].reused
    trainer.release()


def test_the_query_counts_where_a_guard_scores_it(tokenizer: Any) -> None:
    trainer = trainer_for(tokenizer, guard="query")
    first, report = adapted(trainer, LONG)
    assert not adapted(trainer, LONG + " and more")[1].reused
    second, again = adapted(trainer, LONG)
    assert again.reused
    assert again.guard == report.guard
    assert same(first, second)
    trainer.release()


def test_what_is_not_exact_is_not_reused(tokenizer: Any) -> None:
    trainer = trainer_for(tokenizer)
    stop = iter([False, False, True])
    assert adapted(trainer, cancelled=lambda: next(stop))[1].stopped_by == "cancelled"
    assert len(trainer.engine.states) == 0
    assert adapted(trainer, deadline_ms=1e-6)[1].steps == 0
    assert len(trainer.engine.states) == 0
    seen: list[int] = []
    adapted(trainer)
    assert not adapted(trainer, observe=lambda _, k: seen.append(k))[1].reused
    assert seen == [0, 1, 2, 3, 4, 5]
    _, report = adapted(trainer, deadline_ms=1e7, cancelled=lambda: False)
    assert report.reused
    assert adapted(trainer, cancelled=lambda: True)[1].stopped_by == "cancelled"
    trainer.release()
    carried = trainer_for(tokenizer, optimizer_state="carried")
    adapted(carried)
    assert not adapted(carried)[1].reused
    carried.release()


def test_the_state_unused_for_longest_makes_room(tokenizer: Any) -> None:
    trainer = trainer_for(tokenizer, reuse=2)
    lists = [trainer.datastore.neighbors[:k] for k in (1, 2, 3)]
    adapted(trainer, neighbors=lists[0])
    adapted(trainer, neighbors=lists[1])
    assert adapted(trainer, neighbors=lists[0])[1].reused
    adapted(trainer, neighbors=lists[2])
    assert len(trainer.engine.states) == 2
    assert trainer.engine.states.nbytes == 2 * trainer.engine.arena.trainable_nbytes
    assert adapted(trainer, neighbors=lists[0])[1].reused
    assert not adapted(trainer, neighbors=lists[1])[1].reused
    trainer.release()


def test_release_frees_the_states(tokenizer: Any) -> None:
    trainer = trainer_for(tokenizer)
    adapted(trainer)
    (state,) = trainer.engine.states._states.values()
    weights = weakref.ref(state.weights)
    del state
    trainer.release()
    gc.collect()
    assert weights() is None


def test_off_by_default(tokenizer: Any) -> None:
    assert tttnn.AdaptConfig().reuse == 0
    trainer = trainer_for(tokenizer, reuse=0)
    adapted(trainer)
    assert not adapted(trainer)[1].reused
    trainer.release()


def test_states_that_do_not_fit_are_refused(tokenizer: Any) -> None:
    with pytest.raises(tttnn.AdaptError, match="states kept for reuse"):
        trainer_for(tokenizer, reuse=10**9)
