from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tttnn
from tests.conftest import TEXTS
from tttnn.corpus import Document, text_digest
from tttnn.evaluation import evaluate, split_task

DOCUMENTS = [
    Document(f"{TEXTS[i % len(TEXTS)]} number {i} " * 3, {"pile_set_name": "Even" if i % 2 == 0 else "Odd"})
    for i in range(6)
]
CONFIG = tttnn.EvalConfig(query_tokens=60, scored_tokens=60, curve=(0, 1, 5))


def test_split_is_disjoint_and_contiguous(tokenizer: Any) -> None:
    text = "Ünïcödé 🐍 " * 40
    for protocol in ("split", "split-bare"):
        task = split_task(tokenizer, text, CONFIG.with_(protocol=protocol))
        assert task is not None
        assert text.startswith(task.query + task.scored)
        assert task.context == (task.query if protocol == "split" else "")
        assert len(task.query.encode()) <= 64
    short = split_task(tokenizer, "abcdef", CONFIG)
    assert (short.query, short.scored) == ("abc", "def")
    full = split_task(tokenizer, text, CONFIG.with_(protocol="full"))
    assert full.query == full.scored
    assert full.context == ""


@pytest.mark.parametrize("text", ["", "x"])
def test_too_little_text_is_counted_not_dropped(trainer: Any, text: str) -> None:
    result = evaluate(trainer, [Document(text), DOCUMENTS[0]], config=CONFIG)
    assert result.skipped == 1
    assert {line.document for line in result.lines} == {1}


def test_lines_hold_base_and_curve(trainer: Any, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    result = tttnn.evaluate(trainer, DOCUMENTS, out=out, config=CONFIG)
    assert [line.k for line in result.lines[:3]] == [0, 1, 5]
    task = split_task(trainer.tokenizer, DOCUMENTS[0].text, CONFIG)
    base = trainer.scorer.score(task.scored, context=task.context)
    assert result.lines[0].nats == base.nats
    assert result.lines[0].num_bytes == len(task.scored.encode())
    with trainer.adapt(task.query) as adapted:
        assert adapted.score(task.scored, context=task.context).nats == result.lines[2].nats
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0]["settings"]["protocol"] == "split"
    assert len(rows) == 1 + 3 * len(DOCUMENTS)
    assert not any(document.text[:20] in out.read_text() for document in DOCUMENTS)


def test_interrupted_and_resumed_gives_the_same_file(trainer: Any, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    evaluate(trainer, DOCUMENTS, out=whole, config=CONFIG)
    data = whole.read_bytes()
    for size in (1, 40, len(data) // 3, len(data) // 2, len(data) - 1, len(data)):
        cut.write_bytes(data[:size])
        evaluate(trainer, DOCUMENTS, out=cut, config=CONFIG)
        assert cut.read_bytes() == data, f"cut after {size} bytes"


def test_a_killed_run_measures_only_what_is_missing(trainer: Any, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"

    class StopError(Exception):
        pass

    def stop(document: Document, *_: Any) -> None:
        if document is DOCUMENTS[3]:
            raise StopError

    with pytest.raises(StopError):
        evaluate(trainer, DOCUMENTS, out=out, config=CONFIG, on_document=stop)
    measured: list[Document] = []
    evaluate(trainer, DOCUMENTS, out=out, config=CONFIG, on_document=lambda document, *_: measured.append(document))
    assert measured == DOCUMENTS[3:]


def test_results_of_other_settings_or_documents_are_refused(trainer: Any, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    evaluate(trainer, DOCUMENTS[:2], out=out, config=CONFIG)
    before = out.read_bytes()
    with pytest.raises(tttnn.ConfigError, match="protocol"):
        evaluate(trainer, DOCUMENTS[:2], out=out, config=CONFIG.with_(protocol="full"))
    with pytest.raises(tttnn.ConfigError, match="digest"):
        evaluate(trainer, DOCUMENTS[1:3], out=out, config=CONFIG)
    foreign = tmp_path / "notes.txt"
    foreign.write_text("something\nelse\n")
    with pytest.raises(tttnn.ConfigError, match="something else"):
        evaluate(trainer, DOCUMENTS, out=foreign, config=CONFIG)
    assert foreign.read_text() == "something\nelse\n"
    assert out.read_bytes() == before


def test_the_scored_document_is_never_trained_on(trainer: Any) -> None:
    own = Document(TEXTS[1] * 4)
    trainer.datastore.neighbors[1] = tttnn.Neighbor(1, 0.0, own.text)
    result = evaluate(trainer, [own], config=CONFIG)
    assert text_digest(own.text) not in result.lines[-1].neighbor_digests


def test_summary_weights_by_bytes_and_brackets_the_ratio(trainer: Any) -> None:
    result = evaluate(trainer, DOCUMENTS, config=CONFIG)
    summary = result.summary()
    total = summary.total()
    last = [line for line in result.lines if line.k == 5]
    bits = sum(line.nats for line in last) / np.log(2)
    assert total.bits_per_byte == pytest.approx(bits / sum(line.num_bytes for line in last))
    assert total.ratio.low <= total.ratio.value <= total.ratio.high
    assert {row.group for row in summary.rows} == {"Even", "Odd", "all"}
    assert summary.total(0).ratio.value == 1
    assert "Even" in str(summary)


def test_limit_draws_by_seed(trainer: Any) -> None:
    config = CONFIG.with_(limit=1)
    chosen = [
        {line.document for line in evaluate(trainer, DOCUMENTS, config=config.with_(sample_seed=s)).lines}
        for s in (1, 1, 2)
    ]
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 2


def test_a_damaged_line_is_named_and_the_file_left_alone(trainer: Any, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    evaluate(trainer, DOCUMENTS[:2], out=out, config=CONFIG)
    rows = out.read_bytes().split(b"\n")
    rows[2] = rows[2][:40]
    out.write_bytes(b"\n".join(rows))
    with pytest.raises(tttnn.ConfigError, match=r"results\.jsonl: line 3 is no result"):
        evaluate(trainer, DOCUMENTS[:2], out=out, config=CONFIG)
    assert out.read_bytes() == b"\n".join(rows)


def test_a_second_writer_is_refused(trainer: Any, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    refused: list[str] = []

    def second(*_: Any) -> None:
        with pytest.raises(tttnn.ConfigError, match="another process is writing") as caught:
            evaluate(trainer, DOCUMENTS, out=out, config=CONFIG)
        refused.append(str(caught.value))

    evaluate(trainer, DOCUMENTS[:2], out=out, config=CONFIG, on_document=second)
    assert len(refused) == 2
    assert len(out.read_text().splitlines()) == 1 + 3 * 2
