"""One number, four faces: library, command line, lm-evaluation-harness and server say the same of the same query."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tttnn
from tests.conftest import TEXTS
from tests.served import NAME, Server
from tests.test_cli import run
from tttnn.config import ScoreConfig, SelectionConfig
from tttnn.evaluation.result_file import read_results
from tttnn.recipe import TrainerRecipe

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
pytest.importorskip("starlette", reason="the extra serve is not installed")

from lm_eval.api.instance import Instance

from tttnn.evaluation.harness import TttnnLM

# Texts that are in no datastore here, the second with characters of several bytes.
QUERIES = ("The cat sat on the mat, and def quicksort(items): came after it", TEXTS[3][:40] + " \u4e16\u754c, twice")
FLAGS = ("--num-neighbors", "3", "--max-length", "64", "--learning-rate", "1e-3", "--precision", "float32")
CONFIG = tttnn.AdaptConfig(num_neighbors=3, max_length=64, learning_rate=1e-3, precision="float32")
TOKENS = 12

Said = dict[tuple[str, int], tuple[float, str]]
"""Bits per byte of a query, and the text that continues it, by query and number of neighbors."""


@pytest.fixture(scope="module")
def trainer(taught: Path) -> Iterator[tttnn.TestTimeTrainer]:
    recipe = TrainerRecipe(str(taught / NAME), str(taught / "store"), CONFIG, SelectionConfig(), ScoreConfig())
    made = recipe.load()
    yield made
    made.release()


@pytest.fixture(scope="module")
def library(trainer: tttnn.TestTimeTrainer) -> Said:
    said = {}
    for query in QUERIES:
        for k in (0, 3):
            with trainer.adapt(query, num_neighbors=k) as adapted:
                said[query, k] = (adapted.bits_per_byte(query), adapted.generate(max_new_tokens=TOKENS))
    return said


def _same(said: Said, library: Said) -> None:
    for key, (bits, text) in library.items():
        assert said[key][0] == pytest.approx(bits, abs=1e-6), key
        assert said[key][1] == text, key


def test_neighbors_change_the_number_and_the_text(library: Said) -> None:
    for query in QUERIES:
        (before, text), (after, changed) = library[query, 0], library[query, 3]
        assert after < before
        assert changed != text


def test_the_command_line(
    taught: Path, library: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    documents, out = tmp_path / "docs.jsonl", tmp_path / "results.jsonl"
    documents.write_text("".join(json.dumps({"text": query}) + "\n" for query in QUERIES))
    place = (str(taught / "store"), "--model", str(taught / NAME), "--threads", "1", *FLAGS)
    measured = ("--protocol", "full", "--methods", "ttt-nn", "--curve", "0,3", "--max-overlap", "none")
    command = ["eval", place[0], str(documents), *place[1:], *measured, "--out", str(out)]
    assert run(monkeypatch, *command) == 0, capfd.readouterr().err
    lines = {line.document: line for line in read_results(out).of("ttt-nn").values()}
    said = {}
    for i, query in enumerate(QUERIES):
        capfd.readouterr()
        assert run(monkeypatch, "generate", *place, "--max-new-tokens", str(TOKENS), "--json", "--", query) == 0
        answered = json.loads(capfd.readouterr().out)
        said[query, 0] = (lines[i].bits_per_byte(0), answered["base"])
        said[query, 3] = (lines[i].bits_per_byte(3), answered["adapted"])
    _same(said, library)


def test_the_harness(taught: Path, library: Said) -> None:
    said = {}
    for k in (0, 3):
        settings = {"adapt_max_length": 64, "learning_rate": 1e-3, "precision": "float32"}
        lm = TttnnLM(str(taught / NAME), str(taught / "store"), k=k, threads=1, **settings)
        for query in QUERIES:
            nats = lm.loglikelihood_rolling([_asked("loglikelihood_rolling", query)], disable_tqdm=True)[0]
            options = {"max_gen_toks": TOKENS, "until": []}
            text = lm.generate_until([_asked("generate_until", query, options)], disable_tqdm=True)[0]
            said[query, k] = (_bits(-nats, query), text)
        lm.trainer.release()
    _same(said, library)


def _bits(nats: float, text: str) -> float:
    """Return bits per byte, by their definition."""
    return nats / math.log(2) / len(text.encode())


def _asked(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_the_server(taught: Path, library: Said) -> None:
    server = Server(taught)
    said = {}
    for query in QUERIES:
        for k in (0, 3):
            body = {"text": query, "tttnn": {"query": query, "num_neighbors": k}}
            status, scored = server.post("/v1/score", body)
            assert status == 200, scored
            reply = server.complete(query, max_tokens=TOKENS, tttnn={"num_neighbors": k})
            said[query, k] = (scored["bits_per_byte"], reply["choices"][0]["text"])
    assert server.stop() == 0
    _same(said, library)
