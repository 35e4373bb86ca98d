"""What commands print with --json, and what the server replies, is as docs/json.md says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests.conftest import TEXTS
from tests.json_shapes import differences, read_shapes
from tests.served import NAME, Server, events, save_everything
from tttnn.cli.program import app

PAGE = Path(__file__).resolve().parents[1] / "docs" / "json.md"
ADAPT = ("--num-neighbors", "2", "--max-length", "64", "--learning-rate", "1e-3", "--threads", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    made = tmp_path_factory.mktemp("json")
    save_everything(made, tokenizer)
    rows = [{"text": f"{text} of another kind", "meta": {"pile_set_name": "AB"[i % 2]}} for i, text in enumerate(TEXTS)]
    (made / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "queries.txt").write_text("The cat\ndef quick\n")
    return made


ON_RAY = {"cluster build", "cluster start", "cluster status", "cluster stop"}
"""Commands that tests/test_cluster_ray.py runs."""
ROOT = ["--documents", "3", "--max-length", "16", "--rank", "2"]


def commands(folder: Path) -> dict[str, list[str]]:
    """Every command that has --json, in an order in which each finds what it needs. A name in brackets is a variant."""
    docs, new, texts, out = (str(folder / name) for name in ("docs.jsonl", "new", "texts.zst", "results.jsonl"))
    store, model = str(folder / "store"), ["--model", str(folder / NAME)]
    measured = ["--protocol", "split-bare", "--methods", "base,ttt-nn", "--curve", "0,2", "--max-overlap", "none"]
    return {
        "build --dry-run": [docs, new, "--embedder", str(folder / "encoder"), "--dry-run"],
        "build": [docs, new, "--embedder", str(folder / "encoder")],
        "build --experts": [docs, str(folder / "taught"), "--embedder", str(folder / "encoder"), "--experts", *model],
        "append": [docs, new],
        "append --discard": [new, "--discard"],
        "delete": [new, "0"],
        "compact": [new],
        "precompute --dry-run": [store, *model, *ROOT, "--dry-run"],
        "precompute": [store, *model, *ROOT],
        "export-expert": [store, str(folder / "adapter"), *model, "--merged-for", "The cat"],
        "verify": [store],
        "info": [store],
        "info --build": ["--build"],
        "import": [docs, texts],
        "info (text store)": [texts],
        "export": [store, str(folder / "out.jsonl")],
        "repair": [texts, str(folder / "repaired.zst")],
        "search": [store, "The cat", "-k", "2"],
        "search --explain": [store, "The cat", "-k", "2", "--explain"],
        "search --mode": [store, "The cat", "-k", "2", "--mode", "instant", *model],
        "generate": [store, "The cat", *model, *ADAPT, "--max-new-tokens", "4"],
        "replay": [str(folder / "generate.json"), store, *model, "--threads", "1"],
        "eval": [store, docs, *model, *ADAPT, *measured, "--out", out],
        "audit": [out, "--datastore", store, "--documents", docs, "--max-share", "1", *model],
        "report": [out, "-o", str(folder / "report.html")],
        "cluster add": [str(folder / "cluster"), store],
        "cluster replace": [str(folder / "cluster"), "0", store],
        "search (cluster)": [str(folder / "cluster"), "The cat", "-k", "2"],
        "info (cluster)": [str(folder / "cluster")],
    }


def words_of(name: str) -> list[str]:
    """Return the words that name a command, of a group's command two."""
    words = name.split(" ")
    return words[:2] if words[0] == "cluster" else words[:1]


@pytest.fixture(scope="module")
def printed(folder: Path) -> dict[str, Any]:
    """What each command prints, read."""
    found: dict[str, Any] = {}
    for name, arguments in commands(folder).items():
        ran = CliRunner().invoke(app, [*words_of(name), *arguments, "--json"])
        assert ran.exit_code == 0, (name, ran.output, ran.exception)
        found[name] = json.loads(ran.stdout)
        if name == "generate":
            (folder / "generate.json").write_text(ran.stdout)
    return found


def test_every_command_with_json_is_here(folder: Path) -> None:
    flat = dict(app.commands)
    group = flat.pop("cluster")
    assert isinstance(group, click.Group)
    having = {
        name
        for name, command in (flat | {f"cluster {name}": one for name, one in group.commands.items()}).items()
        if any("--json" in getattr(parameter, "opts", ()) for parameter in command.params)
    }
    assert {" ".join(words_of(name)) for name in commands(folder)} | {"demo"} | ON_RAY == having


def test_what_commands_print_has_the_shape_that_the_page_says(printed: dict[str, Any], folder: Path) -> None:
    shapes = read_shapes(PAGE)
    named = {"report -o" if name == "report" else name: value for name, value in printed.items()}
    wrong = [found for name, value in named.items() for found in differences(value, shapes[name], shapes, name)]
    assert wrong == []
    store, model = str(folder / "store"), ["--model", str(folder / NAME)]
    command = ["generate", store, *model, *ADAPT, "--max-new-tokens", "2", "--queries", str(folder / "queries.txt")]
    ran = CliRunner().invoke(app, command)
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(lines) == 2
    assert differences(lines, [shapes["generate --queries"]], shapes, "generate --queries") == []


def test_what_the_server_replies_has_the_shape_that_the_page_says(folder: Path) -> None:
    shapes = read_shapes(PAGE)
    server = Server(folder, "--guard", "query")
    report = server.post("/v1/adapt", {"query": "The cat"})[1]["report"]
    chat = [{"role": "user", "content": "The cat"}]
    short = {"max_tokens": 4, "temperature": 0}
    posted: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"prompt": "The cat", "logprobs": 2, "echo": True, "tttnn": {"compare": True}} | short),
        ("/v1/completions", {"prompt": ["The cat", "def"], "tttnn": {"mode": "base"}} | short),
        ("/v1/chat/completions", {"messages": chat, "logprobs": True, "top_logprobs": 1} | short),
        ("/v1/embeddings", {"input": "The cat", "encoding_format": "float"}),
        ("/v1/embeddings", {"input": ["The cat"], "encoding_format": "base64"}),
        ("/v1/search", {"query": "The cat", "k": 2}),
        ("/v1/adapt", {"query": "The cat"}),
        ("/v1/score", {"text": "sat", "context": "The cat", "tttnn": {"compare": True}}),
        ("/v1/score", {"text": "sat", "tttnn": {"mode": "base"}}),
        ("/v1/replay", {"report": report}),
    ]
    wrong = [found for path, body in posted for found in _of_reply(server.post(path, body), f"POST {path}", shapes)]
    for path in ("/v1/models", "/live", "/ready", "/health", "/info"):
        wrong += _of_reply(server.get(path), f"GET {path}", shapes)
    for path, body in (("/v1/completions", {"prompt": ""}), ("/v1/score", {}), ("/v1/nothing", {})):
        status, reply = server.post(path, body)
        assert status >= 400
        wrong += differences(reply, shapes["error"], shapes, path)
    asked = {"stream": True, "stream_options": {"include_usage": True}, "tttnn": {"events": True, "compare": True}}
    told = events(server.raw("/v1/completions", {"prompt": "The cat"} | short | asked))
    assert told[-1] == "data: [DONE]"
    names = set()
    for part in told[:-1]:
        name, _, data = part.rpartition("data: ")
        names.add(name.strip() or "POST /v1/completions (stream)")
        wrong += differences(json.loads(data), shapes[name.strip() or "POST /v1/completions (stream)"], shapes, name)
    assert names == {"event: neighbors", "event: step", "event: base", "POST /v1/completions (stream)"}
    assert server.stop() == 0
    assert wrong == []


def _of_reply(answered: tuple[int, Any], name: str, shapes: Any) -> list[str]:
    status, reply = answered
    assert status == 200, (name, reply)
    return differences(reply, shapes[name], shapes, name)


@pytest.mark.parametrize(
    ("value", "shape", "said"),
    [
        ({"a": 1}, {"a": "count"}, []),
        ({"a": -1}, {"a": "count"}, [".a: is no count: -1"]),
        ({"a": True}, {"a": "number"}, [".a: is no number: True"]),
        ({}, {"a": "count"}, [": has no a"]),
        ({}, {"a?": "count"}, []),
        ({"b": 1}, {"a?": "count"}, [": has b, which the page does not name"]),
        ({"b": 1}, {"*": "count"}, []),
        ([{"a": None}], [{"a": "text or null"}], []),
        ([1, "x"], ["count"], ["[1]: is no count: 'x'"]),
        ([[1, 2]], ["@span or null"], []),
        ("x", "@span or null", [": is no list"]),
    ],
)
def test_the_check_finds_what_differs(value: Any, shape: Any, said: list[str]) -> None:
    assert differences(value, shape, {"span": ["count"]}) == said
