"""A real server on a free port: tiny random model, encoder and datastore in a folder, `tttnn serve` in a process."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel

import tttnn
from tests.conftest import TEXTS, tiny_gpt2
from tests.encoders import save_encoder

ROOT = Path(__file__).resolve().parents[1]
CHAT_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
NAME = "tiny"
TAUGHT = "THE CAT AND A DOG SAT ON IT IN SUN WHEN THEY HAD SORTED ITEMS OF LIST BY MOON"
QUERY = "The cat sat on the mat, and def quicksort(items): came after it"
"""Near some documents of the datastore, and in none of them."""
WAIT = 120.0
"""Seconds after which a test gives up waiting: generous, because other work may share the machine."""


def save_everything(folder: Path, tokenizer: Any, *, documents: int = 20, chat: bool = True, **model: Any) -> None:
    """Write a model, an encoder and a datastore into a folder: `NAME`, encoder, store."""
    tiny_gpt2(**({"n_positions": 256} | model)).save_pretrained(folder / NAME)
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    tokenizer.save_pretrained(folder / NAME)
    tokenizer.chat_template = None
    (folder / "encoder").mkdir()
    encoder = str(save_encoder(folder / "encoder"))
    rows = [
        tttnn.Document(f"{TEXTS[i % len(TEXTS)]} copy {i}", {"pile_set_name": "AB"[i % 2]}) for i in range(documents)
    ]
    tttnn.Datastore.build(folder / "store", rows, tttnn.Embedder.load(encoder)).close()


def teach(model: Path, tokenizer: Any) -> None:
    """Teach the random model words in capitals: its answers then have words, and neighbors something to change."""
    torch.manual_seed(1)
    taught = GPT2LMHeadModel.from_pretrained(model).train()
    optimizer = torch.optim.AdamW(taught.parameters(), lr=3e-3)
    words = TAUGHT.split()
    for _ in range(150):
        order = torch.randint(len(words), (8, 40)).tolist()
        texts = [" ".join(words[i] for i in row)[:100] for row in order]
        ids = torch.tensor([tokenizer(text.ljust(100), add_special_tokens=False)["input_ids"] for text in texts])
        taught(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    taught.eval().save_pretrained(model)


def break_on_tilde(model: Path, tokenizer: Any) -> None:
    """Make the loss of a saved model NaN on texts with a tilde: its embedding overflows the first layer norm."""
    broken = tiny_gpt2(n_positions=256, tie_word_embeddings=False)
    with torch.no_grad():
        broken.transformer.wte.weight[tokenizer("~")["input_ids"][0]] = 3e38
    broken.save_pretrained(model)


class Server:
    """`tttnn serve` in a process of its own."""

    prefix = ""
    """Under which it is found."""

    def __init__(self, folder: Path, *flags: str, wait: bool = True, env: dict[str, str] | None = None) -> None:
        self.log = folder / f"log-{time.monotonic_ns()}"
        settings = ("--num-neighbors", "3", "--max-length", "64", "--learning-rate", "1e-3", "--precision", "float32")
        command = ["serve", str(folder / "store"), "--model", str(folder / NAME), "--port", "0", "--threads", "1"]
        self.started([sys.executable, "-m", "tttnn", *command, *settings, *flags], env)
        if wait:
            self.wait_ready()

    def started(self, command: list[str], env: dict[str, str] | None = None) -> None:
        """Start a process that says where it listens."""
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | (env or {}),
            )
        wait_until(lambda: "http://" in self.errors() or self.process.poll() is not None, "the address")
        assert "http://" in self.errors(), self.errors()
        self.port = int(self.errors().split("http://127.0.0.1:")[1].split("/")[0])

    def errors(self) -> str:
        return self.log.read_text()

    def wait_ready(self) -> None:
        wait_until(lambda: self.get("/ready")[0] == 200, f"a ready server: {self.errors()[-2000:]}")

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers (lower case) and body of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            given = ({} if data is None else {"content-type": "application/json"}) | (headers or {})
            connection.request(method, path, data, given)
            reply = connection.getresponse()
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
        finally:
            connection.close()

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        status, kind, body = self.request("GET", path, headers=headers)
        return status, json.loads(body) if "json" in kind.get("content-type", "") else body.decode()

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        status, kind, text = self.request("POST", path, body, headers)
        return status, json.loads(text) if "json" in kind.get("content-type", "") else text.decode()

    def complete(self, prompt: Any = "The cat sat", **fields: Any) -> Any:
        """Return the reply to a completion that must succeed."""
        status, reply = self.post("/v1/completions", {"prompt": prompt, "max_tokens": 8, "temperature": 0} | fields)
        assert status == 200, reply
        return reply

    def raw(self, path: str, body: Any) -> socket.socket:
        """Send a request on a socket of its own, and leave the reply to the caller."""
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)
        connection.sendall(head.encode() + data)
        return connection

    def metric(self, name: str, headers: dict[str, str] | None = None) -> float:
        """Return one sample of `/metrics`, by its whole name with labels."""
        for line in self.get(self.prefix + "/metrics", headers)[1].splitlines():
            if line.startswith(name + " "):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no {name}")

    def wait_metric(self, name: str, value: float) -> None:
        wait_until(lambda: self.metric(name) >= value, f"{name} {value}")

    def engines(self) -> list[int]:
        """Return the processes of the engines."""
        found = subprocess.run(
            ["pgrep", "-P", str(self.process.pid), "-f", "tttnn.engines.process"],
            capture_output=True,
            text=True,
            check=False,
        )
        return [int(line) for line in found.stdout.split()]

    def stop(self) -> int:
        """End the server as an operator would; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> int:
        """Wait until the server has ended; return its exit code."""
        try:
            code = self.process.wait(WAIT)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()
        return code


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, f"waited {WAIT} s for {what}"
        time.sleep(0.02)


def events(connection: socket.socket) -> list[str]:
    """Read a streamed reply to its end, and close; return what stands between empty lines."""
    data = b""
    with connection:
        while part := connection.recv(65536):
            data += part
            if data.endswith(b"0\r\n\r\n"):
                break
    body = data.split(b"\r\n\r\n", 1)[1]
    text = b""
    while body:
        size, body = body.split(b"\r\n", 1)
        text, body = text + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return [part for part in text.decode().split("\n\n") if part]


def chunks(parts: list[str]) -> list[Any]:
    """Return the data events of a stream but for its end, which must be there."""
    assert parts[-1] == "data: [DONE]"
    return [json.loads(part[6:]) for part in parts[:-1] if part.startswith("data: ")]
