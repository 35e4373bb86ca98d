"""Planted leaks are found, and what is clean is called clean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import tttnn
from tests.conftest import TEXTS, FakeRetriever, tiny_gpt2
from tttnn.evaluation.audit import audit_results
from tttnn.evaluation.overlap import ngrams_of, shared
from tttnn.evaluation.protocols import split_task
from tttnn.evaluation.runner import evaluate
from tttnn.store.document import Document

WORDS = (
    "while the ferry crossed that morning every passenger on deck watched a low grey coast come slowly nearer until "
    "single houses could be told apart and somebody began counting chimneys aloud for two children who had never seen "
    "such an island before although their grandmother was born there and spoke of it whenever rain kept them indoors "
    "by noon a wind had risen which drove spray across the bow and everyone except one old fisherman went below where "
    "tea was handed round in tin mugs and a man with an accordion played what he could remember of three dances until "
    "his fingers grew cold then somebody else told how a ship like theirs had once lost its rudder near those rocks "
    "and drifted two nights long before another crew threw them a line at dawn with nothing broken but plates"
)
OTHER = (
    "A recipe for bread asks for flour, water, salt and yeast; the dough has to rest twice, once in a bowl and once in "
    "the tin, before an oven as hot as it will go finishes what patience began. "
)
CONFIG = tttnn.EvalConfig(query_tokens=450, scored_tokens=450, curve=(0, 3))


def trainer_for(tokenizer: Any, max_neighbor_tokens: int | None) -> tttnn.TestTimeTrainer:
    config = tttnn.AdaptConfig(
        num_neighbors=3, max_length=64, max_neighbor_tokens=max_neighbor_tokens, precision="float32"
    )
    return tttnn.TestTimeTrainer(tiny_gpt2(n_positions=4096), tokenizer, FakeRetriever(TEXTS), config)


@pytest.fixture
def trainer(tokenizer: Any) -> Iterator[tttnn.TestTimeTrainer]:
    made = trainer_for(tokenizer, 1200)
    yield made
    made.release()


def leaks(text: str, tokenizer: Any) -> dict[str, str]:
    task = split_task(tokenizer, text, CONFIG)
    assert task is not None
    middle = task.scored[len(task.scored) // 4 :]
    return {
        "exact": text,
        "cut to 60 %": text[: len(text) * 6 // 10],
        "re-spaced": "\n\t ".join(text.upper().split()),
        "spliced": OTHER[:80] + middle[: len(middle) * 2 // 3] + OTHER[80:],
    }


@pytest.mark.parametrize("method", ["ttt-nn", "in-context", "interpolation"])
@pytest.mark.parametrize("kind", ["exact", "cut to 60 %", "re-spaced", "spliced"])
def test_planted_leaks_are_found(trainer: Any, kind: str, method: str) -> None:
    planted = leaks(WORDS, trainer.tokenizer)[kind]
    trainer.datastore = FakeRetriever([TEXTS[0], planted, OTHER])
    result = evaluate(trainer, [Document(WORDS)], config=CONFIG, methods=[method], exclude_own_text=False)
    store = [Document(neighbor.text) for neighbor in trainer.datastore.neighbors]
    report = audit_results(result, [WORDS], store, trainer.tokenizer)
    assert not report.clean
    assert {(f.document, f.method, f.neighbor) for f in report.findings} == {(0, method, 1)}
    kinds = {finding.kind for finding in report.findings}
    assert kinds == ({"overlap", "own text"} if kind == "exact" else {"overlap"})
    assert report.largest_share > report.max_share
    assert audit_results(result, [WORDS], store, trainer.tokenizer, max_share=1.0).clean == (kind != "exact")


def test_text_that_was_not_trained_on_is_no_leak(trainer: Any) -> None:
    """The document stands at the end of a neighbor, beyond the tokens that are trained on."""
    trainer.datastore = FakeRetriever([TEXTS[0], OTHER * 7 + WORDS])
    documents = [Document(WORDS)]
    store = [Document(neighbor.text) for neighbor in trainer.datastore.neighbors]
    report = audit_results(evaluate(trainer, documents, config=CONFIG), documents, store, trainer.tokenizer)
    assert report.clean
    assert (report.documents, report.lines, report.passages) == (1, 2, 2)
    assert [(note.kind, note.neighbor) for note in report.notes] == [("unused copy", 1)]
    whole = trainer_for(trainer.tokenizer, None)
    whole.datastore = trainer.datastore
    result = evaluate(whole, documents, config=CONFIG)
    assert [f.kind for f in audit_results(result, documents, store, trainer.tokenizer).findings] == ["overlap"]


def test_receipts_must_match(trainer: Any) -> None:
    documents = [Document(WORDS), Document(OTHER)]
    result = evaluate(trainer, documents, config=CONFIG)
    store = [Document(text) for text in TEXTS]
    assert audit_results(result, documents, store, trainer.tokenizer).clean
    changed = [Document("changed"), *store[1:]]
    found = audit_results(result, documents, changed, trainer.tokenizer).findings
    assert {(f.kind, f.neighbor) for f in found} == {("neighbor", 0)}
    found = audit_results(result, documents, store[:1], trainer.tokenizer).findings
    assert {(f.kind, f.neighbor) for f in found} == {("neighbor", 1), ("neighbor", 2)}
    assert "the datastore has it no more: list index out of range" in found[0].what
    found = audit_results(result, documents[::-1], store, trainer.tokenizer).findings
    assert [(f.kind, f.document) for f in found] == [("document", 0), ("document", 1)]
    found = audit_results(result, documents[:1], store, trainer.tokenizer).findings
    assert [(f.kind, f.document) for f in found] == [("document", 1)]


def test_wrong_limits_are_refused(trainer: Any) -> None:
    result = evaluate(trainer, [WORDS], config=CONFIG)
    for options, words in (({"ngram": 0}, "ngram must be at least 1"), ({"max_share": 1.5}, "max_share must be")):
        with pytest.raises(tttnn.ConfigError, match=words):
            audit_results(result, [WORDS], [Document(t) for t in TEXTS], trainer.tokenizer, **options)


def test_ngrams_ignore_space_and_case() -> None:
    assert ngrams_of("One, two\n THREE", 2) == {("one", ","), (",", "two"), ("two", "three")}
    assert ngrams_of("f( x )", 8) == ngrams_of("F(x)", 8) == {("f", "(", "x", ")")}
    assert ngrams_of(" \n", 8) == set()
    assert shared({("a",), ("b",)}, {("b",)}) == (0.5, 1.0)
    assert shared(set(), set()) == (0.0, 0.0)


@pytest.mark.parametrize("kind", ["exact", "cut to 60 %", "re-spaced", "spliced"])
def test_leaks_can_be_left_out_and_others_come_in_their_place(trainer: Any, kind: str) -> None:
    planted = leaks(WORDS, trainer.tokenizer)[kind]
    texts = [TEXTS[0], planted, planted + " again", OTHER, TEXTS[1], TEXTS[2]]
    trainer.datastore = FakeRetriever(texts)
    config = CONFIG.with_(max_overlap=0.05)
    result = evaluate(trainer, [Document(WORDS)], config=config, methods=["ttt-nn", "in-context"])
    store = [Document(text) for text in texts]
    assert audit_results(result, [WORDS], store, trainer.tokenizer).clean
    for line in result.lines[1:]:
        assert [neighbor.id for neighbor in line.neighbors] == [0, 3, 4]
        assert (line.found, line.left_out) == (3, 1 if kind == "exact" else 2)
    assert result.lines[0].left_out == 0


def test_what_in_context_cuts_short_is_no_leak_either(trainer: Any) -> None:
    """A neighbor begins with a line of the scored text: too little of all of it, but much of its first tokens."""
    task = split_task(trainer.tokenizer, WORDS, CONFIG)
    assert task is not None
    line = " ".join(task.scored.split()[5:14])
    texts = [TEXTS[0], f"{line} {OTHER * 5}"]
    trainer.datastore = FakeRetriever(texts)
    first = len(trainer.tokenizer(TEXTS[0])["input_ids"])
    config = CONFIG.with_(max_overlap=0.05, context_tokens=first + 120)
    store = [Document(text) for text in texts]

    def measured(**changes: Any) -> Any:
        methods = ["ttt-nn", "in-context", "ttt-nn+in-context"]
        return evaluate(trainer, [Document(WORDS)], config=config.with_(**changes), methods=methods)

    result = measured()
    assert audit_results(result, [WORDS], store, trainer.tokenizer).clean
    assert [neighbor.id for neighbor in result.of("ttt-nn")[0].neighbors] == [0, 1]
    assert [neighbor.id for neighbor in result.of("in-context")[0].neighbors] == [0]
    assert result.of("ttt-nn+in-context")[0].at().context_tokens == first
    # With room for all of it, it is no leak; and without a limit it is read, and found.
    roomy = measured(context_tokens=None)
    assert [neighbor.id for neighbor in roomy.of("in-context")[0].neighbors] == [0, 1]
    assert audit_results(roomy, [WORDS], store, trainer.tokenizer).clean
    found = audit_results(measured(max_overlap=None), [WORDS], store, trainer.tokenizer).findings
    assert [(finding.method, finding.neighbor) for finding in found] == [("in-context", 1)]


def test_a_datastore_without_leaks_is_searched_alike_with_the_limit(trainer: Any) -> None:
    results = [
        evaluate(trainer, [Document(WORDS)], config=CONFIG.with_(max_overlap=limit)).lines for limit in (None, 0.05)
    ]
    assert results[0] == results[1]
