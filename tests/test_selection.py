"""Selection: SIFT minimises what it says it minimises, and everything left out is counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tttnn
from tests.encoders import tiny_embedder
from tttnn.config import DatastoreConfig, IndexConfig, SelectionConfig
from tttnn.errors import ConfigError
from tttnn.selection import Selector, sift


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
    assert Selector(datastore).id == datastore.id


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
    found = Selector(datastore, SelectionConfig(method="sift")).search("the moon", 5)
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


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="method must be one of nearest, sift"):
        SelectionConfig(method="best")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sift_lambda must be between"):
        SelectionConfig(sift_lambda=0.0)
