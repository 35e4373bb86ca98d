"""Ctrl-C at every instruction of entering and leaving a block, in every setting: nothing of the query stays behind.

An interrupt is a KeyboardInterrupt that a trace function raises before an instruction of this package, or where one of
its functions is entered or returns: each place where Python could raise it, and some where it does not yet. Left out is
the way from the end of a block to its `__exit__`: there CPython looks for no signal, and one that comes is raised by
the call itself, which is C.
"""

from __future__ import annotations

import dis
import gc
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import pytest
import torch

import tttnn
from tests.conftest import TEXTS, FakeRetriever, assert_same_state, state_of, tiny_gpt2, tiny_llama
from tttnn.engines.adapting_turn import AdaptedTurn
from tttnn.engines.heard_retriever import HeardRetriever
from tttnn.retrieval.neighbors import Neighbor
from tttnn.retrieval.where import EVERYTHING

PACKAGE = str(Path(tttnn.__file__).parent)
QUERY = "def quicksort(items)"
NEIGHBORS = [Neighbor(0, 0.1, TEXTS[0][:24]), Neighbor(1, 0.2, TEXTS[1][:24])]
BASE = tttnn.AdaptConfig(learning_rate=1e-2, guard_min_tokens=2)

SETTINGS = [
    {"precision": precision, "guard": guard, "trainable": "all", "reuse": int(guard == "query")}
    for precision, guard in product(("float32", "bfloat16"), ("none", "query"))
]
SETTINGS += [
    {"precision": precision, "guard": guard, "trainable": trainable, "reuse": 1}
    for precision, guard, trainable in [
        ("float32", "query", "lora"),
        ("bfloat16", "query", "lora"),
        ("bfloat16", "none", "last-layers"),
    ]
]
SETTINGS += [
    {"optimizer": "torch_adamw", "precision": "bfloat16", "guard": "query"},
    {"optimizer": "sgd", "precision": "float32", "guard": "none"},
]
FEW = 40  # interrupts for each setting in the quick run


@cache
def leaving(code: CodeType) -> frozenset[int]:
    """Return the instructions from the end of a `with` block to the call of its `__exit__` with three times None."""
    instructions = [i for i in dis.get_instructions(code) if i.opname != "PRECALL"]
    offsets: set[int] = set()
    for four in zip(*(instructions[start:] for start in range(4)), strict=False):
        nones = [i.opname.startswith("LOAD_CONST") and i.argval is None for i in four[:3]]
        if all(nones) and four[3].opname == "CALL":
            offsets.update(range(four[0].offset, four[3].offset + 1))
    return frozenset(offsets)


class Interrupter:
    """A trace function that raises a KeyboardInterrupt at one event, counted from 1."""

    def __init__(self, at: int, *functions: Callable[..., Any]) -> None:
        self.events = 0
        self.where = ""
        self._at = at
        self._codes = [function.__code__ for function in functions]

    def __call__(self, frame: Any, event: str, arg: Any) -> Any:
        code = frame.f_code
        if not (code.co_filename.startswith(PACKAGE) or code in self._codes) or code.co_name == "__del__":
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._meet(frame, event, arg)

    def _meet(self, frame: Any, event: str, _: Any) -> Any:
        if event == "opcode" and frame.f_lasti in leaving(frame.f_code):
            return self._meet
        self.events += 1
        if self.events == self._at:
            self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}, {event}"
            raise KeyboardInterrupt
        return self._meet


def interrupted(work: Callable[[], None], at: int) -> Interrupter:
    """Run something and interrupt it at one event; at 0 not at all."""
    tracer = Interrupter(at, work)
    sys.settrace(tracer)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return tracer


def events_of(work: Callable[[], None], *, every: bool) -> Iterator[tuple[int, Interrupter]]:
    """Interrupt something at each of its events, or at a few of them."""
    work()
    total = interrupted(work, 0).events
    assert total > 500
    step = 1 if every else total // FEW
    for at in range(1 + total % step, total + 1, step):
        yield at, interrupted(work, at)


def test_the_way_out_of_a_block_is_known() -> None:
    def block() -> None:
        with memoryview(b"") as seen:
            seen.tolist()

    ways = [i.opname for i in dis.get_instructions(block) if i.offset in leaving(block.__code__)]
    assert ways[:3] == ["LOAD_CONST"] * 3
    assert ways[-1] == "CALL"


@pytest.fixture(autouse=True)
def _quick_collections() -> Iterator[None]:
    """What is alive already is not looked at again in each collection."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def native_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training attends by another implementation than the model's, on any processor."""

    def attend(query: Any, key: Any, value: Any, *, scale: float) -> Any:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        return out.transpose(1, 2) * 1.01

    monkeypatch.setattr("tttnn.kernels.hf_attention.supported", lambda: True)
    monkeypatch.setattr("tttnn.kernels.hf_attention.causal_attention", attend)


def everything_else(model: Any) -> dict[str, Any]:
    """All that a query could leave behind beside weights."""
    parameters = list(model.parameters())
    return {
        "addresses": [p.data_ptr() for p in parameters],
        "flags": [(p.requires_grad, p.grad, p.dtype) for p in parameters],
        "modes": [module.training for module in model.modules()],
        "attention": model.config._attn_implementation,
        "generation": model.generation_config,
        "random": torch.random.get_rng_state().tolist(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "nesting": (torch.autocast_increment_nesting(), torch.autocast_decrement_nesting()),
    }


def assert_nothing_stayed(model: Any, weights: dict[str, torch.Tensor], rest: dict[str, Any], where: str) -> None:
    gc.collect()
    now = everything_else(model)
    for name, value in rest.items():
        assert now[name] == value, f"{name} differ after an interrupt at {where}"
    try:
        assert_same_state(model, weights)
    except AssertionError as error:
        pytest.fail(f"{error} after an interrupt at {where}")


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: " ".join(map(str, settings.values())))
def test_every_instruction_of_a_query(
    settings: dict[str, Any], tokenizer: Any, native_attention: None, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--every-instruction"):
        pytest.skip("takes many minutes for each setting; --every-instruction runs it")
    check(settings, tokenizer, every=True)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: " ".join(map(str, settings.values())))
def test_some_instructions_of_a_query(settings: dict[str, Any], tokenizer: Any, native_attention: None) -> None:
    check(settings, tokenizer, every=False)


def check(settings: dict[str, Any], tokenizer: Any, *, every: bool) -> None:
    model = tiny_llama(hidden_size=128)  # heads of 32, the least that the native attention takes
    config = BASE.with_(last_layers=1, **settings)
    trainer = tttnn.TestTimeTrainer(model, tokenizer, None, config)
    model.train()
    model.model.layers[0].eval()
    model.model.norm.weight.grad = torch.ones_like(model.model.norm.weight)
    weights, rest = state_of(model), everything_else(model)

    def query() -> None:
        trainer.engine.states.clear()
        with trainer.adapt(QUERY, neighbors=NEIGHBORS) as adapted:
            assert adapted.report.steps == 2

    def again() -> dict[str, torch.Tensor]:
        with trainer.adapt(QUERY, neighbors=NEIGHBORS):
            return state_of(model)

    expected = again()
    assert any(not torch.equal(expected[name], weights[name]) for name in weights)
    hit = 0
    for at, tracer in events_of(query, every=every):
        hit += bool(tracer.where)
        assert_nothing_stayed(model, weights, rest, tracer.where)
        if at % 7 == 0:
            now = again()
            assert all(torch.equal(now[name], tensor) for name, tensor in expected.items()), tracer.where
    assert hit >= FEW, "interrupts were never raised: this test proves nothing"
    trainer.verify()
    trainer.release()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_answers_of_the_base_model(precision: str, tokenizer: Any) -> None:
    """Outside of a block nobody puts anything back but scoring and generation themselves."""
    model = tiny_gpt2()
    score = tttnn.ScoreConfig(precision=precision)
    trainer = tttnn.TestTimeTrainer(model, tokenizer, None, BASE.with_(precision="float32"), score=score)
    model.train()
    model.transformer.h[0].eval()
    weights, rest = state_of(model), everything_else(model)

    def answers() -> None:
        trainer.scorer.score(TEXTS[0], context=QUERY)
        trainer.generate(QUERY, max_new_tokens=2, temperature=1.0, seed=3, stop=["\n"])

    for _, tracer in events_of(answers, every=False):
        assert_nothing_stayed(model, weights, rest, tracer.where)
    trainer.release()


def test_a_turn_of_an_engine(tokenizer: Any) -> None:
    model = tiny_gpt2()
    retriever = HeardRetriever(FakeRetriever([neighbor.text for neighbor in NEIGHBORS]))
    trainer = tttnn.TestTimeTrainer(model, tokenizer, retriever, BASE.with_(precision="float32", num_neighbors=2))
    session: Any = SimpleNamespace(trainer=trainer, retriever=retriever, query_loss=lambda *_: 0.0)
    frame = {"mode": "exact", "context_neighbors": 0, "num_neighbors": 2, "exclude_digests": (), "events": True}
    turn: Any = SimpleNamespace(
        frame=frame | {"where": {"source": ["Fake"]}, "salt": ""},
        joined=(),
        counts={"trained": 0, "reused": 0},
        nobody=lambda: False,
        left_ms=lambda _: None,
        **dict.fromkeys(("say", "stage", "cost"), lambda *_, **__: None),
    )
    weights, rest = state_of(model), everything_else(model)

    def work() -> None:
        with AdaptedTurn(session, turn, QUERY, 0.0) as adapted:
            assert adapted.report.steps == 2

    for _, tracer in events_of(work, every=False):
        assert_nothing_stayed(model, weights, rest, tracer.where)
        assert (retriever.where, retriever.found) == (EVERYTHING, None), tracer.where
    trainer.release()


def test_a_transaction_that_nobody_holds_puts_the_model_back(tokenizer: Any) -> None:
    """As where an interrupt falls between entering and the block, so that nobody leaves it."""
    model = tiny_gpt2()
    trainer = tttnn.TestTimeTrainer(model, tokenizer, None, BASE.with_(precision="float32"))
    weights = state_of(model)
    adapted = trainer.adapt(QUERY, neighbors=NEIGHBORS).__enter__()
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in state_of(model).items())
    adapted.score(TEXTS[0])  # whoever holds the adapted model holds the transaction
    del adapted
    assert_same_state(model, weights)
    with trainer.adapt(QUERY, neighbors=NEIGHBORS):
        pass
    trainer.release()
