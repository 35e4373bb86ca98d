"""Vectors made elsewhere: flat faiss files are read without faiss, checked, and searched by a named embedder only."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tttnn
from tests.encoders import save_encoder, tiny_embedder
from tests.test_cli import run
from tests.test_datastore import cached_embedder, contents, corpus
from tttnn.config import IndexConfig
from tttnn.datastore.faiss_import import FlatFile
from tttnn.errors import DatastoreMismatchError, EmbeddingError, IndexCorruptError

EXACT = IndexConfig(backend="exact")


def write_flat(path: Path, vectors: np.ndarray, *, fourcc: bytes = b"IxF2", metric: int = 1) -> Path:
    """Write what faiss.write_index writes of an IndexFlat."""
    count, dim = vectors.shape
    header = fourcc + struct.pack("<iqqqBi", dim, count, 1 << 20, 1 << 20, 1, metric)
    path.write_bytes(header + struct.pack("<Q", vectors.size) + vectors.astype("<f4").tobytes())
    return path


def write_shard(folder: Path, name: str, documents: list[Any], vectors: np.ndarray, **how: Any) -> tuple[Path, Path]:
    rows = [json.dumps({"text": d.text, "meta": d.meta}) + "\n" for d in documents]
    (folder / f"{name}.jsonl").write_text("".join(rows))
    return write_flat(folder / f"{name}.index", vectors, **how), folder / f"{name}.jsonl"


@pytest.fixture
def shards(tmp_path: Path) -> tuple[list[Path], list[Path]]:
    vectors = cached_embedder(3).embed([d.text for d in corpus()])
    pairs = [
        write_shard(tmp_path, "00", corpus()[:35], vectors[:35]),
        write_shard(tmp_path, "01", corpus()[35:], vectors[35:]),
    ]
    return [index for index, _ in pairs], [texts for _, texts in pairs]


@pytest.mark.parametrize("backend", ["exact", "hnsw"])
def test_an_import_answers_as_a_build(tmp_path: Path, shards: tuple[list[Path], list[Path]], backend: Any) -> None:
    settings = IndexConfig(backend=backend, M=4)
    made = tttnn.Datastore.import_faiss(tmp_path / "d", *shards, embedder_name="theirs", index=settings)
    assert [d.text for d in made.store] == [d.text for d in corpus()]
    assert made.info()["segments"] == 2
    assert (made.foreign, made.embedder_name) == (True, "theirs")
    with pytest.raises(DatastoreMismatchError, match=r"'theirs', which tttnn does not have.*32 dimensions"):
        made.search("moon cat", 3)
    with pytest.raises(DatastoreMismatchError, match="'theirs', which tttnn does not have"):
        made.append(["more"])
    index, texts = write_shard(tmp_path, "x", corpus(3), np.ones((3, 16), np.float32))
    tttnn.Datastore.import_faiss(tmp_path / "x", [index], [texts])
    with pytest.raises(DatastoreMismatchError, match="dim is 32, expected 16"):
        tttnn.Datastore.open(tmp_path / "x", cached_embedder(3))
    built = tttnn.Datastore.build(tmp_path / "b", corpus(), cached_embedder(3), index=settings)
    given = tttnn.Datastore.open(tmp_path / "d", cached_embedder(3))
    assert [(n.id, n.text) for n in given.search("moon cat", 9)] == [
        (n.id, n.text) for n in built.search("moon cat", 9)
    ]
    given.delete([1, 40])
    assert given.compact().removed == 2
    assert len(given.search("moon cat", 60)) == 58
    given.verify()


def test_an_interrupted_import_continues(tmp_path: Path, shards: tuple[list[Path], list[Path]]) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    calls: list[str] = []
    tttnn.Datastore.import_faiss(tmp_path / "whole", *shards, progress=lambda stage, *_: calls.append(stage))
    for stop_at in {calls.index(stage) for stage in calls}:
        seen = 0

        def stop(*_: Any, stop_at: int = stop_at) -> None:
            nonlocal seen
            seen += 1
            if seen > stop_at:
                raise Stop

        path = tmp_path / f"stopped-{stop_at}"
        with pytest.raises(Stop):
            tttnn.Datastore.import_faiss(path, *shards, progress=stop)
        tttnn.Datastore.import_faiss(path, *shards)
        assert contents(path) == contents(tmp_path / "whole")


def test_inner_product_and_the_old_name(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    for fourcc, metric, name in ((b"IxFI", 0, "ip"), (b"IxFl", 1, "l2"), (b"IxFl", 0, "ip")):
        index, texts = write_shard(tmp_path, "ip", corpus(20), vectors, fourcc=fourcc, metric=metric)
        made = tttnn.Datastore.import_faiss(tmp_path / f"{fourcc.decode()}{metric}", [index], [texts], index=EXACT)
        assert made.info()["settings"]["index"]["metric"] == name
        np.testing.assert_array_equal(made.vectors(range(20)), vectors)


def test_files_that_do_not_fit_are_refused(tmp_path: Path, shards: tuple[list[Path], list[Path]]) -> None:
    indexes, texts = shards
    cases: list[tuple[list[Path], list[Path], str]] = [
        (indexes, texts[:1], "one file for each index"),
        ([], [], "one file for each index"),
        (indexes[::-1], texts, r"00\.jsonl: must hold 25 documents, one for each vector of .*01\.index, got more"),
        (indexes[:1], texts[1:], r"01\.jsonl: must hold 35 documents.*got 25"),
        ([indexes[0], write_flat(tmp_path / "w.index", np.ones((2, 8)))], texts, r"w\.index: must hold vectors of 32"),
        ([texts[0]], [texts[0]], r"00\.jsonl: must be a faiss IndexFlatL2"),
    ]
    for number, (left, right, words) in enumerate(cases):
        with pytest.raises(ValueError, match=words):
            tttnn.Datastore.import_faiss(tmp_path / str(number), left, right)
    bad = np.ones((4, 8), np.float32)
    bad[2, 3] = np.nan
    index, lines = write_shard(tmp_path, "bad", corpus(4), bad)
    with pytest.raises(EmbeddingError, match="vector 2"):
        tttnn.Datastore.import_faiss(tmp_path / "nan", [index], [lines])


def test_a_damaged_header_is_named(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "a.index", np.ones((5, 8), np.float32))
    assert (FlatFile.open(path).count, FlatFile.open(path).dim) == (5, 8)
    whole = path.read_bytes()
    # The two numbers that mean nothing may hold anything, and both values of "trained" are read.
    checked = [at for at in range(45) if not 16 <= at < 32 and at != 32]
    for at in checked:
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
            with pytest.raises((ValueError, IndexCorruptError), match=r"a\.index"):
                FlatFile.open(path)
    for spoiled in (whole[:-1], whole + b"\0", whole[:40], whole[:3], b""):
        path.write_bytes(spoiled)
        with pytest.raises((ValueError, IndexCorruptError), match=r"a\.index"):
            FlatFile.open(path)


def test_a_real_faiss_file(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss is not installed")
    vectors = np.random.default_rng(0).standard_normal((50, 24)).astype(np.float32)
    for index, metric in ((faiss.IndexFlatL2(24), "l2"), (faiss.IndexFlatIP(24), "ip")):
        index.add(vectors)
        faiss.write_index(index, str(tmp_path / metric))
        found = FlatFile.open(tmp_path / metric)
        assert (found.count, found.dim, found.metric) == (50, 24, metric)
        np.testing.assert_array_equal(found.read(3, 50), vectors[3:])
        fourcc = {"l2": b"IxF2", "ip": b"IxFI"}[metric]
        write_flat(tmp_path / "ours", vectors, fourcc=fourcc, metric=int(metric == "l2"))
        assert (tmp_path / "ours").read_bytes() == (tmp_path / metric).read_bytes()


def test_the_command_imports_and_searches_with_a_named_embedder_only(
    tmp_path: Path,
    shards: tuple[list[Path], list[Path]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [part for index in shards[0] for part in ("--faiss", str(index))]
    place = str(tmp_path / "d")
    assert run(monkeypatch, "import", *map(str, shards[1]), place, *flags, "--backend", "exact", "--json") == 0
    described = json.loads(capsys.readouterr().out)
    assert described["embedder"]["foreign"] is True
    assert run(monkeypatch, "search", place, "moon") != 0
    assert "embedder must be named, because its vectors were imported" in capsys.readouterr().err
    encoder = str(save_encoder(tmp_path / "encoder"))
    assert run(monkeypatch, "search", place, "moon", "--embedder", encoder, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 10
    assert tiny_embedder().dim == 32


def test_pickled_it_brings_the_embedder_that_was_attached(
    tmp_path: Path, shards: tuple[list[Path], list[Path]]
) -> None:
    tttnn.Datastore.import_faiss(tmp_path / "d", *shards)
    embedder = tttnn.Embedder.load(save_encoder(tmp_path / "m"))
    given = tttnn.Datastore.open(tmp_path / "d", embedder)
    again = pickle.loads(pickle.dumps(given))
    assert again.embedder.identity == embedder.identity
    assert list(again.search("moon cat", 5)) == list(given.search("moon cat", 5))
