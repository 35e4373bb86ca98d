"""Selection: SIFT minimises what it says it minimises, and everything left out is counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tttnn
from tests.conftest import assert_same_state, state_of, tiny_gpt2
from tests.encoders import tiny_embedder
from tttnn.config import DatastoreConfig, IndexConfig, SelectionConfig
from tttnn.errors import ConfigError
from tttnn.retrieval.selector import Selector, hull, sift


def posterior_variance(query: np.ndarray, chosen: np.ndarray, noise: float) -> float:
    kernel = chosen @ chosen.T + noise * np.eye(len(chosen))
    cross = chosen @ query
    return float(query @ query - cross @ np.linalg.solve(kernel, cross))


def unit(vectors: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return scaled


@pytest.mark.parametrize("noise", [0.001, 0.01, 1.0, 100.0])
def test_each_choice_minimises_the_posterior_variance(noise: float) -> None:
    rng = np.random.default_rng(0)
    query, candidates = unit(rng.standard_normal(8)), unit(rng.standard_normal((30, 8)) + 0.5)
    chosen, remaining = sift(query, candidates, 12, noise=noise)
    assert len(set(chosen)) == 12
    for step in range(12):
        variances = {
            i: posterior_variance(query, candidates[[*chosen[:step], i]], noise)
            for i in range(30)
            if i not in chosen[:step]
        }
        assert variances[chosen[step]] == pytest.approx(min(variances.values()), abs=1e-9)
        assert remaining[step] == pytest.approx(variances[chosen[step]], abs=1e-9)


def test_it_avoids_what_it_has_and_falls_back_to_the_nearest() -> None:
    query = unit(np.array([1.0, 1.0, 0.0]))
    candidates = unit(np.array([[1.0, 0.2, 0.0], [1.0, 0.2, 0.0], [0.1, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    assert sift(query, candidates, 2, noise=0.01)[0] == [0, 2]
    assert sift(query, candidates, 2, noise=100.0)[0] == [0, 1]
    chosen, remaining = sift(query, candidates, 99, noise=0.01)
    assert sorted(chosen) == [0, 1, 2, 3]
    assert remaining == sorted(remaining, reverse=True)
    assert sift(query, candidates[:0], 3, noise=0.01) == ([], [])
    with pytest.raises(ValueError, match="noise must be more than 0"):
        sift(query, candidates, 2, noise=0.0)


TEXTS = [f"number {i} of the moon" for i in range(20)] + ["the moon"] * 3 + ["quicksort sorts", "zzzz qqqq"]


@pytest.fixture(scope="module", params=["document", "passage"])
def datastore(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tttnn.Datastore]:
    path: Path = tmp_path_factory.mktemp("selection") / "d"
    config = DatastoreConfig(unit=request.param, segment_documents=10, passage_overlap=5)
    with tttnn.Datastore.build(path, TEXTS, tiny_embedder(), config=config, index=IndexConfig(M=4)) as made:
        yield made


def test_nearest_is_the_datastores_own_order(datastore: tttnn.Datastore) -> None:
    found = Selector(datastore).search("the moon", 6)
    assert [n.id for n in found] == [n.id for n in datastore.search("the moon", 6)]
    assert found.left_out == {"near_duplicates": 0, "too_far": 0, "not_chosen": 0}
    chosen = Selector(datastore, SelectionConfig(max_distance=1.0))
    assert chosen.describe() == replace(datastore.describe(), selection=SelectionConfig(max_distance=1.0))
    assert chosen.documents[3] == datastore.store[3]


def test_near_duplicates_and_far_documents_are_left_out_and_counted(datastore: tttnn.Datastore) -> None:
    every = datastore.search("the moon", len(TEXTS))
    assert [n.distance for n in every[:3]] == [pytest.approx(0, abs=1e-9)] * 3
    found = Selector(datastore, SelectionConfig(duplicate_radius=1e-6)).search("the moon", 4)
    assert [n.id for n in found] == [n.id for n in every[3:7]]
    assert found.left_out["near_duplicates"] == 3
    limit = (every[9].distance + every[10].distance) / 2
    found = Selector(datastore, SelectionConfig(max_distance=limit)).search("the moon", 20)
    assert [n.id for n in found] == [n.id for n in every[:10]]
    assert found.left_out["too_far"] == 10
    assert Selector(datastore, SelectionConfig(duplicate_radius=100.0)).search("the moon", 3) == []


def test_sift_chooses_among_the_candidates(datastore: tttnn.Datastore) -> None:
    found = Selector(datastore, SelectionConfig(method="sift")).search("the moon", 5, with_vectors=True)
    assert len(found) == 5
    assert found[0].text == "the moon"
    candidates = datastore.search("the moon", len(TEXTS), with_vectors=True)
    assert candidates.vectors is not None
    assert candidates.query_vector is not None
    order, _ = sift(candidates.query_vector, candidates.vectors, 5, noise=0.01)
    assert [n.id for n in found] == [candidates[i].id for i in order]
    assert "select" in found.seconds
    assert found.left_out["not_chosen"] == len(TEXTS) - 5
    assert found.vectors is not None
    for neighbor, vector in zip(found, found.vectors, strict=True):
        distance = float(((vector - found.query_vector) ** 2).sum())
        assert neighbor.distance == pytest.approx(distance, abs=1e-5)


def least_on_the_simplex(query: np.ndarray, candidates: np.ndarray) -> float:
    """The least distance to the candidates' hull, by projected gradients: slow, and no part of the code under test."""
    weights = np.full(len(candidates), 1 / len(candidates))
    rate = 0.5 / np.linalg.norm(candidates @ candidates.T, 2)
    for _ in range(20_000):
        weights = weights - rate * 2 * candidates @ (candidates.T @ weights - query)
        ordered = np.sort(weights)[::-1]
        sums = (np.cumsum(ordered) - 1) / np.arange(1, len(ordered) + 1)
        weights = np.maximum(weights - sums[np.flatnonzero(ordered > sums)[-1]], 0)
    return float(((query - weights @ candidates) ** 2).sum())


@pytest.mark.parametrize("seed", range(4))
def test_the_weighted_mean_comes_as_near_as_any(seed: int) -> None:
    rng = np.random.default_rng(seed)
    query, candidates = unit(rng.standard_normal(6)), unit(rng.standard_normal((25, 6)) + 0.3)
    best = least_on_the_simplex(query, candidates)
    chosen, weights, distance = hull(query, candidates, 25, steps=5000, tolerance=1e-9)
    mean = np.array(weights) @ candidates[chosen]
    assert distance == pytest.approx(float(((query - mean) ** 2).sum()), abs=1e-9)
    assert distance == pytest.approx(best, abs=2e-4)
    assert sum(weights) == pytest.approx(1.0)
    assert weights == sorted(weights, reverse=True)
    assert len(set(chosen)) == len(chosen)
    # Few candidates come near it too, and never more than were asked for; more moves never hurt.
    before = np.inf
    for k in (1, 2, 3, 5):
        few, _, near = hull(query, candidates, k)
        assert len(few) <= k
        assert near <= before + 1e-9
        before = near
    assert hull(query, candidates, 1)[0] == [int(np.argmin(((candidates - query) ** 2).sum(1)))]


def test_the_hull_needs_no_repetition_and_no_more_than_it_needs() -> None:
    query = np.array([0.5, 0.5, 0.0])
    candidates = np.array([[1.0, 0.1, 0.0], [1.0, 0.1, 0.0], [0.0, 0.9, 0.0], [0.0, 0.0, 1.0]])
    chosen, weights, distance = hull(query, candidates, 4)
    assert set(chosen) in ({0, 2}, {1, 2})
    assert distance == pytest.approx(0.0, abs=1e-3)
    assert weights[0] == pytest.approx(0.5, abs=0.05)
    # The query itself among the candidates needs nothing else.
    assert hull(query, np.vstack([candidates, query]), 4)[0] == [4]
    assert hull(query, candidates[:0], 4)[:2] == ([], [])


def test_hull_chooses_among_the_candidates(datastore: tttnn.Datastore) -> None:
    found = Selector(datastore, SelectionConfig(method="hull", duplicate_radius=1e-6)).search("the moon", 5)
    candidates = datastore.search("the moon", len(TEXTS), with_vectors=True)
    assert candidates.vectors is not None
    assert candidates.query_vector is not None
    kept = [i for i, n in enumerate(candidates) if n.distance >= 1e-6]
    order, _, distance = hull(candidates.query_vector, candidates.vectors[kept], 5)
    assert [n.id for n in found] == [candidates[kept[i]].id for i in order]
    assert distance < candidates[kept[0]].distance
    assert found.left_out == {"near_duplicates": 3, "too_far": 0, "not_chosen": len(kept) - len(found)}


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="method must be one of nearest, sift, hull"):
        SelectionConfig(method="best")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sift_lambda must be between"):
        SelectionConfig(sift_lambda=0.0)


def test_a_trainer_replays_what_a_selection_chose(datastore: tttnn.Datastore, tokenizer: Any) -> None:
    retriever = Selector(datastore, SelectionConfig(method="sift", candidates=10))
    config = tttnn.AdaptConfig(num_neighbors=3, learning_rate=1e-3, precision="float32")
    trainer = tttnn.TestTimeTrainer(tiny_gpt2(), tokenizer, retriever, config)
    with trainer.adapt("the moon and its number") as adapted:
        report, inside = adapted.report, state_of(trainer.model)
    assert report.steps == 3
    with trainer.replay(report.to_dict()) as again:
        assert again.report.losses == report.losses
        assert_same_state(trainer.model, inside)
    made = trainer.describe()
    assert (made.datastore, made.embedder) == (datastore.id, datastore.embedder_name)
    assert made.selection == retriever.config.to_dict()
    trainer.release()
