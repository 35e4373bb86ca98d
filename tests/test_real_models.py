"""SmolLM2-135M and MiniLM-L6 for real: what tiny random models cannot show."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tttnn
from tests.conftest import assert_same_state, state_of
from tttnn.lm.score import Scorer
from tttnn.store.document import Document

pytestmark = [pytest.mark.models, pytest.mark.slow]

FILES = ["bisect", "heapq", "textwrap", "shlex", "csv", "string", "random", "statistics", "fnmatch", "glob"]
QUERY = "def heapsort(iterable):\n    h = []\n    for value in iterable:\n        heappush(h, value)\n"
CONFIG = tttnn.AdaptConfig(num_neighbors=2, max_neighbor_tokens=128)


def standard_library(name: str) -> str:
    return (Path(sysconfig.get_paths()["stdlib"]) / f"{name}.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def datastore(tmp_path_factory: pytest.TempPathFactory, minilm: Any) -> tttnn.Datastore:
    documents = [Document(standard_library(name), {"path": f"{name}.py"}) for name in FILES]
    return tttnn.Datastore.build(tmp_path_factory.mktemp("real") / "stdlib", documents, minilm)


@pytest.fixture(scope="module")
def trainer(datastore: tttnn.Datastore) -> Iterator[tttnn.TestTimeTrainer]:
    made = tttnn.TestTimeTrainer.load("smollm2-135m", datastore, CONFIG)
    yield made
    made.release()


def test_the_nearest_document_of_a_heap_query_is_about_heaps(datastore: tttnn.Datastore) -> None:
    found = datastore.search(QUERY, k=3)
    assert found[0].meta["path"] == "heapq.py"
    assert [n.distance for n in found] == sorted(n.distance for n in found)


def test_adapting_helps_on_the_neighbors_and_is_undone(trainer: tttnn.TestTimeTrainer) -> None:
    before = state_of(trainer.model)
    text = standard_library("heapq")[3000:4500]
    base = trainer.scorer.score(text).bits_per_byte
    with trainer.adapt(QUERY) as adapted:
        assert adapted.bits_per_byte(text) < base
        first = adapted.report.losses
    assert_same_state(trainer.model, before)
    trainer.verify()
    with trainer.adapt("import csv"):
        pass
    with trainer.adapt(QUERY) as adapted:
        assert adapted.report.losses == first
        again = state_of(trainer.model)
    with trainer.adapt(QUERY):
        assert_same_state(trainer.model, again)
    assert_same_state(trainer.model, before)


def test_an_interrupt_in_the_middle_leaves_the_weights_whole(trainer: tttnn.TestTimeTrainer) -> None:
    before = state_of(trainer.model)

    def interrupt(_: Any, k: int) -> None:
        if k == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), trainer.adapt(QUERY, observe=interrupt):
        pass
    assert_same_state(trainer.model, before)


def test_rolling_score_is_that_of_lm_evaluation_harness(trainer: tttnn.TestTimeTrainer) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    text = standard_library("textwrap")[:3000]
    for max_length in (256, 2048):
        lm = HFLM(pretrained=trainer.model, tokenizer=trainer.tokenizer, max_length=max_length, batch_size=1)
        request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
        theirs = lm.loglikelihood_rolling([request], disable_tqdm=True)[0]
        scorer = Scorer(trainer.model, trainer.tokenizer, tttnn.ScoreConfig(max_length=max_length))
        assert -scorer.score(text).nats == pytest.approx(theirs, rel=1e-4)


def test_library_and_command_line_give_the_same_numbers(
    trainer: tttnn.TestTimeTrainer, datastore: tttnn.Datastore, tmp_path: Path
) -> None:
    documents = tmp_path / "docs.jsonl"
    text = standard_library("sched")
    documents.write_text(json.dumps({"text": text, "meta": {"pile_set_name": "Github"}}) + "\n")
    out = tmp_path / "cli.jsonl"
    command = [sys.executable, "-m", "tttnn", "eval", str(datastore.path), str(documents), "--model", "smollm2-135m"]
    command += ["--num-neighbors", "2", "--max-neighbor-tokens", "128", "--query-tokens", "128"]
    command += ["--scored-tokens", "128", "--curve", "0,1,2", "--out", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config = tttnn.EvalConfig(query_tokens=128, scored_tokens=128, curve=(0, 1, 2))
    lines = tttnn.evaluate(trainer, tttnn.iter_jsonl(documents), config=config).lines
    assert {line.method for line in lines} == {"base", "ttt-nn"}
    assert tttnn.read_results(out).lines == lines


def test_a_report_is_replayed_from_the_command_line(datastore: tttnn.Datastore, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tttnn"]
    generate = [
        *command,
        "generate",
        str(datastore.path),
        QUERY,
        "--num-neighbors",
        "2",
        "--max-neighbor-tokens",
        "128",
    ]
    done = subprocess.run([*generate, "--max-new-tokens", "4", "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (tmp_path / "report.json").write_text(done.stdout)
    replay = [*command, "replay", str(tmp_path / "report.json"), str(datastore.path), "--json"]
    done = subprocess.run(replay, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"steps": 2, "largest_difference": 0.0, "same": True}
