"""What serving costs: over the library, beside `transformers serve`, with 1, 4 and 16 clients, and when it refuses.

    python benchmarks/bench_serve.py [DATASTORE] --model smollm2-135m [--overhead | --rival PYTHON] [--repeats 20]
    PYTHONPATH=. python benchmarks/bench_serve.py --smoke

Every server runs in a process of its own, with as many threads as the library has in this one, and every answer is
compared with the library's text. What is compared is asked in turn (A B, B A, ...), so that drift of a shared machine
hits both; differences and ratios are medians with 95 % intervals of a bootstrap. What uvicorn and Starlette alone take
for the same body and reply is measured beside them, and the processor time of each process for an answer, which other
work on the machine moves less than the clock. `--overhead` measures these and nothing else. `--rival` names a Python
that has `transformers[serving]`; it answers with the model as it is. Without a DATASTORE, one of pieces of Python's
standard library is made; `--smoke` takes a tiny random model too, and its times mean nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import tttnn
from tttnn.config import AdaptConfig
from tttnn.recipe import TrainerRecipe

PROMPT = "def quicksort(items):"
QUEUE = 24
"""Requests that may wait: more than the most clients here."""


@dataclass
class Answer:
    """Seconds from the request to the first byte of the body, to the first text and to the end; what was said."""

    told: float
    first_text: float
    whole: float
    status: int
    text: str


async def ask(port: int, body: dict[str, Any]) -> Answer:
    """Stream one completion over a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await _asked(reader, writer, body)
    finally:
        writer.close()


async def _asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: dict[str, Any]) -> Answer:
    data = json.dumps(body | {"stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    began = time.perf_counter()
    writer.write(f"{head}\r\nconnection: close\r\n\r\n".encode() + data)
    status = int((await reader.readline()).split()[1])
    while (await reader.readline()).strip():
        pass
    told = first_text = 0.0
    text = ""
    while line := await reader.readline():
        told = told or time.perf_counter() - began
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:]).get("choices", ()):
                if choice["text"] and not first_text:
                    first_text = time.perf_counter() - began
                text += choice["text"]
    return Answer(told, first_text, time.perf_counter() - began, status, text)


async def clients(port: int, body: dict[str, Any], count: int, each: int) -> tuple[float, list[Answer]]:
    """Let `count` clients ask `each` times, one question after the other; return the seconds and all answers."""

    async def client() -> list[Answer]:
        return [await ask(port, body) for _ in range(each)]

    began = time.perf_counter()
    answers = await asyncio.gather(*(client() for _ in range(count)))
    return time.perf_counter() - began, [answer for one in answers for answer in one]


def caller(port: int, body: dict[str, Any]) -> Callable[[], str]:
    """Return what asks for a whole answer at once, over a connection of its own, and gives the text."""
    return lambda: str(json.loads(reply_to(port, body))["choices"][0]["text"])


def reply_to(port: int, body: dict[str, Any]) -> bytes:
    """Ask for a whole answer over a connection of its own, and return the reply's body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    reply = connection.getresponse()
    said = reply.read()
    connection.close()
    assert reply.status == 200, said[:1000]
    return said


def in_turn(first: Callable[[], str], second: Callable[[], str], text: str, repeats: int) -> list[tuple[float, float]]:
    """Do both in turn, in an order that changes, and return the seconds of each pair; both must say `text`."""
    pairs = []
    for i in range(-1, repeats):  # the first pair is not counted
        seconds = {}
        for act in (first, second) if i % 2 else (second, first):
            began = time.perf_counter()
            said = act()
            seconds[act] = time.perf_counter() - began
            assert said == text, f"{said!r} must be {text!r}"
        if i >= 0:
            pairs.append((seconds[first], seconds[second]))
    return pairs


def interval(pairs: list[tuple[float, float]], measure: Callable[[float, float], float]) -> str:
    """Return the median of a measure of pairs, and between what it lies in 95 of 100 draws of as many of them."""
    values = [measure(*pair) for pair in pairs]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(2000))
    return f"{statistics.median(values):.3f} ({medians[50]:.3f} to {medians[1949]:.3f})"


@dataclass
class Served:
    """`tttnn serve` in a process of its own, which has engines as children."""

    port: int
    process: int

    def processor_seconds(self) -> tuple[float, float]:
        """Return the processor time that the serving process and its engines have had (Linux)."""
        children = Path(f"/proc/{self.process}/task/{self.process}/children").read_text().split()
        return _processor_seconds(self.process), sum(map(_processor_seconds, map(int, children)))


def _processor_seconds(process: int) -> float:
    told = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(path.read_text().split()[0]) for path in told) / 1e9


@contextlib.contextmanager
def serving(arguments: argparse.Namespace, *flags: str) -> Iterator[Served]:
    """`tttnn serve`, until the block ends."""
    command = ["serve", arguments.datastore, "--model", arguments.model, "--port", "0", "--no-access-log"]
    command += ["--threads", str(arguments.threads), "--num-neighbors", str(arguments.neighbors)]
    server = subprocess.Popen([sys.executable, "-m", "tttnn", *command, *flags], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield Served(int(re.findall(r"http://[^/]*:(\d+)/", server.stdout.readline())[0]), server.pid)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    """Wait until a server listens."""
    end = time.monotonic() + 300
    while True:
        assert server.poll() is None, "the other server has ended"
        assert time.monotonic() < end, "the other server does not answer"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)


@contextlib.contextmanager
def rival(arguments: argparse.Namespace) -> Iterator[int]:
    """`transformers serve` with the same model, threads and type of numbers, until the block ends; gives its port."""
    port = free_port()
    command = [arguments.rival, "-m", "transformers.cli.transformers", "serve", tttnn.models.resolve(arguments.model)]
    command += ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(server, port)
        yield port
    finally:
        server.terminate()
        server.wait()


_ECHO = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

reply = sys.stdin.buffer.read()

async def echo(request):
    await request.json()
    return Response(reply, media_type="application/json")

routes = [Route("/v1/completions", echo, methods=["POST"])]
uvicorn.run(Starlette(routes=routes), port=int(sys.argv[1]), http="h11", log_level="error", access_log=False)
"""


@contextlib.contextmanager
def echo(reply: bytes) -> Iterator[int]:
    """Uvicorn and Starlette alone, which answer everything with one reply, until the block ends; gives their port."""
    port = free_port()
    server = subprocess.Popen([sys.executable, "-c", _ECHO, str(port)], stdin=subprocess.PIPE)
    try:
        assert server.stdin is not None
        server.stdin.write(reply)
        server.stdin.close()
        wait_for(server, port)
        yield port
    finally:
        server.terminate()
        server.wait()


def processor_time(served: Served, library: Callable[[], str], call: Callable[[], str], repeats: int) -> str:
    """Return the median milliseconds of the processor for an answer, of each process that works at it."""
    rows = []
    for _ in range(repeats):
        began = time.process_time()
        library()
        alone, before = time.process_time() - began, served.processor_seconds()
        call()
        rows.append((alone, *(b - a for a, b in zip(before, served.processor_seconds(), strict=True))))
    alone, web, engine = (1000 * statistics.median(column) for column in zip(*rows, strict=True))
    return f"library {alone:.1f}, serving process {web:.2f}, engine {engine:.1f}, over {web + engine - alone:.1f} ms"


def compare(arguments: argparse.Namespace, served: Served, trainer: tttnn.TestTimeTrainer) -> None:
    """The library, the server and the rival, in turn."""
    port = served.port
    asked = {"prompt": PROMPT, "max_tokens": arguments.tokens, "temperature": 0}
    for neighbors in (0, arguments.neighbors):
        body = asked | {"tttnn": {"num_neighbors": neighbors}}

        def library(neighbors: int = neighbors) -> str:
            if not neighbors:
                return trainer.generate(PROMPT, max_new_tokens=arguments.tokens)
            with trainer.adapt(PROMPT) as adapted:
                return adapted.generate(max_new_tokens=arguments.tokens)

        text = library()
        pairs = in_turn(library, caller(port, body), text, arguments.repeats)
        alone, over_http = (1000 * statistics.median(values) for values in zip(*pairs, strict=True))
        over = interval(pairs, lambda a, b: 1000 * (b - a))
        with echo(reply_to(port, body)) as bare:
            floor = in_turn(caller(bare, body), caller(bare, body), text, arguments.repeats)
        print(f"k={neighbors}: uvicorn and Starlette alone, with the same body and reply: {floor_of(floor)} ms")
        spent = processor_time(served, library, caller(port, body), arguments.repeats)
        print(f"k={neighbors}: processor time for an answer: {spent}")
        print(f"k={neighbors}: library {alone:.1f} ms, server {over_http:.1f} ms, over {over} ms; {len(pairs)} pairs")
        if not arguments.overhead:
            load(port, f"tttnn, k={neighbors}", body, text)
    if arguments.overhead:
        return
    told = asyncio.run(clients(port, body | {"tttnn": {"num_neighbors": neighbors, "events": True}}, 1, 5))[1]
    print(f"k={neighbors}, events: neighbors after {_two(answer.told for answer in told)} s")
    if arguments.rival is None:
        print("transformers serve: not measured, no --rival was named")
        return
    base, text = asked | {"tttnn": {"mode": "base"}}, trainer.generate(PROMPT, max_new_tokens=arguments.tokens)
    with rival(arguments) as other:
        body = asked | {"model": tttnn.models.resolve(arguments.model)}
        pairs = in_turn(caller(port, base), caller(other, body), text, arguments.repeats)
        ours, theirs = (1000 * statistics.median(values) for values in zip(*pairs, strict=True))
        ratio = interval(pairs, lambda a, b: a / b)
        print(f"base: tttnn {ours:.1f} ms, transformers serve {theirs:.1f} ms, ratio {ratio}; {len(pairs)} pairs")
        load(other, "transformers serve, base", body, text)


def floor_of(pairs: list[tuple[float, float]]) -> str:
    """Return the median milliseconds of all calls, and between what it lies in 95 of 100 draws."""
    return interval([pair for both in pairs for pair in zip(both, both, strict=True)], lambda a, _: 1000 * a)


def load(port: int, name: str, body: dict[str, Any], text: str) -> None:
    """1, 4 and 16 clients at once."""
    for count in (1, 4, 16):
        seconds, answers = asyncio.run(clients(port, body, count, {1: 4, 4: 2, 16: 1}[count]))
        assert all(answer.status == 200 and answer.text == text for answer in answers)
        print(
            f"{name}, {count} clients: {len(answers) / seconds:.2f} answers/s; median and slowest to the first byte "
            f"{_two(a.told for a in answers)}, text {_two(a.first_text for a in answers)}, "
            f"end {_two(a.whole for a in answers)} s"
        )


def refusals(port: int, tokens: int) -> None:
    """How soon is one told that the queue is full, while an engine works?"""
    long = {"prompt": [PROMPT] * 128, "max_tokens": tokens, "temperature": 0}

    async def refused() -> list[Answer]:
        waiting = [asyncio.ensure_future(ask(port, long)) for _ in range(QUEUE + 1)]
        while _health(port)["waiting"] < QUEUE:
            await asyncio.sleep(0.05)
        answers = [await ask(port, long) for _ in range(50)]
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return answers

    answers = asyncio.run(refused())
    seconds = [answer.whole for answer in answers if answer.status == 429]
    assert len(seconds) >= 40, f"{len(answers) - len(seconds)} of {len(answers)} were let in"
    print(f"{len(seconds)} refusals of a full queue: median and slowest {_two(1000 * s for s in seconds)} ms")


def _health(port: int) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/health")
    said = json.loads(connection.getresponse().read())
    connection.close()
    return said


def small(folder: Path) -> tuple[str, str]:
    """Write a tiny random model, encoder and datastore of the tests; return the datastore's and the model's names."""
    from tests.conftest import byte_tokenizer
    from tests.served import NAME, save_everything

    save_everything(folder, byte_tokenizer())
    return str(folder / "store"), str(folder / NAME)


def pieces(folder: Path) -> str:
    """Make a datastore of pieces of the standard library."""
    place = Path(sysconfig.get_paths()["stdlib"])
    texts = [(place / f"{name}.py").read_text(encoding="utf-8") for name in ("ast", "argparse", "heapq", "inspect")]
    rows = [text[i : i + 2000] for text in texts for i in range(0, len(text) - 2000, 2000)]
    tttnn.Datastore.build(folder / "store", rows, tttnn.Embedder.load("minilm-l6")).close()
    return str(folder / "store")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datastore", nargs="?")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rival", help="a Python that has transformers[serving]")
    parser.add_argument("--neighbors", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, help="pairs  [default: 20; of --smoke 3]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--overhead", action="store_true", help="library and server alone, no load, no refusals")
    parser.add_argument("--smoke", action="store_true", help="tiny models, few repeats")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.smoke:
            arguments.datastore, arguments.model = small(Path(folder))
            arguments.threads = 1
        arguments.repeats = arguments.repeats or (3 if arguments.smoke else 20)
        arguments.datastore = arguments.datastore or pieces(Path(folder))
        adapt = AdaptConfig(num_neighbors=arguments.neighbors)
        trainer = TrainerRecipe(arguments.model, arguments.datastore, adapt, threads=arguments.threads).load()
        print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
        flags = ("--max-queue", str(QUEUE), "--max-queue-seconds", "100000")
        with serving(arguments, *flags) as served:
            compare(arguments, served, trainer)
            if not arguments.overhead:
                refusals(served.port, arguments.tokens)
        print(f"load average {os.getloadavg()[0]:.1f}")
        trainer.release()


def _two(values: Iterator[float]) -> str:
    held = sorted(values)
    return f"{statistics.median(held):.3f} {held[-1]:.3f}"


if __name__ == "__main__":
    main()
