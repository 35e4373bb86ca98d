"""Experts measured beside the other methods: what they may not have seen, receipts, and the audit of what they saw."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tttnn
from tests.conftest import assert_same_state, state_of, tiny_llama
from tests.test_audit import OTHER, WORDS
from tests.test_datastore import cached_embedder
from tests.test_leaves import DOCUMENTS
from tttnn.cli.measurement import methods_of
from tttnn.config import ExpertConfig
from tttnn.errors import ConfigError
from tttnn.evaluation.audit import AuditReport, audit_results
from tttnn.evaluation.protocols import split_task
from tttnn.evaluation.records import Line, UsedExperts
from tttnn.evaluation.result_file import read_results
from tttnn.evaluation.results import EvalResult
from tttnn.evaluation.runner import evaluate
from tttnn.instant.descriptions import seen_by_experts
from tttnn.instant.precompute import Precompute
from tttnn.recipe import give_experts
from tttnn.store.document import Document

PLANTED = "Seen once before: " + WORDS[60:500] + " and so on."
"""A near copy of what is scored: of the second half of WORDS it holds a part."""
METHODS = ("base", "instant", "instant+context", "auto")
CONFIG = tttnn.EvalConfig(query_tokens=450, scored_tokens=450, curve=(0, 1, 3))
LOOSE = CONFIG.with_(max_overlap=1.0)


def model() -> Any:
    return tiny_llama(max_position_embeddings=2048)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> SimpleNamespace:
    """Datastores without the near copy, with it in a leaf, and with it in the root."""
    folder = tmp_path_factory.mktemp("methods")
    found = {}
    for name, texts, documents in (
        ("clean", [*DOCUMENTS, OTHER], 8),
        ("leaf", [*DOCUMENTS, PLANTED, OTHER], 8),
        ("root", [*DOCUMENTS, PLANTED, OTHER], 50),
    ):
        config = ExpertConfig(documents=documents, max_length=500, rank=2, learning_rate=3e-3, cluster_size=10, seed=1)
        with tttnn.Datastore.build(folder / name, texts, cached_embedder(3)) as store:
            Precompute(store, model(), tokenizer, config).run()
        found[name] = folder / name
    return SimpleNamespace(**found)


class Opened:
    """A trainer over one of the datastores."""

    def __init__(self, place: Path, tokenizer: Any, **settings: Any) -> None:
        self.store = tttnn.Datastore.open(place, cached_embedder(3))
        config = tttnn.AdaptConfig(num_neighbors=3, max_length=64, max_neighbor_tokens=64, precision="float32")
        self.trainer = tttnn.TestTimeTrainer(model(), tokenizer, self.store, config.with_(**settings))
        give_experts(self.trainer, self.store)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.trainer.release()
        self.store.close()

    def measured(self, *methods: str, config: tttnn.EvalConfig = CONFIG, **options: Any) -> EvalResult:
        before = state_of(self.trainer.model)
        result = evaluate(self.trainer, [Document(WORDS)], config=config, methods=methods, **options)
        assert_same_state(self.trainer.model, before)
        return result

    def audit(self, result: EvalResult) -> AuditReport:
        seen = seen_by_experts(self.store.path, self.trainer.fingerprint)
        return audit_results(result, [WORDS], self.store.store, self.trainer.tokenizer, experts=seen)


def by_method(result: EvalResult) -> dict[str, Line]:
    return {line.method: line for line in result.lines}


def test_experts_are_measured_as_a_trainer_uses_them(places: SimpleNamespace, tokenizer: Any) -> None:
    with Opened(places.clean, tokenizer, context_neighbors=0) as opened:
        result = opened.measured("in-context", *METHODS)
        lines, trainer = by_method(result), opened.trainer
        task = split_task(tokenizer, WORDS, CONFIG)
        assert task is not None
        instant = trainer.config.with_(mode="instant")
        with trainer.adapt(task.query, config=instant) as adapted:
            direct = adapted.score(task.scored, context=task.context).nats
        (point,) = lines["instant"].points
        assert point.nats == pytest.approx(direct, rel=1e-6)
        assert point.nats < lines["base"].at(0).nats - 1
        assert point.extra == {"experts": 3, "experts_left_out": 0}
        assert lines["instant"].experts[0].name == "root"
        assert lines["instant+context"].at(0).nats == point.nats
        assert lines["instant+context"].at(3).context_tokens == lines["in-context"].at(3).context_tokens > 0
        assert lines["instant+context"].at(3).nats < lines["in-context"].at(3).nats
        auto = lines["auto"]
        assert auto.at(0).nats == point.nats
        assert [held.steps for held in auto.points] == [0, 1, 3]
        with trainer.adapt(task.query, config=instant.with_(mode="auto", deadline_ms=1e9)) as adapted:
            assert adapted.score(task.scored, context=task.context).nats == pytest.approx(auto.at(3).nats, rel=1e-6)
        assert opened.audit(result).clean


def test_auto_reads_four_neighbors_whatever_it_trains_on(places: SimpleNamespace, tokenizer: Any) -> None:
    with Opened(places.clean, tokenizer, num_neighbors=5) as opened:
        line = by_method(opened.measured("auto", "instant+context", config=CONFIG.with_(curve=(0, 4))))
        assert {point.context_tokens for point in line["auto"].points} == {line["instant+context"].at(4).context_tokens}
        assert line["auto"].at(0).nats == line["instant+context"].at(4).nats
        assert [neighbor.id for neighbor in line["auto"].neighbors][:4] == [
            neighbor.id for neighbor in line["instant+context"].neighbors
        ][:4]


def test_an_expert_that_saw_a_near_copy_is_left_out(places: SimpleNamespace, tokenizer: Any) -> None:
    """The near copy is near the query, too: its cluster is the nearest one."""
    with Opened(places.leaf, tokenizer) as opened:
        result = opened.measured(*METHODS)
        lines = by_method(result)
        assert lines["instant"].at().extra == {"experts": 2, "experts_left_out": 1}
        assert opened.audit(result).clean
        loose = opened.measured(*METHODS, config=LOOSE)
        assert by_method(loose)["instant"].at().extra == {"experts": 3, "experts_left_out": 0}
        report = opened.audit(loose)
        planted = len(DOCUMENTS)
        assert {(found.kind, found.neighbor) for found in report.findings} == {("overlap", planted)}
        assert {found.method for found in report.findings} == {"instant", "instant+context", "auto"}
    with Opened(places.root, tokenizer) as opened:
        lines = by_method(opened.measured(*METHODS))
        assert lines["instant"].at().nats == lines["base"].at().nats
        assert lines["instant"].experts == []
        assert lines["instant"].at().extra == {"experts": 0, "experts_left_out": 1}


def test_the_document_itself_in_an_expert_is_an_own_text(tmp_path: Path, tokenizer: Any) -> None:
    config = ExpertConfig(documents=60, max_length=500, rank=2)
    with tttnn.Datastore.build(tmp_path / "store", [*DOCUMENTS[:6], WORDS], cached_embedder(3)) as store:
        Precompute(store, model(), tokenizer, config, leaves=False).run()
    with Opened(tmp_path / "store", tokenizer) as opened:
        kept = opened.measured("instant", config=LOOSE, exclude_own_text=False)
        kinds = {finding.kind for finding in opened.audit(kept).findings}
        assert kinds == {"own text", "overlap"}
        assert opened.measured("instant").lines[-1].experts == []


def test_receipts_of_experts_are_kept_and_must_match(places: SimpleNamespace, tokenizer: Any, tmp_path: Path) -> None:
    shutil.copytree(places.clean, tmp_path / "store", symlinks=True)
    out = tmp_path / "results.jsonl"
    with Opened(tmp_path / "store", tokenizer) as opened:
        result = opened.measured("instant", out=out)
        content = out.read_bytes()
        assert read_results(out).lines == result.lines
        line = result.lines[-1]
        assert Line.from_dict(json.loads(json.dumps(line.to_dict()))) == line
        assert all("experts" not in held.to_dict() for held in result.lines if held.method == "base")
        opened.measured("instant", out=out)
        assert out.read_bytes() == content  # nothing was measured again
        seen = seen_by_experts(opened.store.path, opened.trainer.fingerprint)
        del seen["root"]
        report = audit_results(result, [WORDS], opened.store.store, tokenizer, experts=seen)
        assert [(found.kind, found.what) for found in report.findings] == [("expert", "root: there is no such expert")]
        line.experts[0] = UsedExperts("root", 1.0, "0" * 32)
        report = opened.audit(result)
        assert [found.kind for found in report.findings] == ["expert"]
        # Other experts: another file of results.
        opened.store.append(["Another document about something else."])
        config = ExpertConfig(documents=8, max_length=500, rank=2, learning_rate=1e-3, cluster_size=10, seed=1)
        Precompute(opened.store, model(), tokenizer, config).run(update=True)
        with pytest.raises(ConfigError, match="methods"):
            opened.measured("instant", out=out)


def test_what_cannot_be_measured_is_refused(places: SimpleNamespace, tokenizer: Any) -> None:
    with Opened(places.clean, tokenizer) as opened:
        opened.trainer.experts = None
        with pytest.raises(ConfigError, match="tttnn precompute"):
            opened.measured("instant")
    for settings, words in (
        ({"mode": "instant"}, "the methods instant"),
        ({"context_neighbors": 2}, "context_neighbors must be 0"),
    ):
        with Opened(places.clean, tokenizer, **settings) as opened, pytest.raises(ConfigError, match=words):
            opened.measured("instant")


def test_the_mode_names_the_methods() -> None:
    config = tttnn.AdaptConfig()
    assert methods_of(config) == ["base", "ttt-nn"]
    assert methods_of(config.with_(mode="instant")) == ["base", "instant"]
    assert methods_of(config.with_(mode="instant", context_neighbors=2)) == ["base", "instant+context"]
    assert methods_of(config.with_(mode="auto", context_neighbors=2)) == ["base", "auto"]


@pytest.fixture
def harness() -> Any:
    return pytest.importorskip("tttnn.evaluation.harness", reason="lm-evaluation-harness is not installed")


@pytest.mark.parametrize("rolling", ["full", "split"])
def test_the_harness_leaves_out_experts_that_saw_near_copies(
    harness: Any, places: SimpleNamespace, tokenizer: Any, rolling: str
) -> None:
    from lm_eval.api.instance import Instance

    asked = [Instance("loglikelihood_rolling", {}, (WORDS,), 0)]
    for place, used in (("clean", 3), ("leaf", 2), ("root", 0)):
        with Opened(getattr(places, place), tokenizer, mode="instant") as opened:
            trainer, reports = opened.trainer, []
            adapt = trainer.adapt

            def watched(query: str, *, adapt: Any = adapt, reports: Any = reports, **options: Any) -> Any:
                adaptation = adapt(query, **options)
                reports.append(adaptation.report)
                return adaptation

            trainer.adapt = watched  # type: ignore[method-assign]
            lm = harness.TttnnLM(trainer, rolling=rolling)
            (value,) = lm.loglikelihood_rolling(asked, disable_tqdm=True)
            assert [len(report.experts.used) for report in reports] == [used]
            base = trainer.scorer.token_nats([lm.prefix_token_id, *lm.tok_encode(WORDS)])
            if used == 0:
                assert value == pytest.approx(-float(base.sum()), rel=1e-12)
            elif rolling == "split":  # the first half is the base model's
                assert -float(base.sum()) < value < -float(base[: len(base) // 2].sum())


def test_the_harness_refuses_neighbors_in_the_context(harness: Any, places: SimpleNamespace, tokenizer: Any) -> None:
    words = "context_neighbors=0"
    with Opened(places.clean, tokenizer, mode="auto") as opened, pytest.raises(ConfigError, match=words):
        harness.TttnnLM(opened.trainer)
