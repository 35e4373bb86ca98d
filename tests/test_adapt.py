"""The transaction: whatever happens inside, everything is put back, and no query sees another's traces."""

from __future__ import annotations

import json
import math
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tttnn
from benchmarks.plain_loop import plain_step
from tests.conftest import TEXTS, FakeRetriever, assert_same_state, state_of, tiny_gpt2, tiny_llama
from tttnn.lm.neighbor_tokens import portion_of
from tttnn.lm.score import Scorer
from tttnn.retrieval.neighbors import Neighbor
from tttnn.retrieval.retriever import RetrieverInfo
from tttnn.store.document import text_digest
from tttnn.training.schedule import rate_factors
from tttnn.training.step_time import Pace

QUERY = "def quicksort("


def adapted_state(trainer: Any, query: str = QUERY, **options: Any) -> dict[str, torch.Tensor]:
    with trainer.adapt(query, **options):
        return state_of(trainer.model)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_change_inside_and_are_bit_identical_after(
    make: Any, dtype: torch.dtype, tokenizer: Any, retriever: Any
) -> None:
    model = make().to(dtype)
    before = state_of(model)
    config = tttnn.AdaptConfig(num_neighbors=5, learning_rate=1e-3, precision="float32")
    trainer = tttnn.TestTimeTrainer(model, tokenizer, retriever, config)
    with trainer.adapt(QUERY) as adapted:
        changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
        assert len(changed) == len(list(model.named_parameters()))
        assert adapted.report.steps == 6  # the last text is two windows long
    assert_same_state(model, before)
    trainer.verify()
    trainer.release()
    assert_same_state(model, before)


def test_training_lowers_the_loss_on_what_was_trained(trainer: Any) -> None:
    base = trainer.scorer.score(TEXTS[0]).bits_per_byte
    with trainer.adapt(QUERY) as adapted:
        assert adapted.bits_per_byte(TEXTS[0]) < base
    assert trainer.scorer.score(TEXTS[0]).bits_per_byte == base


def test_one_step_is_torch_adamw_on_one_window(tokenizer: Any) -> None:
    """The plain PyTorch loop of the paper, on the same neighbors."""
    config = tttnn.AdaptConfig(
        num_neighbors=5, max_length=64, learning_rate=1e-3, schedule="constant", precision="float32"
    )
    trainer = tttnn.TestTimeTrainer(tiny_gpt2(), tokenizer, FakeRetriever(TEXTS), config)
    ours = adapted_state(trainer)

    model = tiny_gpt2().eval()
    start = state_of(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    losses = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        losses += [plain_step(model, optimizer, ids[begin : begin + 64]) for begin in range(0, len(ids), 64)]
    for name, p in model.named_parameters():
        update = (p - start[name]).norm()
        assert (ours[name] - p).norm() <= 2e-4 * update + 1e-9, name
    with trainer.adapt(QUERY) as adapted:
        assert adapted.report.losses == pytest.approx(losses, rel=1e-4)


def test_everything_else_is_as_before(trainer: Any) -> None:
    model = trainer.model
    model.train()
    model.transformer.h[0].eval()
    frozen = model.transformer.wpe.weight
    frozen.requires_grad_(False)
    grad = torch.ones_like(model.transformer.ln_f.weight)
    model.transformer.ln_f.weight.grad = grad
    torch.manual_seed(99)
    rng = torch.random.get_rng_state()
    with trainer.adapt(QUERY):
        assert not model.training
        torch.rand(3)
    assert model.training
    assert not model.transformer.h[0].training
    assert not frozen.requires_grad
    assert model.transformer.ln_f.weight.grad is grad
    assert torch.equal(grad, torch.ones_like(grad))
    assert torch.equal(torch.random.get_rng_state(), rng)


class BoomError(Exception):
    pass


@pytest.mark.parametrize("stage", ["search", "tokenize", "forward", "backward", "step", "observe", "block", "restore"])
def test_an_exception_at_any_stage_leaves_the_weights_whole(
    trainer: Any, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(trainer.model)

    def boom(*_: Any, **__: Any) -> Any:
        raise BoomError(stage)

    observe = None
    if stage == "search":
        monkeypatch.setattr(trainer.datastore, "search", boom)
    elif stage == "tokenize":
        monkeypatch.setattr("tttnn.training.neighbor_training.portion_of", boom)
    elif stage == "forward":
        trainer.model.transformer.h[1].register_forward_hook(boom)
    elif stage == "backward":
        trainer.model.transformer.ln_f.weight.register_hook(boom)
    elif stage == "step":
        calls = iter(range(10))
        real = trainer.engine.optimizer.step
        monkeypatch.setattr(trainer.engine.optimizer, "step", lambda rate: boom() if next(calls) == 2 else real(rate))
    elif stage == "observe":

        def observe(_: Any, k: int) -> None:
            if k == 3:
                boom()

    elif stage == "restore":
        calls = iter(range(10))
        real_restore = trainer.engine.arena.restore

        def interrupted() -> None:
            if next(calls) == 0:
                raise KeyboardInterrupt
            real_restore()

        monkeypatch.setattr(trainer.engine.arena, "restore", interrupted)
    expected = KeyboardInterrupt if stage == "restore" else BoomError
    with pytest.raises(expected), trainer.adapt(QUERY, observe=observe):
        boom() if stage == "block" else None
    assert_same_state(trainer.model, before)
    monkeypatch.undo()
    for module in trainer.model.modules():
        module._forward_hooks.clear()
    trainer.model.transformer.ln_f.weight._backward_hooks = None
    assert trainer.adapt(QUERY).__enter__() is not None  # a new query is welcome


@pytest.mark.slow
def test_ctrl_c_at_random_moments(trainer: Any) -> None:
    """A timer's SIGINT falls anywhere into search, training, the block and restoring."""
    before = state_of(trainer.model)
    with trainer.adapt(QUERY):
        pass
    hit, armed = 0, [False]

    def interrupt(*_: Any) -> None:
        if armed[0]:  # not between two queries
            raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(80):
            signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.0008 * i)
            try:
                armed[0] = True
                with trainer.adapt(QUERY) as adapted:
                    adapted.bits_per_byte(TEXTS[0])
                armed[0] = False
            except KeyboardInterrupt:
                armed[0] = False
                hit += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert_same_state(trainer.model, before)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert hit > 20, "the timer never fell into a query: this test proves nothing"


def test_leaving_survives_an_interrupt_at_its_first_instruction(trainer: Any) -> None:
    """As CPython raises it: when the function that restores is entered, before any line of it runs."""
    before = state_of(trainer.model)
    raised = []

    def trace(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name == "_leave" and not raised:
            raised.append(True)
            raise KeyboardInterrupt

    adaptation = trainer.adapt(QUERY)
    with pytest.raises(KeyboardInterrupt), adaptation:
        sys.settrace(trace)
    sys.settrace(None)
    assert raised
    assert_same_state(trainer.model, before)


def test_an_unfinished_generator_restores(trainer: Any) -> None:
    before = state_of(trainer.model)

    def states() -> Iterator[int]:
        with trainer.adapt(QUERY):
            yield 1
            yield 2

    generator = states()
    next(generator)
    generator.close()
    assert_same_state(trainer.model, before)


def test_a_second_query_inside_a_block_is_refused_and_harms_nothing(trainer: Any) -> None:
    before = state_of(trainer.model)
    with trainer.adapt(QUERY) as adapted:
        inside = state_of(trainer.model)
        with pytest.raises(tttnn.AdaptError, match="one query at a time"), trainer.adapt("another"):
            pass
        assert_same_state(trainer.model, inside)
        errors: list[BaseException] = []

        def other_thread() -> None:
            try:
                with trainer.adapt("third"):
                    pass
            except tttnn.AdaptError as error:
                errors.append(error)

        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
        assert len(errors) == 1
        adapted.bits_per_byte(TEXTS[0])
    assert_same_state(trainer.model, before)
    with pytest.raises(tttnn.AdaptError, match="has ended"):
        adapted.bits_per_byte(TEXTS[0])


def test_answers_do_not_depend_on_the_queries_before(trainer: Any) -> None:
    other = FakeRetriever(list(reversed(TEXTS)))
    first = adapted_state(trainer)
    trainer.datastore, own = other, trainer.datastore
    adapted_state(trainer, "something else")
    trainer.datastore = own
    second = adapted_state(trainer)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_carried_optimizer_state_does_depend_on_them_and_says_so(model: Any, tokenizer: Any, retriever: Any) -> None:
    config = tttnn.AdaptConfig(num_neighbors=5, learning_rate=1e-3, optimizer_state="carried", precision="float32")
    trainer = tttnn.TestTimeTrainer(model, tokenizer, retriever, config)
    first, second = adapted_state(trainer), adapted_state(trainer)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    with trainer.adapt(QUERY) as adapted:
        assert adapted.report.settings["optimizer_state"] == "carried"


def test_a_non_finite_loss_names_the_neighbor(trainer: Any) -> None:
    before = state_of(trainer.model)
    calls = iter(range(100))

    def poison(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        return out * float("nan") if next(calls) == 2 else out

    handle = trainer.model.transformer.ln_f.register_forward_hook(poison)
    with pytest.raises(tttnn.NonFiniteLossError, match=r"neighbor 2 \(document 2\)"), trainer.adapt(QUERY):
        pass
    handle.remove()
    assert_same_state(trainer.model, before)


def test_a_non_finite_gradient_names_the_neighbor(trainer: Any) -> None:
    before = state_of(trainer.model)
    calls = iter(range(100))
    handle = trainer.model.transformer.ln_f.weight.register_hook(
        lambda grad: grad * float("inf") if next(calls) == 1 else grad
    )
    with pytest.raises(tttnn.NonFiniteLossError, match=r"neighbor 1 \(document 1\)"), trainer.adapt(QUERY):
        pass
    handle.remove()
    assert_same_state(trainer.model, before)


def test_weights_changed_between_queries_are_refused_by_name(trainer: Any) -> None:
    with torch.no_grad():
        trainer.model.transformer.ln_f.weight.add_(1.0)
    with pytest.raises(tttnn.RestoreError, match=r"ln_f\.weight"), trainer.adapt(QUERY):
        pass


def test_neighbors_can_be_given(trainer: Any) -> None:
    with trainer.adapt(QUERY, neighbors=[Neighbor(41, 0.5, TEXTS[1]), Neighbor(7, 0.7, TEXTS[3])]) as adapted:
        assert [neighbor.id for neighbor in adapted.report.neighbors] == [41, 7]
    assert trainer.datastore.queries == []


def test_fewer_neighbors_than_asked_for_are_reported(trainer: Any) -> None:
    with trainer.adapt(QUERY, num_neighbors=50) as adapted:
        assert (adapted.report.requested, adapted.report.found) == (50, 5)
        assert adapted.report.stopped_by == "neighbors"


def test_zero_neighbors_are_the_base_model(trainer: Any) -> None:
    base = trainer.scorer.score(TEXTS[0])
    with trainer.adapt(QUERY, num_neighbors=0) as adapted:
        assert adapted.score(TEXTS[0]) == base
        assert adapted.report.steps == 0


def test_excluded_texts_are_replaced_by_the_next_nearest(trainer: Any) -> None:
    with trainer.adapt(QUERY, num_neighbors=3, exclude_digests=[text_digest(TEXTS[1])]) as adapted:
        assert [neighbor.id for neighbor in adapted.report.neighbors] == [0, 2, 3]
        assert adapted.report.excluded == 1


def test_token_budget(trainer: Any) -> None:
    with trainer.adapt(QUERY, config=trainer.config.with_(max_tokens=100)) as adapted:
        assert adapted.report.stopped_by == "max_tokens"
        assert 0 < adapted.report.tokens <= 100


def test_deadline_stops_before_the_step_that_would_overrun(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of our own: each look at it takes 10 ms, so the result does not depend on the machine."""
    now = [0.0]

    def clock() -> float:
        now[0] += 0.01
        return now[0]

    monkeypatch.setattr("time.perf_counter", clock)
    with trainer.adapt(QUERY, deadline_ms=1) as adapted:
        assert adapted.report.stopped_by == "deadline"
        assert adapted.report.steps == 0
    started = now[0]
    with trainer.adapt(QUERY, deadline_ms=150) as adapted:
        assert adapted.report.stopped_by == "deadline"
        assert 0 < adapted.report.steps < 5
        assert now[0] - started <= 0.15 + 0.1  # ten looks: those of the last step and of what ends it


def test_one_slow_step_does_not_end_training_for_good(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of a process may take many times what the others take."""
    now = [0.0]

    def clock() -> float:
        now[0] += 0.001
        return now[0]

    monkeypatch.setattr("time.perf_counter", clock)
    with trainer.adapt(QUERY, num_neighbors=1):
        pass
    trainer.engine.training_pace.saw(60.0, 46)
    steps = []
    for _ in range(40):
        with trainer.adapt(QUERY, deadline_ms=1000) as adapted:
            steps.append(adapted.report.steps)
    assert steps[0] == 0
    assert steps[-1] == 9


def test_a_pace_believes_slow_at_once_and_fast_slowly() -> None:
    pace = Pace()
    assert pace.predict(10) == 0
    pace.saw(1.0, 10)
    assert pace.predict(20) == pytest.approx(2.0)
    pace.saw(2.0, 10)
    assert pace.predict(10) == pytest.approx(2.0)
    pace.saw(1.0, 10)
    assert pace.predict(10) == pytest.approx(1.8)
    for _ in range(20):
        pace.doubt()
    assert pace.predict(10) == pytest.approx(1.0), "three were seen: nothing faster than the fastest is believed"


def test_cancellation_from_another_thread(trainer: Any) -> None:
    flag = threading.Event()
    with trainer.adapt(QUERY, cancelled=flag.is_set, observe=lambda _, k: flag.set() if k == 2 else None) as adapted:
        assert adapted.report.stopped_by == "cancelled"
        assert len(adapted.report.neighbors) == 2


def test_observe_sees_each_state(trainer: Any) -> None:
    seen: list[tuple[int, float]] = []
    with trainer.adapt(QUERY, observe=lambda a, k: seen.append((k, a.bits_per_byte(TEXTS[0])))) as adapted:
        assert [k for k, _ in seen] == [0, 1, 2, 3, 4, 5]
        assert seen[-1][1] == adapted.bits_per_byte(TEXTS[0])
        assert len({value for _, value in seen}) == 6


def test_one_token_neighbors_and_tails_are_skipped(trainer: Any) -> None:
    neighbors = [Neighbor(0, 0.0, "x"), Neighbor(1, 0.1, ""), Neighbor(2, 0.2, "y" * 65)]
    with trainer.adapt(QUERY, neighbors=neighbors) as adapted:
        assert [neighbor.tokens for neighbor in adapted.report.neighbors] == [0, 0, 64]
        assert all(math.isfinite(loss) for loss in adapted.report.losses)


@pytest.mark.parametrize(
    ("texts", "change", "reason"),
    [
        (["x", "", "é"[:1]], {"max_neighbor_tokens": None}, None),
        (["x", "", "y"], {}, "none of 3 neighbors has the two tokens of a training window"),
        (["long enough", "as well"], {"max_tokens": 5}, r"max_tokens \(5\) has no room for the first training window"),
    ],
)
def test_a_query_that_trains_nothing_says_why(
    trainer: Any, texts: list[str], change: dict[str, Any], reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    neighbors = [Neighbor(i, 0.1 * i, text) for i, text in enumerate(texts)]
    with trainer.adapt(QUERY, config=trainer.config.with_(**change), neighbors=neighbors) as adapted:
        report = adapted.report
    if reason is None:
        assert (report.steps, report.untrained) == (1, None)
        assert caplog.text == ""
    else:
        assert report.steps == 0
        assert re.search(reason, report.untrained)
        assert re.search(f"nothing was trained for this query: {reason}", caplog.text)
    with trainer.adapt(QUERY, neighbors=neighbors, cancelled=lambda: True) as adapted:
        assert (adapted.report.stopped_by, adapted.report.untrained) in (("cancelled", None), ("neighbors", reason))


def test_weights_that_the_loss_does_not_reach_are_an_error(tokenizer: Any, retriever: Any) -> None:
    model = tiny_gpt2()
    model.transformer.register_forward_hook(
        lambda _, __, out: out.__class__(last_hidden_state=out.last_hidden_state.detach())
    )
    config = tttnn.AdaptConfig(trainable="patterns", trainable_patterns=("*.mlp.*",), precision="float32")
    trainer = tttnn.TestTimeTrainer(model, tokenizer, retriever, config)
    before = state_of(model)
    with pytest.raises(tttnn.AdaptError, match="gradient for some of the 8 trained parameters"), trainer.adapt(QUERY):
        pass
    assert_same_state(model, before)
    trainer.release()


def test_callers_without_gradients_are_served_and_inference_mode_is_refused(trainer: Any) -> None:
    expected = adapted_state(trainer)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = adapted_state(trainer)
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with torch.inference_mode(), pytest.raises(tttnn.AdaptError, match="inference_mode"), trainer.adapt(QUERY):
        pass
    assert torch.is_grad_enabled()
    assert all(torch.equal(adapted_state(trainer)[name], tensor) for name, tensor in expected.items())


@pytest.mark.filterwarnings("ignore:quantized..linear_dynamic")  # torch's, of a gradient it does not have
def test_layers_quantised_while_running_are_refused_by_name(tokenizer: Any) -> None:
    model = tiny_llama()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of its own move to another package
        quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(tttnn.AdaptError, match=r"model\.layers\.0\.self_attn\.q_proj is torch\.ao\.nn\.quantized"):
        tttnn.TestTimeTrainer(quantised, tokenizer, None)


def test_schedule_divides_by_the_root_of_the_position(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    real = trainer.engine.optimizer.step
    monkeypatch.setattr(trainer.engine.optimizer, "step", lambda rate: (rates.append(rate), real(rate))[1])
    config = trainer.config.with_(schedule="inverse_sqrt", learning_rate=1e-3, max_length=1024)
    with trainer.adapt(QUERY, config=config):
        pass
    assert rates == pytest.approx([1e-3 / math.sqrt(i) for i in (1, 2, 3, 4, 5, 5)])


@pytest.mark.parametrize(
    ("distances", "factors"),
    [
        ([], []),
        ([0.5], [1.0]),
        ([0.6, 0.8, 1.2], [1.0, 0.75, 0.5]),
        ([0.4, 0.4, 0.4], [1.0, 1.0, 1.0]),
        ([0.0, 0.0], [1.0, 1.0]),
        ([0.0, 0.5, 0.5, 1.5], [1.0, 0.5, 0.5, 0.25]),
        ([1e-9, 0.5, 1.5], [1.0, 0.5, 0.25]),
        ([-2.0, -1.0], [1.0, 2 / 3]),
        ([0.5, 0.25, 1.0], [1.0, 1.0, 0.25]),
        ([1.0, math.inf, 2.0], [1.0, 0.0, 0.5]),
        ([math.inf, math.inf], [1.0, 1.0]),
    ],
)
def test_the_distance_schedule(distances: list[float], factors: list[float]) -> None:
    assert rate_factors("distance", distances) == pytest.approx(factors)
    for k in range(len(distances)):  # a query stopped early is the beginning of a longer one
        assert rate_factors("distance", distances[:k]) == pytest.approx(factors[:k])


@given(st.lists(st.floats(-1e6, 1e6), max_size=12))
def test_distance_factors_are_shares_and_the_nearest_has_all(distances: list[float]) -> None:
    distances.sort()
    factors = rate_factors("distance", distances)
    assert all(0.0 <= factor <= 1.0 for factor in factors)
    assert factors[:1] == [1.0] * len(factors[:1])
    assert factors == sorted(factors, reverse=True)


def test_the_farther_the_smaller_the_rate(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    real = trainer.engine.optimizer.step
    monkeypatch.setattr(trainer.engine.optimizer, "step", lambda rate: (rates.append(rate), real(rate))[1])
    config = trainer.config.with_(schedule="distance", max_neighbor_tokens=40)
    neighbors = [Neighbor(i, distance, TEXTS[i]) for i, distance in enumerate([0.5, 0.5, 1.0, 2.0])]
    with trainer.adapt(QUERY, config=config, neighbors=neighbors):
        pass
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4, 2.5e-4])


@pytest.mark.parametrize(("query", "error"), [("", ValueError), (None, TypeError), (3, TypeError)])
def test_bad_queries(trainer: Any, query: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="query"):
        trainer.adapt(query)


def test_neighbors_may_come_from_a_generator(trainer: Any) -> None:
    given = [Neighbor(i, 0.1 * i, TEXTS[i]) for i in range(3)]
    with trainer.adapt(QUERY, neighbors=given) as adapted:
        losses = adapted.report.losses
    with trainer.adapt(QUERY, neighbors=iter(given)) as adapted:
        assert adapted.report.losses == losses


def test_no_datastore_and_no_neighbors(model: Any, tokenizer: Any) -> None:
    trainer = tttnn.TestTimeTrainer(model, tokenizer, None)
    with pytest.raises(ValueError, match="neighbors"), trainer.adapt(QUERY):
        pass


def test_generation(trainer: Any) -> None:
    with trainer.adapt(QUERY) as adapted:
        greedy = adapted.generate(max_new_tokens=12)
        assert greedy == adapted.generate(max_new_tokens=12)
        drawn = adapted.generate("once", max_new_tokens=12, temperature=1.0, seed=3)
        assert drawn == adapted.generate("once", max_new_tokens=12, temperature=1.0, seed=3)
        assert drawn != adapted.generate("once", max_new_tokens=12, temperature=1.0, seed=4)
        with pytest.raises(ValueError, match="max_new_tokens"):
            adapted.generate(max_new_tokens=0)
        long = adapted.generate("word " * 200, max_new_tokens=4)
        assert isinstance(long, str)


def test_stop_strings_are_cut_off(trainer: Any) -> None:
    whole = trainer.generate(QUERY, max_new_tokens=12)
    assert len(whole) > 4
    assert trainer.generate(QUERY, max_new_tokens=12, stop=[whole[3:5]]) == whole[: whole.find(whole[3:5])]


def test_adapted_weights_can_be_saved(trainer: Any, tmp_path: Any) -> None:
    with trainer.adapt(QUERY) as adapted:
        adapted.save_pretrained(tmp_path / "adapted")
        inside = adapted.score(TEXTS[0])
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "adapted")
    again = Scorer(loaded, trainer.tokenizer).score(TEXTS[0])
    assert again.nats == pytest.approx(inside.nats, rel=1e-6)


def test_report_is_json_and_names_what_was_used(trainer: Any) -> None:
    with trainer.adapt(QUERY) as adapted:
        pass
    report = json.loads(json.dumps(adapted.report.to_dict()))
    assert report["datastore"] == "fake"
    assert report["model"] == trainer.fingerprint
    assert {"train", "tokenize", "restore", "retrieve"} <= report["seconds"].keys()
    assert report["settings"]["learning_rate"] == trainer.config.learning_rate
    assert [n["digest"] for n in report["neighbors"]] == [text_digest(text) for text in TEXTS]


def test_report_says_which_bytes_were_trained_on(trainer: Any, tokenizer: Any) -> None:
    text = "ä" * 100 + "HERE" + "b" * 100
    neighbors = [
        Neighbor(0, 0.0, text, span=(200, 210)),
        Neighbor(1, 0.1, "c" * 65),  # the last token is a window of its own, which predicts nothing
        Neighbor(2, 0.2, "d"),
    ]
    config = trainer.config.with_(max_neighbor_tokens=70)
    with trainer.adapt(QUERY, config=config, neighbors=neighbors) as adapted:
        trained = adapted.report.neighbors
    assert [n.span for n in trained] == [(200, 210), None, None]
    assert [n.trained_span for n in trained] == [(200, 270), (0, 64), None]
    stop = iter([False, True]).__next__
    with trainer.adapt(QUERY, config=config, neighbors=neighbors[:1], cancelled=stop) as adapted:
        assert [n.trained_span for n in adapted.report.neighbors] == [(200, 264)]


def test_a_tokenizer_without_offsets_leaves_the_trained_bytes_open(tokenizer: Any) -> None:
    class Slow:
        def __call__(self, text: str, **options: Any) -> Any:
            assert "return_offsets_mapping" not in options
            return tokenizer(text, **options)

    portion = portion_of(Slow(), Neighbor(0, 0.0, "abc" * 50, span=(30, 40)), 140)
    assert len(portion.tokens) == 140
    assert portion.span("abc" * 50, 140) is None


def test_report_counts_faults_steps_and_seconds(trainer: Any) -> None:
    class Named(FakeRetriever):
        def describe(self) -> RetrieverInfo:
            return RetrieverInfo("fake", "minilm-l6")

    trainer.datastore = Named(TEXTS)
    config = trainer.config.with_(verify=True, seed=4)
    with trainer.adapt(QUERY, config=config, observe=lambda a, _: a.bits_per_byte(TEXTS[0])) as adapted:
        before = adapted.report.seconds["score"]
        adapted.bits_per_byte(TEXTS[1])
        report = adapted.report
        assert report.seconds["score"] > before > 0
    assert {"tokenize", "train", "observe", "score", "restore", "verify"} <= report.seconds.keys()
    assert len(report.step_seconds) == report.steps
    assert 0 < sum(report.step_seconds) <= report.seconds["train"]
    assert report.seconds["observe"] < before  # the scoring in it counts as scoring
    assert report.page_faults >= 0
    assert (report.seed, report.embedder) == (4, "minilm-l6")


def test_the_query_is_in_a_report_only_on_request(trainer: Any) -> None:
    with trainer.adapt(QUERY) as adapted:
        continuation = adapted.generate(max_new_tokens=4)
        report = adapted.report
    assert QUERY not in json.dumps(report.to_dict())
    assert QUERY not in repr(report)
    held = report.to_dict(query=True)
    assert held["query"] == QUERY
    with trainer.replay(held) as again:
        assert again.generate(max_new_tokens=4) == continuation


def test_the_kill_switch_notices_a_write_behind_torchs_back(tokenizer: Any, retriever: Any) -> None:
    """A frozen parameter is never copied back: only a look at all bytes can find such a write."""
    model = tiny_gpt2()
    config = tttnn.AdaptConfig(num_neighbors=1, trainable="last-layers", last_layers=1, verify=True)
    trainer = tttnn.TestTimeTrainer(model, tokenizer, retriever, config)
    with trainer.adapt(QUERY):
        pass
    with pytest.raises(tttnn.RestoreError, match=r"wte\.weight"), trainer.adapt(QUERY):
        model.transformer.wte.weight.data[3, 3] += 1.0
    with trainer.adapt(QUERY, config=config.with_(verify=False)):  # not looked for
        pass


def test_replay_gives_the_same_bits_without_a_clock(trainer: Any) -> None:
    seen = []
    with trainer.adapt(
        QUERY, deadline_ms=1e7, cancelled=lambda: len(seen) == 3, observe=lambda *a: seen.append(a)
    ) as a:
        report, inside = a.report, state_of(trainer.model)
    assert 0 < report.steps < 6
    held = json.loads(json.dumps(report.to_dict()))
    with trainer.replay(held) as again:
        assert again.report.losses == report.losses
        assert again.report.steps == report.steps
        assert_same_state(trainer.model, inside)
    held["neighbors"][1]["digest"] = "0" * 32
    with pytest.raises(tttnn.AdaptError, match="document 1"):
        trainer.replay(held)
    with pytest.raises(tttnn.AdaptError, match="model"):
        trainer.replay(report.to_dict() | {"model": "another"})
    earlier = report.to_dict()
    earlier["settings"] = {"restore": "auto"} | earlier["settings"]
    with trainer.replay(earlier) as again:
        assert again.report.losses == report.losses
    other = tttnn.AdaptConfig(weight_decay=0.5).with_(max_length=64, precision="float32")
    with pytest.raises(tttnn.AdaptError, match="these differ: weight_decay"):
        trainer.replay(report.to_dict() | {"settings": other.to_dict()})


def test_replay_trains_with_the_settings_of_the_report(trainer: Any) -> None:
    """Those of the call that it reports, not those of the trainer that repeats it."""
    config = trainer.config.with_(learning_rate=3e-3, schedule="inverse_sqrt", max_length=32, num_neighbors=2, seed=5)
    with trainer.adapt(QUERY, config=config) as adapted:
        report, inside = adapted.report, state_of(trainer.model)
    with trainer.replay(json.loads(json.dumps(report.to_dict()))) as again:
        assert again.report.losses == report.losses
        assert (again.report.settings["learning_rate"], again.report.seed) == (3e-3, 5)
        assert_same_state(trainer.model, inside)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "report must have 'query_digest'"),
        ({"neighbors": {"0": "x"}}, "neighbors must be a list, got dict"),
        ({"neighbors": [{"id": 3}]}, "neighbor 0 must have 'distance'"),
        ({"neighbors": [7]}, "neighbor 0 must be an object"),
        ({"guard": "kept"}, "guard must be an object"),
        ({"settings": {"learning_rat": 1.0}}, "Did you mean learning_rate"),
    ],
)
def test_what_is_no_report_is_refused_by_name(trainer: Any, change: dict[str, Any], message: str) -> None:
    with trainer.adapt(QUERY, num_neighbors=1) as adapted:
        plain = {} if change == {"model": None} else adapted.report.to_dict()
    with pytest.raises((tttnn.AdaptError, tttnn.ConfigError), match=message):
        trainer.replay(plain | change)


def test_a_report_comes_back_from_its_plain_values(trainer: Any) -> None:
    with trainer.adapt(QUERY, num_neighbors=2) as adapted:
        adapted.generate(max_new_tokens=3)
        report = adapted.report
    again = tttnn.AdaptReport.from_dict(json.loads(json.dumps(report.to_dict(query=True))) | {"of_later_versions": 1})
    assert json.dumps(again.to_dict(query=True)) == json.dumps(report.to_dict(query=True))
    assert (again.neighbors, again.losses, again.query) == (report.neighbors, report.losses, QUERY)
    earlier = {k: v for k, v in report.to_dict().items() if k not in ("generations", "guard", "embedder", "versions")}
    assert tttnn.AdaptReport.from_dict(earlier).neighbors == report.neighbors


def test_a_document_that_is_gone_is_named(trainer: Any) -> None:
    with trainer.adapt(QUERY, num_neighbors=1) as adapted:
        plain = adapted.report.to_dict()
    plain["neighbors"][0]["id"] = 99
    with pytest.raises(tttnn.AdaptError, match="document 99 of the report must be in the datastore"):
        trainer.replay(plain)


def test_a_trainer_describes_itself(trainer: Any) -> None:
    made = trainer.describe()
    assert json.dumps(made.to_dict()["settings"]) == json.dumps(trainer.config.to_dict())
    assert (made.model, made.datastore, made.selection) == (trainer.fingerprint, "fake", None)
    assert made.parameters == made.trained == sum(p.numel() for p in trainer.model.parameters())
    assert (made.dtype, made.device, made.precision, made.window) == ("float32", "cpu", "float32", 128)
    assert set(made.versions) == {"tttnn", "torch", "transformers", "python"}
    with trainer.adapt(QUERY, num_neighbors=1) as adapted:
        report = adapted.report
    assert (report.model, report.datastore, report.versions) == (made.model, made.datastore, made.versions)


def test_a_model_too_large_to_train_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tttnn.weights.memory.free_bytes", lambda: 100 * 1024)
    with pytest.raises(tttnn.AdaptError, match="must fit in memory"):
        tttnn.TestTimeTrainer(tiny_gpt2(), tokenizer, None)


def test_unknown_model() -> None:
    for name in ("/no/such/model", "no-such-model-on-any-hub"):
        with pytest.raises(tttnn.UnknownModelError, match="no"):
            tttnn.TestTimeTrainer.load(name, None)


def test_tokens_of_a_long_neighbor_begin_at_its_passage(tokenizer: Any) -> None:
    text = "ä" * 1000 + "HERE" + "b" * 5000
    begin = 2000  # bytes
    tokens = portion_of(tokenizer, Neighbor(0, 0.0, text, span=(begin, begin + 100)), 64).tokens
    assert tokenizer.decode(tokens) == "HERE" + "b" * 60
    tokens = portion_of(
        tokenizer, Neighbor(0, 0.0, text, span=(len(text.encode()) - 10, len(text.encode()))), 64
    ).tokens
    assert tokenizer.decode(tokens) == "b" * 64
    assert len(portion_of(tokenizer, Neighbor(0, 0.0, text), None).tokens) == len(text.encode())
    assert len(portion_of(tokenizer, Neighbor(0, 0.0, text), 100).tokens) == 100
