"""A filter: by source, by a share drawn at random, by both; the same in one datastore, in a cluster and over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tttnn
from tests.clusters import ROWS, build_cluster, build_whole, rows_of
from tests.encoders import tiny_embedder
from tttnn.cluster.document_id import DocumentId
from tttnn.config import SelectionConfig
from tttnn.retrieval.selector import Selector
from tttnn.retrieval.where import EVERYTHING, Where

QUERY = "moon 3 cat 10"


@pytest.fixture(scope="module")
def embedder() -> Any:
    return tiny_embedder()


def test_a_larger_fraction_holds_a_smaller_one_and_about_its_share() -> None:
    ids = np.arange(100_000)
    before = np.zeros(len(ids), bool)
    for fraction in (0.001, 0.01, 0.1, 0.3, 0.999, 1.0):
        held = Where(fraction=fraction).drawn(ids)
        assert held[before].all()
        spread = 5 * np.sqrt(fraction * (1 - fraction) * len(ids))
        assert abs(held.sum() - fraction * len(ids)) <= spread
        before = held
    assert before.all()


def test_seeds_draw_nothing_alike_and_one_id_says_nothing_of_the_next() -> None:
    ids = np.arange(200_000)
    draws = [Where(fraction=0.5, seed=seed).drawn(ids) for seed in (0, 1, 2, 2**64 - 1)]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            for shift in (0, 1, 2, 7):
                alike = np.mean(one[shift:] == other[: len(other) - shift])
                assert abs(alike - 0.5) < 0.01
        for step in (1, 2, 3, 64, 1 << 10):
            assert abs(np.mean(one[step:] == one[:-step]) - 0.5) < 0.01


def test_which_documents_a_fraction_holds_is_written_down() -> None:
    """Results name a fraction and a seed: these documents must be held by every version."""
    assert np.flatnonzero(Where(fraction=0.2).drawn(np.arange(40))).tolist() == [6, 12, 13, 20, 27, 39]
    assert np.flatnonzero(Where(fraction=0.2, seed=7).drawn(np.arange(40))).tolist() == [6, 10, 13, 14, 21, 37]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"date": 1}, ValueError, "where must filter by source or fraction, got 'date'"),
        ({"fraction": 0}, ValueError, "fraction must be above 0 and at most 1, got 0"),
        ({"fraction": 1.5}, ValueError, "fraction must be above 0"),
        ({"fraction": float("nan")}, ValueError, "fraction must be above 0"),
        ({"fraction": "0.1"}, TypeError, "fraction must be a number, got '0.1'"),
        ({"fraction": True}, TypeError, "fraction must be a number, got True"),
        ({"fraction": 0.1, "seed": -1}, ValueError, "seed must be between 0 and"),
        ({"fraction": 0.1, "seed": 2**64}, ValueError, "seed must be between 0 and"),
        ({"fraction": 0.1, "seed": 1.5}, TypeError, "seed must be a whole number, got 1.5"),
        ({"seed": 3}, ValueError, "seed must come with a fraction"),
        ({"source": []}, ValueError, "source must name at least one"),
        ("Github", TypeError, "where must be a mapping"),
    ],
)
def test_what_is_no_filter_is_refused(given: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=f"^{said}"):
        Where.read(given)


@pytest.mark.parametrize("given", [{}, {"source": ["A", "B"]}, {"fraction": 0.25, "seed": 4}])
def test_plain_values_give_the_filter_again(given: dict[str, Any]) -> None:
    where = Where.read(given)
    assert where.to_dict() == given
    assert Where.read(where.to_dict()) == where
    assert (where == EVERYTHING) == (not given)


@pytest.mark.parametrize("unit", ["document", "passage"])
def test_a_fraction_answers_as_a_datastore_of_its_documents_alone(tmp_path: Path, embedder: Any, unit: Any) -> None:
    where = {"fraction": 0.4, "seed": 5}
    held = np.flatnonzero(Where.read(where).drawn(np.arange(len(ROWS)))).tolist()
    with build_whole(tmp_path, embedder, unit=unit) as whole:
        config, index = tttnn.DatastoreConfig(unit=unit), tttnn.IndexConfig(backend="exact")
        rows = [ROWS[i] for i in held]
        with tttnn.Datastore.build(tmp_path / "part", rows, embedder, config=config, index=index) as part:
            for k in (1, 5, 100):
                expected = [(held[n.id], n.distance, n.text) for n in part.search(QUERY, k)]
                assert [(n.id, n.distance, n.text) for n in whole.search(QUERY, k, where=where)] == expected
        twin = whole.search(QUERY, 1, where=where)[0]
        others = whole.search(QUERY, 9, where=where, exclude_digests=[twin.digest], explain=True)
        assert twin.text not in {n.text for n in others}
        assert others.explanation is not None
        assert others.explanation.filtered == len(ROWS) - len(held)
        assert others.explanation.recall == 1.0


def test_fractions_stay_as_they_were_when_documents_come_and_go(tmp_path: Path, embedder: Any) -> None:
    with build_whole(tmp_path, embedder) as whole:
        before = {n.id for n in whole.search(QUERY, 100, where={"fraction": 0.3})}
        gone = sorted(before)[:2]
        whole.append([tttnn.Document(f"sun {i}", {}) for i in range(20)])
        whole.delete(gone)
        whole.compact()
        after = {n.id for n in whole.search(QUERY, 100, where={"fraction": 0.3})}
        assert {i for i in after if i < len(ROWS)} == before - set(gone)
        both = whole.search(QUERY, 100, where={"fraction": 0.3, "source": "A"})
        assert {n.id for n in both} == {i for i in after if i < len(ROWS) and i % 2 == 0 and i < 60}
        assert whole.search(QUERY, 7, where={"fraction": 1}) == whole.search(QUERY, 7)


def test_a_fraction_that_holds_nothing_finds_nothing(tmp_path: Path, embedder: Any) -> None:
    with build_whole(tmp_path, embedder) as whole:
        found = whole.search(QUERY, 3, where={"fraction": 1e-9}, explain=True)
        assert list(found) == []
        assert found.requested == 3
        assert found.explanation is not None
        assert found.explanation.filtered == len(ROWS)


def test_a_cluster_draws_by_the_ids_that_it_gives(tmp_path: Path, embedder: Any) -> None:
    where = Where(fraction=0.5, seed=2)
    with (
        tttnn.ClusterDatastore.open(build_cluster(tmp_path, embedder), embedder) as cluster,
        build_whole(tmp_path, embedder) as whole,
    ):
        every = cluster.search(QUERY, 100)
        held = where.drawn(np.array([int(n.id) for n in every]))
        assert 0 < held.sum() < len(ROWS)
        found = cluster.search(QUERY, 100, where=where)
        assert rows_of(found) == [row for row, kept in zip(rows_of(every), held, strict=True) if kept]
        assert rows_of(cluster.search(QUERY, 4, where=where.to_dict())) == rows_of(found)[:4]
        # The first shard's documents have the ids that they have in a datastore of their own.
        first = {n.id for n in whole.search(QUERY, 100, where=where) if n.id < 20}
        assert {n.id.local for n in found if isinstance(n.id, DocumentId) and n.id.shard == 0} == first


def test_a_selection_chooses_among_what_a_filter_allows(tmp_path: Path, embedder: Any) -> None:
    where = Where(fraction=0.5)
    with build_whole(tmp_path, embedder) as whole:
        selector = Selector(whole, SelectionConfig(method="sift", candidates=20))
        chosen = selector.search(QUERY, 8, where=where)
        assert len(chosen) == 8
        assert where.drawn(np.array([n.id for n in chosen])).all()
