"""NeighborIndex: right answers, the same files every time, and damage named."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
import pytest

from tttnn import NeighborIndex
from tttnn.config import IndexConfig
from tttnn.errors import EmbeddingError, IndexCorruptError

DIM = 24
HNSW = IndexConfig(M=8, ef_construction=60, ef_search=40)


def clustered(count: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    """Unit vectors around 20 centres, as embeddings of texts of 20 kinds."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((20, dim))
    vectors = centres[rng.integers(0, 20, count)] + 0.6 * rng.standard_normal((count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def true_distances(vectors: np.ndarray, queries: np.ndarray, metric: str) -> np.ndarray:
    a, b = queries.astype(np.float64), vectors.astype(np.float64)
    return ((a[:, None] - b[None]) ** 2).sum(-1) if metric == "l2" else 1 - a @ b.T


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(3000)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return clustered(40, seed=1)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, vectors: np.ndarray) -> NeighborIndex:
    return NeighborIndex.build(tmp_path_factory.mktemp("index") / "a", vectors, HNSW)


@pytest.mark.parametrize("dim", [1, 7, 16, 24, 33, 100])
@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("backend", ["exact", "hnsw"])
def test_a_scan_is_exact(tmp_path: Path, backend: Any, metric: Any, dim: int) -> None:
    vectors, queries = clustered(300, dim), clustered(20, dim, seed=1)
    index = NeighborIndex.build(tmp_path / "a", vectors, IndexConfig(backend=backend, metric=metric))
    ids, distances = index.search(queries, 10, method="scan")
    truth = true_distances(vectors, queries, metric)
    # float32 sums of `dim` products of numbers below 1
    np.testing.assert_allclose(distances, np.sort(truth, axis=1)[:, :10], atol=2e-6)
    np.testing.assert_allclose(np.take_along_axis(truth, ids, 1), distances, atol=2e-6)
    assert ids.dtype == np.int64
    assert distances.dtype == np.float32


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_the_graph_finds_nearly_all(tmp_path: Path, metric: Any, vectors: np.ndarray, queries: np.ndarray) -> None:
    index = NeighborIndex.build(tmp_path / "a", vectors, HNSW.with_(metric=metric))
    ids, distances = index.search(queries, 10, ef=200, method="graph")
    best, _ = index.search(queries, 10, method="scan")
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids, best, strict=True)])
    assert recall >= 0.98
    truth = true_distances(vectors, queries, metric)
    np.testing.assert_allclose(np.take_along_axis(truth, ids, 1), distances, atol=2e-6)
    assert (np.diff(distances, axis=1) >= 0).all()


def test_the_file_is_hnswlibs_own(index: NeighborIndex, queries: np.ndarray) -> None:
    other = hnswlib.Index("l2", DIM)
    other.load_index(str(index.path / "vectors.hnsw"))
    other.set_ef(50)
    labels, distances = other.knn_query(queries, 10, num_threads=1)
    ids, ours = index.search(queries, 10, ef=50, method="graph")
    assert np.array_equal(ids, labels.astype(np.int64))
    np.testing.assert_allclose(ours, distances, atol=1e-6)


def test_the_same_vectors_give_the_same_files(tmp_path: Path, index: NeighborIndex, vectors: np.ndarray) -> None:
    again = NeighborIndex.build(tmp_path / "b", vectors, HNSW)
    for name in ("index.json", "vectors.hnsw", "copies.bin"):
        assert (again.path / name).read_bytes() == (index.path / name).read_bytes()
    other = NeighborIndex.build(tmp_path / "c", vectors, HNSW, seed=1)
    assert (other.path / "vectors.hnsw").read_bytes() != (index.path / "vectors.hnsw").read_bytes()


def test_an_answer_does_not_depend_on_threads_or_on_other_queries(index: NeighborIndex, queries: np.ndarray) -> None:
    for method in ("graph", "scan"):
        ids, distances = index.search(queries, 7, method=method, threads=1)
        for threads in (0, 2):
            again = index.search(queries, 7, method=method, threads=threads)
            assert np.array_equal(ids, again[0])
            assert np.array_equal(distances, again[1])
        for i in (0, 5):
            alone = index.search(queries[i : i + 1], 7, method=method)
            assert np.array_equal(alone[0][0], ids[i])
            assert np.array_equal(alone[1][0], distances[i])


@pytest.mark.parametrize("backend", ["hnsw", "exact"])
def test_fewer_than_k_are_padded(tmp_path: Path, backend: Any) -> None:
    index = NeighborIndex.build(tmp_path / "a", clustered(5), HNSW.with_(backend=backend))
    ids, distances = index.search(clustered(2, seed=1), 9)
    assert (np.sort(ids[:, :5], axis=1) == np.arange(5)).all()
    assert (ids[:, 5:] == -1).all()
    assert np.isinf(distances[:, 5:]).all()
    ids, distances = index.search(clustered(2, seed=1), 9, where=[False, True, False, False, True])
    assert (np.sort(ids[:, :2], axis=1) == [1, 4]).all()
    assert (ids[:, 2:] == -1).all()
    ids, _ = index.search(clustered(2, seed=1), 3, where=np.zeros(5, bool))
    assert (ids == -1).all()


@pytest.mark.parametrize("backend", ["hnsw", "exact"])
@pytest.mark.parametrize("share", [0.5, 0.05])
@pytest.mark.parametrize("method", ["auto", "graph", "scan"])
def test_filters(
    tmp_path: Path,
    vectors: np.ndarray,
    queries: np.ndarray,
    index: NeighborIndex,
    backend: Any,
    share: float,
    method: Any,
) -> None:
    if backend == "exact":
        index = NeighborIndex.build(tmp_path / "a", vectors, IndexConfig(backend="exact"))
    where = np.random.default_rng(0).random(len(vectors)) < share
    ids, distances = index.search(queries, 10, where=where, method=method, ef=100)
    assert where[ids].all()
    truth = np.where(where, true_distances(vectors, queries, "l2"), np.inf)
    best = np.sort(truth, axis=1)[:, :10]
    recall = np.mean(distances <= best[:, -1:] + 1e-6)
    assert recall >= (0.98 if method == "graph" else 1.0 if method == "scan" or share < 0.1 else 0.98)


def test_copies_are_all_found_and_hide_nothing(tmp_path: Path, vectors: np.ndarray) -> None:
    many = np.concatenate([vectors[:500], np.repeat(vectors[:1], 1500, axis=0), vectors[500:1000]])
    index = NeighborIndex.build(tmp_path / "a", many, HNSW)
    assert index.search(vectors[:1], 1501, method="graph")[0][0].tolist() == [0, *range(500, 2000)]
    assert (index.search(vectors[:1], 1501, method="graph")[1] == 0).all()
    ids, _ = index.search(vectors[1:1000], 1, method="graph")
    expected = np.concatenate([np.arange(1, 500), np.arange(2000, 2500)])
    assert np.mean(ids[:, 0] == expected) >= 0.99
    where = np.zeros(len(many), bool)
    where[[700, 800]] = True
    for method in ("graph", "scan"):
        assert index.search(vectors[:1], 3, where=where, method=method)[0][0].tolist() == [700, 800, -1]
    assert np.array_equal(index.vectors([0, 700, 2100, 3]), many[[0, 700, 2100, 3]])


def test_vectors_come_back(index: NeighborIndex, vectors: np.ndarray) -> None:
    assert np.array_equal(index.vectors([5, 0, 2999]), vectors[[5, 0, 2999]])
    with pytest.raises(IndexError, match="id must be between 0 and 2999"):
        index.vectors([3000])
    assert index.estimate_recall(10) > 0.9


def test_wrong_arguments_are_refused(tmp_path: Path, index: NeighborIndex) -> None:
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        index.search(np.zeros((1, DIM)), 0)
    with pytest.raises(ValueError, match="ef must be at least 1"):
        index.search(np.zeros((1, DIM)), 1, ef=0)
    with pytest.raises(ValueError, match=rf"queries must be \(n, {DIM}\)"):
        index.search(np.zeros((1, DIM + 1)), 1)
    with pytest.raises(ValueError, match=r"where must be \(3000,\)"):
        index.search(np.zeros((1, DIM)), 1, where=[True])
    with pytest.raises(ValueError, match="vectors must be"):
        NeighborIndex.build(tmp_path / "x", np.zeros((0, 3), np.float32))
    bad = clustered(10)
    bad[7, 3] = np.nan
    for backend in ("hnsw", "exact"):
        with pytest.raises(EmbeddingError, match="vector 7"):
            NeighborIndex.build(tmp_path / "y", bad, IndexConfig(backend=backend))
        with pytest.raises(FileNotFoundError):
            NeighborIndex.open(tmp_path / "y")


def _attack(folder: str, name: str, trials: int, seed: int, answers: Any) -> None:
    """Damage a file without its manifest noticing, open it below the digest check, and search."""
    from tttnn import _core

    path = Path(folder)
    rng = np.random.default_rng(seed)
    whole = np.fromfile(path / name, np.uint8)
    none = np.zeros((0, 2), np.int64)
    opened = 0
    for _ in range(trials):
        spoiled = whole.copy()
        for at in rng.integers(0, len(whole) if rng.random() < 0.5 else 96, size=rng.integers(1, 4)):
            spoiled[at] = rng.integers(0, 256)
        if rng.random() < 0.2:
            spoiled = spoiled[: rng.integers(0, len(whole))]
        try:
            found = _core.HnswIndex(spoiled, none, dim=DIM, metric="l2", ids=3000, name=name)
        except IndexCorruptError:
            continue
        opened += 1
        ids, *_ = found.search(clustered(3, seed=2), 10, ef=20, method="graph")
        assert ids.max() < 3000
    answers.put(opened)


def test_a_damaged_graph_never_crashes_even_below_the_digest(index: NeighborIndex) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_attack, args=(str(index.path), "vectors.hnsw", 400, 0, answers))
    process.start()
    opened = answers.get(timeout=60)
    process.join(timeout=60)
    assert process.exitcode == 0
    assert opened < 400


@pytest.mark.parametrize("name", ["index.json", "vectors.hnsw", "copies.bin"])
def test_damage_is_named(tmp_path: Path, vectors: np.ndarray, name: str) -> None:
    many = np.concatenate([vectors[:50], vectors[:3]])
    built = NeighborIndex.build(tmp_path / "a", many, HNSW)
    assert len(built) == 53
    path = tmp_path / "a" / name
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(whole), size=60).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(IndexCorruptError, match=name):
            NeighborIndex.open(tmp_path / "a")
    path.write_bytes(whole[:-1])
    with pytest.raises(IndexCorruptError, match=name):
        NeighborIndex.open(tmp_path / "a")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=name):
        NeighborIndex.open(tmp_path / "a")


def test_a_file_of_another_index_is_refused(tmp_path: Path, vectors: np.ndarray) -> None:
    NeighborIndex.build(tmp_path / "a", vectors[:50], HNSW)
    NeighborIndex.build(tmp_path / "b", vectors[50:100], HNSW)
    shutil.copy(tmp_path / "b" / "vectors.hnsw", tmp_path / "a" / "vectors.hnsw")
    with pytest.raises(IndexCorruptError, match=r"vectors\.hnsw: its sha256 is"):
        NeighborIndex.open(tmp_path / "a")


def test_an_interrupted_build_leaves_no_index(tmp_path: Path, vectors: np.ndarray) -> None:
    def stop(stage: str, done: int, total: int | None) -> None:
        assert (stage, total) == ("index", 3000)
        if done > 1000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        NeighborIndex.build(tmp_path / "a", vectors, HNSW, progress=stop)
    with pytest.raises(FileNotFoundError):
        NeighborIndex.open(tmp_path / "a")
    assert len(NeighborIndex.build(tmp_path / "a", vectors, HNSW)) == 3000
