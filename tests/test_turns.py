"""Weights that are adapted to one thread's query are used by nobody else: whoever tries is refused by name."""

from __future__ import annotations

import threading
from collections.abc import Callable
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
