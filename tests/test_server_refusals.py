"""What a server does not answer: each refusal its status, a name, one sentence, and nothing of the input."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tttnn
from tests.served import NAME, Server, break_on_tilde, chunks, events, save_everything

pytest.importorskip("uvicorn")

SECRET = "Xyzzy-4711"
"""Stands in inputs, and in no reply."""

ROUTES = [
    *("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/search", "/v1/adapt", "/v1/score"),
    "/v1/replay",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    made = tmp_path_factory.mktemp("refused")
    save_everything(made, tokenizer, documents=10)
    break_on_tilde(made / NAME, tokenizer)
    rows = [f"Plain text number {i}, with words." for i in range(10)]
    rows += [f"{SECRET} Überlauf ~~~~ {i}" for i in range(3)]
    documents = [tttnn.Document(text, {"pile_set_name": "AB"[text.count("~") > 0]}) for text in rows]
    tttnn.Datastore.build(made / "odd", documents, tttnn.Embedder.load(str(made / "encoder"))).close()
    (made / "store").rename(made / "even")
    (made / "odd").rename(made / "store")
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    flags = ("--max-body-bytes", "20000", "--max-neighbors", "10", "--max-score-tokens", "500", "--verify-every", "1")
    running = Server(folder, *flags, "--body-seconds", "5")
    yield running
    assert running.stop() == 0
    assert SECRET not in running.errors()


def refused(server: Server, path: str, body: Any, status: int, param: str | None, code: str | None = None) -> str:
    """Ask, streamed and not, and return the sentence of the refusal."""
    bodies = [body] if isinstance(body, bytes) or "completions" not in path else [body, body | {"stream": True}]
    for one in bodies:
        got, headers, reply = server.request("POST", path, one)
        error = json.loads(reply)["error"]
        assert (got, error["param"]) == (status, param), error
        assert code is None or error["code"] == code
        assert len(reply) < 4096
        assert SECRET not in reply.decode()
        assert headers["content-type"] == "application/json"
    return str(error["message"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": SECRET}, "suffix"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"temperature": 9}, "temperature"),
        ({"temperature": SECRET}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"seed": 2**70}, "seed"),
        ({"stop": [SECRET] * 17}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": "yes"}, "echo"),
        ({"top_k": 5}, "top_k"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [257]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [["a"]]}, "prompt"),
        ({"prompt": ["x"] * 129}, "prompt"),
        ({"prompt": SECRET * 30}, "prompt"),
        ({"tttnn": {"mode": "instant"}}, "tttnn.mode"),
        ({"tttnn": {"mode": SECRET}}, "tttnn.mode"),
        ({"tttnn": {"num_neighbors": 11}}, "tttnn.num_neighbors"),
        ({"tttnn": {"num_neighbors": -1}}, "tttnn.num_neighbors"),
        ({"tttnn": {"deadline_ms": 0}}, "tttnn.deadline_ms"),
        ({"tttnn": {"guard": "query"}}, "tttnn.guard"),
        ({"tttnn": {"where": {"date": "now"}}}, "tttnn.where.date"),
        ({"tttnn": {"where": {"source": [SECRET]}}}, "tttnn.where.source"),
        ({"tttnn": {"where": {"source": []}}}, "tttnn.where.source"),
        ({"tttnn": {"where": {}}}, "tttnn.where.source"),
        ({"tttnn": {"where": {"source": [], "fraction": 0.5}}}, "tttnn.where.source"),
        ({"tttnn": {"where": {"fraction": 0}}}, "tttnn.where.fraction"),
        ({"tttnn": {"where": {"fraction": SECRET}}}, "tttnn.where.fraction"),
        ({"tttnn": {"where": {"fraction": 0.5, "seed": SECRET}}}, "tttnn.where.seed"),
        ({"tttnn": {"where": {"fraction": 0.5, "seed": 2.5}}}, "tttnn.where.seed"),
        ({"tttnn": {"where": {"seed": 2}}}, "tttnn.where.seed"),
        ({"tttnn": {"query": " "}}, "tttnn.query"),
        ({"tttnn": {"speed": "high"}}, "tttnn.speed"),
        ({"tttnn": SECRET}, "tttnn"),
        ({SECRET + " <b>": 1}, None),
    ],
)
def test_what_is_wrong_or_not_supported_is_named(server: Server, fields: dict[str, Any], param: str | None) -> None:
    body = {"prompt": "Plain text", "max_tokens": 2, "temperature": 0, **fields}
    if param == "tttnn.where.source" and fields["tttnn"]["where"].get("source") == [SECRET]:
        # Only the engine knows which sources there are: a stream has begun by then.
        told = events(server.raw("/v1/completions", body | {"stream": True}))
        assert told[-1] == "data: [DONE]"
        assert json.loads(told[-2][6:])["error"]["param"] == param
        assert SECRET not in str(told)
        assert server.post("/v1/completions", body)[0] == 400
        return
    refused(server, "/v1/completions", body, 400, param)


def test_a_stream_that_says_more_than_a_stream_can(server: Server) -> None:
    body = {"prompt": "Plain", "stream": True}
    assert server.post("/v1/completions", body | {"logprobs": 1})[1]["error"]["param"] == "logprobs"
    status, reply = server.post("/v1/completions", {"prompt": "x", "stream_options": {"include_usage": True}})
    assert (status, reply["error"]["param"]) == (400, "stream_options")


def test_instant_says_what_to_do(server: Server) -> None:
    body = {"prompt": "x", "tttnn": {"mode": "instant"}}
    said = refused(server, "/v1/completions", body, 400, "tttnn.mode")
    assert f"tttnn precompute DATASTORE --model {NAME}" in said
    said = refused(server, "/v1/completions", {"prompt": "x", "tttnn": {"guard": "query"}}, 400, "tttnn.guard")
    assert "tttnn serve --guard query" in said
    assert server.complete("Plain text", tttnn={"mode": "auto", "where": {"source": "A"}})["tttnn"]["mode"] == "exact"


@pytest.mark.parametrize("none", [0, 0.0, -0.0])
def test_to_adapt_needs_something_to_adapt_to(server: Server, none: float) -> None:
    refused(server, "/v1/adapt", {"query": "Plain", "tttnn": {"mode": "base"}}, 400, "tttnn.mode")
    said = refused(
        server, "/v1/adapt", {"query": "Plain", "tttnn": {"num_neighbors": none}}, 400, "tttnn.num_neighbors"
    )
    assert "at least 1" in said
    read = {"num_neighbors": none, "context_neighbors": 1, "where": {"source": "A"}}
    report = server.post("/v1/adapt", {"query": "Plain", "tttnn": read})[1]["report"]
    assert (report["steps"], len(report["context"])) == (0, 1)


def test_the_window_is_checked_before_the_queue(server: Server) -> None:
    waited = server.metric("tttnn_queue_seconds_count")
    for prompt, most in (("x" * 250, 7), ([5] * 256, 1), ("x", 300)):
        body = {"prompt": prompt, "max_tokens": most}
        refused(server, "/v1/completions", body, 400, "prompt", "context_length_exceeded")
    chat = {"messages": [{"role": "user", "content": "x" * 250}], "max_tokens": 20}
    refused(server, "/v1/chat/completions", chat, 400, "messages", "context_length_exceeded")
    refused(server, "/v1/score", {"text": "x" * 600, "context": "y"}, 400, "text", "context_length_exceeded")
    assert server.metric("tttnn_queue_seconds_count") == waited
    assert server.complete("x" * 249, max_tokens=7, tttnn={"mode": "base"})["usage"]["total_tokens"] == 256


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": SECRET, "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": "x", "tool_calls": []}], "messages[0].tool_calls"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": SECRET}]}], "messages[0].content[0].type"),
        ([{"role": "assistant", "content": "x"}], "messages"),
        ([{"role": "user", "content": "a <|endoftext|> b"}], "messages[0].content"),
    ],
)
def test_chats(server: Server, messages: Any, param: str) -> None:
    status, reply = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 2})
    assert (status, reply["error"]["param"]) == (400, param)
    assert SECRET not in str(reply)


def test_bodies(server: Server) -> None:
    for path in ROUTES:
        for body in (b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe{}", b'{"prompt": NaN}', b'{"a": "\\ud800"}'):
            assert server.request("POST", path, body)[0] == 400
        assert server.request("POST", path, b"[" * 15000)[0] == 400
        assert server.request("POST", path, b"{" + b" " * 20000 + b"}")[0] == 413
        assert server.request("POST", path, {"prompt": "x"}, {"content-type": "text/plain"})[0] == 415
        assert server.request("POST", path, b"{}", {"content-encoding": "gzip"})[0] == 415
        assert server.request("GET", path)[0] == 405
        assert server.request("OPTIONS", path, headers={"origin": "http://x"})[0] == 405
    for path in ("/nowhere", "/v1", "/v1/completions/", "/web/page.js", "/page.js/../x"):
        status, headers, body = server.request("GET", path)
        assert (status, json.loads(body)["error"]["code"]) == (404, "not_found")
        assert "access-control-allow-origin" not in headers


def test_a_body_in_pieces_is_measured_as_it_comes(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        connection.sendall((head + "transfer-encoding: chunked\r\n\r\n").encode())
        for _ in range(5):
            connection.sendall(b"1388\r\n" + b" " * 5000 + b"\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall((head + "content-length: 10\r\n\r\n{").encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_a_loss_that_is_not_a_number_names_the_document(server: Server) -> None:
    body = {"prompt": "Plain text", "max_tokens": 2, "tttnn": {"where": {"source": "B"}}}
    for stream in (False, True):
        if stream:
            told = events(server.raw("/v1/completions", body | {"stream": True}))
            assert told[-1] == "data: [DONE]"
            error = json.loads(told[-2][6:])["error"]
        else:
            status, reply = server.post("/v1/completions", body)
            assert status == 422
            error = reply["error"]
        assert error["code"] == "non_finite_loss"
        assert any(f"document {i}" in error["message"] for i in (10, 11, 12))
        assert SECRET not in str(error)
    assert server.metric('tttnn_verifications_total{result="changed"}') == 0
    assert server.metric('tttnn_verifications_total{result="same"}') > 0


def test_other_routes(server: Server) -> None:
    refused(server, "/v1/search", {"query": " "}, 400, "query")
    refused(server, "/v1/search", {"query": "x", "k": 0}, 400, "k")
    refused(server, "/v1/search", {"query": "x", "tttnn": {"query": "y"}}, 400, "tttnn.query")
    refused(server, "/v1/score", {"text": "x"}, 400, "tttnn.query", "missing_field")
    refused(server, "/v1/score", {"context": "x"}, 400, "text", "missing_field")
    refused(server, "/v1/embeddings", {"input": []}, 400, "input")
    refused(server, "/v1/embeddings", {"input": [1, 2]}, 400, "input")
    refused(server, "/v1/embeddings", {"input": "x", "dimensions": 5}, 400, "dimensions")
    refused(server, "/v1/embeddings", {"input": "x", "model": SECRET}, 404, "model")
    for report in ({}, {"steps": 1, "neighbors": [SECRET]}, {"steps": -1, "neighbors": [], "model": SECRET}, [], 5):
        refused(server, "/v1/replay", {"report": report}, 400, "report")
    whole = server.post("/v1/adapt", {"query": "Plain", "tttnn": {"where": {"source": "A"}}})[1]["report"]
    for changes in (
        {"model": SECRET},
        {"settings": {"optimizer": SECRET}},
        {"settings": 5},
        {"neighbors": [{"id": 10**9, "losses": []}]},
        {"neighbors": [whole["neighbors"][0] | {"span": SECRET}]},
        {"steps": 10**6, "neighbors": [whole["neighbors"][0] | {"distance": SECRET}]},
        {"guard": {"kept": SECRET}},
    ):
        status, reply = server.post("/v1/replay", {"report": whole | changes})
        assert status in (200, 400), (changes, reply)
        assert SECRET not in str(reply)


def test_the_plain_answers_still_come(server: Server) -> None:
    body = {"prompt": "Plain text", "max_tokens": 2, "stream": True, "tttnn": {"where": {"source": "A"}}}
    assert chunks(events(server.raw("/v1/completions", body)))
