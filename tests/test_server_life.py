"""Clients that leave, engines that die, signals that come: a server from outside, through raw sockets."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.served import Server, chunks, events, save_everything, wait_until

pytest.importorskip("uvicorn")

DOCUMENTS = 150
LONG = {
    "prompt": "The cat sat",
    "max_tokens": 200,
    "temperature": 0,
    "tttnn": {"num_neighbors": DOCUMENTS},
}
"""Some hundred steps, each a few milliseconds: long enough to be met in the middle."""

TRAINED = 'tttnn_tokens_total{kind="trained"}'
WRITTEN = 'tttnn_tokens_total{kind="written"}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    made = tmp_path_factory.mktemp("lived")
    save_everything(made, tokenizer, documents=DOCUMENTS)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    flags = ("--max-neighbors", "1000", "--verify-every", "1", "--stall-seconds", "2", "--max-queue", "8")
    flags += ("--max-queue-seconds", "100000")  # however slow the machine that tests run on
    running = Server(folder, *flags, "--comment-seconds", "0.05")
    yield running
    assert running.stop() == 0


@pytest.fixture
def canary(server: Server) -> Iterator[None]:
    """Before and after, the same question has the same answer, and the weights were proven."""
    wait_until(lambda: server.get("/ready")[0] == 200, "a ready server")
    before = server.complete("def quicksort(")["choices"]
    yield
    wait_until(lambda: server.get("/ready")[0] == 200, "a ready server")
    assert server.complete("def quicksort(")["choices"] == before
    assert server.metric('tttnn_verifications_total{result="changed"}') == 0
    assert server.metric("tttnn_requests_waiting") == 0


def running(server: Server, count: float = 1) -> None:
    wait_until(lambda: server.metric("tttnn_requests_running") >= count, "a running request")


def idle(server: Server) -> None:
    wait_until(
        lambda: server.metric("tttnn_requests_running") + server.metric("tttnn_requests_waiting") == 0, "an idle server"
    )


def leave(connection: socket.socket) -> None:
    """Close as a program does that is killed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    connection.close()


@pytest.mark.parametrize("abruptly", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_training_stops_it(
    server: Server, canary: None, stream: bool, abruptly: bool
) -> None:
    before, trained = server.metric('tttnn_cancelled_total{where="running"}'), server.metric(TRAINED)
    whole = server.post("/v1/adapt", {"query": "The cat sat", "tttnn": LONG["tttnn"]})[1]["report"]["tokens"]
    assert server.metric(TRAINED) - trained == whole
    connection = server.raw("/v1/completions", LONG | {"stream": stream})
    if stream:
        while b": step" not in connection.recv(4096):
            pass
    running(server)
    leave(connection) if abruptly else connection.close()
    server.wait_metric('tttnn_cancelled_total{where="running"}', before + 1)
    idle(server)
    assert server.metric(TRAINED) - trained - whole < whole


def test_a_client_that_leaves_while_tokens_come_stops_them(server: Server, canary: None) -> None:
    before, written = server.metric('tttnn_cancelled_total{where="running"}'), server.metric(WRITTEN)
    body = LONG | {"stream": True, "tttnn": {"mode": "base"}, "prompt": "x", "max_tokens": 250}
    connection = server.raw("/v1/completions", body)
    while b'"text"' not in connection.recv(4096):
        pass
    leave(connection)
    idle(server)
    # Where it was quick enough to be written to its end, nothing was cancelled.
    cancelled = server.metric('tttnn_cancelled_total{where="running"}') - before
    assert cancelled == 1 or server.metric(WRITTEN) - written == 250


def test_a_client_that_leaves_the_queue_never_starts(server: Server, canary: None) -> None:
    waiting = server.metric('tttnn_cancelled_total{where="waiting"}')
    begun = server.metric("tttnn_queue_seconds_count")
    first = server.raw("/v1/completions", LONG)
    running(server)
    second = server.raw("/v1/completions", LONG | {"stream": True})
    third = server.raw("/v1/completions", LONG)
    wait_until(lambda: server.metric("tttnn_requests_waiting") == 2, "two that wait")
    leave(second)
    third.close()
    server.wait_metric('tttnn_cancelled_total{where="waiting"}', waiting + 2)
    assert server.metric("tttnn_requests_waiting") == 0
    leave(first)
    idle(server)
    assert server.metric("tttnn_queue_seconds_count") == begun + 1


def test_a_client_that_reads_nothing_delays_nobody(server: Server, canary: None) -> None:
    slow = server.raw("/v1/completions", LONG | {"stream": True, "tttnn": {"events": True}})
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    assert slow.recv(1)
    for _ in range(3):
        server.complete("def quicksort(")
    idle(server)
    # Its answer is whole all the same, whenever it is read.
    rest = b""
    while not rest.endswith(b"0\r\n\r\n"):
        rest += slow.recv(1000)
    assert b"[DONE]" in rest
    slow.close()


def test_an_engine_that_is_killed_is_replaced_and_the_others_are_answered(server: Server, canary: None) -> None:
    restarts = server.metric('tttnn_engine_restarts_total{reason="died"}')
    counted = {name: server.metric(name) for name in (TRAINED, WRITTEN, "tttnn_queue_seconds_count")}
    (engine,) = server.engines()
    streamed = server.raw("/v1/completions", LONG | {"stream": True})
    running(server)
    replies: list[Any] = []
    others = [
        threading.Thread(
            target=lambda: replies.append(server.post("/v1/completions", {"prompt": "x", "max_tokens": 2}))
        )
        for _ in range(2)
    ]
    for other in others:
        other.start()
    wait_until(lambda: server.metric("tttnn_requests_waiting") == 2, "two that wait")
    os.kill(engine, signal.SIGKILL)
    told = events(streamed)
    assert told[-1] == "data: [DONE]"
    assert json.loads(told[-2][6:])["error"]["code"] == "engine_died"
    wait_until(lambda: server.get("/ready")[0] == 503 or server.engines() != [engine], "a server that is not ready")
    for other in others:
        other.join()
    assert [status for status, _ in replies] == [200, 200]
    assert server.metric('tttnn_engine_restarts_total{reason="died"}') == restarts + 1
    assert all(server.metric(name) >= value for name, value in counted.items())


def test_an_engine_that_hangs_makes_the_server_unready_and_is_replaced(server: Server, canary: None) -> None:
    restarts = server.metric('tttnn_engine_restarts_total{reason="stalled"}')
    (engine,) = server.engines()
    reply: list[Any] = []
    asking = threading.Thread(target=lambda: reply.append(server.post("/v1/completions", LONG)))
    asking.start()
    running(server)
    os.kill(engine, signal.SIGSTOP)
    wait_until(lambda: server.get("/ready")[1]["reason"] == "stalled", "a stalled server")
    asking.join()
    assert reply[0][0] == 503
    assert reply[0][1]["error"]["code"] == "engine_died"
    server.wait_metric('tttnn_engine_restarts_total{reason="stalled"}', restarts + 1)
    assert engine not in server.engines()


def test_a_deadline_holds_for_the_whole_answer(server: Server, canary: None) -> None:
    reply = server.complete(**LONG | {"tttnn": {"num_neighbors": DOCUMENTS, "deadline_ms": 60_000}})
    assert reply["tttnn"]["coverage"]["trained"] == DOCUMENTS
    report = server.post("/v1/completions", LONG | {"tttnn": {"num_neighbors": DOCUMENTS, "deadline_ms": 1}})
    assert report[0] == 429
    assert report[1]["error"]["code"] == "would_miss_deadline"


def test_counts_are_right_at_any_scrape(server: Server, canary: None) -> None:
    connections = [server.raw("/v1/completions", LONG) for _ in range(4)]
    wait_until(
        lambda: server.metric("tttnn_requests_running") == 1 and server.metric("tttnn_requests_waiting") == 3,
        "one that runs and three that wait",
    )
    health = server.get("/health")[1]
    assert health["running"] <= 1
    for connection in connections:
        leave(connection)
    idle(server)


def test_a_queue_that_is_full_refuses_at_once_with_the_time_to_wait(server: Server, canary: None) -> None:
    connections = [server.raw("/v1/completions", LONG) for _ in range(9)]
    wait_until(lambda: server.metric("tttnn_requests_waiting") == 8, "a full queue")
    for stream in (False, True):
        status, headers, body = server.request("POST", "/v1/completions", LONG | {"stream": stream})
        assert (status, json.loads(body)["error"]["code"]) == (429, "queue_full")
        assert int(headers["retry-after"]) >= 1
    # A list of prompts is one request: it is refused whole.
    assert server.post("/v1/completions", LONG | {"prompt": ["a", "b", "c"]})[0] == 429
    for connection in connections:
        leave(connection)
    idle(server)


def test_from_loading_to_draining(folder: Path) -> None:
    """Ready only after a first step; SIGTERM lets nobody in and finishes what there is."""
    server = Server(folder, "--max-neighbors", "1000", "--comment-seconds", "0.05", wait=False)
    assert server.get("/live") == (200, {"live": True})
    seen = []
    while True:
        status, said = server.get("/ready")
        if status == 200:
            break
        seen.append(said["reason"])
        status, headers, body = server.request("POST", "/v1/completions", {"prompt": "x"})
        if status == 503:
            assert json.loads(body)["error"]["code"] == "loading"
            assert "retry-after" in headers
        time.sleep(0.05)
    assert set(seen) == {"loading"}
    first = server.raw("/v1/completions", LONG | {"stream": True})
    running(server)
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.get("/ready")[1]["reason"] == "draining", "a draining server")
    assert server.post("/v1/completions", LONG)[0] == 503
    assert server.get("/live")[0] == 200
    assert chunks(events(first))[-1]["choices"][0]["finish_reason"]
    assert server.ended() == 0


def test_two_engines_share_the_weights_and_drain_in_time(folder: Path) -> None:
    """The same answers, one copy of the weights; requests beyond the shutdown timeout are cancelled and told."""
    flags = ("--engines", "2", "--max-neighbors", "1000", "--shutdown-timeout", "0")
    server = Server(folder, *flags)
    wait_until(lambda: server.metric("tttnn_engines_ready") == 2, "two engines")
    maps = [Path(f"/proc/{engine}/maps").read_text() for engine in server.engines()]
    shared = [{line.split()[4] for line in text.splitlines() if "memfd" in line} for text in maps]
    assert len(shared) == 2
    assert shared[0] & shared[1]
    replies: list[Any] = []
    asked = [threading.Thread(target=lambda: replies.append(server.post("/v1/completions", LONG))) for _ in range(2)]
    for asking in asked:
        asking.start()
    running(server, 2)
    for asking in asked:
        asking.join()
    assert replies[0][1]["choices"] == replies[1][1]["choices"]
    streams = [server.raw("/v1/completions", LONG | {"stream": True}) for _ in range(2)]
    running(server, 2)
    waiting = server.raw("/v1/completions", LONG)
    wait_until(lambda: server.metric("tttnn_requests_waiting") == 1, "one that waits")
    server.process.send_signal(signal.SIGTERM)
    for stream in streams:
        told = events(stream)
        assert told[-1] == "data: [DONE]"
        assert json.loads(told[-2][6:])["error"]["code"] == "draining"
    assert waiting.recv(4096).startswith(b"HTTP/1.1 503")
    waiting.close()
    assert server.ended() == 0


def test_keys_tenants_and_a_second_signal(folder: Path) -> None:
    """Reused states are apart for each key and salt; a second signal ends at once, and no engine is left."""
    keys = folder / "keys"
    keys.write_text("first-key\nsecond-key\n")
    server = Server(folder, "--reuse", "4", "--api-key-file", str(keys), "--max-neighbors", "1000")
    first, second = ({"authorization": f"Bearer {key}"} for key in ("first-key", "second-key"))

    def reused(headers: dict[str, str], salt: str = "") -> bool:
        body = {"query": "The cat sat", "tttnn": {"cache_salt": salt}}
        status, reply = server.post("/v1/adapt", body, headers)
        assert status == 200
        return bool(reply["report"]["reused"])

    assert [reused(first), reused(first)] == [False, True]
    assert [reused(first, "a"), reused(first, "a")] == [False, True]
    assert [reused(second), reused(second)] == [False, True]

    basic = {"authorization": "Basic " + base64.b64encode(b"me:first-key").decode()}
    wrong = ({}, {"authorization": "Bearer "}, {"authorization": "Bearer first-ke"}, {"authorization": "first-key"})
    for path in ("/", "/page.js", "/page.css", "/page.svg", "/info", "/metrics", "/health", "/v1/models", "/nowhere"):
        for headers in wrong:
            assert server.request("GET", path, headers=headers)[0] == 401
        assert server.request("GET", path, headers=basic)[0] == (404 if path == "/nowhere" else 200)
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/search", "/v1/adapt", "/v1/score"):
        for stream in (False, True):
            status, reply = server.post(path, {"prompt": "x", "stream": stream})
            assert (status, reply["error"]["code"]) == (401, "invalid_api_key")
    assert server.get("/live")[0] == server.get("/ready")[0] == 200
    arguments = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
    seen = [server.get("/info", first), server.get("/metrics", first), server.errors(), arguments]
    assert "first-key" not in str(seen)
    assert "second-key" not in str(seen)

    data = json.dumps(LONG).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer first-key\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    asking = socket.create_connection(("127.0.0.1", server.port))
    asking.sendall(head.encode() + data)
    wait_until(lambda: server.get("/health", first)[1]["running"] == 1, "a running request")
    engines = server.engines()
    assert engines
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.get("/ready")[1]["reason"] == "draining", "a draining server")
    server.process.send_signal(signal.SIGTERM)
    assert server.ended() == 128 + signal.SIGTERM
    asking.close()
    for engine in engines:
        wait_until(lambda engine=engine: not Path(f"/proc/{engine}").exists(), "an engine that has ended")


def test_what_cannot_be_loaded_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    command = ["serve", str(folder / "store"), "--model", str(tmp_path / "empty"), "--port", "0"]
    done = subprocess.run([sys.executable, "-m", "tttnn", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert str(tmp_path / "empty") in done.stderr
    assert "Traceback" not in done.stderr
