from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tttnn
from tests.conftest import TEXTS, FakeRetriever, assert_same_state, state_of, tiny_gpt2
from tttnn.evaluation.protocols import split_task
from tttnn.evaluation.result_file import read_results
from tttnn.evaluation.runner import evaluate
from tttnn.evaluation.sampling import group_of, sampled
from tttnn.store.document import Document, text_digest

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


@pytest.mark.parametrize("text", ["", "x", " \n  \n words"])
def test_too_little_text_is_counted_not_dropped(trainer: Any, text: str, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    config = CONFIG.with_(query_tokens=3)
    result = evaluate(trainer, [Document(text), DOCUMENTS[0]], out=out, config=config)
    assert result.skipped == 1
    assert {line.document for line in result.lines} == {1}
    assert read_results(out).skipped == 1
    before = out.read_bytes()
    assert evaluate(trainer, [Document(text), DOCUMENTS[0]], out=out, config=config).skipped == 1
    assert out.read_bytes() == before


class PoisonedRetriever(FakeRetriever):
    """Fails on queries that hold a word, as an embedder whose vector is not finite does."""

    def search(self, query: str, k: int, **options: Any) -> Any:
        if "poison" in query:
            raise tttnn.EmbeddingError("embedding must be finite, got nan for the query")
        return super().search(query, k, **options)


def test_a_document_on_which_a_method_fails_is_left_out_with_its_reason(tokenizer: Any, tmp_path: Path) -> None:
    model = tiny_gpt2(tie_word_embeddings=False)
    with torch.no_grad():
        (bell,) = tokenizer("\x07")["input_ids"]
        model.transformer.wte.weight[bell] = 3e38  # a text that holds it has no finite loss
    config = tttnn.AdaptConfig(num_neighbors=5, max_length=64, learning_rate=1e-3, precision="float32")
    trainer = tttnn.TestTimeTrainer(model, tokenizer, PoisonedRetriever(TEXTS), config)
    before = state_of(model)
    good = [document.text for document in DOCUMENTS[:2]]
    texts = [
        good[0],
        "rings a \x07 bell, " * 6,
        "this is poison, " * 6,
        "half a pair \ud800 of surrogates, " * 3,
        good[1],
    ]
    out = tmp_path / "results.jsonl"
    result = evaluate(trainer, texts, out=out, config=CONFIG)
    assert_same_state(model, before)
    assert {line.document for line in result.lines} == {0, 4}
    reasons = {document: left.reason for document, left in result.unmeasured.items()}
    assert reasons == {
        1: "base: loss of the scored text must be finite, got nan at k = 0",
        2: "ttt-nn: embedding must be finite, got nan for the query",
        3: "its text has a lone surrogate, which UTF-8 cannot hold",
    }
    held = read_results(out)
    assert held.unmeasured == result.unmeasured
    assert held.lines == result.lines == evaluate(trainer, texts, config=CONFIG).lines
    kept = out.read_bytes()
    assert evaluate(trainer, texts, out=out, config=CONFIG).unmeasured == result.unmeasured
    assert out.read_bytes() == kept
    told = str(result.summary())
    assert all(f"1 document not measured: {reason}" in told for reason in reasons.values())
    trainer.release()


def test_what_is_no_fault_of_a_document_ends_the_run(trainer: Any) -> None:
    def observe(*_: Any) -> None:
        raise ValueError("a fault of the caller")

    with pytest.raises(ValueError, match="a fault of the caller"):
        evaluate(trainer, DOCUMENTS, config=CONFIG, observe=observe)
    trainer.datastore = None
    with pytest.raises(tttnn.ConfigError, match="trainer must have a datastore, in which ttt-nn finds neighbors"):
        evaluate(trainer, DOCUMENTS, config=CONFIG)
    assert evaluate(trainer, DOCUMENTS, config=CONFIG, methods=["base"]).lines


def test_lines_hold_base_and_curve(trainer: Any, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    result = tttnn.evaluate(trainer, DOCUMENTS, out=out, config=CONFIG)
    base, trained = result.lines[:2]
    assert [(base.method, base.document), (trained.method, trained.document)] == [("base", 0), ("ttt-nn", 0)]
    assert [point.k for point in trained.points] == [0, 1, 5]
    assert trained.points[0] == base.points[0]
    task = split_task(trainer.tokenizer, DOCUMENTS[0].text, CONFIG)
    scored = trainer.scorer.score(task.scored, context=task.context)
    # The same model and tokens; a head over more rows may differ in the last bits of float32.
    assert base.at().nats == pytest.approx(scored.nats, rel=1e-6)
    assert (base.num_bytes, base.words, base.tokens) == (scored.num_bytes, scored.words, scored.tokens)
    with trainer.adapt(task.query) as adapted:
        assert adapted.score(task.scored, context=task.context).nats == pytest.approx(trained.at().nats, rel=1e-6)
        assert adapted.score(task.query).nats == pytest.approx(trained.at().query_nats, rel=1e-6)
        assert adapted.report.tokens == trained.at().trained_tokens
        assert [n.tokens for n in adapted.report.neighbors] == [n.tokens for n in trained.neighbors]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0]["settings"]["protocol"] == "split"
    assert len(rows) == 1 + 2 * len(DOCUMENTS)
    assert not any(document.text[:20] in out.read_text() for document in DOCUMENTS)
    held = read_results(out)
    assert held.lines == result.lines
    assert held.settings == json.loads(json.dumps(result.settings))
    assert held.seconds.keys() == {(d, m) for d in range(len(DOCUMENTS)) for m in ("base", "ttt-nn")}
    spent = held.seconds[0, "ttt-nn"]
    assert sorted(spent.points) == [0, 1, 5]
    assert 0 == spent.at(0) < spent.at(1) < spent.at(5)


@pytest.mark.parametrize("protocol", ["split-bare", "full"])
def test_other_protocols_give_the_query_its_own_loss(trainer: Any, protocol: str) -> None:
    config = CONFIG.with_(protocol=protocol)
    line = evaluate(trainer, DOCUMENTS[:1], config=config).lines[1]
    task = split_task(trainer.tokenizer, DOCUMENTS[0].text, config)
    with trainer.adapt(task.query) as adapted:
        assert adapted.score(task.scored).nats == pytest.approx(line.at().nats, rel=1e-6)
        assert adapted.score(task.query).nats == pytest.approx(line.at().query_nats, rel=1e-6)


def test_a_text_longer_than_the_model_is_scored_in_the_windows_of_the_scorer(trainer: Any) -> None:
    long = Document("A longer text, with some words in it. " * 12)
    config = CONFIG.with_(query_tokens=150, scored_tokens=200)
    line = evaluate(trainer, [long], config=config).lines[0]
    task = split_task(trainer.tokenizer, long.text, config)
    assert trainer.scorer.score(task.scored, context=task.context).nats == line.at().nats
    assert trainer.scorer.score(task.query).nats == line.at().query_nats


def test_interrupted_and_resumed_gives_the_same_file(trainer: Any, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    evaluate(trainer, DOCUMENTS, out=whole, config=CONFIG)
    data = whole.read_bytes()
    for size in (1, 40, len(data) // 3, len(data) // 2, len(data) - 1, len(data)):
        cut.write_bytes(data[:size])
        Path(f"{cut}.seconds").write_bytes(Path(f"{whole}.seconds").read_bytes()[:size])
        evaluate(trainer, DOCUMENTS, out=cut, config=CONFIG)
        assert cut.read_bytes() == data, f"cut after {size} bytes"
        assert len(read_results(cut).seconds) == 2 * len(DOCUMENTS)
        whole_documents = {line.document for line in read_results(cut).lines}
        assert whole_documents == set(range(len(DOCUMENTS)))


def test_a_killed_run_measures_only_what_is_missing(trainer: Any, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"

    class StopError(Exception):
        pass

    order = [document for _, document in sampled(DOCUMENTS, CONFIG)]

    def stop(document: Document, *_: Any) -> None:
        if document is order[3]:
            raise StopError

    with pytest.raises(StopError):
        evaluate(trainer, DOCUMENTS, out=out, config=CONFIG, on_document=stop)
    assert len(read_results(out).of("ttt-nn")) == 3
    measured: list[Document] = []
    evaluate(trainer, DOCUMENTS, out=out, config=CONFIG, on_document=lambda document, *_: measured.append(document))
    assert measured == order[3:]


def test_a_larger_limit_continues_a_file(trainer: Any, tmp_path: Path) -> None:
    out, whole = tmp_path / "results.jsonl", tmp_path / "whole.jsonl"
    evaluate(trainer, DOCUMENTS, out=out, config=CONFIG.with_(limit=1))
    begun = out.read_bytes()
    evaluate(trainer, DOCUMENTS, out=out, config=CONFIG.with_(limit=2))
    evaluate(trainer, DOCUMENTS, out=whole, config=CONFIG.with_(limit=2))
    assert out.read_bytes().startswith(begun)
    assert out.read_bytes() == whole.read_bytes()


def test_groups_take_turns_and_come_from_any_field() -> None:
    documents = [Document(str(i), {"kind": "ab"[i % 2] if i else "c", "year": 2000 + i % 2}) for i in range(9)]
    assert group_of(documents[1], "kind") == group_of(documents[1], "meta.kind") == "b"
    assert group_of(documents[1], "year") == "2001"
    assert group_of(documents[1], "none") == group_of(Document("", {"kind": ["b"]}), "kind") == "documents"
    order = sampled(documents, CONFIG.with_(group_field="kind"))
    groups = "".join(document.meta["kind"] for _, document in order)
    assert groups == "abc" + "ab" * 3
    assert sorted(position for position, _ in order) == list(range(9))


def test_the_papers_sample() -> None:
    documents = [Document(str(i), {"pile_set_name": "A"}) for i in range(20)] + [Document(str(i)) for i in range(4)]
    chosen = [position for position, _ in sampled(documents, CONFIG.with_(sample="paper"))]
    # random.Random(1216) shuffles range(20) so; a fifth of 20 is 4, a fifth of 4 none.
    assert chosen == [11, 14, 15, 13]
    assert chosen[:2] == [p for p, _ in sampled(documents, CONFIG.with_(sample="paper", limit=2, sample_seed=3))]


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


def test_a_file_older_than_a_setting_is_continued_with_its_default(trainer: Any, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    evaluate(trainer, DOCUMENTS, out=out, config=CONFIG)
    first, _, rest = out.read_bytes().partition(b"\n")
    assert b'"control_tokens": "text"' in first
    older = first.replace(b'"control_tokens": "text", ', b"")
    out.write_bytes(older + b"\n" + rest[: len(rest) // 2])
    evaluate(trainer, DOCUMENTS, out=out, config=CONFIG)
    assert out.read_bytes() == older + b"\n" + rest
    out.write_bytes(first.replace(b'"control_tokens": "text"', b'"control_tokens": "tokens"') + b"\n" + rest)
    with pytest.raises(tttnn.ConfigError, match=r"control_tokens = tokens \(now text\)\."):
        evaluate(trainer, DOCUMENTS, out=out, config=CONFIG)


def test_the_scored_document_is_never_trained_on(trainer: Any) -> None:
    own = Document(TEXTS[1] * 4)
    trainer.datastore.neighbors[1] = tttnn.Neighbor(1, 0.0, own.text)
    result = evaluate(trainer, [own], config=CONFIG)
    assert len(result.lines[-1].neighbors) == 4
    assert text_digest(own.text) not in {neighbor.digest for neighbor in result.lines[-1].neighbors}


def test_summary_weights_by_bytes_and_brackets_the_ratio(trainer: Any) -> None:
    result = evaluate(trainer, DOCUMENTS, config=CONFIG)
    summary = result.summary()
    total = summary.total()
    last = result.of("ttt-nn").values()
    bits = sum(line.at(5).nats for line in last) / np.log(2)
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
    with pytest.raises(tttnn.ConfigError, match="line 3"):
        read_results(out)


def test_a_second_writer_is_refused(trainer: Any, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    refused: list[str] = []

    def second(*_: Any) -> None:
        with pytest.raises(tttnn.ConfigError, match="another process is writing") as caught:
            evaluate(trainer, DOCUMENTS, out=out, config=CONFIG)
        refused.append(str(caught.value))

    evaluate(trainer, DOCUMENTS[:2], out=out, config=CONFIG, on_document=second)
    assert len(refused) == 2
    assert len(out.read_text().splitlines()) == 1 + 2 * 2
