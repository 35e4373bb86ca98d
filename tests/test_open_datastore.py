"""An open datastore while others write beside it, in other folders and in other processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tttnn
from tests.encoders import save_encoder, tiny_embedder
from tests.test_datastore import build, corpus
from tttnn.embedding.embedder import Embedder
from tttnn.errors import DatastoreMismatchError, IndexCorruptError, StoreCorruptError

QUERY = "moon cat sort"


def other(path: Path) -> tttnn.Datastore:
    """Open it as another process would."""
    return tttnn.Datastore.open(path, tiny_embedder())


def test_what_another_process_changes_is_in_the_next_answer(tmp_path: Path) -> None:
    reader = build(tmp_path / "d")
    first = reader.search(QUERY, 5)
    assert not reader.refresh()
    other(reader.path).delete([first[0].id])
    assert [n.id for n in reader.search(QUERY, 4)] == [n.id for n in first[1:]]
    other(reader.path).append([QUERY])
    assert reader.describe().id == other(reader.path).id
    assert reader.search(QUERY, 1)[0].id == 60
    other(reader.path).compact()
    assert reader.search(QUERY, 1)[0].id == 60
    assert len(reader) == 60
    other(reader.path).delete([60])
    assert reader.refresh()
    assert reader.search(QUERY, 1)[0].id == first[1].id


def test_another_datastore_in_its_place_is_refused_and_none_is_not(tmp_path: Path) -> None:
    reader = build(tmp_path / "d")
    found = reader.search(QUERY, 3)
    os.rename(tmp_path / "d", tmp_path / "away")
    assert reader.search(QUERY, 3) == found
    build(tmp_path / "d", unit="passage")
    with pytest.raises(DatastoreMismatchError, match="another datastore was put in its place"):
        reader.search(QUERY, 3)


@pytest.mark.parametrize(("name", "error"), [("texts.zst", StoreCorruptError), ("vectors.hnsw", IndexCorruptError)])
def test_a_file_that_is_cut_short_is_named_before_it_is_read(tmp_path: Path, name: str, error: type[Exception]) -> None:
    reader = build(tmp_path / "d")
    reader.search(QUERY, 3)
    os.truncate(tmp_path / "d" / "segments" / "000" / name, 100)
    with pytest.raises(error, match=f"{name}: holds 100 bytes, but .* when it was opened"):
        reader.search(QUERY, 3)


def test_a_relative_name_goes_on_to_mean_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build(Path("d")).close()
    opened = tttnn.Datastore.open("d", tiny_embedder())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    opened.append(["a new text"])
    assert opened.delete([3]) == 1
    opened.verify()
    assert opened.compact().removed == 1
    assert len(opened.search(QUERY, 100)) == 60


def test_a_datastore_is_pickled_by_its_place(tmp_path: Path) -> None:
    encoder = tttnn.Embedder.load(save_encoder(tmp_path / "encoder"))
    made = tttnn.Datastore.build(tmp_path / "d", corpus(30), encoder)
    content = pickle.dumps(made)
    assert len(content) < 1000
    assert pickle.loads(content).search(QUERY, 5) == made.search(QUERY, 5)
    shutil.rmtree(tmp_path / "d")
    with pytest.raises(FileNotFoundError, match="is not a datastore"):
        pickle.loads(content)


def _search(embedder: Any, answers: Any) -> None:
    try:
        answers.put(embedder.embed(["moon"]).shape)
    except RuntimeError as error:
        answers.put(str(error))


def test_a_forked_child_is_told_instead_of_waiting_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("fork")
    embedder, answers = tiny_embedder(), context.Queue()
    embedder.embed(["sun"])
    assert Embedder._ran_in == os.getpid()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    child = context.Process(target=_search, args=(embedder, answers))
    child.start()
    assert "forked" in answers.get(timeout=60)
    child.join()
