"""Modes of a request: experts trained while the server runs, neighbors in the context, as the library has them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tttnn
from tests.served import NAME, QUERY, Server, chunks, events

pytest.importorskip("starlette", reason="the extra serve is not installed")

GREEDY = {"max_tokens": 12, "temperature": 0}
CONFIG = tttnn.AdaptConfig(
    num_neighbors=3, max_length=64, max_neighbor_tokens=48, learning_rate=1e-3, precision="float32"
)


@pytest.fixture(scope="module")
def server(taught: Path) -> Iterator[Server]:
    running = Server(taught, "--verify-every", "1", "--max-neighbor-tokens", "48")
    yield running
    assert running.stop() == 0
    assert "internal_error" not in running.errors()


@pytest.fixture(scope="module")
def refused_before(server: Server) -> Any:
    """What is said, in a stream too, while there are no experts."""
    body = {"prompt": QUERY, "stream": True, "tttnn": {"mode": "instant"}}
    return server.post("/v1/completions", body), server.get("/info")[1]["modes"]


@pytest.fixture(scope="module")
def experts(taught: Path, refused_before: Any) -> None:
    """Experts, trained beside the server."""
    command = ["precompute", str(taught / "store"), "--model", str(taught / NAME), "--documents", "12"]
    flags = ("--max-length", "48", "--rank", "4", "--learning-rate", "3e-3")
    subprocess.run([sys.executable, "-m", "tttnn", *command, *flags], check=True, capture_output=True)


@pytest.fixture(scope="module")
def trainer(taught: Path) -> Iterator[tttnn.TestTimeTrainer]:
    made = tttnn.TrainerRecipe(str(taught / NAME), str(taught / "store"), CONFIG).load()
    yield made
    made.release()


def test_without_experts_instant_is_refused_and_says_what_to_run(refused_before: Any) -> None:
    (status, reply), modes = refused_before
    assert (status, reply["error"]["param"], reply["error"]["code"]) == (400, "tttnn.mode", "unsupported")
    assert f"tttnn precompute DATASTORE --model {NAME}" in reply["error"]["message"]
    assert modes == ["exact", "base", "auto"]


@pytest.mark.parametrize(
    "asked",
    [
        {"mode": "instant"},
        {"mode": "instant", "context_neighbors": 2},
        {"mode": "auto"},
        {"mode": "auto", "context_neighbors": 1},
        {"mode": "exact", "context_neighbors": 2},
        {"mode": "exact", "num_neighbors": 0, "context_neighbors": 2},
    ],
    ids=str,
)
def test_an_answer_is_the_library_s(
    server: Server, experts: None, trainer: tttnn.TestTimeTrainer, asked: dict[str, Any]
) -> None:
    with trainer.adapt(QUERY, config=CONFIG.with_(**asked)) as adapted:
        text, score = adapted.generate(max_new_tokens=12), adapted.score("sat on it", context="the dog")
    with trainer.adapt(QUERY, num_neighbors=0) as unadapted:
        base = unadapted.generate(max_new_tokens=12)
    reply = server.complete(QUERY, **GREEDY, tttnn=asked | {"compare": True})
    about, report = reply["tttnn"], reply["tttnn"]["adaptations"][0]["report"]
    assert (about["mode"], report["mode"]) == (asked["mode"], asked["mode"])
    assert (reply["choices"][0]["text"], about["base"]) == (text, [base])
    assert [row["digest"] for row in report["context"]] == [row.digest for row in adapted.report.context]
    assert len(report["context"]) == asked.get("context_neighbors", 4 if asked["mode"] == "auto" else 0)
    assert (report["experts"] is None) == (asked["mode"] == "exact")
    assert (report["steps"] > 0) == (asked["mode"] == "exact" and asked.get("num_neighbors") != 0)
    body = {"text": "sat on it", "context": "the dog", "tttnn": asked | {"query": QUERY}}
    assert server.post("/v1/score", body)[1]["nats"] == pytest.approx(score.nats, rel=1e-6)
    # A stream says the same, and a receipt is replayed.
    parts = chunks(events(server.raw("/v1/completions", {"prompt": QUERY, "stream": True, "tttnn": asked, **GREEDY})))
    assert "".join(choice["text"] for part in parts for choice in part["choices"]) == text
    assert server.post("/v1/replay", {"report": report})[1]["same"] is True


def test_auto_trains_until_a_deadline(server: Server, experts: None) -> None:
    report = server.complete(QUERY, tttnn={"mode": "auto", "deadline_ms": 60000})["tttnn"]["adaptations"][0]["report"]
    assert (report["stopped_by"], len(report["neighbors"])) == ("neighbors", 3)
    assert "root" in [expert["name"] for expert in report["experts"]["used"]]


def test_log_probabilities_stand_behind_the_neighbors_too(server: Server, experts: None) -> None:
    """What echo tells of a text is what /v1/score says of it."""
    asked = {"mode": "instant", "context_neighbors": 2, "query": QUERY}
    told = server.complete("sat on it", max_tokens=0, echo=True, logprobs=0, tttnn=asked)["choices"][0]["logprobs"]
    assert told["tokens"][0] == "s"
    scored = server.post("/v1/score", {"text": "at on it", "context": "s", "tttnn": asked})[1]
    plain = server.post("/v1/score", {"text": "at on it", "context": "s", "tttnn": asked | {"context_neighbors": 0}})[1]
    # Scoring puts a token before the neighbors, a prompt does not: near, and far from what no neighbor gives.
    assert -sum(told["token_logprobs"][1:]) == pytest.approx(scored["nats"], rel=0.02)
    assert scored["nats"] != pytest.approx(plain["nats"], rel=1e-4)


def test_excluded_and_damaged_experts(server: Server, experts: None, taught: Path) -> None:
    seen = [neighbor["digest"] for neighbor in server.post("/v1/search", {"query": QUERY, "k": 20})[1]["data"]]
    left_out = {"mode": "instant", "exclude_digests": seen}
    report = server.complete(QUERY, **GREEDY, tttnn=left_out)["tttnn"]["adaptations"][0]["report"]
    assert report["experts"]["used"] == []
    assert report["experts"]["left_out"] == {"excluded": 1}
    (manifest,) = taught.glob("store/experts/*/manifest.json")
    assert str(taught) not in str(server.get("/info"))
    assert "instant" in server.get("/info")[1]["modes"]
    held = manifest.with_suffix(".held")
    manifest.rename(held)
    try:
        assert server.complete(QUERY, tttnn={"mode": "auto"})["tttnn"]["mode"] == "exact"
        assert server.post("/v1/completions", {"prompt": QUERY, "tttnn": {"mode": "instant"}})[0] == 400
    finally:
        held.rename(manifest)
    assert server.complete(QUERY, tttnn={"mode": "instant"})["tttnn"]["mode"] == "instant"


def test_bounds_of_neighbors_in_the_context(server: Server) -> None:
    for value in (-1, 101, "2", 1.5):
        status, reply = server.post("/v1/completions", {"prompt": QUERY, "tttnn": {"context_neighbors": value}})
        assert (status, reply["error"]["param"]) == (400, "tttnn.context_neighbors"), value
