"""Requests that no client should send, drawn by a seed: bytes for a raw socket.

Knows HTTP and the fields of every route. Does not know servers: what becomes of the bytes is the test's.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MARK = "Xyzzy!4711"
"""Stands in what is sent, and so in no error, no header and no log."""

POSTED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "Plain", "max_tokens": 2, "temperature": 0, "tttnn": {"mode": "base"}}),
    ("/v1/completions", {"prompt": ["Plain", [5, 6]], "max_tokens": 1, "tttnn": {"num_neighbors": 1, "query": "cat"}}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Plain"}], "max_tokens": 2}),
    ("/v1/embeddings", {"input": ["Plain"], "encoding_format": "float"}),
    ("/v1/search", {"query": "Plain", "k": 2, "tttnn": {"where": {"source": ["A"]}}}),
    ("/v1/adapt", {"query": "Plain", "tttnn": {"num_neighbors": 1, "where": {"source": "A"}}}),
    ("/v1/score", {"text": "Plain", "context": "text", "tttnn": {"num_neighbors": 0, "exclude_digests": []}}),
    ("/v1/replay", {"report": {"steps": 1, "neighbors": [], "model": "x", "settings": {}, "query_digest": ""}}),
]
GOT = ["/", "/page.js", "/page.css", "/page.svg", "/live", "/ready", "/health", "/metrics", "/info", "/v1/models"]

_FIELDS = [
    *("stream", "stop", "logprobs", "echo", "seed", "tttnn", "model", "n", "user", "k", "top_p", "max_tokens"),
    *("compare", "events", "mode", "deadline_ms", "guard", "query", "encoding_format", "prompt", "report"),
    *("messages", "where", "source", "exclude_digests", "cache_salt", "num_neighbors", "temperature", "best_of"),
    *("suffix", "stream_options", "top_logprobs", "max_completion_tokens", "tools", "response_format", "input"),
    *("dimensions", "text", "context"),
]

_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 10**30, 1e308, -(2**63), 2**63 - 1, 2**64, 0.5, -0.0, 1e-320),
    *("", " ", "\x00", "💥", "é" * 300, MARK, "A", "exact", "none", "base64", "<|endoftext|>", "../../etc/passwd"),
    *("{{ 7 * 7 }}", "\ufeff", "\u202e" + MARK, "a" * 5000, [], {}, [[]], [None], [{}], {"a": {"b": []}}, [1, 2, 3]),
    *(["x", 1], [MARK] * 20, {MARK: MARK}, {"source": [MARK]}, [256, 256], [{"role": "user", "content": MARK}]),
]

_METHODS = [
    "GET",
    "PUT",
    "DELETE",
    "PATCH",
    "HEAD",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "get",
    "P\u00d6ST",
    "X" * 300,
    "A-B",
]

_PATHS = [
    *("/", "//", "/..", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page.js/..", "/v1", "/v1/", "/v1/nowhere"),
    *("/v1/completions/", "//v1/completions", "/V1/COMPLETIONS", "/v1/completions%00", "/v1/completions%2f", "/%ff%fe"),
    *(
        "/v1/completions?a=b&" + MARK,
        "/live?" + "x" * 3000,
        "/" + "a" * 6000,
        "*",
        "http://other/live",
        "/live#" + MARK,
    ),
    *("/web/page.html", "/page.py", "/%", "/%zz", "/\u00e9", "/v1/comp\tletions", "live", "/metrics;a", "/\\..\\x"),
]

_HEADERS: list[bytes] = [
    *(b"accept: " + b"x" * 500, b"x-odd: " + b"y" * 20_000, b"cookie: " + b"z=1; " * 9000, b"x-\xff: \xfe", b": none"),
    *(b"no colon here", b" folded: yes", b"x: a\r\n b", b"x: \x00\x01", b"host: again", b"host:", b"content-length: 0"),
    *(b"content-length: -1", b"content-length: 99999999999999999999", b"content-length: 1e3", b"content-length: 5, 5"),
    *(b"transfer-encoding: chunked", b"transfer-encoding: gzip, chunked", b"transfer-encoding: identity"),
    *(
        b"content-type: text/plain",
        b"content-type: application/json; charset=utf-16",
        b"content-type:",
        b"expect: 100-continue",
    ),
    *(b"content-type: multipart/form-data; boundary=" + b"b" * 500, b"content-encoding: gzip", b"upgrade: websocket"),
    *(b"connection: upgrade", b"connection: keep-alive, close", b"origin: http://other", b"range: bytes=0-1000000000"),
    *(
        b"authorization: Bearer",
        b"authorization: Basic !!!!",
        b"authorization: Bearer \xc3\xa9",
        b"authorization: Digest a",
    ),
    *(
        b"authorization: Bearer " + MARK.encode(),
        b"authorization: Basic /////w==",
        b"x-forwarded-for: " + MARK.encode(),
    ),
    *(b"x-request-id: " + MARK.encode(), b"if-none-match: *", b"te: trailers", b"http2-settings: AAMAAABk"),
]

_STRANGE: list[bytes] = [
    *(
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /live\r\n\r\n",
        b"\r\n\r\n",
    ),
    *(
        b"GET /live HTTP/9.9\r\n\r\n",
        b"GET  /live  HTTP/1.1\r\n\r\n",
        b"GET /live HTTP/1.1\n\n",
        b"\x00" * 100,
        b"A" * 100_000,
    ),
    *(
        b"GET /live HTTP/1.0\r\n\r\n",
        b"GET /live HTTP/1.1\r\n\r\n",
        b"GET /live HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    ),
    *(b"SSH-2.0-OpenSSH_9.6\r\n", b"*1\r\n$4\r\nPING\r\n", b"GET /live HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n"),
]


@dataclass(frozen=True)
class Input:
    """What is sent, piece by piece, and whether the sender then says that nothing more will come."""

    kind: str
    pieces: tuple[bytes, ...]
    ends: bool
    """The sender closes its side: the server owes no answer."""


def nonsense(seed: int, number: int, key: str) -> Input:
    """Return one input; the same for the same arguments. `key` is one that the server takes."""
    draw = random.Random(f"{seed}/{number}")
    kind, _, make = draw.choices(_KINDS, [weight for _, weight, _ in _KINDS])[0]
    data, ends = make(draw, key)
    if draw.random() < 0.1:
        cut = draw.randrange(len(data)) if data else 0
        return Input(kind + ", cut", (data[:cut],), True)
    if draw.random() < 0.2 and len(data) > 2:
        places = sorted(draw.sample(range(1, len(data)), min(3, len(data) - 1)))
        pieces = tuple(data[i:j] for i, j in zip([0, *places], [*places, len(data)], strict=True))
        return Input(kind, pieces, ends)
    return Input(kind, (data,), ends)


def request(
    method: str,
    path: str,
    body: bytes | None,
    key: str,
    *more: bytes,
    without: tuple[str, ...] = (),
    close: bool = True,
) -> bytes:
    """Return a request as bytes; `without` names headers that are left out."""
    headers = {"host": b"x", "authorization": b"Bearer " + key.encode()}
    if body is not None:
        headers |= {"content-type": b"application/json", "content-length": str(len(body)).encode()}
    if close:
        headers["connection"] = b"close"
    lines = [f"{method} {path} HTTP/1.1".encode()]
    lines += [name.encode() + b": " + value for name, value in headers.items() if name not in without]
    return b"\r\n".join([*lines, *more]) + b"\r\n\r\n" + (body or b"")


Made = tuple[bytes, bool]
"""Bytes, and whether the sender then closes its side."""


def _fields(draw: random.Random, key: str) -> Made:
    path, body = _spoiled(draw)
    return request("POST", path, json.dumps(body).encode(), key), False


def _bodies(draw: random.Random, key: str) -> Made:
    path, body = draw.choice(POSTED)
    text = json.dumps(body)
    data = text.encode()
    made = draw.choice(
        [
            lambda: data[: draw.randrange(len(data))],
            lambda: draw.randbytes(draw.randint(0, 200)),
            lambda: _flipped(draw, data),
            lambda: text.encode("utf-16"),
            lambda: b"\xef\xbb\xbf" + data,
            lambda: gzip.compress(data),
            lambda: data + data,
            lambda: data[:-1] + b', "x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
            lambda: data[:-1] + b', "seed": ' + b"9" * draw.choice([400, 5000]) + b"}",
            lambda: data[:-1] + b', "temperature": 1e999}',
            lambda: data[:-1] + b', "prompt": "\\ud800", "prompt": NaN}',
            lambda: data[:-1] + b', "user": "' + b"u" * draw.choice([19_000, 60_000]) + b'"}',
            lambda: data + b" " * draw.choice([100, 40_000]),
            lambda: b"",
            lambda: json.dumps(draw.choice(_VALUES)).encode(),
        ]
    )()
    return request("POST", path, made, key), False


def _flipped(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randint(1, 5)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def _heads(draw: random.Random, key: str) -> Made:
    more = [draw.choice(_HEADERS) for _ in range(draw.randint(1, 3))]
    without = tuple(draw.sample(["host", "authorization", "content-type", "content-length"], draw.choice([0, 0, 1, 2])))
    if draw.random() < 0.3:
        return request("GET", draw.choice(GOT), None, key, *more, without=without), True
    path, body = _spoiled(draw) if draw.random() < 0.5 else draw.choice(POSTED)
    # What says its own length wrongly may leave the server waiting for the rest: the sender ends.
    return request("POST", path, json.dumps(body).encode(), key, *more, without=without), True


def _places(draw: random.Random, key: str) -> Made:
    method = draw.choice(["GET", "POST", *_METHODS])
    path = draw.choice([*_PATHS, *GOT, *(path for path, _ in POSTED)])
    body = json.dumps(_spoiled(draw)[1]).encode() if draw.random() < 0.5 else None
    data = request(method, "\x00", body, key).replace(b" \x00 ", b" " + path.encode("utf-8", "replace") + b" ", 1)
    return data, True


def _chunks(draw: random.Random, key: str) -> Made:
    path, body = draw.choice(POSTED)
    data = json.dumps(body).encode()
    head = request("POST", path, b"", key, b"transfer-encoding: chunked", without=("content-length",))
    cut = draw.randrange(len(data))
    parts = [data[:cut], data[cut:]] if cut else [data]
    whole = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    end = draw.choice([b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nx-trailer: 1\r\n\r\n", b"0;a=b\r\n\r\n"])
    if draw.random() < 0.4:
        return head + whole + end, False
    wrong = [
        b"zz\r\n\r\n",
        b"-1\r\n",
        b"ffffffffffffffff\r\nx",
        b"5\r\nabc\r\n0\r\n\r\n",
        b"5;" + b"e" * 20_000 + b"\r\n",
    ]
    return head + (whole if draw.random() < 0.5 else b"") + draw.choice(wrong), True


def _strange(draw: random.Random, key: str) -> Made:
    if draw.random() < 0.5:
        return draw.choice(_STRANGE), True
    return draw.randbytes(draw.randint(1, 2000)), True


def _several(draw: random.Random, key: str) -> Made:
    first = draw.choice(
        [
            request("GET", "/live", None, key, close=False),
            request("POST", *_posted(draw), key, close=False),
            request("POST", "/v1/search", b"{", key, close=False),
            request("HEAD", "/live", None, key, close=False),
            request("GET", "/live", b"left over " * 10, key, without=("content-length",), close=False),
        ]
    )
    return first + request("POST", *_posted(draw), key), True


def _doors(draw: random.Random, key: str) -> Made:
    path, body = draw.choice(POSTED)
    wrong = [
        *(
            b"authorization: Bearer " + one
            for one in (b"", key[:-1].encode(), key.encode() + b"x", key.upper().encode())
        ),
        *(
            b"authorization: " + one
            for one in (key.encode(), b"Basic " + key.encode(), b"bearer\t" + key.encode(), b"\xff")
        ),
        b"authorization: Bearer " + key.encode() + b", Bearer " + MARK.encode(),
    ]
    return request("POST", path, json.dumps(body).encode(), key, draw.choice(wrong), without=("authorization",)), False


def _posted(draw: random.Random) -> tuple[str, bytes]:
    path, body = draw.choice(POSTED)
    return path, json.dumps(body).encode()


_KINDS: list[tuple[str, int, Callable[[random.Random, str], Made]]] = [
    ("fields", 10, _fields),
    ("body", 5, _bodies),
    ("headers", 5, _heads),
    ("method and path", 4, _places),
    ("chunks", 2, _chunks),
    ("no HTTP", 1, _strange),
    ("several at once", 2, _several),
    ("keys", 1, _doors),
]
"""Each with how often it is drawn."""


def _spoiled(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """Return a route and a good body with one to three things changed in it."""
    path, body = draw.choice(POSTED)
    body = copy.deepcopy(body)
    for _ in range(draw.randint(1, 3)):
        _spoil(draw, body)
    return path, body


def _spoil(draw: random.Random, value: Any) -> None:
    """Change one thing somewhere in an object."""
    while True:
        keys = list(value.keys()) if isinstance(value, dict) else list(range(len(value)))
        deeper = [key for key in keys if isinstance(value[key], dict | list) and value[key]]
        if not deeper or draw.random() >= 0.6:
            break
        value = value[draw.choice(deeper)]
    kind = draw.random()
    odd = copy.deepcopy(draw.choice(_VALUES))
    if isinstance(value, dict) and kind < 0.4:
        value[draw.choice(_FIELDS)] = odd
    elif keys and kind < 0.9:
        value[draw.choice(keys)] = odd
    elif isinstance(value, dict) and keys:
        del value[draw.choice(keys)]
    elif isinstance(value, list):
        value.append(odd)
