"""The server as a part of another application, under a prefix: a real uvicorn, asked from outside."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.served import NAME, Server, wait_until

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

PARENT = """
import contextlib, pathlib, socket, sys

import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import tttnn
from tttnn.server import create_app

folder, lives, keys = pathlib.Path(sys.argv[1]), sys.argv[2] == "entered", sys.argv[3:]
recipe = tttnn.TrainerRecipe(
    str(folder / "tiny"),
    str(folder / "store"),
    tttnn.AdaptConfig(num_neighbors=3, max_length=64, learning_rate=1e-3, precision="float32"),
    threads=1,
)
app = create_app(recipe, tttnn.ServeConfig(), api_keys=keys)


@contextlib.asynccontextmanager
async def lifespan(parent):
    async with app.running():
        yield


async def hello(request):
    return PlainTextResponse(f"hello from the parent of {request.app is parent}")


routes = [Route("/hello", hello), Mount("/tttnn", app=app)]
parent = Starlette(routes=routes, lifespan=lifespan if lives else None)
listening = socket.socket()
listening.bind(("127.0.0.1", 0))
listening.listen(64)
print(f"http://127.0.0.1:{listening.getsockname()[1]}/", file=sys.stderr, flush=True)
uvicorn.Server(uvicorn.Config(parent, log_level="warning")).run(sockets=[listening])
"""


class Mounted(Server):
    """The parent in a process of its own, asked like a server."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        script = folder / "parent.py"
        script.write_text(PARENT)
        self.log = folder / f"log-{arguments[0]}"
        self.started([sys.executable, str(script), str(folder), *arguments])


@pytest.fixture(scope="module", params=["entered", "left alone"])
def parent(request: pytest.FixtureRequest, folder: Path) -> Iterator[Mounted]:
    running = Mounted(folder, request.param)
    yield running
    running.stop()


def test_it_answers_under_a_prefix(parent: Mounted) -> None:
    assert parent.get("/hello") == (200, "hello from the parent of True")
    wait_until(lambda: parent.get("/tttnn/ready")[0] == 200, f"a ready server: {parent.errors()}")
    status, reply = parent.post("/tttnn/v1/completions", {"prompt": "The cat", "max_tokens": 4, "temperature": 0})
    assert (status, reply["model"], reply["tttnn"]["coverage"]["trained"]) == (200, NAME, 3)
    parent.prefix = "/tttnn"
    counted = 'tttnn_requests_total{route="/v1/completions",status="200"}'
    assert parent.metric(counted) == 1.0
    # What is not there is said by the one whose place it is.
    assert parent.get("/tttnn/v1/nothing")[1]["error"]["code"] == "not_found"
    assert parent.get("/nothing") == (404, "Not Found")
    assert parent.get("/hello") == (200, "hello from the parent of True")


def test_the_page_finds_its_own_parts(parent: Mounted) -> None:
    status, html = parent.get("/tttnn/")
    assert status == 200
    parts = re.findall(r'(?:href|src)="([^"#:]+)"', html)
    assert parts
    for part in parts:
        assert not part.startswith("/"), "of a part's place the page knows only that it is beside it"
        assert parent.get(f"/tttnn/{part}")[0] == 200
    script = parent.get("/tttnn/page.js")[1]
    assert '"v1/completions"' in script
    assert '"/v1' not in script
    # Without the last stroke the parent sends a browser to where the page is.
    status, headers, _ = parent.request("GET", "/tttnn")
    assert (status, headers["location"].endswith("/tttnn/")) == (307, True)


def test_no_engine_outlives_the_parent(parent: Mounted) -> None:
    parent.get("/tttnn/live")
    wait_until(lambda: len(parent.engines()) == 1, "an engine")
    (engine,) = parent.engines()
    parent.process.send_signal(signal.SIGTERM)
    parent.process.wait(60)
    assert "destroyed" not in parent.errors()
    assert "Traceback" not in parent.errors()
    wait_until(lambda: _state(engine) in ("", "Z"), "the engine's end")


def _state(process: int) -> str:
    """Return the letter of a process's state; Z: it has ended, and nobody asked how."""
    said = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return said.stdout.strip()[:1]


def test_keys_are_asked_for_under_the_prefix(folder: Path) -> None:
    closed = Mounted(folder, "entered", "a-key")
    try:
        assert closed.get("/tttnn/live")[0] == 200
        assert closed.get("/tttnn/health")[0] == 401
        assert closed.get("/tttnn/metrics", {"authorization": "Bearer a-key"})[0] == 200
        assert closed.get("/hello")[0] == 200
    finally:
        closed.stop()
