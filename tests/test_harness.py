"""The model `tttnn` of lm-evaluation-harness: as `hf` where nothing is adapted, as the library where something is."""

from __future__ import annotations

import copy
import importlib
import json
import math
import os
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import processors

import tttnn
from tests.conftest import TEXTS, FakeRetriever, assert_same_state, save_model, state_of, tiny_gpt2, tiny_llama
from tests.encoders import save_encoder
from tests.test_cli import run as run_cli
from tttnn.lm.score import Scorer
from tttnn.settings import read
from tttnn.store.document import Document, text_digest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from sqlitedict import SqliteDict

from tttnn.evaluation.harness import _ANSWERED_BY, TttnnLM
from tttnn.evaluation.harness_command import TASKS, run

ROOT = Path(__file__).resolve().parents[1]

LONG = "Perplexity of a text, with Ünïcödé and 🐍, " * 12

PAIRS = [
    ("The cat sat on the", " mat."),
    ("", "no context at all"),
    ("The cat sat on the", " dog."),
    ("ends in spaces  ", "and goes on"),
    ("<|endoftext|>begins with the first token", " twice"),
    (LONG, "the context is longer than the window"),
    ("Ünïcödé", "🐍"),
]


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]


@pytest.fixture(params=["plain", "with bos"])
def tokens(tokenizer: Any, request: pytest.FixtureRequest) -> Any:
    """A tokenizer of our own, because `hf` gives its one a padding token; also one that puts `bos` before a text."""
    own = copy.deepcopy(tokenizer)
    if request.param == "with bos":
        own.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)]
        )
        assert own("x")["input_ids"] == [256, own("x", add_special_tokens=False)["input_ids"][0]]
    return own


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> SimpleNamespace:
    """Directories with a model and a datastore, and files with documents, as a command line names them."""
    folder = tmp_path_factory.mktemp("harness")
    save_model(folder / "model", tiny_gpt2(), tokenizer)
    embedder = tttnn.Embedder.load(save_encoder(folder / "encoder"))
    documents = [Document(text, {"pile_set_name": "Fake"}) for text in TEXTS]
    tttnn.Datastore.build(folder / "store", documents, embedder).close()
    rows = [("Even", TEXTS[0] * 2 + "  \n"), ("Odd", "Another text about nearest neighbors."), ("Even", TEXTS[3])]
    lines = [json.dumps({"text": text, "meta": {"pile_set_name": group}}) for group, text in rows]
    (folder / "docs.jsonl").write_text("\n".join(lines) + "\n")
    return SimpleNamespace(
        model=str(folder / "model"),
        store=str(folder / "store"),
        encoder=str(folder / "encoder"),
        documents=str(folder / "docs.jsonl"),
        rows=rows,
    )


@pytest.fixture
def lm(trainer: tttnn.TestTimeTrainer) -> TttnnLM:
    return TttnnLM(trainer)


def without_neighbors(model: Any, tokenizer: Any, **score: Any) -> tttnn.TestTimeTrainer:
    config = tttnn.AdaptConfig(num_neighbors=0, precision="float32")
    return tttnn.TestTimeTrainer(model, tokenizer, None, config, score=tttnn.ScoreConfig(**score))


# ---------------------------------------------------------------------------------------------------------------------
# Without neighbors: the harness's own model
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("bos", [None, True, False])
def test_without_neighbors_loglikelihood_is_that_of_hf(tokens: Any, make: Any, bos: bool | None) -> None:
    model = make()
    trainer = without_neighbors(model, tokens)
    hf = HFLM(pretrained=model, tokenizer=tokens, add_bos_token=bos)
    theirs = hf.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    ours = TttnnLM(trainer, add_bos_token=bos).loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    for (a, a_greedy), (b, b_greedy) in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, abs=1e-5 * max(1, abs(b)))
        assert a_greedy == b_greedy
    trainer.release()


def test_greedy_is_told_apart(tokens: Any) -> None:
    lm = TttnnLM(without_neighbors(tiny_gpt2(), tokens))
    likeliest = lm.generate_until(requests("generate_until", [("abc", {"max_gen_toks": 3})]), disable_tqdm=True)[0]
    pairs = [("abc", likeliest), ("abc", likeliest[:-1] + ("x" if likeliest[-1] != "x" else "y"))]
    answers = lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    assert [greedy for _, greedy in answers] == [True, False]


@pytest.mark.parametrize("max_length", [16, 33, None])
def test_without_neighbors_rolling_is_that_of_hf(tokens: Any, max_length: int | None) -> None:
    model = tiny_gpt2()
    trainer = without_neighbors(model, tokens, max_length=max_length)
    texts = [(LONG,), ("x",), (LONG[:33],), (LONG[:32],)]
    hf = HFLM(pretrained=model, tokenizer=tokens, max_length=max_length)
    theirs = hf.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
    for rolling in ("full", "split"):
        ours = TttnnLM(trainer, rolling=rolling).loglikelihood_rolling(
            requests("loglikelihood_rolling", texts), disable_tqdm=True
        )
        assert ours == pytest.approx(theirs, rel=1e-5)
    trainer.release()


def test_without_neighbors_generation_is_that_of_hf(tokens: Any) -> None:
    model = tiny_gpt2(initializer_range=0.5)
    trainer = without_neighbors(model, tokens)
    free = TttnnLM(trainer).generate_until(requests("generate_until", [("abc", {"max_gen_toks": 30})]))[0]
    assert len(free) > 8
    asked: list[tuple[Any, ...]] = [
        ("abc", {"until": [free[5:7]], "max_gen_toks": 20}),
        ("abc", {"until": free[3], "max_gen_toks": 20, "do_sample": False, "temperature": 0.0}),
        ("abc", {"until": ["never", free[8], free[6]], "max_new_tokens": 12}),
        (LONG, {"until": [], "max_gen_toks": 40}),
        ("a b c", {"max_gen_toks": 9, "repetition_penalty": 1.5}),
    ]
    theirs = HFLM(pretrained=model, tokenizer=tokens).generate_until(requests("generate_until", asked))
    assert TttnnLM(trainer).generate_until(requests("generate_until", asked)) == theirs
    trainer.release()


def test_conversations_are_written_as_by_hf(tokens: Any) -> None:
    tokens.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    model = tiny_gpt2()
    trainer = without_neighbors(model, tokens)
    ours, theirs = TttnnLM(trainer), HFLM(pretrained=model, tokenizer=tokens)
    talk = [{"role": "user", "content": "Hello."}]
    assert ours.apply_chat_template(talk) == theirs.apply_chat_template(talk) == "[user] Hello.\n[assistant] "
    talk.append({"role": "assistant", "content": "I am"})
    assert ours.apply_chat_template(talk, False) == theirs.apply_chat_template(talk, False)
    assert ours.chat_template(True) == theirs.chat_template(True)
    # Ours tells rules and template apart too, which the harness's caches of requests depend on.
    assert ours.tokenizer_name.rpartition("-")[0] == theirs.tokenizer_name
    trainer.release()


def test_sampled_generations_differ_and_the_random_state_comes_back(lm: TttnnLM) -> None:
    asked = [("abc", {"max_gen_toks": 20, "do_sample": True, "temperature": 1.0})] * 3
    before = torch.random.get_rng_state()
    first = lm.generate_until(requests("generate_until", asked), disable_tqdm=True)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(set(first)) == 3
    assert lm.generate_until(requests("generate_until", asked), disable_tqdm=True) == first


# ---------------------------------------------------------------------------------------------------------------------
# Queries
# ---------------------------------------------------------------------------------------------------------------------


def test_each_query_is_adapted_once_and_answers_keep_their_order(lm: TttnnLM, retriever: FakeRetriever) -> None:
    before = state_of(lm.trainer.model)
    together = lm.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    contexts = dict.fromkeys(context for context, _ in PAIRS if context)
    for (query, _), context in zip(retriever.queries, contexts, strict=True):
        assert context.endswith(query)
        assert len(query) == len(context) or 256 <= len(query.encode()) < 260
    apart = [lm.loglikelihood(requests("loglikelihood", [pair]), disable_tqdm=True)[0] for pair in PAIRS]
    assert together == apart
    assert len({value for value, _ in together}) == len(PAIRS)
    assert_same_state(lm.trainer.model, before)


def test_an_empty_context_is_answered_by_the_base_model(lm: TttnnLM, retriever: FakeRetriever) -> None:
    value, _ = lm.loglikelihood(requests("loglikelihood", [("", "some words")]), disable_tqdm=True)[0]
    assert value == -lm.trainer.scorer.score("some words").nats
    assert retriever.queries == []
    assert lm.get_model_info()["tttnn"]["counts"]["without_query"] == 1


def test_what_is_scored_is_neither_searched_with_nor_trained_on(lm: TttnnLM, retriever: FakeRetriever) -> None:
    neighbors = retriever.neighbors
    retriever.neighbors = [*neighbors, tttnn.Neighbor(9, 0.0, "question answer"), tttnn.Neighbor(10, 0.0, LONG[:80])]
    adapt = lm.trainer.adapt

    def watched(query: str, **options: Any) -> Any:
        adaptation = adapt(query, num_neighbors=7, **options)
        reports.append(adaptation.report)
        return adaptation

    reports: list[tttnn.AdaptReport] = []
    lm.trainer.adapt = watched  # type: ignore[method-assign]
    lm.loglikelihood(requests("loglikelihood", [("question", " answer")]), disable_tqdm=True)
    lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(LONG[:80],)]), disable_tqdm=True)
    for report, text in zip(reports, ["question answer", LONG[:80]], strict=True):
        assert text_digest(text) not in [neighbor.digest for neighbor in report.neighbors]
        assert (report.excluded, report.found) == (1, 6)
    assert not any("answer" in query for query, _ in retriever.queries)


def test_the_query_is_the_end_of_the_context(trainer: tttnn.TestTimeTrainer, retriever: FakeRetriever) -> None:
    lm = TttnnLM(trainer, query_tokens=7)
    pairs = [("examples come first: Ün🐍 end", " x"), ("other examples: Ün🐍 end", " x"), ("short", " x")]
    lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    # Four spaces and letters, and the snake's four bytes are never cut apart: "🐍" begins with its first one.
    assert [query for query, _ in retriever.queries] == ["🐍 end", "short"]
    retriever.queries.clear()
    TttnnLM(trainer, query_tokens=None).loglikelihood(requests("loglikelihood", pairs[:1]), disable_tqdm=True)
    assert [query for query, _ in retriever.queries] == [pairs[0][0]]


def test_rolling_full_searches_with_the_text_and_says_so(lm: TttnnLM, retriever: FakeRetriever) -> None:
    value = lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(LONG,)]), disable_tqdm=True)[0]
    assert [query for query, _ in retriever.queries] == [LONG]
    with lm.trainer.adapt(LONG) as adapted:
        assert value == -adapted.score(LONG).nats
    assert value != -lm.trainer.scorer.score(LONG).nats
    assert "whole text that is scored" in lm.get_model_info()["tttnn"]["loglikelihood_rolling"]


@pytest.mark.parametrize("text", [LONG, LONG[:41] + "🐍" * 10])
def test_rolling_split_adapts_to_the_first_half_alone(
    trainer: tttnn.TestTimeTrainer, retriever: FakeRetriever, text: str
) -> None:
    lm = TttnnLM(trainer, rolling="split")
    value = lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]), disable_tqdm=True)[0]
    ((query, _),) = retriever.queries
    assert text.startswith(query)
    size = len(query.encode())
    assert abs(size - len(text.encode()) / 2) <= 4
    sequence = [256, *trainer.tokenizer(text)["input_ids"]]
    expected = trainer.scorer.token_nats(sequence)[:size].sum()
    with trainer.adapt(query) as adapted:
        expected += trainer.scorer.token_nats(sequence)[size:].sum()
        assert adapted.report.steps > 0
    assert value == pytest.approx(-float(expected), rel=1e-12)
    assert lm.get_model_info()["tttnn"]["loglikelihood_rolling"].startswith("split")


# ---------------------------------------------------------------------------------------------------------------------
# What the harness does with a model
# ---------------------------------------------------------------------------------------------------------------------


def test_answers_go_into_the_cache_and_come_from_it(lm: TttnnLM, retriever: FakeRetriever, tmp_path: Path) -> None:
    kinds: dict[str, list[tuple[Any, ...]]] = {
        "loglikelihood": PAIRS[:3],
        "loglikelihood_rolling": [(LONG[:60],)],
        "generate_until": [("abc", {"until": ["\n"], "max_gen_toks": 4})],
    }
    cached = CachingLM(lm, str(tmp_path / "cache.db"))
    hooked = {kind: getattr(lm, kind)(requests(kind, arguments)) for kind, arguments in kinds.items()}
    asked = len(retriever.queries)
    for kind, arguments in kinds.items():
        assert getattr(cached, kind)(requests(kind, arguments)) == hooked[kind]
    assert len(retriever.queries) == asked
    cached.dbdict.close()


def test_answers_of_other_settings_do_not_come_from_the_cache(place: SimpleNamespace, tmp_path: Path) -> None:
    kept = str(tmp_path / "answers.db")

    def answers(k: int, **settings: Any) -> Any:
        lm = TttnnLM(place.model, place.store, embedder=place.encoder, k=k, precision="float32", **settings)
        cached = CachingLM(lm, kept)
        try:
            return cached.loglikelihood(requests("loglikelihood", PAIRS[:1]))
        finally:
            cached.dbdict.close()

    base = answers(0)
    assert answers(0) == answers(0, threads=torch.get_num_threads()) == base
    for settings, differs in (
        ({"k": 1}, "num_neighbors"),
        ({"k": 0, "rolling": "split"}, "rolling"),
        ({"k": 0, "query_tokens": 9}, "query_tokens"),
        ({"k": 0, "add_bos_token": True}, "add_bos_token"),
        ({"k": 0, "max_length": 50}, "max_length"),
        ({"k": 0, "learning_rate": 1e-2}, "learning_rate"),
    ):
        with pytest.raises(tttnn.ConfigError, match=rf"those of {kept} differ in .*{differs}"):
            answers(**settings)  # type: ignore[arg-type]
    with SqliteDict(kept) as unsaid:
        del unsaid[_ANSWERED_BY]
        unsaid.commit()
    with pytest.raises(tttnn.ConfigError, match="differ in what it does not say"):
        answers(0)
    os.unlink(kept)
    assert answers(1) != base


def test_the_harness_tells_tokenizers_apart(lm: TttnnLM, tokenizer: Any, model: Any) -> None:
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{{ messages }}"
    assert TttnnLM(without_neighbors(tiny_gpt2(), other)).tokenizer_name != lm.tokenizer_name
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)]
    )
    assert TttnnLM(without_neighbors(tiny_gpt2(), other)).tokenizer_name != lm.tokenizer_name
    assert TttnnLM(without_neighbors(tiny_gpt2(), copy.deepcopy(tokenizer))).tokenizer_name == lm.tokenizer_name


def test_model_info_is_plain_and_counts(lm: TttnnLM) -> None:
    lm.loglikelihood(requests("loglikelihood", PAIRS[:3]), disable_tqdm=True)
    info = json.loads(json.dumps(lm.get_model_info()))
    assert info["tttnn"]["adapt"]["num_neighbors"] == 5
    assert info["tttnn"]["model"] == lm.trainer.fingerprint
    assert info["tttnn"]["counts"]["queries"] == 1
    assert info["tttnn"]["counts"]["without_query"] == 1
    assert info["tttnn"]["counts"]["found"] == 5
    assert info["model_dtype"] == "torch.float32"


def test_the_model_is_found_by_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["lm_eval.models"]["tttnn"].partition(":")
    assert getattr(importlib.import_module(module), name) is get_model("tttnn") is TttnnLM


def test_settings_are_read_by_the_types_of_their_fields(place: SimpleNamespace) -> None:
    arguments = f"pretrained={place.model},datastore={place.store},k=3,learning_rate=2e-4,max_length=64,dtype=bfloat16"
    arguments += ",query_tokens=none"
    arguments += ",adapt_max_length=32,max_neighbor_tokens=none,schedule=inverse_sqrt,select_method=sift,rolling=split"
    lm = TttnnLM.create_from_arg_string(arguments, {"batch_size": 8, "device": "cuda:0"})
    assert lm.trainer.config == tttnn.AdaptConfig(
        num_neighbors=3, learning_rate=2e-4, max_length=32, max_neighbor_tokens=None, schedule="inverse_sqrt"
    )
    assert lm.max_length == lm.trainer.scorer.config.max_length == 64
    assert lm.get_model_info()["tttnn"]["selection"]["method"] == "sift"
    assert lm.get_model_info()["tttnn"]["query"] == "the context, which is not scored"
    assert lm.get_model_info()["model_dtype"] == "torch.bfloat16"
    lm.trainer.release()


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int, "12", 12),
        (float, "5e-5", 5e-5),
        (float, 3, 3),
        (int | None, "none", None),
        (int | None, "7", 7),
        (bool, "True", True),
        (bool, "false", False),
        (tuple[int, ...], "0,5,20", (0, 5, 20)),
        (tuple[str, ...], "q_proj,v_proj", ("q_proj", "v_proj")),
        (tttnn.config.Literal["none", "query"], "none", "none"),
        (tttnn.config.Literal["none", "query"], None, "none"),
        (str, "12", "12"),
    ],
)
def test_texts_become_values(hint: Any, text: Any, value: Any) -> None:
    assert read(hint, text) == value
    assert type(read(hint, text)) is type(value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "datastore must be given where k is above 0"),
        ({"k": 0, "rolling": "half"}, "rolling must be one of full, split"),
        ({"k": 0, "query_tokens": 0}, "query_tokens must be between 1 and inf, got 0"),
        ({"k": 0, "query_tokens": "few"}, "query_tokens must be a whole number or none, got 'few'"),
        ({"k": 0, "learning_rte": 1}, "setting must be one of .*learning_rte"),
        ({"k": 0, "beta1": "much"}, "beta1 must be a number, got 'much'"),
        ({"k": 0, "schedule": "cosine"}, "schedule must be one of"),
        ({"k": 0, "dtype": "int64"}, "dtype must be a floating-point type"),
        ({"k": 0, "preset": "best"}, "preset must be one of"),
    ],
)
def test_wrong_arguments_are_named(place: SimpleNamespace, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(tttnn.ConfigError, match=words):
        TttnnLM(place.model, **arguments)


def test_a_trainer_brings_its_settings(trainer: tttnn.TestTimeTrainer) -> None:
    with pytest.raises(tttnn.ConfigError, match="k must not be given beside a trainer"):
        TttnnLM(trainer, k=3)


def test_a_continuation_that_leaves_no_room_is_refused(lm: TttnnLM, retriever: FakeRetriever) -> None:
    asked = [("abc", {"max_gen_toks": 2}), ("abc", {"max_gen_toks": 128})]
    with pytest.raises(tttnn.ConfigError, match="max_gen_toks must be between 1 and 127, got 128"):
        lm.generate_until(requests("generate_until", asked), disable_tqdm=True)
    assert retriever.queries == []  # refused before anything was answered


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "tttnn.evaluation.harness")
    with pytest.raises(tttnn.MissingExtraError, match=r"tttnn\[eval\]"):
        importlib.import_module("tttnn.evaluation.harness")


# ---------------------------------------------------------------------------------------------------------------------
# Odd items do not end a run
# ---------------------------------------------------------------------------------------------------------------------

ODD = [" ", "\n\n\t ", "", "\u00a0\u2003", "a pair's half \ud83d", "\udc0d"]


@pytest.mark.parametrize("rolling", ["full", "split"])
def test_odd_items_are_answered(tokens: Any, rolling: Any) -> None:
    config = tttnn.AdaptConfig(num_neighbors=2, max_length=64, learning_rate=1e-3, precision="float32")
    trainer = tttnn.TestTimeTrainer(tiny_gpt2(), tokens, FakeRetriever(TEXTS), config)
    before = state_of(trainer.model)
    lm = TttnnLM(trainer, rolling=rolling)
    pairs = [(context, continuation) for context in (*ODD, "words") for continuation in (" x", " ", "", "\ud800")]
    for value, _ in lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True):
        assert math.isfinite(value)
    for value in lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in ODD])):
        assert math.isfinite(value)
    texts = lm.generate_until(requests("generate_until", [(text, {"max_gen_toks": 2}) for text in ODD]))
    assert len(texts) == len(ODD)
    assert lm.get_model_info()["tttnn"]["counts"]["failed"] == 0
    assert all(query.strip() for query, _ in trainer.datastore.queries)
    assert_same_state(trainer.model, before)
    trainer.release()


def test_white_space_is_no_query_and_is_scored_after_the_first_token(lm: TttnnLM, retriever: FakeRetriever) -> None:
    # The harness moves the white space of a context's end to the continuation.
    pairs = [("  ", "c"), ("", "  c")]
    (a, _), (b, _) = lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    assert a == b == -lm.trainer.scorer.score("  c").nats
    assert retriever.queries == []
    assert lm.get_model_info()["tttnn"]["counts"]["without_query"] == 2


def test_where_an_adaptation_fails_the_base_model_answers(tokenizer: Any) -> None:
    model = tiny_gpt2(tie_word_embeddings=False)
    with torch.no_grad():
        (bell,) = tokenizer("\x07")["input_ids"]
        model.transformer.wte.weight[bell] = 3e38  # no loss of a text that holds it is finite

    class Retriever(FakeRetriever):
        def search(self, query: str, k: int, **options: Any) -> Any:
            if "poison" in query:
                raise tttnn.EmbeddingError("embedding must be finite, got nan for the query")
            self.neighbors = [neighbor for neighbor in self.all if ("\x07" in neighbor.text) == ("bell" in query)]
            return super().search(query, k, **options)

    retriever = Retriever([*TEXTS, "it rings \x07 " * 4])
    retriever.all = retriever.neighbors
    config = tttnn.AdaptConfig(num_neighbors=2, max_length=64, learning_rate=1e-3, precision="float32")
    trainer = tttnn.TestTimeTrainer(model, tokenizer, retriever, config)
    before = state_of(model)
    lm = TttnnLM(trainer)
    pairs = [("the bell", " rang"), ("a poison", " cup"), ("the bell", " fell"), ("the cat", " sat")]
    answers = [value for value, _ in lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)]
    base = without_neighbors(tiny_gpt2(tie_word_embeddings=False), tokenizer)
    plain = [value for value, _ in TttnnLM(base).loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)]
    assert answers[:3] == pytest.approx(plain[:3], rel=1e-6)
    assert answers[3] != pytest.approx(plain[3], rel=1e-6)
    assert_same_state(model, before)
    told = json.loads(json.dumps(lm.get_model_info()))["tttnn"]
    assert (told["counts"]["failed"], told["counts"]["queries"]) == (3, 1)
    assert "loss must be finite, got nan" in told["failures"][0]
    assert told["failures"][1] == "embedding must be finite, got nan for the query"
    for one in (trainer, base):
        one.release()


# ---------------------------------------------------------------------------------------------------------------------
# Tasks and command lines
# ---------------------------------------------------------------------------------------------------------------------


def measured(model: str, metadata: dict[str, str], **options: Any) -> dict[str, Any]:
    """Run the packaged task as `lm-eval run` does, without its search through all the harness's own tasks."""
    tasks = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
    results = simple_evaluate("tttnn", model, tasks=["tttnn_jsonl"], task_manager=tasks, bootstrap_iters=0, **options)
    assert results is not None
    return dict(results)


def test_the_packaged_task_measures_a_local_file(place: SimpleNamespace, tokenizer: Any) -> None:
    scorer = Scorer(tiny_gpt2(), tokenizer)
    for group in (None, "Even"):
        metadata = {"documents": place.documents} | ({} if group is None else {"group": group})
        held = measured(f"pretrained={place.model},k=0", metadata)
        scores = [scorer.score(text) for name, text in place.rows if group in (None, name)]
        bits = sum(s.nats for s in scores) / torch.log(torch.tensor(2.0)).item() / sum(s.num_bytes for s in scores)
        values = held["results"]["tttnn_jsonl"]
        assert values["bits_per_byte,none"] == pytest.approx(bits, rel=1e-6)
        assert values["byte_perplexity,none"] == pytest.approx(2**bits, rel=1e-6)
        assert values["word_perplexity,none"] > 1
        assert held["n-samples"]["tttnn_jsonl"]["effective"] == len(scores)


def test_kept_requests_are_of_the_same_documents(
    place: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path))
    (tmp_path / "other.jsonl").write_text('{"text": "another document"}\n')
    model, found = f"pretrained={place.model},k=0", []
    for documents in (place.documents, str(tmp_path / "other.jsonl"), place.documents):
        metadata = {"documents": documents}
        found.append(measured(model, metadata, cache_requests=True)["results"]["tttnn_jsonl"]["bits_per_byte,none"])
        assert found[-1] == measured(model, metadata)["results"]["tttnn_jsonl"]["bits_per_byte,none"]
    assert found[0] == found[2] != found[1]
    assert len(list(tmp_path.glob("*tttnn_jsonl*.pickle"))) == 2


def test_a_task_without_documents_says_what_to_give() -> None:
    from tttnn.evaluation.tasks.jsonl import load

    with pytest.raises(tttnn.ConfigError, match="--metadata"):
        load()


def test_a_group_that_is_not_there_is_named(place: SimpleNamespace) -> None:
    from tttnn.evaluation.tasks.jsonl import load

    with pytest.raises(tttnn.ConfigError, match="of group None of these"):
        load(place.documents, "None of these")


def test_library_command_line_and_harness_give_the_same_number(
    place: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tttnn.AdaptConfig(num_neighbors=2, learning_rate=1e-3, precision="float32", max_length=64)
    datastore = tttnn.Datastore.open(place.store, tttnn.Embedder.load(place.encoder))
    trainer = tttnn.TestTimeTrainer.load(place.model, datastore, config)
    documents = [Document(text, {"pile_set_name": group}) for group, text in place.rows]
    library = tttnn.evaluate(trainer, documents, config=tttnn.EvalConfig(protocol="full", curve=(0, 2)))
    nats = {k: [line.at(k).nats for _, line in sorted(library.of("ttt-nn").items())] for k in (0, 2)}
    assert all(a != b for a, b in zip(nats[0], nats[2], strict=True))

    out = tmp_path / "cli.jsonl"
    command = ["eval", place.store, place.documents, "--model", place.model, "--num-neighbors", "2", "--curve", "0,2"]
    command += ["--learning-rate", "1e-3", "--precision", "float32", "--max-length", "64", "--protocol", "full"]
    assert run_cli(monkeypatch, *command, "--out", str(out)) == 0
    lines = tttnn.read_results(out).of("ttt-nn")
    assert [line.at(2).nats for _, line in sorted(lines.items())] == nats[2]

    model = f"pretrained={place.model},datastore={place.store},k=2,learning_rate=1e-3,precision=float32"
    held = measured(model + ",adapt_max_length=64", {"documents": place.documents})
    bits = library.summary().total(2).bits_per_byte
    assert held["results"]["tttnn_jsonl"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-12)
    assert held["config"]["tttnn"]["counts"]["queries"] == 3

    lm = TttnnLM.create_from_arg_string(model + ",adapt_max_length=64")
    texts = [(text,) for _, text in place.rows]
    answers = lm.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
    assert answers == [-value for value in nats[2]]
    pair = (TEXTS[0][:20], " and a scored text")
    # The harness puts no first token before a context, unless the tokenizer does.
    context, scored = (trainer.tokenizer(text)["input_ids"] for text in pair)
    with trainer.adapt(pair[0]):
        expected = -float(trainer.scorer.token_nats([*context, *scored], first=len(context)).sum())
    assert lm.loglikelihood(requests("loglikelihood", [pair]), disable_tqdm=True)[0][0] == expected
    trainer.release()
    lm.trainer.release()


@pytest.mark.slow
def test_the_command_line_runs_the_harness(
    place: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["lm-eval", "run", "--model", "tttnn", "--model_args", f"pretrained={place.model},k=0"]
    command += ["--tasks", "tttnn_jsonl", "--metadata", json.dumps({"documents": place.documents})]
    assert run_cli(monkeypatch, *command, "--output_path", str(tmp_path)) == 0
    (file,) = tmp_path.rglob("results_*.json")
    held = json.loads(file.read_text())
    direct = measured(f"pretrained={place.model},k=0", {"documents": place.documents})
    assert held["results"]["tttnn_jsonl"] == direct["results"]["tttnn_jsonl"]
    assert held["config"]["tttnn"]["adapt"]["num_neighbors"] == 0


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["ls", "tasks"], ["ls", "tasks", "--include_path", str(TASKS)]),
        (["--model", "tttnn"], ["--model", "tttnn", "--include_path", str(TASKS)]),
        (["run", "--include_path", "mine"], ["run", "--include_path", "mine"]),
        (["run", "--include_path=mine"], ["run", "--include_path=mine"]),
        (["run", "--help"], ["run", "--help", "--include_path", str(TASKS)]),
        ([], []),
    ],
)
def test_the_command_line_passes_arguments_on(
    given: list[str], passed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: seen.append(sys.argv[1:]))
    before = sys.argv
    assert run_cli(monkeypatch, "lm-eval", *given) == 0
    assert seen == [passed]
    run(given)
    assert sys.argv[1:] == ["lm-eval", *given]
    assert before is not sys.argv


# ---------------------------------------------------------------------------------------------------------------------
# SmolLM2-135M
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.models
@pytest.mark.slow
def test_without_neighbors_smollm2_answers_as_hf(smollm2: str) -> None:
    trainer = tttnn.TestTimeTrainer.load(
        smollm2, None, tttnn.AdaptConfig(num_neighbors=0), score=tttnn.ScoreConfig(max_length=64)
    )
    hf = HFLM(pretrained=smollm2, dtype="float32", device="cpu", max_length=64)
    lm = TttnnLM(trainer)
    pairs = PAIRS[:5]
    theirs = hf.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    ours = lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], rel=1e-5, abs=1e-5)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    texts = [(LONG,), (TEXTS[1],)]
    rolled = lm.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
    assert rolled == pytest.approx(
        hf.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True), rel=1e-5
    )
    asked: list[tuple[Any, ...]] = [
        ("def quicksort(items):\n", {"until": ["\n\n"], "max_gen_toks": 24}),
        ("The capital of France is", {"until": ["."], "max_gen_toks": 12}),
    ]
    assert lm.generate_until(requests("generate_until", asked)) == hf.generate_until(requests("generate_until", asked))
    trainer.release()
