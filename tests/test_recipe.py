"""A datastore is opened with its embedder in one place, once for each command, also where its vectors were imported."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import tttnn
from tests.test_cli import run
from tests.test_importer import write_shard
from tests.test_workers import saved_recipe
from tttnn import files
from tttnn.errors import DatastoreMismatchError
from tttnn.evaluation.harness import TttnnLM
from tttnn.evaluation.records import UsedNeighbor
from tttnn.recipe import TrainerRecipe
from tttnn.report.extremes import Extreme, _excerpts
from tttnn.store.document import Document

TRAINING = ["--num-neighbors", "2", "--precision", "float32", "--max-length", "64"]


@pytest.fixture
def place(tmp_path: Path, tokenizer: Any) -> Path:
    """A folder with model, encoder and a datastore of 20 documents in two segments."""
    recipe = saved_recipe(tmp_path, tokenizer)
    tttnn.Datastore.open(recipe.datastore).append(["one more text", "and another one"]).close()
    (tmp_path / "docs.jsonl").write_text(json.dumps({"text": "a text to be measured, long enough " * 6}) + "\n")
    return tmp_path


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was compared with its digest, and each index opened."""
    counts: Counter[str] = Counter()

    def check_file(path: Path, *arguments: Any, **options: Any) -> None:
        counts[str(path)] += 1
        files.check_file(path, *arguments, **options)

    for module in ("index", "segment", "deletions"):
        monkeypatch.setattr(f"tttnn.datastore.{module}.check_file", check_file)
    return counts


@pytest.mark.parametrize(
    "command",
    [
        ["search", "STORE", "the moon"],
        ["generate", "STORE", "the moon", "--model", "MODEL", "--max-new-tokens", "2", *TRAINING],
        ["eval", "STORE", "DOCS", "--model", "MODEL", "--out", "OUT", "--curve", "1", *TRAINING],
        ["append", "DOCS", "STORE"],
        ["delete", "STORE", "3"],
        ["compact", "STORE"],
        ["info", "STORE"],
        ["verify", "STORE"],
    ],
    ids=lambda command: command[0],
)
def test_a_command_opens_and_digests_a_datastore_once(
    place: Path, digested: Counter[str], command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if command[0] == "compact":
        tttnn.Datastore.open(place / "store").delete([1])
        digested.clear()
    names = {"STORE": "store", "MODEL": "model", "DOCS": "docs.jsonl", "OUT": "out.jsonl"}
    before = {str(path) for path in (place / "store").rglob("*") if path.is_file()}
    assert run(monkeypatch, *[str(place / names[part]) if part in names else part for part in command]) == 0
    counts = {path: count for path, count in digested.items() if path in before}
    assert set(counts.values()) == {1}
    for number in (0, 1):
        assert any(f"segments/{number:03d}/vectors.hnsw" in path for path in counts)


def test_an_open_datastore_reads_after_a_change_only_what_changed(place: Path, digested: Counter[str]) -> None:
    opened = tttnn.Datastore.open(place / "store")
    digested.clear()
    assert opened.delete([3, 21]) == 2
    assert {Path(path).name for path in digested} == {"deleted.1.bin"}
    digested.clear()
    opened.append(["a third segment"])
    assert not any("/000/" in path or "/001/" in path for path in digested)
    assert [len(segment) for segment in opened._searcher.segments] == [19, 1, 1]
    assert {n.id for n in opened.search("and another one", 30)} == {*range(23)} - {3, 21}
    opened.close()
    opened.delete([4])
    assert len(opened.search("the moon", 30)) == 20


def test_fetching_reads_the_manifest_alone(place: Path, digested: Counter[str]) -> None:
    recipe = TrainerRecipe(
        str(place / "model"),
        str(place / "store"),
        tttnn.AdaptConfig(),
        tttnn.config.SelectionConfig(),
        tttnn.ScoreConfig(),
    )
    recipe.fetch()
    assert not digested


@pytest.fixture
def foreign(place: Path) -> Path:
    """A datastore of vectors that were imported, made by the encoder."""
    texts = [f"imported text {i} of the moon" for i in range(12)]
    vectors = tttnn.Embedder.load(place / "encoder").embed(texts)
    index, lines = write_shard(place, "flat", [Document(text) for text in texts], vectors)
    tttnn.Datastore.import_faiss(place / "foreign", [index], [lines], embedder_name="theirs").close()
    return place / "foreign"


def test_imported_vectors_are_searched_by_every_command_with_a_named_embedder(
    place: Path, foreign: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, docs, out = str(place / "model"), str(place / "docs.jsonl"), str(place / "out.jsonl")
    commands = {
        "search": ["search", str(foreign), "the moon"],
        "generate": ["generate", str(foreign), "the moon", "--model", model, "--max-new-tokens", "2", *TRAINING],
        "eval": ["eval", str(foreign), docs, "--model", model, "--out", out, "--curve", "1", *TRAINING],
    }
    for command in commands.values():
        capsys.readouterr()
        assert run(monkeypatch, *command) == 2
        assert f"{foreign}: embedder must be named, because its vectors were imported" in capsys.readouterr().err
        assert run(monkeypatch, *command, "--embedder", str(place / "encoder")) == 0
    assert run(monkeypatch, "append", docs, str(foreign)) == 2
    assert "vectors of new documents must come from the embedder that made its imported" in capsys.readouterr().err


def test_the_harness_takes_a_named_embedder_for_imported_vectors(place: Path, foreign: Path) -> None:
    options: dict[str, Any] = {"k": 2, "precision": "float32", "adapt_max_length": 64}
    with pytest.raises(DatastoreMismatchError, match="embedder must be named"):
        TttnnLM(str(place / "model"), str(foreign), **options)
    lm = TttnnLM(str(place / "model"), str(foreign), embedder=str(place / "encoder"), **options)
    with lm.trainer.adapt("the moon") as adapted:
        assert adapted.report.embedder == str(place / "encoder")
        assert adapted.report.found == 2


def test_another_embedder_is_refused_by_name(place: Path) -> None:
    opened = tttnn.Datastore.open(place / "store")
    with pytest.raises(DatastoreMismatchError, match=r"store: was built with .*pooling is .cls., expected .mean."):
        opened.attach(tttnn.Embedder.load(place / "encoder", tttnn.EmbedConfig(pooling="cls")))
    assert opened.attach(tttnn.Embedder.load(place / "encoder")) is opened


def test_a_report_reads_the_neighbors_of_a_datastore_with_deletions(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, docs, out = place / "store", str(place / "docs.jsonl"), str(place / "out.jsonl")
    opened = tttnn.Datastore.open(store)
    last = opened.append([json.loads(Path(docs).read_text())["text"] + "and more"]).manifest.next_id - 1
    assert opened.delete(range(last - 6)) == last - 6
    assert len(opened) < last
    model = ["--model", str(place / "model"), "--curve", "1", *TRAINING]
    assert run(monkeypatch, "eval", str(store), docs, *model, "--out", out) == 0
    used = {n.id for line in tttnn.read_results(out).lines for n in line.neighbors}
    assert max(used) >= len(opened)
    page = place / "page.html"
    report = ["report", out, "--documents", docs, "--datastore", str(store), "-o", str(page)]
    assert run(monkeypatch, *report) == 0
    for i in used:
        assert opened.documents[i].text[:30] in page.read_text()
    opened.delete(used)
    page.unlink()
    assert run(monkeypatch, *report) == 2
    assert f"{store}: must be the datastore of the results" in capsys.readouterr().err


def test_excerpts_are_of_the_texts_that_the_results_name(place: Path) -> None:
    opened = tttnn.Datastore.open(place / "store")
    gone, changed = UsedNeighbor(2, "0" * 32, 0.5, 9, None), UsedNeighbor(3, "0" * 32, 0.5, 9, None)
    opened.delete([2])
    for neighbor, words in ((gone, "document 2 of the results, but"), (changed, "document 3 must have the text")):
        line: Any = None  # not looked at
        case = Extreme("A", True, line, 1, 1.0, 0.5, [neighbor], None)
        with pytest.raises(tttnn.ConfigError, match=words):
            _excerpts([case], place / "store", None)
