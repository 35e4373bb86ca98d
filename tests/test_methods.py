"""The methods that are measured side by side, each against a direct computation."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import tttnn
from benchmarks.plain_loop import plain_step
from tests.conftest import TEXTS, FakeRetriever, assert_same_state, state_of, tiny_gpt2
from tests.encoders import tiny_embedder
from tttnn.cli.program import app
from tttnn.evaluation.catalogue import CATALOGUE
from tttnn.evaluation.interpolation import interpolation_curve
from tttnn.evaluation.methods import METHODS
from tttnn.evaluation.protocols import split_task
from tttnn.evaluation.records import Line
from tttnn.evaluation.result_file import read_results
from tttnn.evaluation.results import EvalResult
from tttnn.evaluation.runner import evaluate
from tttnn.lm.neighbor_tokens import portion_of
from tttnn.lm.tokens import token_ids
from tttnn.report.style import STYLES, styles_of
from tttnn.store.document import Document

README = Path(__file__).resolve().parents[1] / "README.md"
DOCUMENT = Document("What is asked of a document is that it be long enough to be cut in half. " * 2)
CONFIG = tttnn.EvalConfig(query_tokens=60, scored_tokens=60, curve=(0, 1, 2, 5), dynamic_window=20, context_tokens=300)


@pytest.fixture
def wide(tokenizer: Any) -> Iterator[tttnn.TestTimeTrainer]:
    """A trainer whose model has room for neighbors in the context."""
    config = tttnn.AdaptConfig(num_neighbors=5, max_length=64, learning_rate=1e-3, precision="float32")
    made = tttnn.TestTimeTrainer(tiny_gpt2(n_positions=512), tokenizer, FakeRetriever(TEXTS), config)
    yield made
    made.release()


def lines(
    trainer: Any, *methods: str, config: tttnn.EvalConfig = CONFIG, document: Document = DOCUMENT
) -> dict[str, Line]:
    before = state_of(trainer.model)
    result = evaluate(trainer, [document], config=config, methods=methods)
    assert_same_state(trainer.model, before)
    return {line.method: line for line in result.lines}


def test_the_catalogue_is_the_only_list_of_methods() -> None:
    assert list(METHODS) == list(CATALOGUE)
    assert all(name == entry.name for name, entry in CATALOGUE.items())
    looks = styles_of(list(CATALOGUE))
    assert len(set(looks.values())) == len(CATALOGUE)
    assert all(STYLES[entry.style] == looks[name] for name, entry in CATALOGUE.items() if entry.style is not None)
    listed = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == [(entry.name, entry.about) for entry in CATALOGUE.values()]
    told = CliRunner().invoke(app, ["eval", "--help"], terminal_width=80).output
    assert all(f"{entry.name:<17}  {entry.about}\n" in told for entry in CATALOGUE.values())


def test_all_methods_score_the_same_tokens_and_search_once(wide: Any) -> None:
    without = {"ttt-nn-sift", "instant", "instant+context", "auto"}  # vectors and experts, which a fake has not
    without |= {"index-size"}  # searches in each share
    names = [name for name in METHODS if name not in without]
    measured = lines(wide, *names)
    assert list(measured) == names
    assert len({(line.tokens, line.num_bytes, line.query_tokens, line.digest) for line in measured.values()}) == 1
    assert [k for _, k in wide.datastore.queries] == [5]
    base = measured["base"].at()
    for name in set(names) - {"base", "dynamic"}:
        assert measured[name].at(0).nats == base.nats, name
        assert [point.k for point in measured[name].points] == [0, 1, 2, 5]
        assert [n.id for n in measured[name].neighbors] == [0, 1, 2, 3, 4]


def test_in_context_reads_the_nearest_last_and_cuts_the_farthest(wide: Any) -> None:
    task = split_task(wide.tokenizer, DOCUMENT.text, CONFIG)
    ids = [token_ids(wide.tokenizer, text) for text in TEXTS]
    gap, query, scored = (token_ids(wide.tokenizer, text) for text in ("\n\n", task.query, task.scored))
    line = lines(wide, "in-context")["in-context"]

    def direct(neighbors: list[int]) -> float:
        sequence = [256, *neighbors, *query, *scored]
        return float(wide.scorer.token_nats(sequence, first=len(sequence) - len(scored)).sum())

    assert line.at(2).nats == pytest.approx(direct([*ids[1], *gap, *ids[0], *gap]), rel=1e-6)
    assert line.at(2).context_tokens == len(ids[0]) + len(ids[1])
    # All five do not fit into 300 tokens: the last that finds room keeps its first tokens, and stands first.
    room = 300 - sum(len(ids[i]) + len(gap) for i in range(4)) - len(gap)
    assert 0 < room < len(ids[4])
    expected = [*ids[4][:room], *gap]
    for i in (3, 2, 1, 0):
        expected += [*ids[i], *gap]
    assert len(expected) == 300
    assert line.at(5).nats == pytest.approx(direct(expected), rel=1e-6)
    assert [n.tokens for n in line.neighbors] == [*(len(ids[i]) for i in range(4)), room]


def test_in_context_may_be_scored_at_fewer_points(wide: Any) -> None:
    passes: list[int] = []
    for curve in (None, (), (2, 9)):
        scored: list[None] = []
        result = evaluate(
            wide,
            [DOCUMENT],
            config=CONFIG,
            methods=("in-context",),
            context_curve=curve,
            on_scored=lambda scored=scored: scored.append(None),  # type: ignore[misc]
        )
        passes.append(len(scored))
        line = result.lines[-1]
        assert [point.k for point in line.points] == {None: [0, 1, 2, 5], (): [0, 5], (2, 9): [0, 2, 5]}[curve]
        if curve is None:
            whole = line
        assert all(line.at(point.k) == whole.at(point.k) for point in line.points)
        assert result.summary().rows
    assert passes == [4, 2, 3]


def test_in_context_leaves_room_for_query_and_scored_text(trainer: Any) -> None:
    line = lines(trainer, "in-context")["in-context"]
    # 128 tokens in all, 120 of which are the query's and the scored text's; two are the gap's.
    assert line.tokens + line.query_tokens == 120
    assert line.at(5).context_tokens == 128 - 120 - 2
    assert [n.id for n in line.neighbors] == [0]


def test_in_context_under_full_stands_before_the_document(wide: Any) -> None:
    config = CONFIG.with_(protocol="full")
    task = split_task(wide.tokenizer, DOCUMENT.text, config)
    line = lines(wide, "in-context", config=config)["in-context"]
    score = wide.scorer.score(task.scored, context=TEXTS[0] + "\n\n")
    assert line.at(1).nats == pytest.approx(score.nats, rel=1e-6)


def test_together_is_the_trained_model_behind_its_neighbors(wide: Any) -> None:
    measured = lines(wide, "ttt-nn", "in-context", "ttt-nn+in-context")
    task = split_task(wide.tokenizer, DOCUMENT.text, CONFIG)
    with wide.adapt(task.query, num_neighbors=1) as adapted:
        score = adapted.score(task.scored, context=TEXTS[0] + "\n\n" + task.query)
    both = measured["ttt-nn+in-context"]
    assert both.at(1).nats == pytest.approx(score.nats, rel=1e-6)
    assert both.at(5).trained_tokens == measured["ttt-nn"].at(5).trained_tokens > 0
    assert both.at(5).context_tokens == measured["in-context"].at(5).context_tokens > 0


def test_the_guard_takes_the_state_that_knows_the_query_best(wide: Any) -> None:
    measured = lines(wide, "ttt-nn", "ttt-nn-guard")
    trained, guard = measured["ttt-nn"], measured["ttt-nn-guard"]
    for i, point in enumerate(guard.points):
        best = min(trained.points[: i + 1], key=lambda p: p.query_nats)
        assert (point.nats, point.query_nats, point.extra["chosen"]) == (best.nats, best.query_nats, best.k)
        assert point.steps == trained.points[i].steps
    with pytest.raises(tttnn.ConfigError, match="apart from the scored text, got the protocol full"):
        lines(wide, "ttt-nn-guard", config=CONFIG.with_(protocol="full"))


def test_the_guard_stays_with_the_base_model_where_training_harms(tokenizer: Any) -> None:
    config = tttnn.AdaptConfig(num_neighbors=5, max_length=64, learning_rate=0.5, precision="float32")
    trainer = tttnn.TestTimeTrainer(tiny_gpt2(), tokenizer, FakeRetriever(["zzzz" * 20] * 5), config)
    measured = lines(trainer, "ttt-nn", "ttt-nn-guard")
    assert measured["ttt-nn"].at(5).nats > measured["base"].at().nats
    assert [p.extra["chosen"] for p in measured["ttt-nn-guard"].points] == [0, 0, 0, 0]
    assert measured["ttt-nn-guard"].at(5).nats == measured["base"].at().nats
    trainer.release()


@pytest.mark.parametrize("protocol", ["split", "full"])
def test_dynamic_evaluation_scores_each_window_before_it_trains_on_it(wide: Any, protocol: str) -> None:
    config = CONFIG.with_(protocol=protocol, dynamic_learning_rate=2e-3)
    task = split_task(wide.tokenizer, DOCUMENT.text, config)
    settings = wide.config
    line = lines(wide, "dynamic", config=config)["dynamic"]
    assert wide.config is settings
    assert settings.learning_rate != 2e-3
    query = [] if protocol == "full" else token_ids(wide.tokenizer, task.query)
    scored = token_ids(wide.tokenizer, task.scored)
    # Plain PyTorch: the whole sequence in each state, of which one window counts.
    model = tiny_gpt2(n_positions=512).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    for begin in range(0, len(query), 20):
        plain_step(model, optimizer, query[begin : begin + 20])
    total = 0.0
    sequence = torch.tensor([[256, *query, *scored]])
    for begin in range(0, len(scored), 20):
        with torch.no_grad():
            log_probs = model(sequence).logits[0].log_softmax(-1)
        for i in range(begin, min(begin + 20, len(scored))):
            total -= float(log_probs[len(query) + i, scored[i]])
        plain_step(model, optimizer, scored[begin : begin + 20])
    assert line.at().nats == pytest.approx(total, rel=1e-5)
    windows = math.ceil(len(query) / 20) + math.ceil(len(scored) / 20) - 1
    assert line.at().steps == windows
    assert line.neighbors == []


def test_dynamic_evaluation_refuses_a_window_that_training_would_cut(wide: Any) -> None:
    with pytest.raises(tttnn.ConfigError, match="dynamic_window must be at most 64"):
        lines(wide, "dynamic", config=CONFIG.with_(dynamic_window=65))


def test_interpolation_mixes_with_the_histogram(wide: Any) -> None:
    config = CONFIG.with_(interpolation_weight=0.3)
    result = evaluate(wide, [DOCUMENT, Document(TEXTS[4])], config=config, methods=["interpolation"])
    line = result.of("interpolation")[0]
    task = split_task(wide.tokenizer, DOCUMENT.text, config)
    query, scored = (token_ids(wide.tokenizer, text) for text in (task.query, task.scored))
    nats = wide.scorer.token_nats([256, *query, *scored], first=1 + len(query)).tolist()
    tokens = [token for text in TEXTS[:2] for token in token_ids(wide.tokenizer, text)]
    expected = 0.0
    for token, value in zip(scored, nats, strict=True):
        share = (tokens.count(token) + 1 / 257) / (len(tokens) + 1)
        expected -= math.log(0.7 * math.exp(-value) + 0.3 * share)
    assert line.at(2).nats == pytest.approx(expected, rel=1e-9)
    assert line.at(2).extra["weights"]["0.3"] == line.at(2).nats
    assert line.at(2).extra["weights"]["0"] == pytest.approx(line.at(0).nats)
    curve = interpolation_curve(result)
    assert set(curve) == {0, 1, 2, 5}
    base = result.summary().total(0, method="base").bits_per_byte
    assert curve[5][0.0] == pytest.approx(base)
    held = [row.at(5).extra["weights"]["0.5"] for row in result.of("interpolation").values()]
    size = sum(row.num_bytes for row in result.of("base").values())
    assert curve[5][0.5] == pytest.approx(sum(held) / math.log(2) / size)


def test_the_reference_mode_carries_its_optimizer_and_trains_whole_neighbors(wide: Any, tmp_path: Path) -> None:
    documents = [DOCUMENT, Document(DOCUMENT.text.upper())]
    out = tmp_path / "results.jsonl"
    result = evaluate(wide, documents, out=out, config=CONFIG, methods=["tttlm-2024"])
    settings = result.settings["methods"]["tttlm-2024"]
    assert (settings["learning_rate"], settings["max_neighbor_tokens"]) == (2e-5, None)
    both = result.of("tttlm-2024")
    assert both[0].at(5).trained_tokens == sum(len(text.encode()) for text in TEXTS)
    # Of two documents, the one measured first is as if it were alone; the other is not.
    alone = [lines(wide, "tttlm-2024", document=document)["tttlm-2024"].at(5).nats for document in documents]
    first, second = (json.loads(row)["document"] for row in out.read_text().splitlines()[1::2])
    assert both[first].at(5).nats == alone[first]
    assert both[second].at(5).nats != alone[second]
    whole = out.read_bytes()
    out.write_bytes(whole[:-20])
    with pytest.raises(tttnn.ConfigError, match="carried from document to document"):
        evaluate(wide, documents, out=out, config=CONFIG, methods=["tttlm-2024"])


def test_lora_is_another_trainer_over_a_copy_of_the_model(wide: Any) -> None:
    line = lines(wide, "lora")["lora"]
    copied = tttnn.TestTimeTrainer(
        tiny_gpt2(n_positions=512),
        wide.tokenizer,
        wide.datastore,
        wide.config.with_(trainable="lora", learning_rate=CONFIG.lora_learning_rate),
    )
    task = split_task(wide.tokenizer, DOCUMENT.text, CONFIG)
    with copied.adapt(task.query) as adapted:
        assert adapted.score(task.scored, context=task.context).nats == pytest.approx(line.at(5).nats, rel=1e-6)
    copied.release()
    assert line.at(5).nats != line.at(0).nats


def test_a_guard_inside_the_trainer_is_refused(wide: Any) -> None:
    guarded = tttnn.TestTimeTrainer(
        tiny_gpt2(n_positions=512), wide.tokenizer, wide.datastore, wide.config.with_(guard="query")
    )
    with pytest.raises(tttnn.ConfigError, match=r"guard must be none .* got 'query': the method ttt-nn-guard"):
        lines(guarded, "ttt-nn")


def test_sift_chooses_other_neighbors_and_needs_a_datastore(wide: Any, tmp_path: Path) -> None:
    with pytest.raises(tttnn.ConfigError, match="whose vectors it compares, got FakeRetriever"):
        lines(wide, "ttt-nn-sift")
    texts = [f"{TEXTS[i % 5]} number {i // 4}" for i in range(40)] + [DOCUMENT.text]
    wide.datastore = tttnn.Datastore.build(tmp_path / "store", texts, tiny_embedder())
    measured = lines(wide, "ttt-nn", "ttt-nn-sift")
    ids = {name: [n.id for n in measured[name].neighbors] for name in ("ttt-nn", "ttt-nn-sift")}
    assert ids["ttt-nn"] != ids["ttt-nn-sift"]
    assert all(len(held) == 5 and 40 not in held for held in ids.values())


def test_texts_are_kept_only_where_asked_for(wide: Any, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    names = ["ttt-nn", "in-context", "ttt-nn+in-context", "interpolation"]
    evaluate(wide, [DOCUMENT], out=out, config=CONFIG, methods=names, keep_text=True)
    held: EvalResult = read_results(out)
    assert held.texts is not None
    assert {method for _, method in held.texts} == {"ttt-nn", "in-context", "ttt-nn+in-context"}
    task = split_task(wide.tokenizer, DOCUMENT.text, CONFIG)
    kept = held.texts[0, "ttt-nn"]
    assert (kept.query, kept.scored) == (task.query, task.scored)
    assert kept.before == wide.generate(task.query, max_new_tokens=48)
    with wide.adapt(task.query) as adapted:
        assert kept.after == adapted.generate(max_new_tokens=48)
    assert kept.neighbors[1] == (1, TEXTS[1])
    assert portion_of(wide.tokenizer, wide.datastore.neighbors[1], 512).tokens == token_ids(wide.tokenizer, TEXTS[1])
    assert task.query not in out.read_text()
