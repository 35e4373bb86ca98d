from __future__ import annotations

import json
import random
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import tttnn
from tests.conftest import tiny_gpt2
from tests.encoders import save_encoder
from tests.json_shapes import differences, read_shapes
from tests.test_cli import run
from tttnn.cli import demo
from tttnn.cli.bars import Bars
from tttnn.cli.demo import MEASURED, run_demo
from tttnn.cli.demo_sample import HELD_OUT, SAMPLE_BYTES, WINDOW_TOKENS, draw_sample, standard_library
from tttnn.store.document import Document, text_digest


def documents(count: int, length: int = 3000) -> list[Document]:
    return [
        Document("".join(random.Random(i).choices("abcdef \n", k=length)), {"path": f"{i:03}.txt"})
        for i in range(count)
    ]


def test_held_out_documents_are_whole_and_not_in_the_corpus(tokenizer: Any) -> None:
    given = documents(20)
    copies = [Document(document.text, {"path": f"copy-of-{document.meta['path']}"}) for document in given]
    sample = draw_sample(given + copies, tokenizer, seed=1)
    assert len(sample.held_out) == HELD_OUT
    held = {text_digest(document.text) for document in sample.held_out}
    assert len(held) == HELD_OUT
    corpus: dict[str, str] = {}
    for window in sample.windows:
        corpus[window.meta["name"]] = corpus.get(window.meta["name"], "") + window.text
        assert len(window.text) <= WINDOW_TOKENS
    assert not held & {text_digest(text) for text in corpus.values()}
    assert sorted(corpus.values()) == sorted(d.text for d in given if text_digest(d.text) not in held)


def test_near_copies_of_held_out_documents_are_not_in_the_corpus(tokenizer: Any) -> None:
    whole = [Document(" ".join(f"w{i}x{j}" for j in range(600)), {"path": f"{i}"}) for i in range(HELD_OUT + 4)]
    # A head of its own and a piece: too short to be held out itself.
    pieces = [
        Document(f"head {i} of another file\n{document.text[500:1400]}", {"path": f"piece-{i}"})
        for i, document in enumerate(whole)
    ]
    sample = draw_sample(whole + pieces, tokenizer, seed=1)
    held = {document.meta["path"] for document in sample.held_out}
    assert held < {document.meta["path"] for document in whole}
    kept = {window.meta["name"] for window in sample.windows if window.meta["name"].startswith("piece")}
    assert kept == {f"piece-{document.meta['path']}" for document in whole if document.meta["path"] not in held}
    assert sample.left_out >= HELD_OUT


def test_the_sample_depends_on_the_seed_alone(tokenizer: Any) -> None:
    given = documents(20)
    first = draw_sample(given, tokenizer, seed=1)
    assert draw_sample(list(reversed(given)), tokenizer, seed=1).digest == first.digest
    assert draw_sample(given, tokenizer, seed=2).digest != first.digest


def test_the_sample_is_bounded(tokenizer: Any) -> None:
    sample = draw_sample(documents(12, length=SAMPLE_BYTES // 5), tokenizer, seed=0)
    assert SAMPLE_BYTES - WINDOW_TOKENS <= sample.num_bytes <= SAMPLE_BYTES
    assert sum(len(window.text.encode()) for window in sample.windows) == sample.num_bytes


@pytest.mark.parametrize("count", [0, 1, HELD_OUT])
def test_too_small_a_corpus_is_refused(tokenizer: Any, count: int) -> None:
    with pytest.raises(tttnn.TttnnError, match="at least 6 different documents"):
        draw_sample(documents(count), tokenizer, seed=0)


def test_every_python_has_the_default_corpus() -> None:
    assert sum(len(document.text) for document in standard_library()) > SAMPLE_BYTES


def test_the_whole_demo_with_tiny_models(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything but what real models make of it: what is measured, printed at 80 columns, drawn, and repeated."""
    tiny_gpt2(n_positions=4096).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    save_encoder(tmp_path / "encoder")
    monkeypatch.setattr(demo, "MODEL", str(tmp_path / "model"))
    monkeypatch.setattr(demo, "EMBEDDER", str(tmp_path / "encoder"))
    monkeypatch.setenv("COLUMNS", "80")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(8):
        words = random.Random(i).choices([f"word{j}" for j in range(300)], k=500)
        (corpus / f"file{i}.txt").write_text(" ".join(words))
    arguments = ["demo", "--corpus", str(corpus), "--out", str(tmp_path / "out"), "--num-neighbors", "3"]
    seen: dict[str, list[tuple[int, int | None]]] = {}
    original = Bars.__call__

    def watched(self: Bars, stage: str, done: int, total: int | None) -> None:
        seen.setdefault(stage, []).append((done, total))
        original(self, stage, done, total)

    monkeypatch.setattr(Bars, "__call__", watched)
    assert run(monkeypatch, *arguments, "--json") == 0
    numbers = json.loads(capsys.readouterr().out)
    shapes = read_shapes(Path(__file__).resolve().parents[1] / "docs" / "json.md")
    assert differences(numbers, shapes["demo"], shapes, "demo") == []
    assert numbers["curve"].keys() == {"0", "2", "3"}
    assert numbers["curve"]["0"] == numbers["base_bits_per_byte"]
    assert numbers["seconds_per_document"]["adapted"] > 0
    assert numbers["total_seconds"] >= numbers["seconds"]["train"]
    assert len(numbers["per_document"]) == MEASURED
    for stage, calls in seen.items():
        assert [done for done, _ in calls] == sorted(done for done, _ in calls), stage
        assert calls[-1][0] == calls[-1][1], stage
    assert run(monkeypatch, *arguments) == 0
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines() if str(tmp_path) not in line) <= 80
    for words in (
        "in context",
        "trained/base",
        "total",
        "before an answer",
        "it goes on, in truth",
        "everything took",
    ):
        assert words in shown
    assert f"{numbers['adapted_bits_per_byte']:.3f}" in shown
    for command in ("next: tttnn search", "tttnn generate", "tttnn precompute"):
        assert command in shown
    assert (tmp_path / "out" / "bits_per_byte.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["results.jsonl", "results.jsonl.seconds", "bits_per_byte.png"])
def test_a_folder_with_files_of_someone_else_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("mine")
    (tmp_path / "datastore-of-mine").mkdir()
    assert run(monkeypatch, "demo", "--out", str(tmp_path)) == 2
    assert f"{tmp_path / name}: is there already, and no demo made it" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"
    with pytest.raises(FileExistsError, match=f"{name}: must be a folder or a new name, and is neither"):
        run_demo(tmp_path / name)


@pytest.mark.models
@pytest.mark.slow
def test_demo_on_a_small_corpus(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    root = Path(sysconfig.get_paths()["stdlib"])
    for name in ("heapq", "bisect", "textwrap", "shlex", "csv", "string", "glob", "queue", "sched", "calendar", "code"):
        (corpus / f"{name}.py").write_bytes((root / f"{name}.py").read_bytes())
    config = tttnn.AdaptConfig(num_neighbors=1, max_neighbor_tokens=128)
    said: list[str] = []
    result = run_demo(tmp_path / "out", corpus=corpus, seed=3, config=config, tell=said.append)
    numbers = json.loads(json.dumps(result.to_dict()))
    assert numbers["documents"] == MEASURED
    assert {"base_bits_per_byte", "adapted_bits_per_byte", "seconds", "seed"} <= numbers.keys()
    assert numbers["curve"]["0"] == numbers["base_bits_per_byte"]
    assert (tmp_path / "out" / "bits_per_byte.png").read_bytes().startswith(b"\x89PNG")
    assert result.prompt
    assert result.after
    datastores = sorted(path.name for path in (tmp_path / "out").glob("datastore-*"))
    again = run_demo(tmp_path / "out", corpus=corpus, seed=3, config=config)
    assert again.to_dict()["curve"] == numbers["curve"]
    assert sorted(path.name for path in (tmp_path / "out").glob("datastore-*")) == datastores
