"""Weights that are adapted to one thread's query are used by nobody else: whoever tries is refused by name."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tttnn
from tests.conftest import TEXTS, FakeRetriever, assert_same_state, state_of, tiny_gpt2

QUERY = "def quicksort("


def in_another_thread(work: Callable[[], Any]) -> Any:
    """Return what some work returned or raised in a thread of its own."""
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(work())
        except BaseException as error:
            answers.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return answers[0]


USES: list[Callable[[Any], Any]] = [
    lambda used: used.generate(QUERY, max_new_tokens=2),
    lambda used: used.score(TEXTS[0]),
    lambda used: used.bits_per_byte(TEXTS[0]),
    lambda used: used.model,
    lambda used: used.save_pretrained("/nowhere"),
]


@pytest.mark.parametrize("use", USES, ids=["generate", "score", "bits_per_byte", "model", "save_pretrained"])
def test_an_adapted_model_is_for_its_block_and_thread(trainer: Any, use: Callable[[Any], Any]) -> None:
    with trainer.adapt(QUERY, num_neighbors=1) as adapted:
        refused = in_another_thread(lambda: use(adapted))
        assert isinstance(refused, tttnn.AdaptError)
        assert "in the thread that opened its block" in str(refused)
    with pytest.raises(tttnn.AdaptError, match="it has ended"):
        use(adapted)


STAYS = {"query", "report"}
"""What an adapted model says of itself after its block, too."""


def arguments_of(method: Any, tmp_path: Path) -> list[Any]:
    """Return something for each argument that must be given."""
    by_type = {"str": TEXTS[0], "int": 8, "str | os.PathLike[str]": tmp_path / "new"}
    given = inspect.signature(method).parameters.values()
    return [by_type[str(p.annotation)] for p in given if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]


def used(owner: Any, name: str, tmp_path: Path) -> Any:
    """Read a public member, and call it where it is a method."""
    member = getattr(owner, name)
    return member(*arguments_of(member, tmp_path)) if inspect.ismethod(member) else member


@pytest.mark.parametrize("settings", [{}, {"trainable": "lora"}, {"context_neighbors": 1}])
def test_no_member_of_an_adapted_model_works_after_its_block(
    settings: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    config = tttnn.AdaptConfig(num_neighbors=1, precision="float32", **settings)
    trainer = tttnn.TestTimeTrainer(tiny_gpt2(), tokenizer, FakeRetriever(TEXTS), config)
    adaptation = trainer.adapt(QUERY)
    with adaptation as adapted:
        pass
    before = state_of(trainer.model)
    told = json.dumps(adapted.report.to_dict())
    members = {name for name in dir(adapted) if not name.startswith("_")}
    assert {"generate", "model", "save_pretrained", "save_adapter", "score", "bits_per_byte"} | STAYS <= members
    for name in sorted(members - STAYS):
        with pytest.raises(tttnn.AdaptError, match=r"inside its `with trainer\.adapt"):
            used(adapted, name, tmp_path)
        refused = in_another_thread(lambda: used(adapted, name, tmp_path))  # noqa: B023
        assert isinstance(refused, tttnn.AdaptError), name
    assert adapted.query == QUERY
    with pytest.raises(tttnn.AdaptError, match=r"an adaptation must be entered once\. Call adapt"), adaptation:
        pass
    assert json.dumps(adapted.report.to_dict()) == told
    assert_same_state(trainer.model, before)
    assert not (tmp_path / "new").exists()
    with trainer.adapt(QUERY) as other:  # and the next one is none of this
        with pytest.raises(tttnn.AdaptError, match=r"inside its `with trainer\.adapt"):
            adapted.score(TEXTS[0])
        assert other.score(TEXTS[0]).nats > 0
    trainer.release()


def test_an_adaptation_that_was_refused_may_be_entered_later(trainer: Any) -> None:
    waiting = trainer.adapt(QUERY)
    with trainer.adapt(TEXTS[0]), pytest.raises(tttnn.AdaptError, match="one query at a time"), waiting:
        pass
    with waiting as adapted:
        assert adapted.report.steps > 0


@pytest.mark.parametrize("copied", [pickle.dumps, copy.deepcopy])
def test_a_trainer_is_not_copied(copied: Callable[[Any], Any], trainer: Any) -> None:
    before = state_of(trainer.model)
    with trainer.adapt(QUERY) as adapted:
        for owner in (trainer, adapted):
            with pytest.raises(TypeError, match=r"a trainer must not be pickled or copied.*Send a TrainerRecipe"):
                copied(owner)
    assert_same_state(trainer.model, before)


USES_OF_A_TRAINER: list[Callable[[Any], Any]] = [
    lambda trainer: trainer.adapt(QUERY).__enter__().query,
    lambda trainer: trainer.generate(QUERY),
    lambda trainer: trainer.continued(QUERY),
    lambda trainer: trainer.scorer.score(TEXTS[0]),
    lambda trainer: trainer.verify(),
    lambda trainer: trainer.digest(),
]


@pytest.mark.parametrize("use", USES_OF_A_TRAINER)
def test_a_trainer_is_not_used_after_its_release(tokenizer: Any, use: Callable[[Any], Any]) -> None:
    config = tttnn.AdaptConfig(num_neighbors=1, precision="float32")
    trainer = tttnn.TestTimeTrainer(tiny_gpt2(), tokenizer, FakeRetriever(TEXTS), config)
    trainer.release()
    trainer.release()
    with pytest.raises(tttnn.AdaptError, match=r"trainer must not be used after its release\(\). Make a new one"):
        use(trainer)


def test_the_base_model_does_not_answer_in_another_thread_meanwhile(trainer: Any) -> None:
    alone = trainer.generate(QUERY, max_new_tokens=4), trainer.scorer.score(TEXTS[0])
    with trainer.adapt(QUERY):
        for use in (
            lambda: trainer.generate(QUERY, max_new_tokens=4),
            lambda: trainer.continued(QUERY, max_new_tokens=4),
            lambda: trainer.scorer.score(TEXTS[0]),
        ):
            refused = in_another_thread(use)
            assert isinstance(refused, tttnn.AdaptError), refused
            assert "in the thread whose `with trainer.adapt(...)` block is open" in str(refused)
        trainer.scorer.score(TEXTS[0])  # its own thread may
    assert in_another_thread(lambda: trainer.generate(QUERY, max_new_tokens=4)) == alone[0]
    assert in_another_thread(lambda: trainer.scorer.score(TEXTS[0])) == alone[1]


def test_nobody_trains_while_another_thread_reads(trainer: Any) -> None:
    before = state_of(trainer.model)
    reading, done = threading.Event(), threading.Event()

    def slowly(piece: str, token: int) -> None:
        reading.set()
        assert done.wait(60)

    def generate() -> None:
        trainer.continued(QUERY, max_new_tokens=2, on_token=slowly)

    thread = threading.Thread(target=generate)
    thread.start()
    assert reading.wait(60)
    with pytest.raises(tttnn.AdaptError, match="while another thread scores or generates"), trainer.adapt(QUERY):
        pass
    done.set()
    thread.join(60)
    assert_same_state(trainer.model, before)
    with trainer.adapt(QUERY):
        pass


def test_a_block_may_be_made_in_one_thread_and_entered_in_another(tokenizer: Any) -> None:
    trainer = tttnn.TestTimeTrainer(
        tiny_gpt2(), tokenizer, FakeRetriever(TEXTS), tttnn.AdaptConfig(num_neighbors=1, precision="float32")
    )
    adaptation = trainer.adapt(QUERY)

    def enter() -> float:
        with adaptation as adapted:
            return adapted.bits_per_byte(TEXTS[0])

    assert in_another_thread(enter) > 0
    trainer.release()
