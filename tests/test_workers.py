"""Several processes give the file of one, byte for byte, whatever happens to them."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tttnn
from tests.conftest import TEXTS, save_model, tiny_gpt2
from tests.encoders import save_encoder
from tttnn.config import ScoreConfig, SelectionConfig
from tttnn.evaluation.result_file import read_results
from tttnn.evaluation.runner import evaluate
from tttnn.evaluation.workers import evaluate_with_workers
from tttnn.recipe import TrainerRecipe
from tttnn.store.document import Document

DOCUMENTS = [Document(f"{TEXTS[i % len(TEXTS)]} number {i} " * 3, {"pile_set_name": "AB"[i % 2]}) for i in range(5)]
CONFIG = tttnn.EvalConfig(query_tokens=60, scored_tokens=60, curve=(0, 1, 3))
METHODS = ("ttt-nn", "ttt-nn-guard", "in-context")


def saved_recipe(folder: Path, tokenizer: Any) -> TrainerRecipe:
    """Write a tiny model, encoder and datastore, and say how to load them."""
    save_model(folder / "model", tiny_gpt2(), tokenizer)
    (folder / "encoder").mkdir()
    encoder = str(save_encoder(folder / "encoder"))
    texts = [f"{TEXTS[i % len(TEXTS)]} copy {i}" for i in range(20)]
    tttnn.Datastore.build(folder / "store", texts, tttnn.Embedder.load(encoder)).close()
    adapt = tttnn.AdaptConfig(num_neighbors=3, max_length=64, learning_rate=1e-3, precision="float32")
    return TrainerRecipe(
        str(folder / "model"), str(folder / "store"), adapt, SelectionConfig(), ScoreConfig(), threads=1
    )


@pytest.mark.slow
def test_any_number_of_workers_and_any_end_give_the_same_file(tmp_path: Path, tokenizer: Any, one_thread: None) -> None:
    recipe = saved_recipe(tmp_path, tokenizer)
    one, many = tmp_path / "one.jsonl", tmp_path / "many.jsonl"
    trainer = recipe.load()
    evaluate(trainer, DOCUMENTS, out=one, config=CONFIG, methods=METHODS)
    trainer.release()

    def interrupt(_: str, done: int, total: int | None) -> None:
        if done == 1:
            raise KeyboardInterrupt

    def kill_one(_: str, done: int, total: int | None) -> None:
        # Called before the first document is dealt out, so that the worker is always missed.
        worker = multiprocessing.active_children()[0]
        worker.kill()
        worker.join()

    def run(progress: Any = None) -> Any:
        return evaluate_with_workers(
            recipe, DOCUMENTS, workers=2, out=many, config=CONFIG, methods=METHODS, progress=progress
        )

    with pytest.raises(KeyboardInterrupt):
        run(interrupt)
    with pytest.raises(tttnn.TttnnError, match=r"tttnn-worker-\d .* died with exit code -9 at document"):
        run(kill_one)
    assert multiprocessing.active_children() == []
    held = read_results(many)
    assert 1 <= len(held.of("base")) < len(DOCUMENTS)
    assert one.read_bytes().startswith(many.read_bytes())

    result = run()
    assert many.read_bytes() == one.read_bytes()
    assert result.lines == read_results(one).lines
    assert result.seconds.keys() == read_results(one).seconds.keys()


@pytest.mark.slow
def test_errors_and_interrupts_end_all_processes(tmp_path: Path, tokenizer: Any) -> None:
    recipe = saved_recipe(tmp_path, tokenizer)
    with pytest.raises(tttnn.ConfigError, match="workers must be at least 1, got 0"):
        evaluate_with_workers(recipe, DOCUMENTS, workers=0)
    with pytest.raises(tttnn.ConfigError, match=r"method must be one of base, .* got 'best'"):
        evaluate_with_workers(recipe, DOCUMENTS, workers=1, methods=["best"])
    with pytest.raises(tttnn.ConfigError, match="dynamic_window must be at most 64"):
        evaluate_with_workers(recipe, DOCUMENTS, workers=1, config=CONFIG.with_(dynamic_window=65), methods=["dynamic"])
    assert multiprocessing.active_children() == []

    def interrupt(_: str, done: int, total: int | None) -> None:
        if done == 1:
            raise KeyboardInterrupt

    out = tmp_path / "interrupted.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluate_with_workers(recipe, DOCUMENTS, workers=1, out=out, config=CONFIG, methods=METHODS, progress=interrupt)
    assert multiprocessing.active_children() == []
    assert len(read_results(out).of("base")) == 1


@dataclass(frozen=True)
class BusyRecipe(TrainerRecipe):
    """A worker that loads it says which process it is, and then hears nothing from its pipe."""

    said: str = ""

    def load(self, shared_weights: Any = None) -> Any:
        Path(self.said).write_text(str(os.getpid()))
        time.sleep(600)


@pytest.mark.slow
def test_a_busy_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    said = tmp_path / "worker"
    recipe = BusyRecipe("", "", tttnn.AdaptConfig(), SelectionConfig(), ScoreConfig(), said=str(said))
    parent = multiprocessing.get_context("spawn").Process(
        target=evaluate_with_workers, args=(recipe, DOCUMENTS), kwargs={"workers": 1}
    )
    parent.start()
    while not (said.exists() and said.read_text()):
        assert parent.is_alive()
        time.sleep(0.05)
    worker = os.pidfd_open(int(said.read_text()))
    try:
        parent.kill()
        parent.join()
        ended, _, _ = select.select([worker], [], [], 60)
        if not ended:
            signal.pidfd_send_signal(worker, signal.SIGKILL)
        assert ended
    finally:
        os.close(worker)
