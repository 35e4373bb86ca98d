"""The library in a prompt, a notebook and a service: short reprs, a first query as fast as the next, one deadline."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors import safe_open

import tttnn
from tests.conftest import TEXTS, FakeRetriever, assert_same_state, state_of, tiny_gpt2, tiny_llama
from tests.encoders import tiny_embedder
from tttnn.evaluation.results import EvalResult
from tttnn.retrieval.neighbors import Neighbor, SearchResult
from tttnn.weights.blocks import WeightBlock

QUERY = "def quicksort("
LONG = "A line of a document that nobody wants to see whole in a prompt.\n" * 400


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock of our own, which each look at it moves by 10 ms: results do not depend on the machine."""
    now = [0.0]

    def look() -> float:
        now[0] += 0.01
        return now[0]

    monkeypatch.setattr("time.perf_counter", look)
    return now


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each copy between blocks of weights."""
    sizes: list[int] = []
    copy_from = WeightBlock.copy_from

    def counted(self: WeightBlock, source: WeightBlock, items: Any) -> None:
        sizes.append(sum(item.nbytes for item in items))
        copy_from(self, source, items)

    monkeypatch.setattr(WeightBlock, "copy_from", counted)
    return sizes


# What a prompt shows.


def test_whatever_holds_texts_shows_their_beginning(tmp_path: Any, tokenizer: Any) -> None:
    meta = {"pile_set_name": LONG, "numbers": list(range(5000))}
    with tttnn.TextStoreWriter(tmp_path / "texts.zst") as writer:
        writer.append(LONG, meta)
    store = tttnn.TextStore.open(tmp_path / "texts.zst")
    made = tttnn.Datastore.build(tmp_path / "d", [LONG, "short"], tiny_embedder())
    found = made.search("line", 2)
    retriever = FakeRetriever([LONG])
    trainer = tttnn.TestTimeTrainer(tiny_gpt2(), tokenizer, retriever)
    with trainer.adapt(LONG) as adapted:
        shown = [adapted, adapted.report, trainer, store, store[0], made, made.embedder, found, found[0]]
        shown += [
            Neighbor(7, 0.5, LONG, source=LONG),
            SearchResult((Neighbor(7, 0.5, LONG, source=LONG),), requested=1),
        ]
        for value in shown:
            assert len(repr(value)) < 500 + len(str(tmp_path)), type(value)
            assert LONG[:70] not in repr(value), type(value)
    trainer.release()


def test_a_document_s_repr_is_its_own_call_where_it_is_short() -> None:
    document = tttnn.Document("def f(): ...", {"pile_set_name": "Github"})
    assert eval(repr(document), {"Document": tttnn.Document}) == document
    assert repr(tttnn.Document("x" * 61)) == f"Document(text={'x' * 60!r}... (61 characters), meta={{}})"
    assert repr(tttnn.Document("", {"a": "y" * 200, "b": 1})).endswith("... (2 fields))")


def test_trainer_adapted_model_and_report_say_what_they_are(trainer: Any) -> None:
    assert repr(trainer).startswith("TestTimeTrainer('GPT2LMHeadModel', 0.0377")
    assert repr(trainer).endswith("5 neighbors, float32, cpu)")
    with trainer.adapt(QUERY, num_neighbors=2) as adapted:
        assert repr(adapted) == "AdaptedModel(2 neighbors, 2 steps, open)"
    assert repr(adapted) == "AdaptedModel(2 neighbors, 2 steps, ended)"
    assert repr(adapted.report).startswith("AdaptReport(2 of 2 neighbors, 2 steps, ")
    assert " tokens, stopped by neighbors, " in repr(adapted.report)
    trainer.release()
    assert repr(trainer).startswith("TestTimeTrainer(")


def test_results_show_counts_and_not_lines() -> None:
    assert repr(EvalResult({"methods": ["base"]})) == "EvalResult(0 documents measured, 0 skipped, methods: none)"


# What is not touched is not put back.


@pytest.mark.parametrize("settings", [{}, {"guard": "query", "guard_min_tokens": 2}, {"trainable": "last-layers"}])
def test_a_query_without_a_step_copies_nothing(
    settings: dict[str, Any], copied: list[int], tokenizer: Any, retriever: Any
) -> None:
    config = tttnn.AdaptConfig(num_neighbors=3, max_length=64, precision="float32", last_layers=1, **settings)
    trainer = tttnn.TestTimeTrainer(tiny_gpt2(), tokenizer, retriever, config)
    before = state_of(trainer.model)
    with trainer.adapt(QUERY):
        pass
    assert sum(copied) > 0
    copied.clear()
    for options in ({"num_neighbors": 0}, {"neighbors": []}):
        with trainer.adapt(QUERY, **options) as adapted:
            adapted.score(TEXTS[0])
            adapted.generate(max_new_tokens=2)
            assert adapted.report.steps == 0
    # A guard that found nothing to keep copies what is trained; the end copies nothing.
    assert sum(copied) <= (2 * trainer.engine.arena.trainable_nbytes if "guard" in settings else 0)
    assert_same_state(trainer.model, before)
    trainer.verify()
    trainer.release()


WRITES: list[Callable[[Any], object]] = [
    lambda model: model.transformer.wte.weight.detach().numpy().fill(1.0),  # which torch does not count
    lambda model: model.transformer.h[1].mlp.c_fc.bias.data.add_(1.0),
    lambda model: model.transformer.ln_f.load_state_dict({"weight": torch.zeros(32), "bias": torch.zeros(32)}),
    lambda model: setattr(model.transformer.ln_f, "weight", torch.nn.Parameter(torch.zeros(32))),
]


@pytest.mark.parametrize("write", WRITES, ids=["numpy", "data", "load", "replaced"])
def test_what_the_caller_wrote_without_a_step_is_undone(
    write: Callable[[Any], object], trainer: Any, copied: list[int]
) -> None:
    before = state_of(trainer.model)
    base = trainer.scorer.score(TEXTS[0])
    with trainer.adapt(QUERY, num_neighbors=0) as adapted:
        write(adapted.model)
        assert adapted.score(TEXTS[0]) != base
    assert sum(copied) <= trainer.engine.arena.trainable_nbytes
    assert_same_state(trainer.model, before)
    trainer.verify()
    with trainer.adapt(QUERY) as adapted:
        assert adapted.report.steps > 0
    assert_same_state(trainer.model, before)


@pytest.mark.parametrize(("made", "tied"), [(tiny_gpt2, True), (tiny_llama, False)])
def test_a_tied_head_is_written_once(made: Any, tied: bool, tokenizer: Any, tmp_path: Any) -> None:
    for settings in ({}, {"trainable": "lora"}):
        trainer = tttnn.TestTimeTrainer(made(), tokenizer, FakeRetriever(TEXTS), tttnn.AdaptConfig(**settings))
        folder = tmp_path / f"saved {len(settings)}"
        with trainer.adapt(QUERY, num_neighbors=1) as adapted:
            adapted.save_pretrained(folder)
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert ("lm_head.weight" in file.keys()) != tied  # noqa: SIM118
        trainer.release()


# One deadline for the answer.


class SlowRetriever(FakeRetriever):
    """A search that takes seconds, by the clock of the test."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        super().__init__(TEXTS)
        self._clock = clock
        self._seconds = seconds

    def search(self, *arguments: Any, **options: Any) -> SearchResult:
        self._clock[0] += self._seconds
        return super().search(*arguments, **options)


def trainer_of(retriever: Any, tokenizer: Any, **settings: Any) -> tttnn.TestTimeTrainer:
    config = tttnn.AdaptConfig(num_neighbors=5, max_length=64, precision="float32", **settings)
    return tttnn.TestTimeTrainer(tiny_gpt2(), tokenizer, retriever, config)


def test_finding_neighbors_counts(clock: list[float], tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_of(SlowRetriever(clock, 3.0), tokenizer, deadline_ms=2500)
    with trainer.adapt(QUERY) as adapted:
        assert (adapted.report.steps, adapted.report.stopped_by) == (0, "deadline")
        assert adapted.report.untrained is not None
        assert "deadline_ms (2500) had no room for a step, 3.0" in adapted.report.untrained
        assert "nothing was trained for this query: deadline_ms" in caplog.text
        assert len(adapted.generate(max_new_tokens=20)) >= 1
        assert [made.tokens for made in adapted.report.generations] == [1]
    with trainer.adapt(QUERY, deadline_ms=20_000) as adapted:
        assert adapted.report.steps > 0
    trainer.release()


def test_a_continuation_ends_with_the_deadline(clock: list[float], trainer: Any) -> None:
    whole = trainer.generate(QUERY, max_new_tokens=40)
    pieces: list[str] = []

    def slow(piece: str, _: int) -> bool:
        clock[0] += 0.1
        pieces.append(piece)
        return False

    with trainer.adapt(QUERY, num_neighbors=0, deadline_ms=1000) as adapted:
        text = adapted.generate(max_new_tokens=40, on_token=slow)
        late = adapted.generate(max_new_tokens=40)
    assert whole.startswith(text)
    assert "".join(pieces) == text
    first, second = adapted.report.generations
    assert first.ended_by == second.ended_by == "deadline"
    assert 2 < first.tokens <= 10
    assert second.tokens == 1
    assert text.startswith(late)
    with trainer.adapt(QUERY, num_neighbors=0, deadline_ms=60_000) as adapted:
        assert adapted.generate(max_new_tokens=40) == whole
        adapted.generate(max_new_tokens=40, on_token=lambda *_: True)
    assert [made.ended_by for made in adapted.report.generations] == ["max_new_tokens", "callback"]
    with trainer.adapt(QUERY, num_neighbors=0) as adapted:
        assert adapted.generate(max_new_tokens=40, on_token=slow) == whole


def test_a_deadline_leaves_time_to_write(clock: list[float], trainer: Any) -> None:
    """Of the same deadline an answer that takes longer leaves training fewer steps, and none where there is no room."""
    trainer.engine.writing_pace.saw(1.0, 20)
    steps = []
    for tokens in (0, 2, 4, 200):
        trainer.engine.training_pace.saw(0.5, 46)
        with trainer.adapt(QUERY, deadline_ms=800, answer_tokens=tokens) as adapted:
            steps.append(adapted.report.steps)
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > steps[2] >= 0
    assert steps[3] == 0


def test_reading_a_prompt_is_not_reserved_twice(
    clock: list[float], trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a continuation for which reading took a hundred seconds, writing took what is left."""
    forward = trainer.model.forward

    def slow(*arguments: Any, **options: Any) -> Any:
        if options["input_ids"].shape[1] > 1:
            clock[0] += 100.0
        return forward(*arguments, **options)

    with trainer.adapt(QUERY, num_neighbors=0) as adapted:
        monkeypatch.setattr(trainer.model, "forward", slow)
        adapted.generate(max_new_tokens=8)
        monkeypatch.undo()
    read = len(trainer.texts.ids(QUERY))
    assert trainer.engine.reading_pace.predict(read) > 50
    assert trainer.engine.writing_pace.predict(8) < 10
    assert 50 < trainer.engine.answer_seconds(QUERY, 8) < 150


def test_doubt_comes_to_the_pace_of_writing_too(clock: list[float], trainer: Any) -> None:
    """The first continuation of a process may take many times what the others take."""
    with trainer.adapt(QUERY, num_neighbors=1) as adapted:
        for _ in range(3):
            adapted.generate(max_new_tokens=8)
    trainer.engine.writing_pace.saw(80.0, 8)
    steps = []
    for _ in range(40):
        with trainer.adapt(QUERY, deadline_ms=3000, answer_tokens=8) as adapted:
            steps.append(adapted.report.steps)
    assert steps[0] == 0
    assert steps[-1] > 0


# A first query like the next.


@pytest.mark.parametrize(
    "settings",
    [
        {"reuse": 4},
        {"guard": "query", "guard_min_tokens": 2},
        {"optimizer_state": "carried"},
        {"trainable": "lora"},
        {"deadline_ms": 0.001},
        {"max_tokens": 2},
    ],
    ids=str,
)
def test_warming_up_leaves_nothing_but_what_work_costs(
    settings: dict[str, Any], tokenizer: Any, retriever: FakeRetriever
) -> None:
    trainer, cold = trainer_of(retriever, tokenizer, **settings), trainer_of(retriever, tokenizer, **settings)
    torch.manual_seed(11)
    random, before = torch.random.get_rng_state(), state_of(trainer.model)
    report = trainer.warm_up()
    assert torch.equal(torch.random.get_rng_state(), random)
    assert_same_state(trainer.model, before)
    trainer.verify()
    assert len(trainer.engine.states) == 0
    assert retriever.queries[0][1] == 1
    assert report.steps > 0
    assert report.seconds["retrieve"] >= 0
    assert report.generations[-1].tokens >= 1
    assert trainer.engine.training_pace.predict(100) > 0
    assert trainer.engine.writing_pace.predict(100) > 0
    answers = []
    for used in (trainer, cold):
        with used.adapt(QUERY, deadline_ms=None) as adapted:
            answers.append((adapted.score(TEXTS[0]), adapted.generate(max_new_tokens=6), adapted.report.losses))
    assert answers[0] == answers[1]
    trainer.release()
    cold.release()


def test_a_trainer_without_a_datastore_and_with_a_narrow_window_warms_up(tokenizer: Any) -> None:
    model = tiny_gpt2(n_positions=26)
    trainer = tttnn.TestTimeTrainer(model, tokenizer, None, tttnn.AdaptConfig(precision="float32"))
    report = trainer.warm_up()
    assert report.steps > 0
    assert report.generations[-1].prompt_cut == 0
    assert not {"retrieve", "embed", "search"} & {stage for stage, _ in report.seconds.items()}
    trainer.release()


def test_a_warm_up_that_fails_says_so_and_leaves_the_model(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state_of(trainer.model)
    calls = itertools.count()

    def search(*_: Any, **__: Any) -> SearchResult:
        if next(calls):
            raise OSError("texts.zst: cannot be read")
        return SearchResult()

    monkeypatch.setattr(trainer.datastore, "search", search)
    with pytest.raises(OSError, match="cannot be read"):
        trainer.warm_up()
    assert_same_state(trainer.model, before)
