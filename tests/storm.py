"""A seeded storm over a real server: what clients, operators and accidents do, and what must hold all along.

Knows the server from outside: sockets, signals, `/proc`, `/metrics`. Does not know its code.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tttnn
from tests.conftest import TEXTS
from tests.nonsense import nonsense
from tests.served import NAME, WAIT, Server, break_on_tilde, save_everything, wait_until

QUEUE = 20
"""Requests that may wait: the server's `--max-queue`."""

GROUP = {"A": range(30), "broken": range(30, 35), "C": range(35, 435)}
"""Documents of the datastore by source. A tilde makes the loss NaN; those of C are deleted one after the other."""

SLOW_SECONDS = 30.0
"""Seconds after which a slow reader reads on. A connection that the server has closed, and whose reader takes a byte
now and then for many minutes, is given up by the kernel: then there is no whole answer to compare."""

_A: dict[str, Any] = {"where": {"source": "A"}}
_EXACT = {"prompt": "The cat sat", "max_tokens": 8, "temperature": 0, "tttnn": _A}

QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", _EXACT),
    ("/v1/completions", _EXACT | {"prompt": "def quick", "max_tokens": 60, "tttnn": _A | {"num_neighbors": 25}}),
    ("/v1/completions", _EXACT | {"prompt": ["moon", "Bits per"], "temperature": 1, "seed": 5, "logprobs": 2}),
    ("/v1/completions", _EXACT | {"prompt": "moon", "echo": True, "tttnn": {"mode": "base"}}),
    ("/v1/completions", _EXACT | {"stop": [" "], "tttnn": _A | {"compare": True}}),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Bits"}], "max_tokens": 5, "temperature": 0, "tttnn": _A},
    ),
    ("/v1/embeddings", {"input": ["The cat sat", "moon"]}),
    ("/v1/search", {"query": "The cat sat", "k": 5, "tttnn": _A}),
    ("/v1/adapt", {"query": "Bits per byte", "tttnn": _A | {"num_neighbors": 7}}),
    ("/v1/score", {"text": "the mat. " * 20, "context": "The cat sat on", "tttnn": _A | {"compare": True}}),
]
"""What is asked again and again; each has one right answer, whatever happens beside it."""

BROKEN: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", _EXACT | {"tttnn": {"where": {"source": "broken"}}}),
    ("/v1/score", {"text": "moon", "context": "sun", "tttnn": {"where": {"source": "broken"}}}),
]
"""Their loss is NaN: each is a 422."""


def save_storm(folder: Path, tokenizer: Any) -> None:
    """Write a model whose loss is NaN on texts with a tilde, and a datastore with some of these."""
    save_everything(folder, tokenizer, documents=2)
    break_on_tilde(folder / NAME, tokenizer)
    texts = {"A": TEXTS, "broken": ["broken ~"], "C": ["short-lived"]}
    rows = [
        tttnn.Document(f"{texts[source][i % len(texts[source])]} copy {i}", {"pile_set_name": source})
        for source, ids in GROUP.items()
        for i in ids
    ]
    (folder / "store").rename(folder / "first")
    tttnn.Datastore.build(folder / "store", rows, tttnn.Embedder.load(str(folder / "encoder"))).close()


@dataclass(eq=False)
class _Asked:
    """A request whose answer was not read yet."""

    connection: socket.socket
    path: str
    body: dict[str, Any]
    right: Any
    """The answer; None: a refusal is right as well."""
    broken: bool = False
    slow: bool = False
    data: bytes = b""
    since: float = field(default_factory=time.monotonic)


@dataclass
class Storm:
    """One storm.

    Args:
        server: with `save_storm`'s model and datastore, and `--max-queue` of `QUEUE`.
        store: the datastore's directory.
        seed: of everything that is drawn.
    """

    server: Server
    store: Path
    seed: int
    seen: Counter[str] = field(default_factory=Counter)
    """What happened, by kind."""
    statuses: Counter[str] = field(default_factory=Counter)
    """Replies that were read, by status."""
    codes: Counter[str] = field(default_factory=Counter)
    """Refusals that were read, by code."""
    memory: list[tuple[int, int]] = field(default_factory=list)
    """MiB of the HTTP process and of its engines together, from time to time."""

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self._open: list[_Asked] = []
        self._killed: set[int] = set()
        self._deleted: set[int] = set()
        self._weights: str | None = None
        self._counters: dict[str, float] = {}
        self._right = [self._answer(*question) for question in QUESTIONS]
        self._first = self._scrape()
        self._descriptors = self._count_descriptors()

    def run(self, *, events: int = 0, seconds: float = 0.0, kills: int = 0) -> None:
        """Let so many events happen, or as many as come in a time, and prove that nothing was left behind.

        Raises:
            AssertionError: an answer was wrong or did not come, a counter fell, memory or descriptors grew.
        """
        began, i = time.monotonic(), 0
        # The last ones early enough that the engine's memory can be watched after them.
        kill_at = set(self._draw.sample(range(max(1, events * 4 // 5)), kills))
        looked = -1
        while i < events or time.monotonic() - began < seconds:
            self._event()
            if i in kill_at:
                self._kill()
            for asked in self._open:
                if asked.slow:
                    self._read_a_byte(asked)
            for asked in [asked for asked in self._open if asked.slow]:
                if time.monotonic() - asked.since > SLOW_SECONDS:
                    self._finish(asked)
            quick = [asked for asked in self._open if not asked.slow]
            while len(quick) > 6:
                self._finish(quick.pop(self._draw.randrange(len(quick))))
            i += 1
            part = int(10 * (i / events if events else (time.monotonic() - began) / seconds))
            if part > looked:
                looked = part
                self._look()
        while self._open:
            self._finish(self._open[0])
        self.seen["events"] = i
        self._end()

    # --- what happens ---

    def _event(self) -> None:
        draw = self._draw
        kinds = {self._ask: 40, self._leave: 20, self._ask_what_breaks: 8, self._ask_slowly: 5, self._delete: 8}
        kinds |= {self._send_nonsense: 8, self._freeze: 3, self._burst: 2, self._ask_too_late: 3}
        draw.choices(list(kinds), list(kinds.values()))[0]()

    def _ask(self, *, slow: bool = False) -> _Asked:
        number = self._draw.randrange(len(QUESTIONS))
        path, body = QUESTIONS[number]
        if path.endswith("completions") and "logprobs" not in body and self._draw.random() < 0.5:
            body = body | {"stream": True}
            if self._draw.random() < 0.5:
                body = body | {"tttnn": body["tttnn"] | {"events": True}}
        return self._send(_Asked(self._connected(slow), path, body, self._right[number], slow=slow))

    def _ask_what_breaks(self) -> None:
        path, body = self._draw.choice(BROKEN)
        stream = {"stream": True} if path == "/v1/completions" and self._draw.random() < 0.5 else {}
        self._send(_Asked(self._connected(), path, body | stream, None, broken=True))

    def _ask_slowly(self) -> None:
        if sum(asked.slow for asked in self._open) < 4:
            self._ask(slow=True)
            self.seen["slow"] += 1

    def _ask_too_late(self) -> None:
        path, body = QUESTIONS[1]
        self._send(_Asked(self._connected(), path, body | {"tttnn": body["tttnn"] | {"deadline_ms": 1}}, None))
        self.seen["too late"] += 1

    def _leave(self) -> None:
        asked = self._ask()
        self._open.remove(asked)
        self.seen["asked"] -= 1
        self.seen["left"] += 1
        if self._draw.random() < 0.5:
            asked.connection.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                asked.connection.recv(self._draw.choice([1, 100]))
        if self._draw.random() < 0.5:  # as a program that is killed
            asked.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        asked.connection.close()

    def _burst(self) -> None:
        """More than may wait, while no engine moves."""
        with self._frozen():
            for _ in range(QUEUE + 5):
                self._send(_Asked(self._connected(), *QUESTIONS[3], self._right[3]))

    def _send_nonsense(self) -> None:
        given = nonsense(self.seed, self._draw.randrange(10_000), "no-key")
        with self._connected() as connection, contextlib.suppress(ConnectionError, TimeoutError):
            for piece in given.pieces:
                connection.sendall(piece)
            connection.settimeout(0.05)
            connection.recv(100)
        self.seen["nonsense"] += 1

    def _freeze(self) -> None:
        with self._frozen():
            time.sleep(0.1)
        self.seen["frozen"] += 1

    @contextlib.contextmanager
    def _frozen(self) -> Iterator[None]:
        engines = self.server.engines()
        try:
            _signal(engines, signal.SIGSTOP)
            yield
        finally:
            _signal(engines, signal.SIGCONT)

    def _kill(self) -> None:
        wait_until(lambda: bool(self._ready()), "an engine that is ready")
        (engine,) = self._draw.sample(self.server.engines(), 1)
        os.kill(engine, signal.SIGKILL)
        self._killed.add(engine)
        self.seen["killed"] += 1

    def _ready(self) -> list[int]:
        """Return the engines, where all of them have loaded and none has died of late."""
        # In this order: the server may not have noticed yet that one is dead, and counts it as ready.
        engines = self.server.engines()
        ready = self.server.metric("tttnn_engines_ready")
        return engines if len(engines) == ready and not self._killed & set(engines) else []

    def _delete(self) -> None:
        left = [i for i in GROUP["C"] if i not in self._deleted]
        if not left:
            return
        gone = self._draw.choice(left)
        with tttnn.Datastore.open(self.store) as opened:
            opened.delete([gone])
        self._deleted.add(gone)
        self.seen["deleted"] += 1
        body = {"query": f"short-lived copy {gone}", "k": 5, "tttnn": {"where": {"source": "C"}}}
        asked = self._send(_Asked(self._connected(), "/v1/search", body, None))
        self._finish(asked)
        if b'"data"' in asked.data:
            found = {row["id"] for row in json.loads(_parsed(asked.data)[1])["data"]}
            assert found, "documents of C are left, and none was found"
            assert not found & self._deleted, f"deleted documents were found: {found & self._deleted}"

    # --- requests ---

    def _connected(self, slow: bool = False) -> socket.socket:
        connection = socket.socket()
        connection.settimeout(WAIT)
        if slow:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        connection.connect(("127.0.0.1", self.server.port))
        return connection

    def _send(self, asked: _Asked) -> _Asked:
        data = json.dumps(asked.body).encode()
        head = f"POST {asked.path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
        asked.connection.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        self.seen["asked"] += 1
        self._open.append(asked)
        return asked

    def _read_a_byte(self, asked: _Asked) -> None:
        asked.connection.settimeout(0.001)
        with contextlib.suppress(TimeoutError):
            asked.data += asked.connection.recv(1)

    def _finish(self, asked: _Asked) -> None:
        """Read an answer to its end; it is the right one, or the server says why there is none."""
        self._open.remove(asked)
        with asked.connection:
            asked.connection.settimeout(WAIT)
            while part := asked.connection.recv(65536):
                asked.data += part
        status, text = _parsed(asked.data)
        self.statuses[str(status)] += 1
        stream = bool(asked.body.get("stream")) and status == 200
        code = _refused(text, stream) if stream or status != 200 else None
        where = f"{asked.path} {asked.body}: {status} {text[:2000]!r}"
        if code is None:
            assert not asked.broken, where
            said = _streamed(text) if stream else json.loads(text)
            self._same_weights(said)
            assert asked.right is None or _plain(said, stream) == _plain(asked.right, stream), where
            self.seen["answered"] += 1
            return
        self.codes[code] += 1
        allowed = {"engine_died": 503, "non_finite_loss": 422, "queue_full": 429, "would_miss_deadline": 429}
        assert stream or allowed.get(code) == status, where
        assert (code == "non_finite_loss") == asked.broken or code in ("engine_died", "queue_full"), where
        assert code != "would_miss_deadline" or "deadline_ms" in asked.body["tttnn"], where

    def _answer(self, path: str, body: dict[str, Any]) -> Any:
        status, reply = self.server.post(path, body)
        assert status == 200, reply
        self._same_weights(reply)
        return reply

    def _same_weights(self, reply: Any) -> None:
        digest = reply.get("tttnn", {}).get("weights")
        self._weights = self._weights or digest
        assert digest in (None, self._weights), "the weights' digest has changed"

    # --- what must hold ---

    def _scrape(self) -> dict[str, float]:
        """Return all samples; a counter never falls."""
        lines = [line for line in self.server.get("/metrics")[1].splitlines() if not line.startswith("#")]
        found = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}
        gauges = ("tttnn_requests_waiting", "tttnn_requests_running", "tttnn_backlog_seconds", "tttnn_engines_ready")
        for name, value in self._counters.items():
            assert name in gauges or found[name] >= value, f"{name} fell from {value} to {found.get(name)}"
        assert found["tttnn_requests_waiting"] <= QUEUE
        self._counters = found
        return found

    def _look(self) -> None:
        self._scrape()
        engines = sum(_resident(engine) for engine in self.server.engines())
        self.memory.append((_resident(self.server.process.pid), engines))

    def _count_descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.server.process.pid}/fd"))

    def _counted(self, end: dict[str, float], name: str) -> Counter[str]:
        """Return how far the samples of a counter went since the storm began, by the value of their last label."""
        found: Counter[str] = Counter()
        for sample, value in end.items():
            if sample.startswith(name + "{"):
                found[sample.split('"')[-2]] += int(value - self._first.get(sample, 0.0))
        return found

    def _end(self) -> None:
        server, seen = self.server, self.seen
        wait_until(lambda: sum(server.metric(f"tttnn_requests_{kind}") for kind in ("running", "waiting")) == 0, "idle")
        wait_until(lambda: server.get("/ready")[0] == 200, "a ready server")
        wait_until(lambda: len(server.engines()) == server.metric("tttnn_engines_ready"), "every engine")
        for question, right in zip(QUESTIONS, self._right, strict=True):
            assert _plain(self._answer(*question), False) == _plain(right, False), question
        end = self._scrape()
        assert end['tttnn_verifications_total{result="changed"}'] == 0
        assert end['tttnn_verifications_total{result="same"}'] > self._first['tttnn_verifications_total{result="same"}']
        restarts = self._counted(end, "tttnn_engine_restarts_total")
        assert restarts == Counter({"died": seen["killed"]})
        assert self.codes["engine_died"] <= seen["killed"]
        # What was read was counted; what is counted beyond that was sent by those who left or sent nonsense.
        loose = seen["left"] + seen["nonsense"]
        for name, read in (("tttnn_requests_total", self.statuses), ("tttnn_refusals_total", self.codes)):
            counted = self._counted(end, name)
            for label, count in read.items():
                own = len(QUESTIONS) if (name, label) == ("tttnn_requests_total", "200") else 0
                probes = sum(value for sample, value in end.items() if _is_probe(sample)) if own else 0
                assert count <= counted[label] <= count + loose + own + probes, (name, label, count, counted)
        assert "internal_error" not in server.errors()
        assert not self._counted(end, "tttnn_requests_total").keys() & {"500"}
        wait_until(lambda: self._count_descriptors() <= self._descriptors, "no descriptor more than before")
        self._look()
        # From the second look on, when everything has been used once; the engines' from the last kill on.
        assert self.memory[-1][0] - self.memory[1][0] < 20, f"the HTTP process grows: {self.memory}"
        assert self.memory[-1][1] - self.memory[-3][1] < 60, f"an engine grows: {self.memory}"


def _is_probe(sample: str) -> bool:
    """Whether a sample counts requests that watch the server."""
    return sample.startswith("tttnn_requests_total") and any(f'"{path}"' in sample for path in ("/metrics", "/ready"))


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _resident(pid: int) -> int:
    """Return the MiB that a process has in memory."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    except OSError:
        return 0


class _Bytes:
    """What `HTTPResponse` reads from, in place of a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def _parsed(data: bytes) -> tuple[int, str]:
    """Return status and body of a reply, which must be whole."""
    response = http.client.HTTPResponse(_Bytes(data))  # type: ignore[arg-type]
    response.begin()
    return response.status, response.read().decode()


def _refused(text: str, stream: bool) -> str | None:
    """Return the code of a refusal, or of the last frame of a stream; None where there is none."""
    if stream:
        parts = text.strip().split("\n\n")
        assert parts[-1] == "data: [DONE]", text[-500:]
        text = parts[-2].removeprefix("data: ")
    code: str | None = json.loads(text).get("error", {}).get("code")
    return code


def _streamed(text: str) -> dict[str, Any]:
    """Put the chunks of a stream together as one reply."""
    parts = [part for part in text.split("\n\n") if part.startswith("data: {")]
    chunks = [json.loads(part[6:]) for part in parts]
    choices: dict[int, dict[str, Any]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        held = choices.setdefault(choice["index"], {"text": "", "finish_reason": None})
        held["text"] += choice["delta"].get("content") or "" if "delta" in choice else choice["text"]
        held["finish_reason"] = choice["finish_reason"] or held["finish_reason"]
    return {"choices": [choices[i] for i in sorted(choices)], "tttnn": chunks[-1]["tttnn"]}


def _plain(reply: dict[str, Any], stream: bool) -> Any:
    """Return what an answer says, without ids and times; of choices what a stream tells too, where one is compared."""
    if "choices" in reply and stream:
        return [(c["text"] if "text" in c else c["message"]["content"], c["finish_reason"]) for c in reply["choices"]]
    if "choices" in reply:
        return reply["choices"], reply["tttnn"].get("base")
    if "report" in reply and "nats" not in reply:
        return [neighbor["losses"] for neighbor in reply["report"]["neighbors"]]
    return reply["nats"] if "nats" in reply else reply["data"]
