"""The command line: what it prints where, and its exit codes."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

import tttnn
from tests.encoders import save_encoder
from tests.test_workers import saved_recipe
from tttnn.cli import exit_codes, flags
from tttnn.cli import program as cli
from tttnn.cli.bars import Bars
from tttnn.cli.command import Command
from tttnn.cli.manual import commands_of
from tttnn.retrieval.where import Where


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["tttnn", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


@pytest.mark.parametrize("command", sorted(cli.app.commands))
def test_help_shows_examples(command: str) -> None:
    shown = CliRunner().invoke(cli.app, [command, "--help"])
    assert shown.exit_code == 0
    assert "Examples:" in shown.output
    assert f"tttnn {command}" in shown.output


@pytest.mark.parametrize("command", sorted(cli.app.commands))
@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_help_fits_eighty_columns(command: str, flag: str) -> None:
    shown = CliRunner().invoke(cli.app, [command, flag], terminal_width=80)
    if shown.exit_code == 0:
        assert not [line for line in shown.output.splitlines() if len(line) > 80 and "tttnn lm-eval" not in line]
    else:
        assert flag == "--help-all"


def test_help_shows_the_common_flags_and_names_the_other_groups() -> None:
    short = CliRunner().invoke(cli.app, ["generate", "--help"]).output
    every = CliRunner().invoke(cli.app, ["generate", "--help-all"]).output
    assert "--num-neighbors" in short
    assert "--beta1" not in short
    assert "--beta1" in every
    assert len(short.splitlines()) < 50
    for group in ("Training", "Selection", "Memory", "Models"):
        assert f"{group} (" in " ".join(short.split())
        assert f"{group}:" in every


def test_every_setting_is_a_flag_with_its_default() -> None:
    shown = " ".join(CliRunner().invoke(cli.app, ["eval", "--help-all"], terminal_width=110).output.split())
    for cls, prefix in ((tttnn.AdaptConfig, ""), (tttnn.EvalConfig, ""), (tttnn.ScoreConfig, "score-")):
        for field in fields(cls):
            assert f"--{prefix}{field.name.replace('_', '-')} " in shown
    assert f"[default: {tttnn.AdaptConfig().learning_rate}]" in shown


def test_version_and_module(monkeypatch: pytest.MonkeyPatch) -> None:
    out = subprocess.run([sys.executable, "-m", "tttnn", "--version"], capture_output=True, text=True, check=True)
    assert tttnn.__version__ in out.stdout


def test_info_build(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "info", "--build", "--json") == 0
    described = json.loads(capsys.readouterr().out)
    assert {"version", "compiler", "simd", "cuda", "zstd", "torch", "python"} <= described.keys()
    assert run(monkeypatch, "info", "--build") == 0
    assert "compiler" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["info"], exit_codes.USAGE, "DATASTORE or --build"),
        (["info", "/no/such/datastore"], exit_codes.USAGE, "/no/such/datastore"),
        (["search", "/no/such/datastore", "query"], exit_codes.USAGE, "/no/such/datastore"),
        (["verify", "/no/such/datastore"], exit_codes.USAGE, "/no/such/datastore"),
        (["build", "/no/such/corpus", "out"], exit_codes.USAGE, "/no/such/corpus"),
        (["nonsense"], exit_codes.USAGE, "nonsense"),
        (["search", ".", "  "], exit_codes.USAGE, "query must hold some text, got '  '"),
        (["search", ".", "caf\udce9"], exit_codes.USAGE, "query must be UTF-8"),
        (["generate", ".", ""], exit_codes.USAGE, "query must hold some text, got ''"),
        (["search", "."], exit_codes.USAGE, "either a QUERY or --queries FILE"),
        (["search", ".", "a", "--queries", "-"], exit_codes.USAGE, "either a QUERY or --queries FILE"),
        (["search", ".", "a", "-k", "0"], exit_codes.USAGE, "-k"),
        (["search", ".", "a", "--device", "cdua"], exit_codes.USAGE, "device must be one of torch's"),
        (["generate", ".", "a", "--dtype", "int8"], exit_codes.USAGE, "int8"),
        (["generate", ".", "y", "--num-neighbors", "many"], exit_codes.USAGE, "whole number, got 'many'"),
        (["generate", ".", "y", "--num-neighbors", "-3"], exit_codes.USAGE, "num_neighbors must be between 0"),
        (["generate", ".", "y", "--schedule", "cosine"], exit_codes.USAGE, "cosine"),
    ],
)
def test_wrong_use_is_exit_code_2_and_names_it(
    arguments: list[str], code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *arguments) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{}", "must be a report of tttnn generate --json"),
        (b"[]", "must be a report of tttnn generate --json, got list"),
        (b"x", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"report": 3}', "must be a report of tttnn generate --json, got int"),
        (b'{"report": {"neighbors": 3}}', "must be a report of tttnn generate --json"),
    ],
)
def test_a_report_that_is_none_is_named(
    tmp_path: Path, content: bytes, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.json"
    file.write_bytes(content)
    assert run(monkeypatch, "replay", str(file), str(tmp_path)) == exit_codes.USAGE
    assert f"{file}: {words}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyError("gone"), exit_codes.FAILED, "KeyError: 'gone'. Where it happened is shown with: --traceback"),
        (RuntimeError("first\nsecond"), exit_codes.FAILED, "RuntimeError: first second."),
        (MemoryError(), exit_codes.FAILED, "there is not enough memory"),
        (ValueError("k must be 1, got 2"), exit_codes.USAGE, "tttnn: k must be 1, got 2"),
        (ValueError(), exit_codes.USAGE, "ValueError: . Where"),
        (OSError(28, "No space left on device", "x"), exit_codes.FAILED, "tttnn: x: No space left on device"),
        (tttnn.StoreCorruptError("x: broken"), exit_codes.DAMAGED, "tttnn: x: broken"),
    ],
)
def test_any_error_is_one_sentence_and_the_rest_with_traceback(
    error: Exception, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing() -> None:
        raise error

    monkeypatch.setitem(cli.app.commands, "info", Command("info", callback=failing))
    assert run(monkeypatch, "info") == code
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    for arguments in (["--traceback", "info"], ["info", "--traceback"]):
        assert run(monkeypatch, *arguments) == code
        said = capsys.readouterr().err
        assert "Traceback" in said
        assert "in failing" in said


def settings_of(arguments: list[str]) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    @click.command()
    @flags.config_file_flag
    @flags.settings_flags(tttnn.AdaptConfig, "adapt_flags")
    @flags.settings_flags(tttnn.EvalConfig, "eval_flags")
    def command(adapt_flags: dict[str, Any], eval_flags: dict[str, Any]) -> None:
        """Collect."""
        seen.update(adapt=tttnn.AdaptConfig(**adapt_flags), eval=tttnn.EvalConfig(**eval_flags))

    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    return seen if result.exit_code == 0 else {"error": result.output}


def test_flags_become_settings() -> None:
    seen = settings_of(["--learning-rate", "3e-5", "--max-tokens", "none", "--curve", "0,3,9", "--deadline-ms", "250"])
    assert seen["adapt"] == tttnn.AdaptConfig(learning_rate=3e-5, max_tokens=None, deadline_ms=250.0)
    assert seen["eval"] == tttnn.EvalConfig(curve=(0, 3, 9))
    assert settings_of([])["adapt"] == tttnn.AdaptConfig()
    assert settings_of(["--max-neighbor-tokens", "none"])["adapt"].max_neighbor_tokens is None


def test_a_toml_file_gives_defaults_that_flags_override(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('learning_rate = 3e-5\nschedule = "constant"\nguard = "none"\ncurve = [0, 7]\n')
    seen = settings_of(["--config", str(file), "--schedule", "inverse_sqrt"])
    assert seen["adapt"] == tttnn.AdaptConfig(learning_rate=3e-5, schedule="inverse_sqrt")
    assert seen["eval"] == tttnn.EvalConfig(curve=(0, 7))
    file.write_text("seed = 1\nnum-neighbors = 2\n[command]\nseed = 2\n")
    assert settings_of(["--config", str(file)])["adapt"] == tttnn.AdaptConfig(seed=2, num_neighbors=2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("learning_rate = = 3", "is not a TOML file"),
        ("\xff", "is not a TOML file"),
        ("a = " + "[" * 3000, "is not a TOML file"),
        ("learning_rte = 1e-4", "learning_rte is not a flag of a command. Did you mean learning_rate?"),
        (
            "[generate]\nnum_neighbours = 3",
            "generate.num_neighbours is not a flag of tttnn generate. Did you mean num_n",
        ),
        ("restore = 'flip'", "restore is no longer a setting: weights are always put back by copying. Leave it out."),
        ("[generate]\nrestore = 'copy'", "generate.restore is no longer a setting"),
        ("[eval]\nnosuch = 3", "eval.nosuch is not a flag of tttnn eval"),
        ("[generte]\nseed = 3", "there is no command generte. Did you mean generate?"),
        ("[generate.adapt]\nseed = 3", "generate.adapt is not a flag of tttnn generate"),
        ("generate = 3", "generate is a command, whose flags stand below [generate], got 3"),
        ("learning_rate = 'abc'", "learning_rate must be a number, got 'abc'"),
        ("num_neighbors = [1]", "num_neighbors must be a whole number, got [1]"),
        ("curve = [0, 'a']", "curve must be a list of whole numbers like 0,5,20, got [0, 'a']"),
        ("keep_memory = 1", "keep_memory must be true or false, got 1"),
        ("[eval]\nworkers = 'two'", "eval.workers"),
        ("query = 'pile-00'", "query is not a flag of a command"),
    ],
)
def test_a_toml_file_with_a_fault_is_named(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(content, encoding="latin-1")
    shown = CliRunner().invoke(cli.app, ["generate", ".", "y", "--config", str(file)], terminal_width=1000)
    assert shown.exit_code == exit_codes.USAGE
    assert f"{file}: {words}" in shown.output


def test_import_verify_info_export_round_trip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, store, out = (str(tmp_path / name) for name in ("corpus.jsonl", "texts.zst", "out.jsonl"))
    rows = [{"text": f"document {i} Ünï", "meta": {"pile_set_name": "Github", "i": i}} for i in range(5)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    Path(corpus).write_text("\n".join([*lines[:2], "{bad", *lines[2:]]) + "\n")
    rejects = tmp_path / "rejects.jsonl"
    assert run(monkeypatch, "import", corpus, store, "--rejects", str(rejects), "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["documents"] == 5
    assert json.loads(captured.out)["rejected"] == 1
    assert "left out line 3" in captured.err
    assert json.loads(rejects.read_text())["where"] == 3
    assert run(monkeypatch, "verify", store, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "documents": 5, "full": True}
    assert run(monkeypatch, "info", store, "--json") == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 5
    assert run(monkeypatch, "export", store, out) == 0
    assert [json.loads(line) for line in Path(out).read_text().splitlines()] == rows
    data = Path(store).read_bytes()
    codes = set()
    for position in range(0, len(data), len(data) // 40):
        Path(store).write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        code = run(monkeypatch, "verify", store)
        codes.add(code)
        assert (store in capsys.readouterr().err) == (code == exit_codes.DAMAGED)
    assert exit_codes.DAMAGED in codes
    assert codes <= {0, exit_codes.DAMAGED}  # 0: a byte that nothing reads


def test_repair_lists_what_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = str(tmp_path / "texts.zst"), str(tmp_path / "repaired.zst")
    with tttnn.TextStoreWriter(store) as writer:
        for i in range(9):
            writer.append(f"{i} " + "".join(random.Random(i).choices("abcdefgh", k=20_000)))
    data = bytearray(Path(store).read_bytes())
    for position in range(len(data) // 2, len(data) // 2 + 64):
        data[position] ^= 255
    Path(store).write_bytes(data)
    assert run(monkeypatch, "repair", store, out, "--json") == exit_codes.DAMAGED
    report = json.loads(capsys.readouterr().out)
    assert 1 <= len(report["lost_texts"]) < 9
    with tttnn.TextStore.open(out) as repaired:
        assert len(repaired) == 9
        kept = [i for i in range(9) if i not in report["lost_texts"]]
        assert all(repaired[i].text.startswith(f"{i} ") for i in kept)


def test_eval_fails_where_nothing_was_measured(tmp_path: Path, tokenizer: Any, monkeypatch: Any, capsys: Any) -> None:
    recipe = saved_recipe(tmp_path, tokenizer)
    documents, out = tmp_path / "documents.jsonl", tmp_path / "results.jsonl"
    arguments = ["eval", recipe.datastore, str(documents), "--model", recipe.model, "--out", str(out)]
    arguments += ["--num-neighbors", "1", "--curve", "1"]
    documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("x", "y", " ")))
    assert run(monkeypatch, *arguments) == exit_codes.FAILED
    said = capsys.readouterr().err
    assert "must hold a document that can be measured, got none: 3 documents had too little text" in said
    assert run(monkeypatch, *arguments, "--json") == exit_codes.FAILED  # and again, from the file
    documents.write_text('{"tekst": "misnamed"}\n[1]\n')
    out.unlink()
    capsys.readouterr()
    assert run(monkeypatch, *arguments) == exit_codes.FAILED
    said = capsys.readouterr().err
    assert "got none" in said
    assert "no field" in said
    assert "line 2" in said


def test_eval_then_audit(tmp_path: Path, tokenizer: Any, monkeypatch: Any, capsys: Any) -> None:
    recipe = saved_recipe(tmp_path, tokenizer)
    documents, out = tmp_path / "documents.jsonl", tmp_path / "results.jsonl"
    # Each word is found nowhere else, so that nothing is shared but what is planted.
    texts = [" ".join(f"w{i}x{j}" for j in range(60)) for i in range(4)]
    rows = [{"text": text, "meta": {"kind": "ab"[i % 2]}} for i, text in enumerate(texts)]
    documents.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["eval", recipe.datastore, str(documents), "--model", recipe.model, "--out", str(out)]
    arguments += ["--num-neighbors", "3", "--curve", "0,1,3", "--query-tokens", "60", "--scored-tokens", "60"]
    arguments += ["--methods", "ttt-nn,ttt-nn-sift,in-context,interpolation", "--group-field", "meta.kind"]
    assert run(monkeypatch, *arguments, "--limit", "1", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    groups = {row["group"] for row in shown["rows"]}
    assert groups == {"a", "b", "all"}
    assert {(pair["unit"], pair["a"], pair["b"]) for pair in shown["at_equal_budget"]} >= {
        ("seconds", "ttt-nn", "in-context"),
        ("tokens", "ttt-nn", "in-context"),
    }
    assert shown["interpolation"].keys() == {"0", "1", "3"}
    begun = out.read_bytes()
    assert run(monkeypatch, *arguments, "--keep-text") == 0
    table = capsys.readouterr().out
    assert "ttt-nn-sift" in table
    assert "interpolation with 3 neighbors, bits per byte by weight: 0:" in table
    assert out.read_bytes().startswith(begun)
    assert len(out.read_text().splitlines()) == 1 + 4 * 5
    assert run(monkeypatch, *arguments, "--protocol", "full") == exit_codes.USAGE
    assert "protocol = split (now full)" in capsys.readouterr().err
    checked = ["audit", str(out), "--datastore", recipe.datastore, "--documents", str(documents)]
    assert run(monkeypatch, *checked, "--model", recipe.model, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["clean"], report["documents"], report["lines"]) == (True, 4, 20)
    # A datastore that is another than the one searched.
    other = tmp_path / "other"
    tttnn.Datastore.build(other, [*texts, "more"], tttnn.Embedder.load(str(tmp_path / "encoder"))).close()
    checked[3] = str(other)
    assert run(monkeypatch, *checked, "--model", recipe.model) == exit_codes.FAILED
    assert "its digest is" in " ".join(capsys.readouterr().out.split())


def test_a_datastore_grows_and_shrinks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = str(save_encoder(tmp_path / "encoder"))
    files = {}
    for name, count in (("first", 12), ("more", 5)):
        files[name] = str(tmp_path / f"{name}.jsonl")
        rows = [{"text": f"{name} document {i}", "meta": {"pile_set_name": f"Set{i % 2}"}} for i in range(count)]
        Path(files[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    place = str(tmp_path / "d")
    build = ["build", files["first"], place, "--embedder", encoder, "--embed-precision", "float32", "--json"]

    def told(*arguments: str) -> Any:
        assert run(monkeypatch, *arguments) == 0
        return json.loads(capsys.readouterr().out)

    estimate = told(*build, "--dry-run")
    assert estimate["documents"] == 12
    assert not Path(place).exists()
    built = told(*build)
    assert built["documents"] == 12
    assert built["build"]["stages"]["embed"]["tokens_per_second"] > 0
    assert built["build"]["peak_memory_bytes"] > 0
    appended = told("append", files["more"], place, "--json")
    assert (appended["appended"], appended["next_id"]) == (5, 17)
    assert told("append", "--discard", place, "--json") == {"discarded": False}
    assert told("delete", place, "3", "16", "--json") == {"deleted": 2, "documents": 15}
    assert told("delete", place, "--source", "Set0", "--json") == {"deleted": 8, "documents": 7}
    found = told("search", place, "more document 1", "-k", "9", "--explain", "--json")
    assert found["neighbors"][0]["id"] == 13
    assert len(found["neighbors"]) == 7
    assert found["explanation"]["deleted"] == 10
    assert found["explanation"]["recall"] == 1.0
    assert found["explanation"]["tokens"] > 0
    assert {n["source"] for n in told("search", place, "more", "--source", "Set1", "--json")} == {"Set1"}
    all_ids = np.array([n["id"] for n in told("search", place, "more", "-k", "100", "--json")])
    drawn = told("search", place, "more", "-k", "100", "--fraction", "0.5", "--fraction-seed", "2", "--json")
    held = all_ids[Where(fraction=0.5, seed=2).drawn(all_ids)].tolist()
    assert [n["id"] for n in drawn] == held
    assert 0 < len(held) < len(all_ids)
    assert run(monkeypatch, "search", place, "more", "--explain") == 0
    shown = capsys.readouterr().out
    assert "recall: 1.000 of the true nearest" in shown
    assert "every vector compared in 2 segments" in shown
    assert "10 are deleted" in shown
    assert "walk" not in shown.replace("than a walk", "")
    queries = tmp_path / "queries.txt"
    queries.write_bytes(b"\xef\xbb\xbfmore document 1\r\n\n{first document 2\ncaf\xe9\n")
    assert run(monkeypatch, "search", place, "--queries", str(queries), "-k", "1") == exit_codes.FAILED
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["line"] for answer in answers] == [1, 3, 4]
    assert [answer["query"] for answer in answers[:2]] == ["more document 1", "{first document 2"]
    assert answers[0]["neighbors"][0]["id"] == 13
    assert "query must be UTF-8" in answers[2]["error"]
    queries.write_text('{"query": "more document 1", "id": 7}\n{"text": "no query"}\n"x"\n')
    assert run(monkeypatch, "search", place, "--queries", str(queries), "-k", "1") == exit_codes.FAILED
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers[0]["neighbors"][0]["id"] == 13
    assert [("error" in answer) for answer in answers] == [False, True, True]
    assert told("compact", place, "--json")["removed"] == 10
    assert told("info", place, "--json")["documents"] == told("verify", place, "--json")["documents"] == 7
    for arguments, words in (
        (["delete", place, "99"], "document id must be between 0 and 16, got 99"),
        (["delete", place], "at least one ID"),
        (["delete", place, "--source", "Nowhere"], "source must be one of Set1"),
        (["append", place], "CORPUS or --discard"),
    ):
        assert run(monkeypatch, *arguments) == exit_codes.USAGE
        assert words in capsys.readouterr().err


def test_what_a_build_made_is_told_in_a_few_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = str(save_encoder(tmp_path / "encoder"))
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": "word " * n}) + "\n" for n in range(1, 200, 40)) + "{\n")
    place = str(tmp_path / "a b")
    assert run(monkeypatch, "build", str(corpus), place, "--embedder", encoder) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) < 12
    assert "5 documents, 5 vectors of" in lines[0]
    assert "4 of 5 documents are longer than the embedder reads" in captured.out
    assert "left out: 1" in captured.out
    assert f"next: tttnn search '{place}'" in captured.out
    assert "left out line 6" in captured.err
    assert run(monkeypatch, "info", place) == 0
    assert capsys.readouterr().out.splitlines()[0] == lines[0]


def test_no_file_is_replaced_without_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, store, other = (tmp_path / name for name in ("corpus.jsonl", "texts.zst", "other"))
    corpus.write_text('{"text": "a"}\n')
    (tmp_path / "folder").mkdir()
    assert run(monkeypatch, "import", str(corpus), str(store)) == 0
    link = tmp_path / "link"
    link.symlink_to(corpus)
    for command, target in (
        (["import", str(corpus)], store),
        (["import", str(corpus)], corpus),
        (["export", str(store)], store),
        (["repair", str(store)], store),
        (["export", str(store)], link),
    ):
        before = target.read_bytes()
        assert run(monkeypatch, *command, str(target)) == exit_codes.USAGE
        assert f"{target}: " in capsys.readouterr().err
        assert target.read_bytes() == before
        if str(target) in command or target is corpus:
            assert run(monkeypatch, *command, str(target), "--force") == exit_codes.USAGE
            assert "read meanwhile" in capsys.readouterr().err
            assert target.read_bytes() == before
    other.write_text("mine")
    assert run(monkeypatch, "export", str(store), str(other), "--force") == 0
    assert json.loads(other.read_text())["text"] == "a"
    assert run(monkeypatch, "export", str(store), str(tmp_path / "folder"), "--force") == exit_codes.USAGE
    assert run(monkeypatch, "export", str(store), "/dev/null", "--force") == exit_codes.USAGE
    assert "regular file" in capsys.readouterr().err
    assert run(monkeypatch, "export", str(store), str(tmp_path / "no" / "x")) == exit_codes.USAGE
    assert "its folder" in capsys.readouterr().err
    rejects = tmp_path / "rejects"
    rejects.write_text("mine")
    again = str(tmp_path / "again")
    assert run(monkeypatch, "import", str(corpus), again, "--rejects", str(rejects)) == exit_codes.USAGE
    assert rejects.read_text() == "mine"
    assert not Path(again).exists()


def test_a_corpus_without_documents_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, store = tmp_path / "corpus.jsonl", tmp_path / "texts.zst"
    corpus.write_text('{"content": "x"}\n')
    assert run(monkeypatch, "import", str(corpus), str(store)) == exit_codes.USAGE
    assert "has no field 'text'" in capsys.readouterr().err
    assert not store.exists()
    assert run(monkeypatch, "import", str(corpus), str(store), "--text-field", "content") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "PLACE"],
        ["verify", "PLACE"],
        ["delete", "PLACE", "0"],
        ["compact", "PLACE"],
        ["search", "PLACE", " "],
        ["search", "PLACE", "a", "--ef", "no"],
        ["search", "nowhere", "a"],
        ["generate", "PLACE", "a", "--guard", "no"],
        ["generate", "PLACE", "a", "--config", "nowhere.toml"],
        ["replay", "PLACE/manifest.json", "PLACE"],
        ["eval", "--help"],
        ["export", "PLACE/segments/000/texts.zst", "PLACE/out.jsonl"],
        ["export", "PLACE", "PLACE/out.jsonl"],
        ["append", "--discard", "PLACE"],
        ["import", "PLACE/more.jsonl", "PLACE/more.zst"],
        ["repair", "PLACE/segments/000/texts.zst", "PLACE/repaired.zst"],
        ["info", "--build"],
        ["--version"],
        ["--help"],
        ["build", "--help-all"],
        ["report", "PLACE/manifest.json"],
        ["serve", "PLACE", "--port", "x"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_cheap_commands_import_no_torch(tmp_path: Path, arguments: list[str]) -> None:
    place = tmp_path / "d"
    tttnn.Datastore.build(place, ["one", "two"], tttnn.Embedder.load(str(save_encoder(tmp_path / "encoder"))))
    (place / "more.jsonl").write_text(json.dumps({"text": "three"}) + "\n")
    code = (
        "import sys; from tttnn.cli import program\n"
        "try: program.main()\n"
        "except SystemExit: print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    filled = [argument.replace("PLACE", str(place)) for argument in arguments]
    done = subprocess.run([sys.executable, "-c", code, *filled], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_given_what_completes_commands_and_flags(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    script = CliRunner().invoke(cli.app, ["--completion", shell])
    assert script.exit_code == 0
    assert f"_TTTNN_COMPLETE={shell}_complete" in script.output
    monkeypatch.setenv("_TTTNN_COMPLETE", f"{shell}_complete")
    for typed, wanted in (("sea", "search"), ("search --expl", "--explain"), ("generate --guard q", "")):
        words = f"tttnn {typed}"
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", words.split()[-1] if shell == "fish" else str(len(words.split()) - 1))
        run(monkeypatch)
        told = capsys.readouterr().out
        assert wanted in told
        assert "Usage" not in told


def test_the_manual_page_has_every_command_and_flag() -> None:
    page = CliRunner().invoke(cli.app, ["--man"]).output
    assert page.startswith(f'.TH TTTNN 1 "" "tttnn {tttnn.__version__}"')
    for name, inner in commands_of(cli.app, click.Context(cli.app)):
        command = inner.command
        assert f".SS tttnn {name} ".replace("-", "\\-") in page
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert option.opts[-1].replace("-", "\\-") in page
    if shutil.which("groff") is not None:
        drawn = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww"], input=page, capture_output=True, text=True, check=True
        )
        assert not drawn.stderr
        assert "Show where an error happened." in drawn.stdout
        assert len(drawn.stdout.splitlines()) > 500


@pytest.mark.parametrize("name", ["audit", "info"])
def test_no_colour_where_none_is_wanted(name: str) -> None:
    """A terminal of 40 columns, and NO_COLOR: no colours, whatever is drawn."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_COLOR", "1")
        patch.setenv("TERM", "xterm-256color")
        console = Console(file=out, force_terminal=True, width=40)
        with Bars(console=console) as bars:
            bars("embed", 3, 10)
            bars.tell("a remark")
        assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|4[0-9]|9[0-9])[0-9;]*m", out.getvalue())
        shown = CliRunner().invoke(cli.app, [name, "--help"], terminal_width=40, color=True)
    assert "\x1b[" not in shown.output
