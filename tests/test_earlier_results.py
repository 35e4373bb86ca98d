"""Files of results that an earlier version wrote still open: the report, the audit, and an evaluation that continues.

`data/results-2.jsonl` was begun with the commands below by version 0.1.0 before its packages, on a tiny random model:
two documents measured, one with too little text. Where it says `versions`, `threads`, the weights' fingerprint and the
datastore's id, a test writes those of this machine; nothing else is changed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import tttnn
from tests.test_cli import run
from tests.test_workers import saved_recipe
from tttnn.evaluation.records import TOO_LITTLE
from tttnn.evaluation.results import EvalResult
from tttnn.recipe import TrainerRecipe

DATA = Path(__file__).parent / "data"
DOCUMENTS = DATA / "results-2-documents.jsonl"
METHODS = ["base", "ttt-nn", "ttt-nn-guard", "in-context", "interpolation"]
SETTINGS = ["--num-neighbors", "3", "--max-length", "64", "--learning-rate", "1e-3", "--precision", "float32"]
MEASURED = ["--curve", "0,1,3", "--query-tokens", "60", "--scored-tokens", "60", "--group-field", "meta.kind"]
MEASURED += ["--methods", ",".join(METHODS), "--context-tokens", "60", "--threads", "1"]


@pytest.fixture
def recipe(tmp_path: Path, tokenizer: Any, one_thread: None) -> TrainerRecipe:
    return saved_recipe(tmp_path, tokenizer)


def evaluated(recipe: TrainerRecipe, out: Path, monkeypatch: Any, *flags: str) -> EvalResult:
    command = ["eval", recipe.datastore, str(DOCUMENTS), "--model", recipe.model, "--out", str(out)]
    assert run(monkeypatch, *command, *SETTINGS, *MEASURED, *flags) == 0
    return tttnn.read_results(out)


def begun(path: Path, settings: dict[str, Any]) -> bytes:
    """Copy the earlier file, with what is this machine's of `settings`; return its bytes."""
    first, _, rest = (DATA / "results-2.jsonl").read_bytes().partition(b"\n")
    header = json.loads(first)
    for name in ("versions", "threads", "datastore"):
        assert name in header["settings"]
        header["settings"][name] = settings[name]
    header["settings"]["model"]["fingerprint"] = settings["model"]["fingerprint"]
    path.write_bytes(json.dumps(header).encode() + b"\n" + rest)
    for beside in (".seconds", ".texts"):
        shutil.copy(DATA / f"results-2.jsonl{beside}", f"{path}{beside}")
    return path.read_bytes()


def test_it_is_read(tmp_path: Path) -> None:
    held = tttnn.read_results(DATA / "results-2.jsonl")
    assert held.methods() == METHODS
    assert {line.document for line in held.lines} == {0, 1}
    assert [left.reason for left in held.unmeasured.values()] == [TOO_LITTLE]
    assert held.texts is not None
    assert len(held.seconds) == 10
    assert held.summary().total(3, method="ttt-nn").ratio.value == pytest.approx(0.9886, abs=5e-5)


def test_an_evaluation_continues_it(recipe: TrainerRecipe, tmp_path: Path, monkeypatch: Any) -> None:
    fresh = evaluated(recipe, tmp_path / "fresh.jsonl", monkeypatch)
    out = tmp_path / "continued.jsonl"
    before = begun(out, fresh.settings)
    continued = evaluated(recipe, out, monkeypatch)
    assert out.read_bytes().startswith(before)
    assert {line.document for line in continued.lines} == {0, 1, 2, 3}
    for line, again in zip(continued.lines, fresh.lines, strict=True):
        assert (line.document, line.method, line.digest, line.found) == (
            again.document, again.method, again.digest, again.found,
        )  # fmt: skip
        assert [point.k for point in line.points] == [point.k for point in again.points]
        # Other processors add up in another order.
        assert [point.nats for point in line.points] == pytest.approx([point.nats for point in again.points], rel=1e-4)
    new = [line for line in continued.lines if line.document in (2, 3)]
    assert new == [line for line in fresh.lines if line.document in (2, 3)]
    assert evaluated(recipe, out, monkeypatch).lines == continued.lines


def test_other_settings_do_not_continue_it(
    recipe: TrainerRecipe, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "continued.jsonl"
    begun(out, evaluated(recipe, tmp_path / "fresh.jsonl", monkeypatch).settings)
    command = ["eval", recipe.datastore, str(DOCUMENTS), "--model", recipe.model, "--out", str(out), *SETTINGS]
    assert run(monkeypatch, *command, *MEASURED, "--context-tokens", "61") == 2
    assert "evaluation.context_tokens = 60 (now 61)" in capsys.readouterr().err


def test_it_is_audited_and_reported(
    recipe: TrainerRecipe, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "earlier.jsonl"
    begun(path, json.loads((DATA / "results-2.jsonl").read_text().partition("\n")[0])["settings"])
    checked = ["audit", str(path), "--datastore", recipe.datastore, "--documents", str(DOCUMENTS)]
    assert run(monkeypatch, *checked, "--model", recipe.model, "--json") == 0
    audit = json.loads(capsys.readouterr().out)
    assert (audit["clean"], audit["documents"], audit["lines"]) == (True, 2, 10)
    page = tmp_path / "page.html"
    assert run(monkeypatch, "report", str(path), "-o", str(page)) == 0
    text = page.read_text(encoding="utf-8")
    assert "documents with too little text</dt><dd>1</dd>" in text
    assert "w0x0 w0x1" in text  # the texts that were kept
    assert (tmp_path / "page_files" / "chosen-split-ttt-nn-guard.csv").is_file()
