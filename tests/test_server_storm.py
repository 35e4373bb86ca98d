"""A seeded storm: clients that leave, engines that are killed, losses that are NaN, slow readers, deletions."""

from __future__ import annotations

import os
import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tttnn
from tests.conftest import TEXTS
from tests.served import NAME, Server, break_on_tilde, save_everything, wait_until

pytest.importorskip("uvicorn")

CANARY = {"prompt": "The cat sat", "max_tokens": 8, "temperature": 0, "tttnn": {"where": {"source": "A"}}}


def save_storm(folder: Path, tokenizer: Any) -> None:
    """Write a model whose loss is NaN on texts with a tilde, and a datastore with some of these."""
    save_everything(folder, tokenizer, documents=2)
    break_on_tilde(folder / NAME, tokenizer)
    rows = [tttnn.Document(f"{TEXTS[i % 5]} copy {i}", {"pile_set_name": "A"}) for i in range(30)]
    rows += [tttnn.Document(f"broken ~ {i}", {"pile_set_name": "broken"}) for i in range(5)]
    rows += [tttnn.Document(f"short-lived {i}", {"pile_set_name": "C"}) for i in range(50)]
    (folder / "store").rename(folder / "first")
    tttnn.Datastore.build(folder / "store", rows, tttnn.Embedder.load(str(folder / "encoder"))).close()


@pytest.fixture
def server(tmp_path: Path, tokenizer: Any) -> Iterator[Server]:
    save_storm(tmp_path, tokenizer)
    flags = ("--verify-every", "1", "--comment-seconds", "0.05", "--max-queue", "20", "--stall-seconds", "60")
    running = Server(tmp_path, *flags, "--reuse", "2", "--max-queue-seconds", "100000")
    yield running
    assert running.stop() == 0


def test_a_storm_of_sixty(server: Server, tmp_path: Path) -> None:
    run_storm(server, tmp_path / "store", seed=1, count=60, kills=2)


def descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def resident(server: Server) -> int:
    """Return the bytes in memory of the HTTP process."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def run_storm(server: Server, store: Path, *, seed: int, count: int, kills: int) -> dict[str, int]:
    """Do what clients, operators and accidents do, and prove after it that nothing was left behind."""
    draw = random.Random(seed)
    seen = dict.fromkeys(("answered", "refused", "left", "non_finite", "killed", "died", "deleted"), 0)
    canary = server.complete(**CANARY)["choices"]
    kill_at = set(draw.sample(range(count), kills))
    short_lived = list(range(35, 85))
    open_ones: list[tuple[socket.socket, bool]] = []
    before, used = descriptors(server), resident(server)

    def finish(connection: socket.socket, stream: bool) -> None:
        data = b""
        with connection:
            try:
                while part := connection.recv(65536):
                    data += part
                    if data.endswith(b"0\r\n\r\n") or (not stream and _whole(data)):
                        break
            except ConnectionError:
                pass
        assert data.startswith(b"HTTP/1.1 "), data[:100]
        status = int(data.split(b" ", 2)[1])
        if b"non_finite_loss" in data:
            seen["non_finite"] += 1
        elif b"engine_died" in data:
            seen["died"] += 1
        elif status in (429, 503):
            seen["refused"] += 1
        else:
            assert status == 200, data[:500]
            assert not stream or (data.rstrip().endswith(b"0") and b"[DONE]" in data)
            seen["answered"] += 1

    for i in range(count):
        stream = draw.random() < 0.5
        source = draw.choice(["A", "A", "A", "broken"])
        body = {
            "prompt": draw.choice(["The cat sat", "def quick", "Bits per", "moon"]),
            "max_tokens": draw.choice([1, 8, 60]),
            "temperature": draw.choice([0, 1]),
            "stream": stream,
            "tttnn": {"num_neighbors": draw.choice([0, 3, 25]), "where": {"source": source}},
        }
        if draw.random() < 0.3:
            body["tttnn"] |= {"compare": True, "events": True}  # type: ignore[operator]
        connection = server.raw("/v1/completions", body)
        fate = draw.random()
        if fate < 0.3:
            if stream and draw.random() < 0.5:
                connection.recv(draw.choice([1, 100]))
            if draw.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            connection.close()
            seen["left"] += 1
        else:
            open_ones.append((connection, stream))
        if i in kill_at:
            for engine in server.engines():
                os.kill(engine, signal.SIGKILL)
            seen["killed"] += 1
        if draw.random() < 0.1 and short_lived:
            with tttnn.Datastore.open(store) as opened:
                opened.delete([short_lived.pop()])
            seen["deleted"] += 1
        while len(open_ones) > 6:
            finish(*open_ones.pop(draw.randrange(len(open_ones))))
    for connection, stream in open_ones:
        finish(connection, stream)
    wait_until(
        lambda: server.metric("tttnn_requests_running") + server.metric("tttnn_requests_waiting") == 0, "an idle server"
    )
    wait_until(lambda: server.get("/ready")[0] == 200, "a ready server")
    assert server.complete(**CANARY)["choices"] == canary
    assert server.metric('tttnn_verifications_total{result="changed"}') == 0
    assert server.metric('tttnn_engine_restarts_total{reason="unsound"}') == 0
    assert server.metric('tttnn_engine_restarts_total{reason="died"}') <= seen["killed"]
    assert "internal_error" not in server.errors()
    wait_until(lambda: descriptors(server) <= before + 2, "no descriptor more than before")
    assert resident(server) < used + 50 * 2**20
    return seen


def _whole(data: bytes) -> bool:
    head, _, body = data.partition(b"\r\n\r\n")
    length = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(length) and len(body) >= length[0]
