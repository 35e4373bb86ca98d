"""The server from outside: `tttnn serve` in a process, asked through sockets and the openai client."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tttnn
from tests.served import NAME, Server, chunks, events
from tttnn.config import ScoreConfig, SelectionConfig
from tttnn.recipe import TrainerRecipe
from tttnn.retrieval.where import Where

openai = pytest.importorskip("openai")

GREEDY = {"max_tokens": 8, "temperature": 0}
CONFIG = tttnn.AdaptConfig(num_neighbors=3, max_length=64, learning_rate=1e-3, precision="float32")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    running = Server(folder, "--comment-seconds", "0.05", "--verify-every", "1", "--reuse", "2")
    yield running
    assert running.stop() == 0
    assert "internal_error" not in running.errors()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="unused", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def trainer(folder: Path) -> Iterator[tttnn.TestTimeTrainer]:
    """The same model, datastore and settings in this process."""
    import torch

    before = torch.get_num_threads()
    recipe = TrainerRecipe(
        str(folder / NAME), str(folder / "store"), CONFIG, SelectionConfig(), ScoreConfig(), threads=1
    )
    made = recipe.load()
    yield made
    made.release()
    torch.set_num_threads(before)


def test_an_answer_is_the_adapted_model_s_and_names_its_sources(server: Server, trainer: tttnn.TestTimeTrainer) -> None:
    with trainer.adapt("The cat sat") as adapted:
        text = adapted.generate(max_new_tokens=8)
        losses = adapted.report.losses
    reply = server.complete("The cat sat")
    assert reply["choices"][0]["text"] == text != trainer.generate("The cat sat", max_new_tokens=8)
    assert reply["choices"][0]["finish_reason"] == "length"
    about = reply["tttnn"]
    assert about["mode"] == "exact"
    assert about["weights"] == trainer.fingerprint
    assert about["coverage"] == {"requested": 3, "found": 3, "trained": 3}
    report = about["adaptations"][0]["report"]
    assert [loss for neighbor in report["neighbors"] for loss in neighbor["losses"]] == losses
    assert {neighbor["source"] for neighbor in report["neighbors"]} <= {"A", "B"}
    assert "query" not in report
    assert about["predicted_seconds"] > 0
    assert about["actual_seconds"] > 0


def test_base_and_no_neighbors_are_the_model_as_it_is(server: Server, trainer: tttnn.TestTimeTrainer) -> None:
    text = trainer.generate("The cat sat", max_new_tokens=8)
    for asked in ({"mode": "base"}, {"num_neighbors": 0}):
        reply = server.complete("The cat sat", tttnn=asked)
        assert reply["choices"][0]["text"] == text
        assert (reply["tttnn"]["mode"], reply["tttnn"]["adaptations"]) == ("base", [])
    compared = server.complete("The cat sat", tttnn={"compare": True})
    assert compared["tttnn"]["base"] == [text]


@pytest.mark.parametrize("fields", [{}, {"temperature": 1.0, "seed": 3}, {"stop": [" ", "e"]}, {"echo": True}])
def test_the_pieces_of_a_stream_are_the_text_in_one(server: Server, fields: dict[str, Any]) -> None:
    # "\u00dc" and the snake are several tokens of this tokenizer, and random models write half characters.
    body = {"prompt": "Ünïcödé 🐍", "max_tokens": 24, "temperature": 0, **fields}
    whole = server.complete(**body)
    parts = chunks(events(server.raw("/v1/completions", body | {"stream": True})))
    assert "".join(part["choices"][0]["text"] for part in parts) == whole["choices"][0]["text"]
    assert [part["choices"][0]["finish_reason"] for part in parts if part["choices"][0]["finish_reason"]] == [
        whole["choices"][0]["finish_reason"]
    ]
    assert all("tttnn" not in part for part in parts[:-1])
    neighbors = [report["report"]["neighbors"] for report in parts[-1]["tttnn"]["adaptations"]]
    assert [[n["id"] for n in one] for one in neighbors] == [
        [n["id"] for n in report["report"]["neighbors"]] for report in whole["tttnn"]["adaptations"]
    ]


def test_usage_is_the_same_streamed_and_in_one(server: Server) -> None:
    body = {"prompt": "Bits per byte", **GREEDY}
    whole = server.complete(**body)["usage"]
    assert whole == {"prompt_tokens": 13, "completion_tokens": 8, "total_tokens": 21}
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    parts = chunks(events(server.raw("/v1/completions", body | streamed)))
    assert parts[-1]["usage"] == whole
    assert parts[-1]["choices"] == []
    assert "tttnn" in parts[-1]
    assert all("usage" not in part for part in parts[:-1])
    assert all("usage" not in part for part in chunks(events(server.raw("/v1/completions", body | {"stream": True}))))


def test_prompts_that_differ_are_adapted_to_apart_and_a_query_is_for_all(server: Server) -> None:
    prompts = ["The cat sat", "def quicksort(", "The cat sat"]
    reply = server.complete(prompts)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    alone = [server.complete(prompt)["choices"][0]["text"] for prompt in prompts]
    assert [choice["text"] for choice in reply["choices"]] == alone
    assert [one["choices"] for one in reply["tttnn"]["adaptations"]] == [[0, 2], [1]]
    shared = server.complete(prompts[:2], tttnn={"query": "def quicksort("})
    assert [one["choices"] for one in shared["tttnn"]["adaptations"]] == [[0, 1]]
    assert shared["choices"][1]["text"] == alone[1]


def test_logprobs_with_echo_are_the_scorer_s(server: Server, trainer: tttnn.TestTimeTrainer) -> None:
    ids = [256, *trainer.tokenizer("Ünï cat", add_special_tokens=False)["input_ids"]]
    for most in (0, 1):
        for neighbors in (0, 3):
            fields = {"echo": True, "logprobs": 1, "tttnn": {"num_neighbors": neighbors}}
            reply = server.complete(ids, **fields | {"max_tokens": most})
            held = reply["choices"][0]["logprobs"]
            assert len(held["tokens"]) == len(ids) + most == len(held["token_logprobs"])
            assert held["token_logprobs"][0] is held["top_logprobs"][0] is None
            with trainer.adapt(trainer.tokenizer.decode(ids), num_neighbors=neighbors):
                nats = trainer.scorer.token_nats(ids).tolist()
            assert held["token_logprobs"][1 : len(ids)] == pytest.approx([-value for value in nats], abs=1e-6)
            for value, top in zip(held["token_logprobs"][1:], held["top_logprobs"][1:], strict=True):
                assert value <= max(top.values())
                assert value in top.values()
            text = reply["choices"][0]["text"]
            # Tokens that are whole characters stand in the text where they are said to; here those of the prompt do
            # but for the two of "ï".
            for i, (token, offset) in enumerate(zip(held["tokens"][: len(ids)], held["text_offset"], strict=False)):
                if i not in (1, 2, 4, 5):
                    assert text[offset : offset + len(token)] == token
            assert held["text_offset"][:8] == [0, 13, 13, 14, 15, 15, 16, 17]
    # Without echo only what was written is told of.
    held = server.complete(ids, logprobs=2, max_tokens=3)["choices"][0]["logprobs"]
    assert len(held["tokens"]) == 3
    assert held["text_offset"][0] == 0


def test_the_openai_client(server: Server, client: Any) -> None:
    assert {model.id for model in client.models.list()} == {NAME, "encoder"}
    done = client.completions.create(model=NAME, prompt="The cat sat", max_tokens=8, temperature=0)
    assert done.choices[0].text == server.complete("The cat sat")["choices"][0]["text"]
    pieces = client.completions.create(model=NAME, prompt="The cat sat", max_tokens=8, temperature=0, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == done.choices[0].text
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The cat sat"}]
    options = {"model": NAME, "messages": messages, "max_tokens": 8, "temperature": 0}
    said = client.chat.completions.create(**options)
    streamed = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert streamed[0].choices[0].delta.role == "assistant"
    told = [chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices]
    assert "".join(told) == said.choices[0].message.content
    assert streamed[-1].usage == said.usage
    likely = client.chat.completions.create(**options, logprobs=True, top_logprobs=2)
    assert len(likely.choices[0].logprobs.content) == 8
    assert len(likely.choices[0].logprobs.content[0].top_logprobs) >= 2
    with pytest.raises(openai.BadRequestError, match="n must be 1"):
        client.completions.create(model=NAME, prompt="x", n=2)
    with pytest.raises(openai.NotFoundError, match="/v1/models"):
        client.completions.create(model="other", prompt="x")


def test_embeddings_are_the_datastore_s_embedder_s(server: Server, client: Any, trainer: Any) -> None:
    texts = ["The cat sat", "def quicksort("]
    expected = trainer.datastore.datastore.embedder.embed(texts)
    made = client.embeddings.create(model="encoder", input=texts)  # asks for base64 by itself
    assert [one.embedding for one in made.data] == [pytest.approx(row, abs=1e-6) for row in expected.tolist()]
    status, reply = server.post("/v1/embeddings", {"input": texts[0], "encoding_format": "base64"})
    assert status == 200
    packed = base64.b64decode(reply["data"][0]["embedding"])
    assert struct.unpack(f"<{len(packed) // 4}f", packed) == pytest.approx(expected[0].tolist(), abs=1e-6)
    assert reply["usage"]["prompt_tokens"] == reply["usage"]["total_tokens"] > 0


def test_search_adapt_score_and_replay(server: Server, trainer: tttnn.TestTimeTrainer) -> None:
    found = trainer.datastore.search("The cat sat", 4)  # type: ignore[union-attr]
    status, reply = server.post("/v1/search", {"query": "The cat sat", "k": 4})
    assert status == 200
    assert [row["id"] for row in reply["data"]] == [neighbor.id for neighbor in found]
    assert [row["text"] for row in reply["data"]] == [neighbor.text for neighbor in found]
    status, reply = server.post("/v1/search", {"query": "cat", "k": 4, "tttnn": {"where": {"source": ["B"]}}})
    assert {row["source"] for row in reply["data"]} == {"B"}

    status, reply = server.post("/v1/adapt", {"query": "The cat sat"})
    assert status == 200
    report = reply["report"]
    assert report["steps"] > 0
    assert "The cat" not in json.dumps(report)
    status, reply = server.post("/v1/replay", {"report": report})
    assert (status, reply["same"], reply["largest_difference"]) == (200, True, 0.0)
    changed = report | {"neighbors": [report["neighbors"][0] | {"digest": "0" * 32}], "steps": 1}
    status, reply = server.post("/v1/replay", {"report": changed})
    assert (status, reply["error"]["param"]) == (400, "report")

    text, context = "the moon. " * 60, "The cat sat on"
    with trainer.adapt(context) as adapted:
        bits = adapted.bits_per_byte(text, context=context)
    body = {"text": text, "context": context, "tttnn": {"compare": True}}
    status, reply = server.post("/v1/score", body)
    assert status == 200
    assert reply["bits_per_byte"] == pytest.approx(bits, abs=1e-6)
    base = trainer.scorer.score(text, context=context)
    assert reply["base"]["bits_per_byte"] == pytest.approx(base.bits_per_byte, abs=1e-6)
    assert (reply["tokens"], reply["bytes"]) == (base.tokens, base.num_bytes)
    assert not reply["query_is_scored_text"]
    assert math.isclose(reply["nats"], reply["bits_per_byte"] * math.log(2) * reply["bytes"])


def test_sources_and_excluded_texts(server: Server) -> None:
    reply = server.complete("The cat sat", tttnn={"where": {"source": "B"}})
    neighbors = reply["tttnn"]["adaptations"][0]["report"]["neighbors"]
    assert {neighbor["source"] for neighbor in neighbors} == {"B"}
    first = neighbors[0]["digest"]
    reply = server.complete("The cat sat", tttnn={"where": {"source": "B"}, "exclude_digests": [first]})
    after = reply["tttnn"]["adaptations"][0]["report"]["neighbors"]
    assert first not in {neighbor["digest"] for neighbor in after}
    assert len(after) == 3
    drawn = {"fraction": 0.5, "seed": 3}
    reply = server.complete("The cat sat", tttnn={"where": drawn | {"source": "B"}})
    neighbors = reply["tttnn"]["adaptations"][0]["report"]["neighbors"]
    assert 0 < len(neighbors) <= 3
    assert {neighbor["source"] for neighbor in neighbors} == {"B"}
    assert Where.read(drawn).drawn(np.array([neighbor["id"] for neighbor in neighbors])).all()


def test_an_answer_does_not_depend_on_the_others(server: Server) -> None:
    """Between other traffic, in any order, streamed or not: the same bytes but for ids and times."""
    asked = [("The cat sat", {}), ("def quick", {"logprobs": 1}), ("Bits", {"tttnn": {"compare": True}})]
    alone = [server.complete(prompt, **fields)["choices"] for prompt, fields in asked]
    for order in ([2, 1, 0], [0, 0, 1, 2]):
        waiting = [server.raw("/v1/completions", {"prompt": asked[i][0], **GREEDY, **asked[i][1]}) for i in order]
        for i, connection in zip(order, waiting, strict=True):
            data = b""
            while b"\r\n\r\n" not in data or not data.endswith(b"}"):
                data += connection.recv(65536)
            assert json.loads(data.split(b"\r\n\r\n", 1)[1])["choices"] == alone[i]
            connection.close()


def test_a_stream_of_events_tells_neighbors_then_steps_then_the_answers(server: Server) -> None:
    body = {"prompt": "The cat sat", **GREEDY, "stream": True, "tttnn": {"events": True, "compare": True}}
    parts = events(server.raw("/v1/completions", body))
    names = [part.split("\n")[0][7:] for part in parts if part.startswith("event: ")]
    assert names == ["neighbors", "step", "step", "step", "step", "base"]
    told = [json.loads(part.split("data: ")[1]) for part in parts if part.startswith("event: ")]
    assert len(told[0]["neighbors"]) == 3
    assert told[0]["neighbors"][0]["excerpt"]
    losses = [one["loss"] for one in told[1:5]]
    assert losses[-1] < losses[0]
    assert chunks([part for part in parts if not part.startswith("event: ")])[-1]["tttnn"]["base"] == [told[5]["text"]]


def test_comments_say_how_far_a_stream_is(server: Server) -> None:
    """The server was told to send them twenty times a second."""
    many = {"prompt": "The cat sat", "max_tokens": 100, "temperature": 0, "tttnn": {"num_neighbors": 20}}
    first = server.raw("/v1/completions", many | {"stream": True})
    second = server.raw("/v1/completions", many | {"stream": True})
    comments = [part for part in [*events(first), *events(second)] if part.startswith(":")]
    assert any(part.startswith(": step ") for part in comments)
    assert any(part.startswith(": waiting, 0 before it") or ": step 0/" in part for part in comments)


def test_server_timing_holds_the_stages(server: Server) -> None:
    _, headers, _ = server.request("POST", "/v1/completions", {"prompt": "The cat", **GREEDY, "logprobs": 0})
    stages = dict(part.split(";dur=") for part in headers["server-timing"].split(", "))
    assert {"queue", "embed", "search", "read", "train", "generate", "score", "restore"} <= stages.keys()
    assert all(float(value) >= 0 for value in stages.values())


def test_stock_lm_eval_gives_the_model_s_own_numbers(
    server: Server, folder: Path, trainer: tttnn.TestTimeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`local-completions` at k = 0 and k = 5: the same log-likelihoods as the scorer in this process."""
    api = pytest.importorskip("lm_eval.models.openai_completions")
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    pairs = [("The cat sat on", " the mat."), ("def quicksort(items):", "\n    return sorted(items)")]
    requests = [instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i) for i, pair in enumerate(pairs)]
    for neighbors in (0, 5):
        model = api.LocalCompletionsAPI(
            model=NAME,
            base_url=f"http://127.0.0.1:{server.port}/v1/completions",
            tokenizer=str(folder / NAME),
            tokenizer_backend="huggingface",
            max_length=256,
            num_concurrent=1,
        )
        create = model._create_payload  # stock but for the number of neighbors, which a server is started with
        monkeypatch.setattr(
            model,
            "_create_payload",
            lambda *a, create=create, k=neighbors, **o: create(*a, **o) | {"tttnn": {"num_neighbors": k}},
        )
        found = model.loglikelihood(requests, disable_tqdm=True)
        for (context, continuation), (loglikelihood, greedy) in zip(pairs, found, strict=True):
            ids = trainer.tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
            first = len(trainer.tokenizer(context, add_special_tokens=False)["input_ids"])
            with trainer.adapt(context + continuation, num_neighbors=neighbors):
                nats, likeliest = trainer.scorer.token_scores(ids, first=first)
            assert loglikelihood == pytest.approx(-float(nats.sum()), abs=1e-6)
            assert greedy == bool(likeliest.all())


def test_a_deleted_document_is_gone_from_the_next_answer(server: Server, folder: Path) -> None:
    """Out of answers and reused states at once. The last test of this file, because it changes the datastore."""
    body = {"tttnn": {"where": {"source": ["A", "B"]}}}
    before, again = (server.complete("The cat sat", **body)["tttnn"]["adaptations"][0]["report"] for _ in range(2))
    assert again["reused"]
    gone = before["neighbors"][0]["id"]
    with tttnn.Datastore.open(folder / "store") as opened:
        opened.delete([gone])
    after = server.complete("The cat sat", **body)["tttnn"]["adaptations"][0]["report"]
    assert gone not in {neighbor["id"] for neighbor in after["neighbors"]}
    assert len(after["neighbors"]) == 3
    assert not after["reused"]
    _, reply = server.post("/v1/search", {"query": "The cat sat", "k": 20})
    assert gone not in {row["id"] for row in reply["data"]}
    assert server.post("/v1/replay", {"report": before})[0] == 400
