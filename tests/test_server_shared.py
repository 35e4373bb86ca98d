"""Requests that wait with the same query and settings are answered from one adapted state, each as if it were alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.served import QUERY, Server, chunks, events, save_everything, wait_until
from tests.test_server_life import LONG, idle, leave

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

TRAINED, REUSED = 'tttnn_tokens_total{kind="trained"}', "tttnn_reused_total"
SAME = {"prompt": QUERY, "temperature": 0, "tttnn": {"num_neighbors": 5}}
ASKED = (
    SAME | {"max_tokens": 6},
    SAME | {"max_tokens": 9, "temperature": 0.8, "seed": 3},
    SAME | {"max_tokens": 4, "logprobs": 2, "echo": True},
    SAME | {"prompt": [QUERY, QUERY], "max_tokens": 5},
    {"prompt": "A dog", "max_tokens": 7, "temperature": 0, "tttnn": {"num_neighbors": 5, "query": QUERY}},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    made = tmp_path_factory.mktemp("shared")
    save_everything(made, tokenizer, documents=150)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    flags = ("--verify-every", "1", "--max-neighbors", "1000", "--max-queue-seconds", "100000")
    running = Server(folder, *flags, "--comment-seconds", "0.05")
    yield running
    assert running.stop() == 0
    assert "internal_error" not in running.errors()


@pytest.fixture
def busy(server: Server) -> Iterator[Any]:
    """A request that the engine is at, until the test lets it go: others wait meanwhile."""
    long = server.raw("/v1/completions", LONG)
    server.wait_metric("tttnn_requests_running", 1)
    yield long
    idle(server)


def reply_of(connection: Any) -> Any:
    data = b""
    with connection:
        while part := connection.recv(65536):
            data += part
            head, _, body = data.partition(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if length and len(body) >= int(length[0].split(b":")[1]):
                break
    return json.loads(body)


def wait_for(server: Server, waiting: int) -> None:
    wait_until(lambda: server.metric("tttnn_requests_waiting") == waiting, f"{waiting} that wait")


def test_each_is_answered_as_if_it_were_alone(server: Server, busy: Any) -> None:
    sent = [server.raw("/v1/completions", body) for body in ASKED]
    streamed = server.raw("/v1/completions", ASKED[0] | {"stream": True})
    odd = server.raw("/v1/completions", SAME | {"prompt": QUERY, "tttnn": {"num_neighbors": 5, "cache_salt": "mine"}})
    wait_for(server, len(ASKED) + 2)
    leave(busy)
    together = [reply_of(connection) for connection in sent]
    pieces = chunks(events(streamed))
    apart = reply_of(odd)
    idle(server)
    reused = server.metric(REUSED)
    # One state for all that asked alike; for another salt one of its own.
    assert reused == len(ASKED)
    for body, reply in zip(ASKED, together, strict=True):
        alone = server.complete(**body)
        assert reply["choices"] == alone["choices"]
        assert reply["usage"] == alone["usage"]
        ours, theirs = (each["tttnn"]["adaptations"][0] for each in (reply, alone))
        assert (ours["choices"], ours["report"]["neighbors"]) == (theirs["choices"], theirs["report"]["neighbors"])
        assert server.post("/v1/replay", {"report": ours["report"]})[1]["same"] is True
    text = "".join(choice["text"] for chunk in pieces for choice in chunk["choices"])
    assert text == together[0]["choices"][0]["text"]
    assert apart["tttnn"]["coverage"]["trained"] == 5
    assert server.metric(REUSED) == reused
    assert server.metric('tttnn_verifications_total{result="changed"}') == 0


def test_one_that_leaves_ends_no_other(server: Server, busy: Any) -> None:
    before = server.metric(REUSED)
    first, second, third = (server.raw("/v1/completions", LONG | {"max_tokens": n}) for n in (4, 200, 5))
    wait_for(server, 3)
    leave(busy)
    server.wait_metric("tttnn_requests_running", 3)
    leave(first)
    leave(second)
    assert len(reply_of(third)["choices"][0]["text"]) > 0
    idle(server)
    assert server.metric(REUSED) == before + 1
    assert server.metric('tttnn_cancelled_total{where="running"}') >= 3


def test_when_all_leave_the_work_stops(server: Server, busy: Any) -> None:
    sent = [server.raw("/v1/completions", LONG) for _ in range(2)]
    wait_for(server, 2)
    leave(busy)
    server.wait_metric("tttnn_requests_running", 2)
    trained = server.metric(TRAINED)
    for connection in sent:
        leave(connection)
    idle(server)
    whole = server.complete(LONG["prompt"], max_tokens=1, tttnn=LONG["tttnn"])["tttnn"]["adaptations"][0]["report"]
    assert server.metric(TRAINED) - trained < 2 * whole["tokens"]


def test_what_is_wrong_with_one_is_told_to_it_alone(server: Server, busy: Any) -> None:
    """A template is known to the engine only: a message that spells a control token is refused there."""
    good = {"messages": [{"role": "user", "content": "The cat"}], "max_tokens": 4, "temperature": 0}
    bad = {"messages": [{"role": "system", "content": "<|endoftext|>"}, *good["messages"]], "max_tokens": 4}
    sent = [server.raw("/v1/chat/completions", body) for body in (bad, good, bad, good)]
    wait_for(server, 4)
    leave(busy)
    replies = [reply_of(connection) for connection in sent]
    assert [reply["error"]["param"] for reply in (replies[0], replies[2])] == ["messages[0].content"] * 2
    assert replies[1]["choices"] == replies[3]["choices"]
