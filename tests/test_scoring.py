"""Bits per byte against lm-evaluation-harness and float64 from the definition: benchmarks/check_scoring.py."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tttnn
from benchmarks import check_scoring
from tests.conftest import TEXTS, save_model, tiny_gpt2, tiny_llama
from tttnn.store.document import Document

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

DOCUMENTS = [Document(text * 3, {"pile_set_name": "Even" if i % 2 else "Odd"}) for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_three_ways_of_scoring_agree(tokenizer: Any, make: Any) -> None:
    model = make().eval()
    shared = make().eval()
    texts = list(check_scoring.chosen(DOCUMENTS, tokenizer, per_group=2, tokens=150))
    assert [position for position, _, _ in texts] == [0, 1, 2, 3]
    rows = list(
        check_scoring.compare(
            texts,
            model,
            tokenizer,
            make().double().eval(),
            windows=[128, 40, 7],
            harness_of=lambda window: check_scoring.harness_nats(shared, copy.deepcopy(tokenizer), window),
        )
    )
    assert len(rows) == 4 * 3
    for row in rows:
        # float32 logits of a few hundred tokens; their errors partly cancel in the sum.
        assert row.from_float64 < 1e-6, row
        assert row.from_harness < 1e-6, row
    by_window = {row.window: row.tttnn for row in rows if row.document == 0}
    assert len(set(by_window.values())) == 3  # the windows matter, so their agreement says something
    shown = check_scoring.table(rows)
    assert "| Even | 2 |" in shown
    assert "| all | 4 |" in shown


def test_a_wrong_score_is_seen(tokenizer: Any) -> None:
    """Another first token: what a scorer that forgets it would do."""
    model, precise = tiny_gpt2().eval(), tiny_gpt2().double().eval()
    with torch.no_grad():
        precise.transformer.wte.weight[256, :16] += 1.0
    texts = [(0, "documents", "short")]
    (row,) = check_scoring.compare(texts, model, tokenizer, precise, windows=[64], harness_of=lambda _: lambda _: 0.0)
    assert row.from_float64 > 1e-3
    assert row.from_harness == row.tttnn


def test_the_file_holds_numbers_and_no_text(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "model", tiny_gpt2(), tokenizer)
    lines = [json.dumps({"text": document.text, "meta": document.meta}) for document in DOCUMENTS]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    command = ["check_scoring", str(tmp_path / "docs.jsonl"), "--model", str(tmp_path / "model"), "--per-group", "1"]
    command += ["--tokens", "60", "--windows", "32", "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", command)
    check_scoring.main()
    assert "| all | 2 |" in capsys.readouterr().out
    held = (tmp_path / "out.json").read_text()
    assert len(json.loads(held)["rows"]) == 2
    assert not any(document.text[:20] in held for document in DOCUMENTS)
    monkeypatch.setattr(sys, "argv", [*command, "--tolerance", "0"])
    with pytest.raises(SystemExit, match="above the tolerance"):
        check_scoring.main()


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.data
def test_smollm2_is_scored_as_by_float64(smollm2: str, pile_mini: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    precise = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float64).eval()
    documents = check_scoring.chosen(tttnn.iter_jsonl(pile_mini / "val.jsonl.zst"), tokenizer, per_group=1, tokens=96)
    rows = list(
        check_scoring.compare(
            list(documents)[:2],
            model,
            tokenizer,
            precise,
            windows=[64],
            harness_of=lambda window: check_scoring.harness_nats(model, tokenizer, window),
        )
    )
    assert len(rows) == 2
    for row in rows:
        assert row.from_float64 < 2e-5, row  # see check_scoring: the bias of a float32 log_softmax
        assert row.from_harness < 1e-5, row
