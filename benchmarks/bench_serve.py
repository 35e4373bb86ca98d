"""What serving costs: overhead over the library, and 1, 4 and 16 clients at once. A script, not a pytest file.

    python benchmarks/bench_serve.py DATASTORE --model smollm2-135m

The server is `tttnn serve` in a process of its own; the library's call is made in this process before it starts, with
as many threads. Every answer of the server is compared with the library's text. Times of a machine that does other work
mean nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from tttnn.config import AdaptConfig, ScoreConfig, SelectionConfig
from tttnn.recipe import TrainerRecipe

PROMPT = "def quicksort(items):"


@dataclass
class Answer:
    """Seconds from the request to the first byte of the body, to the first text and to the end; what was said."""

    first_byte: float
    first_text: float
    whole: float
    status: int
    text: str


async def ask(port: int, body: dict[str, object]) -> Answer:
    """Stream one completion over a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body | {"stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    began = time.perf_counter()
    writer.write(f"{head}\r\nconnection: close\r\n\r\n".encode() + data)
    status = int((await reader.readline()).split()[1])
    while (await reader.readline()).strip():
        pass
    first_byte = first_text = 0.0
    text = ""
    while line := await reader.readline():
        first_byte = first_byte or time.perf_counter() - began
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:]).get("choices", ()):
                if choice["text"] and not first_text:
                    first_text = time.perf_counter() - began
                text += choice["text"]
    writer.close()
    return Answer(first_byte, first_text, time.perf_counter() - began, status, text)


async def clients(port: int, body: dict[str, object], count: int, each: int) -> tuple[float, list[Answer]]:
    """Let `count` clients ask `each` times, one question after the other; return the seconds and all answers."""

    async def client() -> list[Answer]:
        return [await ask(port, body) for _ in range(each)]

    began = time.perf_counter()
    answers = await asyncio.gather(*(client() for _ in range(count)))
    return time.perf_counter() - began, [answer for one in answers for answer in one]


def library(arguments: argparse.Namespace, body: dict[str, object], neighbors: int) -> tuple[list[float], str]:
    """Return the seconds of the same work by the library, and its text."""
    adapt = AdaptConfig(num_neighbors=neighbors)
    names = arguments.model, arguments.datastore
    trainer = TrainerRecipe(*names, adapt, SelectionConfig(), ScoreConfig(), threads=arguments.threads).load()
    seconds, text = [], ""
    tokens = int(str(body["max_tokens"]))
    for _ in range(arguments.repeats + 1):
        began = time.perf_counter()
        if neighbors:
            with trainer.adapt(PROMPT) as adapted:
                text = adapted.generate(max_new_tokens=tokens)
        else:
            text = trainer.generate(PROMPT, max_new_tokens=tokens)
        seconds.append(time.perf_counter() - began)
    trainer.release()
    return seconds[1:], text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datastore")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--neighbors", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    expected = {}
    for neighbors in (0, arguments.neighbors):
        body = {"prompt": PROMPT, "max_tokens": arguments.tokens, "temperature": 0}
        expected[neighbors] = library(arguments, body, neighbors)
    command = ["serve", arguments.datastore, "--model", arguments.model, "--port", "0", "--no-access-log"]
    command += ["--threads", str(arguments.threads), "--max-queue-seconds", "100000"]
    server = subprocess.Popen([sys.executable, "-m", "tttnn", *command], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        port = int(re.findall(r"http://[^/]*:(\d+)/", said)[0])
        for neighbors, (alone, text) in expected.items():
            body = {
                "prompt": PROMPT,
                "max_tokens": arguments.tokens,
                "temperature": 0,
                "tttnn": {"num_neighbors": neighbors},
            }
            asyncio.run(clients(port, body, 1, 1))
            _, answers = asyncio.run(clients(port, body, 1, arguments.repeats))
            assert all(answer.text == text for answer in answers), "the server must say what the library says"
            over = statistics.median(answer.whole for answer in answers) - statistics.median(alone)
            print(
                f"k={neighbors}: library {1000 * statistics.median(alone):.1f} ms, "
                f"server {1000 * statistics.median(a.whole for a in answers):.1f} ms, over {1000 * over:+.1f} ms"
            )
            for count in (1, 4, 16):
                seconds, answers = asyncio.run(clients(port, body, count, 2))
                good = [answer for answer in answers if answer.status == 200]
                refused = [answer for answer in answers if answer.status == 429]
                assert all(answer.text == text for answer in good)
                print(
                    f"k={neighbors}, {count} clients: {len(good) / seconds:.2f} answers/s; median and slowest "
                    f"first byte {_two(a.first_byte for a in good)}, first text {_two(a.first_text for a in good)}, "
                    f"whole {_two(a.whole for a in good)} s; {len(refused)} refused"
                )
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def _two(values: object) -> str:
    held = sorted(values)  # type: ignore[call-overload]
    return f"{statistics.median(held):.3f} {held[-1]:.3f}"


if __name__ == "__main__":
    main()
