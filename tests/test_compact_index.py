"""An index walked on compact vectors: the answers of float32, its own files, conversion, and damage named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tttnn
from tests.test_datastore import cached_embedder
from tests.test_index import DIM, HNSW, clustered, true_distances
from tttnn import NeighborIndex, _core
from tttnn.config import IndexConfig
from tttnn.datastore.compact_vectors import bytes_per_vector
from tttnn.datastore.estimate import estimate_build
from tttnn.errors import EmbeddingError, IndexCorruptError
from tttnn.files import describe_file, digest_of, read_manifest, write_manifest

GOLDEN = Path(__file__).parent / "data" / "index-1.0"
KINDS = ("float16", "int8")


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(3000)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return clustered(40, seed=1)


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory, vectors: np.ndarray) -> dict[str, NeighborIndex]:
    folder = tmp_path_factory.mktemp("compact")
    return {kind: NeighborIndex.build(folder / kind, vectors, HNSW.with_(vectors=kind)) for kind in ("float32", *KINDS)}


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_brute_force(
    tmp_path: Path, kind: Any, metric: Any, vectors: np.ndarray, queries: np.ndarray
) -> None:
    index = NeighborIndex.build(tmp_path / "a", vectors[:1200], HNSW.with_(vectors=kind, metric=metric))
    truth = true_distances(vectors[:1200], queries, metric)
    for where in (None, np.arange(1200) % 3 == 1):
        allowed = truth if where is None else np.where(where, truth, np.inf)
        ids, distances = index.search(queries, 10, ef=200, method="graph", where=where)
        # What is found stands at its true distance, whatever was walked on.
        np.testing.assert_allclose(np.take_along_axis(allowed, ids, 1), distances, atol=2e-6)
        assert np.mean(distances <= np.sort(allowed, axis=1)[:, 9:10] + 2e-6) >= 0.98
        exact, _ = index.search(queries, 10, method="scan", where=where)
        np.testing.assert_array_equal(exact, np.argsort(allowed, axis=1, kind="stable")[:, :10])


@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_what_float32_finds(indexes: dict[str, NeighborIndex], kind: str, queries: np.ndarray) -> None:
    true, _ = indexes["float32"].search(queries, 20, method="scan")
    found, _ = indexes[kind].search(queries, 20, ef=100, method="graph")
    plain, _ = indexes["float32"].search(queries, 20, ef=100, method="graph")
    recall, theirs = (
        np.mean([len(set(a) & set(b)) / 20 for a, b in zip(ids, true, strict=True)]) for ids in (found, plain)
    )
    assert recall >= theirs - 0.01


def test_less_memory_and_what_it_costs(indexes: dict[str, NeighborIndex], vectors: np.ndarray) -> None:
    for kind in KINDS:
        index = indexes[kind]
        exact = (index.mapped_bytes - 2 * 4096) / len(vectors)
        assert 0 <= exact - bytes_per_vector(DIM, kind, HNSW.M) < 10  # upper levels
        assert np.array_equal(index.vectors([7, 2999, 0]), vectors[[7, 2999, 0]])
    assert bytes_per_vector(384, "int8", 16) <= 0.35 * bytes_per_vector(384, "float32", 16)
    assert indexes["int8"].walks_on == "int8"
    assert indexes["float32"].walks_on == "float32"


def test_copies_fewer_than_k_and_an_empty_filter(tmp_path: Path, vectors: np.ndarray) -> None:
    many = np.concatenate([vectors[:20], vectors[3:4], vectors[20:30], vectors[3:4], vectors[:1]])
    index = NeighborIndex.build(tmp_path / "a", many, HNSW.with_(vectors="int8"))
    for method in ("auto", "graph", "scan"):
        ids, distances = index.search(vectors[3:4], 40, method=method)
        assert ids[0, :3].tolist() == [3, 20, 31]
        assert sorted(ids[0, :33]) == list(range(33))
        assert (ids[0, 33:] == -1).all()
        assert np.isinf(distances[0, 33:]).all()
        where = np.zeros(33, bool)
        assert (index.search(vectors[:2], 3, where=where, method=method)[0] == -1).all()
        where[[20, 32]] = True
        assert index.search(vectors[3:4], 3, where=where, method=method)[0][0].tolist() == [20, 32, -1]
    assert np.array_equal(index.vectors(np.arange(33)), many)
    with pytest.raises(IndexError):
        index.vectors([33])


def test_the_same_vectors_give_the_same_files(
    tmp_path: Path, indexes: dict[str, NeighborIndex], vectors: np.ndarray
) -> None:
    again = NeighborIndex.build(tmp_path / "b", vectors, HNSW.with_(vectors="int8"))
    for name in ("index.json", "graph.links", "vectors.full", "vectors.int8", "copies.bin"):
        assert (again.path / name).read_bytes() == (indexes["int8"].path / name).read_bytes()


def test_threads_and_other_queries_change_nothing(indexes: dict[str, NeighborIndex], queries: np.ndarray) -> None:
    ids, distances = NeighborIndex.open(indexes["int8"].path).search(queries, 7, method="graph", threads=1)
    for threads in (0, 2):
        again = NeighborIndex.open(indexes["int8"].path).search(queries, 7, method="graph", threads=threads)
        assert np.array_equal(ids, again[0])
        assert np.array_equal(distances, again[1])
    alone = indexes["int8"].search(queries[3:4], 7, method="graph")
    assert np.array_equal(alone[0][0], ids[3])


def test_wrong_settings_and_vectors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vectors must be float32 where backend is exact, got int8"):
        NeighborIndex.build(tmp_path / "a", clustered(5), IndexConfig(backend="exact", vectors="int8"))
    large = clustered(10)
    large[1] = large[0]
    large[7, 3] = 7e4
    with pytest.raises(EmbeddingError, match="vector 7: every element must be below 65520 in float16"):
        NeighborIndex.build(tmp_path / "b", large, HNSW.with_(vectors="float16"))
    large[7, 3] = 3e19
    with pytest.raises(EmbeddingError, match="vector 7: every element must be small enough for int8"):
        NeighborIndex.build(tmp_path / "b", large, HNSW.with_(vectors="int8"))
    with pytest.raises(FileNotFoundError):
        NeighborIndex.open(tmp_path / "b")


def _read_all(path: Path, queries: np.ndarray, expected: tuple[np.ndarray, np.ndarray]) -> None:
    """Search and verify: an answer is the expected one, or there is none."""
    opened = NeighborIndex.open(path)
    for found, right in zip(opened.search(queries, 5, method="graph"), expected, strict=True):
        assert np.array_equal(found, right)
    opened.verify()


@pytest.mark.parametrize("name", ["graph.links", "vectors.full", "vectors.int8"])
def test_damage_is_named(tmp_path: Path, vectors: np.ndarray, name: str) -> None:
    built = NeighborIndex.build(tmp_path / "a", vectors[:200], HNSW.with_(vectors="int8"))
    expected = built.search(vectors[:5], 5, method="graph")
    path = tmp_path / "a" / name
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in [*rng.integers(0, 128, 10).tolist(), *rng.integers(4096, len(whole), 30).tolist()]:
        path.unlink()
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(IndexCorruptError, match=name):
            _read_all(tmp_path / "a", vectors[:5], expected)
    path.write_bytes(whole[:-1])
    with pytest.raises(IndexCorruptError, match=name):
        NeighborIndex.open(tmp_path / "a")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=name):
        NeighborIndex.open(tmp_path / "a")


def test_a_file_of_another_index_is_refused(tmp_path: Path, vectors: np.ndarray) -> None:
    for seed, folder in ((0, "a"), (1, "b")):
        NeighborIndex.build(tmp_path / folder, vectors[:50], HNSW.with_(vectors="int8"), seed=seed)
    shutil.copy(tmp_path / "b" / "vectors.int8", tmp_path / "a" / "vectors.int8")
    with pytest.raises(IndexCorruptError, match=r"vectors\.int8: is not of the same index"):
        NeighborIndex.open(tmp_path / "a")


def test_the_golden_file_still_opens(tmp_path: Path) -> None:
    index = NeighborIndex.open(GOLDEN)
    index.verify()
    vectors = clustered(64, 8)
    vectors[9] = vectors[2]
    kept = index.vectors(np.arange(64))
    np.testing.assert_allclose(kept, vectors, atol=1e-6)
    ids, _ = index.search(vectors[2:3], 4)
    truth = true_distances(vectors, vectors[2:3], "l2")
    assert ids[0].tolist() == np.argsort(truth[0], kind="stable")[:4].tolist()
    # What is written today is what was written then.
    again = NeighborIndex.build(
        tmp_path / "a", kept, IndexConfig(M=4, ef_construction=20, ef_search=16, vectors="int8")
    )
    for file in GOLDEN.iterdir():
        assert (again.path / file.name).read_bytes() == file.read_bytes()


def test_a_newer_version_is_told_from_damage(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "a")
    path = tmp_path / "a" / "graph.links"
    content = bytearray(path.read_bytes())
    content[8] = 2
    path.write_bytes(content)
    with pytest.raises(IndexCorruptError, match=r"version must be at most 1, got 2\. Install a newer tttnn"):
        NeighborIndex.open(tmp_path / "a")


TEXTS = [f"{i} {word} {other}" for i, (word, other) in enumerate((w, o) for w in "abcdefgh" for o in "klmnopqr")]


def _answers(datastore: tttnn.Datastore) -> list[list[tuple[int, float]]]:
    return [[(n.id, n.distance) for n in datastore.search(query, 9)] for query in ("3 a k", "40 f m", "h r")]


def test_a_datastore_is_converted_appended_to_and_verified(tmp_path: Path) -> None:
    embedder = cached_embedder(3)
    made = tttnn.Datastore.build(
        tmp_path / "ds", TEXTS[:40], embedder, config=tttnn.DatastoreConfig(segment_documents=20), index=HNSW
    )
    made.delete([5])
    expected = _answers(made)
    plain = made.info()["bytes_per_vector"]
    report = made.compact(vectors="int8")
    assert (report.removed, made.info()["documents"]) == (1, 39)
    info = made.info()
    assert info["settings"]["index"]["vectors"] == "int8"
    assert info["bytes_per_vector"]["disk"] > plain["disk"]
    assert info["bytes_per_vector"]["memory"] < info["bytes_per_vector"]["disk"]
    assert _answers(made) == expected
    # Nothing is left to do the second time.
    assert made.compact(vectors="int8").segments_after == report.segments_after
    id_before = made.id
    made.compact()
    assert made.id == id_before

    made.append(TEXTS[40:])
    walks = [json.loads(file.read_text())["walks"] for file in sorted((tmp_path / "ds").rglob("index.json"))]
    assert walks == ["int8"] * len(walks)
    assert len(walks) == 4
    whole = tttnn.Datastore.build(tmp_path / "whole", TEXTS, embedder, index=HNSW.with_(vectors="float32"))
    whole.delete([5])
    assert _answers(made) == _answers(whole)
    made.delete([6, 63])
    whole.delete([6, 63])
    assert _answers(made) == _answers(whole)
    made.verify()
    damaged = sorted((tmp_path / "ds").rglob("vectors.full"))[-1]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.unlink()
    damaged.write_bytes(content)
    with pytest.raises(IndexCorruptError, match=r"vectors\.full: record \d+ fails its checksum"):
        tttnn.Datastore.open(tmp_path / "ds", embedder).verify()
    damaged.unlink()
    damaged.write_bytes(bytes(content[:-1]) + bytes([content[-1] ^ 1]))

    back = tttnn.Datastore.open(tmp_path / "ds", embedder)
    back.compact(vectors="float32")
    assert _answers(back) == _answers(whole)
    assert not list((tmp_path / "ds").rglob("vectors.int8"))
    exact = tttnn.Datastore.build(tmp_path / "x", TEXTS[:5], embedder, index=IndexConfig(backend="exact"))
    with pytest.raises(ValueError, match="vectors must be float32 where backend is exact"):
        exact.compact(vectors="int8")


def test_passages_keep_their_texts_when_converted(tmp_path: Path) -> None:
    embedder = cached_embedder(3)
    long = [" ".join(TEXTS[i : i + 30]) for i in range(0, 60, 10)]
    made = tttnn.Datastore.build(
        tmp_path / "ds", long, embedder, config=tttnn.DatastoreConfig(unit="passage", passage_overlap=1), index=HNSW
    )
    before = [(n.id, n.span, n.text) for n in made.search("17 c l", 4)]
    texts = next((tmp_path / "ds" / "segments").glob("*/texts.zst")).read_bytes()
    made.compact(vectors="float16")
    assert [(n.id, n.span, n.text) for n in made.search("17 c l", 4)] == before
    assert next((tmp_path / "ds" / "segments").glob("*/texts.zst")).read_bytes() == texts


def test_an_older_datastore_without_the_setting_opens_and_is_converted(tmp_path: Path) -> None:
    embedder = cached_embedder(3)
    tttnn.Datastore.build(tmp_path / "ds", TEXTS[:12], embedder, index=HNSW)
    file = tmp_path / "ds" / "manifest.json"
    manifest = read_manifest(file, format_version=9)
    del manifest["settings"]["index"]["vectors"], manifest["id"]
    write_manifest(file, {**manifest, "id": digest_of(manifest)})
    assert read_manifest(next(file.parent.rglob("index.json")), format_version=1)["format"] == 1
    opened = tttnn.Datastore.open(tmp_path / "ds", embedder)
    expected = _answers(opened)
    opened.compact(vectors="int8")
    assert _answers(opened) == expected


def test_the_estimate_tells_memory(tmp_path: Path) -> None:
    embedder = cached_embedder(3)
    guesses = [estimate_build(TEXTS, embedder, index=HNSW.with_(vectors=kind)) for kind in ("float32", "int8")]
    assert guesses[0].memory_bytes > guesses[1].memory_bytes > 64 * bytes_per_vector(embedder.dim, "int8", HNSW.M)


def test_describe_file_of_an_index_holds_all_files(indexes: dict[str, NeighborIndex]) -> None:
    index = indexes["int8"]
    for name, described in index.manifest["files"].items():
        assert describe_file(index.path / name) == described
    assert {path.name for path in index.mapped_paths} == {"graph.links", "vectors.full", "vectors.int8"}
    assert isinstance(index._graph, _core.CompactIndex)
