"""Nonsense at every route, by a seed: no fault of ours, no hang, nothing told that must not be.

python -m pytest tests/test_server_fuzz.py --thorough      # 10,000 inputs
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tttnn
from tests.conftest import TEXTS
from tests.nonsense import MARK, POSTED, Input, nonsense
from tests.served import NAME, WAIT, Server, break_on_tilde, save_everything

pytest.importorskip("uvicorn")

from tttnn.server.serving import listen

KEY = "Kq7-secret-key-Zx9"
SEED = 0

_LOGGED = ("Invalid HTTP request received.", "Unsupported upgrade request.", "No supported WebSocket library detected.")
"""What uvicorn logs of what is no HTTP, and of who would rather speak something else."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    made = tmp_path_factory.mktemp("nonsense")
    save_everything(made, tokenizer, documents=2)
    break_on_tilde(made / NAME, tokenizer)
    rows = [tttnn.Document(f"{TEXTS[i % 5]} copy {i}", {"pile_set_name": "A"}) for i in range(10)]
    rows += [tttnn.Document(f"broken ~ {i}", {"pile_set_name": "B"}) for i in range(3)]
    (made / "store").rename(made / "first")
    tttnn.Datastore.build(made / "store", rows, tttnn.Embedder.load(str(made / "encoder"))).close()
    (made / "keys").write_text(KEY + "\n")
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    flags = ("--max-body-bytes", "20000", "--max-neighbors", "10", "--max-score-tokens", "500", "--verify-every", "1")
    running = Server(folder, *flags, "--body-seconds", "1", "--api-key-file", str(folder / "keys"))
    yield running
    assert running.stop() == 0


@pytest.fixture
def count(request: pytest.FixtureRequest) -> int:
    return 10_000 if request.config.getoption("--thorough") else 1_000


def test_nonsense_is_never_our_fault(server: Server, folder: Path, count: int) -> None:
    mine = {"authorization": f"Bearer {KEY}"}
    asked = {path: body for path, body in POSTED if path in ("/v1/completions", "/v1/search")}
    right = {path: _plain(server.post(path, body, mine)) for path, body in asked.items()}
    seen: Counter[tuple[str, int]] = Counter()
    secrets = [KEY.encode(), str(folder).encode(), b"Traceback", b"site-packages"]
    for number in range(count):
        given = nonsense(SEED, number, KEY)
        said, lost = _sent(server, given)
        for status, head, body in replies(said):
            where = f"input {number} of seed {SEED}: {given}\n{status} {head!r}\n{body[:2000]!r}"
            seen[given.kind.removesuffix(", cut"), status] += 1
            assert status < 500, where
            assert not any(secret in head or secret in body for secret in secrets), where
            assert MARK.encode() not in head, where
            assert status < 400 or (len(body) <= 4096 and MARK.encode() not in body), where
        assert said or given.ends or lost, f"input {number} of seed {SEED} has no answer: {given}"
        if number % 10 == 9 or number == count - 1:
            for path, body in asked.items():
                assert _plain(server.post(path, body, mine)) == right[path], f"after input {number} of seed {SEED}"
    for kind in {kind for kind, _ in seen}:
        print(kind, dict(sorted((status, n) for (one, status), n in seen.items() if one == kind)))
    assert {status for _, status in seen} >= {200, 400, 401, 404, 405, 413, 415, 422}
    assert server.metric('tttnn_verifications_total{result="changed"}', mine) == 0
    assert server.metric('tttnn_engine_restarts_total{reason="died"}', mine) == 0
    log = server.errors()
    others = [line for line in log.splitlines()[1:] if not line.startswith('{"time"')]
    assert all(line.startswith(_LOGGED) for line in others), set(others)
    assert KEY not in log
    assert MARK not in log


def test_a_head_that_does_not_come_is_not_waited_for(server: Server) -> None:
    """Each would hold a descriptor for as long as its client likes. The server was told to wait a second."""
    half, whole = b"GET /live HTTP/1.1\r\nhost:", b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n"
    connections = []
    for said in (b"", half, whole + half, whole + whole + half):
        connections.append(socket.create_connection(("127.0.0.1", server.port), timeout=WAIT))
        connections[-1].sendall(said)
    for connection, answers in zip(connections, (0, 0, 1, 2), strict=True):
        data = b""
        while part := connection.recv(65536):
            data += part
        assert data.count(b"HTTP/1.1 200") == answers
        connection.close()


def test_a_reply_does_not_wait_for_what_its_client_acknowledges() -> None:
    """Nagle's rule is off: a reply's head and body are written one after the other."""

    async def accepted() -> int:
        options: asyncio.Queue[int] = asyncio.Queue()

        def look(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            options.put_nowait(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = listen("127.0.0.1", 0)
        async with await asyncio.start_server(look, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            option = await options.get()
            writer.close()
            await writer.wait_closed()
        return option

    assert asyncio.run(accepted()) == 1


def _plain(reply: tuple[int, Any]) -> Any:
    """Return what an answer says, without ids and times."""
    status, said = reply
    assert status == 200, said
    return said.get("choices") or said.get("data")


def _sent(server: Server, given: Input) -> tuple[bytes, bool]:
    """Send an input; return what comes back until the server closes, and whether that may be lost.

    A body that is too large is not read to its end: where the server closes with bytes unread, the kernel resets the
    connection, and the answer that was on its way may go with it.
    """
    said, lost = b"", False
    with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) as connection:
        try:
            for piece in given.pieces:
                connection.sendall(piece)
            if given.ends:
                connection.settimeout(0.08)  # for an answer before the end is said
                try:
                    while part := connection.recv(65536):
                        said += part
                except TimeoutError:
                    connection.settimeout(WAIT)
                    connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                said += part
        except ConnectionError:
            lost = sum(map(len, given.pieces)) > 20_000
    return said, lost


def replies(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Split what a server said into status, head and body of each reply."""
    while data:
        found = re.match(rb"HTTP/1\.1 (\d{3})[ \r]", data)
        assert found is not None, data[:200]
        assert b"\r\n\r\n" in data, data[:200]
        head, _, data = data.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: *(\d+)", head.lower())
        whole = b"transfer-encoding: chunked" in head.lower() or length is None
        size = 0 if found[1] == b"100" else len(data) if whole else int(length[1]) if length else 0
        if data[:9] == b"HTTP/1.1 ":
            size = 0  # the answer to a HEAD
        yield int(found[1]), head, data[:size]
        data = data[size:]
