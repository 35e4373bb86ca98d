"""Embedder: a vector depends on its text alone, whatever lies beside it, and says what it is made of."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tttnn
from tests.encoders import byte_tokenizer, save_encoder, tiny_bert, tiny_embedder
from tttnn.config import EmbedConfig
from tttnn.embedding.batches import token_batches
from tttnn.embedding.embed_report import EmbedReport
from tttnn.errors import ConfigError, EmbeddingError, UnknownModelError

TEXTS = [
    "one text",
    "",
    "another, rather longer text of many words",
    "🐍 naïve",
    "x" * 200,
    "short",
    " \n\t ",
    "a b " * 90,
]

# Batches of other shapes take other paths through the matrix product: float32 roundings over two layers.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def embedder() -> tttnn.Embedder:
    return tiny_embedder()


def by_hand(texts: list[str], pooling: str = "mean", normalize: bool = True, max_length: int = 64) -> np.ndarray:
    """One text after the other through transformers, without padding or masks."""
    model, tokenizer = tiny_bert().eval(), byte_tokenizer()
    rows = []
    with torch.no_grad():
        for text in texts:
            ids = tokenizer(text or " ", truncation=True, max_length=max_length, return_tensors="pt")
            hidden = model(**ids).last_hidden_state[0]
            row = hidden.mean(0) if pooling == "mean" else hidden[0]
            rows.append(torch.nn.functional.normalize(row, dim=0) if normalize else row)
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("max_length", [None, 16])
def test_equals_transformers_by_hand(pooling: Any, normalize: bool, max_length: int | None) -> None:
    embedder = tiny_embedder(pooling=pooling, normalize="yes" if normalize else "no", max_length=max_length)
    vectors = embedder.embed(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), embedder.dim)
    np.testing.assert_allclose(vectors, by_hand(TEXTS, pooling, normalize, max_length or 64), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 70, 300, 100_000])
def test_batching_order_and_neighbors_do_not_matter(embedder: tttnn.Embedder, batch_tokens: int) -> None:
    many = [f"{text} {i % 7}" for i, text in enumerate(TEXTS * 20)]
    expected = embedder.embed(many)
    other = tiny_embedder(batch_tokens=batch_tokens)
    np.testing.assert_allclose(other.embed(many), expected, atol=TOLERANCE)
    order = np.random.default_rng(0).permutation(len(many))
    np.testing.assert_allclose(other.embed([many[i] for i in order]), expected[order], atol=TOLERANCE)
    alone = np.concatenate([other.embed([text]) for text in many[:10]])
    np.testing.assert_allclose(alone, expected[:10], atol=TOLERANCE)


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 1000), st.booleans())
@settings(deadline=None)
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int, padded: bool) -> None:
    batches = token_batches(lengths, budget, padded=padded)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for i, batch in enumerate(batches):
        sizes = [max(1, lengths[j]) for j in batch]
        taken = len(batch) * max(sizes) if padded else sum(sizes)
        assert len(batch) == 1 or taken <= budget
        if i + 1 < len(batches):  # a text more would have been too much
            more = max(1, lengths[batches[i + 1][0]])
            assert taken + (max(sizes) if padded else more) > budget


@given(st.lists(st.text(max_size=700), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_only_the_beginning_is_tokenised_and_nothing_changes(texts: list[str]) -> None:
    embedder = tiny_embedder(max_length=20)
    found = embedder._tokens.encode(texts)
    tokenizer = byte_tokenizer()
    for text, ids in zip(texts, found.ids, strict=True):
        assert ids == tokenizer(text or " ", truncation=True, max_length=20)["input_ids"]
    assert found.truncated == sum(len(text.encode()) > 18 for text in texts)


def test_counts(embedder: tttnn.Embedder) -> None:
    report, seen = EmbedReport(), []
    embedder.embed(TEXTS, report=report, progress=lambda *call: seen.append(call))
    assert (report.texts, report.empty, report.truncated) == (8, 1, 2)
    assert report.tokens == sum(min(64, len((text or " ").encode()) + 2) for text in TEXTS)
    assert report.padded_tokens == report.tokens
    assert set(report.seconds) == {"wait", "encode", "pool"}
    assert seen == [("embed", 8, 8)]
    assert embedder.embed([]).shape == (0, 32)


def test_an_encoder_that_is_padded_gives_the_same_and_counts_its_padding(embedder: tttnn.Embedder) -> None:
    model = tiny_bert(attn_implementation="eager")
    padded = tttnn.Embedder(model, byte_tokenizer(), EmbedConfig(precision="float32", normalize="yes"))
    report = EmbedReport()
    vectors = padded.embed(TEXTS, report=report)
    assert report.padded_tokens == len(TEXTS) * 64 > report.tokens
    np.testing.assert_allclose(vectors, embedder.embed(TEXTS), atol=TOLERANCE)
    assert padded.identity == embedder.identity


def test_many_groups_keep_their_order(embedder: tttnn.Embedder) -> None:
    many = [f"text {i}" for i in range(1200)]
    vectors = embedder.embed(many)
    for i in (0, 63, 64, 1087, 1088, 1199):
        np.testing.assert_allclose(vectors[i], embedder.embed([many[i]])[0], atol=TOLERANCE)


def test_lone_surrogates_do_not_stop_it(embedder: tttnn.Embedder) -> None:
    np.testing.assert_array_equal(embedder.embed(["a\ud800b"]), embedder.embed(["a?b"]))


def test_a_vector_that_is_not_finite_names_its_document() -> None:
    model = tiny_bert()
    with torch.no_grad():  # finite, but its square is not
        model.embeddings.word_embeddings.weight[ord("Q") - ord("!")] = 1e30
    embedder = tttnn.Embedder(model, byte_tokenizer(), EmbedConfig(precision="float32"))
    embedder.embed(["fine", "good"])
    with pytest.raises(EmbeddingError, match="document 2: its embedding must be finite"):
        embedder.embed(["fine", "good", "Q", "fine"])
    with pytest.raises(EmbeddingError, match="document 12:"):
        embedder.embed(["fine", "good", "Q"], name_of=lambda i: f"document {i + 10}")


def test_a_weight_that_is_not_finite_names_the_encoder() -> None:
    model = tiny_bert()
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight[3, 4] = float("nan")
    said = r"encoder 'mine': its weights must be finite, got NaN or infinity in encoder.layer.1.output.dense.weight"
    with pytest.raises(EmbeddingError, match=said):
        tttnn.Embedder(model, byte_tokenizer(), name="mine")
    embedder = tiny_embedder()
    with torch.no_grad():  # spoiled afterwards
        embedder.model.encoder.layer[0].output.dense.bias[0] = float("inf")
    with pytest.raises(EmbeddingError, match=r"encoder .tiny-3.: its weights.*layer\.0\.output\.dense\.bias"):
        embedder.embed(["one"])


def test_the_callers_model_and_tokenizer_stay_as_they_are() -> None:
    model, tokenizer = tiny_bert(), byte_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(5)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tttnn.Embedder(model, tokenizer, EmbedConfig(precision="bfloat16")).embed(["a longer text"])
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 5


def test_bfloat16_is_close(embedder: tttnn.Embedder) -> None:
    vectors = tiny_embedder(precision="bfloat16").embed(TEXTS)
    cosines = (vectors * embedder.embed(TEXTS)).sum(1)
    assert cosines.min() > 0.995  # 8 bits of mantissa through two layers
    assert cosines.mean() > 0.999


def test_other_texts_do_not_matter_in_bfloat16() -> None:
    half = tiny_embedder(precision="bfloat16")
    together = half.embed(TEXTS)
    alone = np.concatenate([half.embed([text]) for text in TEXTS])
    # A product of another shape may round otherwise: elements of 0.2 have steps of 0.001, through two layers.
    np.testing.assert_allclose(alone, together, atol=5e-3)
    np.testing.assert_allclose(half.embed(TEXTS[::-1])[::-1], together, atol=5e-3)


def test_identity_holds_what_decides_a_vector(embedder: tttnn.Embedder) -> None:
    same = tiny_embedder(precision="bfloat16", batch_tokens=77)
    assert same.identity == embedder.identity
    for other in (
        tiny_embedder(seed=4),
        tiny_embedder(pooling="cls"),
        tiny_embedder(normalize="no"),
        tiny_embedder(max_length=10),
        tttnn.Embedder(
            tiny_bert(vocab_size=260), changed_tokenizer(), EmbedConfig(precision="float32", normalize="yes")
        ),
    ):
        assert other.identity != embedder.identity


def changed_tokenizer() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["brown"])
    return tokenizer


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", False)])
def test_sentence_transformers_directories(tmp_path: Path, pooling: str, normalize: bool) -> None:
    save_encoder(tmp_path / "m", pooling=pooling, normalize=normalize, max_length=48)
    config = EmbedConfig(precision="float32")
    embedder = tttnn.Embedder.load(tmp_path / "m", config)
    assert (embedder.pooling, embedder.normalize, embedder.max_length) == (pooling, normalize, 48)
    np.testing.assert_allclose(embedder.embed(TEXTS), by_hand(TEXTS, pooling, normalize, 48), atol=1e-4, rtol=1e-4)
    assert embedder.name == str(tmp_path / "m")
    chosen = tttnn.Embedder.load(tmp_path / "m", EmbedConfig(pooling="mean", normalize="yes", max_length=12))
    assert (chosen.pooling, chosen.normalize, chosen.max_length) == ("mean", True, 12)


def test_plain_directories_pool_by_mean(tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path)
    byte_tokenizer(50).save_pretrained(tmp_path)
    embedder = tttnn.Embedder.load(tmp_path)
    assert (embedder.pooling, embedder.normalize, embedder.max_length) == ("mean", False, 50)


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="no-such-model"):
        tttnn.Embedder.load("./no-such-model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnknownModelError, match="empty"):
        tttnn.Embedder.load(tmp_path / "empty")
    save_encoder(tmp_path / "max", pooling="max")
    with pytest.raises(ConfigError, match="pooling must be mean or cls, got max_tokens"):
        tttnn.Embedder.load(tmp_path / "max")
    with pytest.raises(ConfigError, match="max_length must be at most 64"):
        tiny_embedder(max_length=65)
    with pytest.raises(ValueError, match="texts must be a sequence"):
        tiny_embedder().embed("one text")


def test_threads_are_put_back(embedder: tttnn.Embedder) -> None:
    before = torch.get_num_threads()
    other = tttnn.Embedder(tiny_bert(), byte_tokenizer(), threads=before + 1)
    other.embed(TEXTS)
    assert torch.get_num_threads() == before


@pytest.mark.models
def test_minilm_equals_sentence_transformers() -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    directory = tttnn.models.resolve("minilm-l6")
    texts = [Path(__file__).read_text(), "", "Bits per byte.", "日本語のテキスト", Path(tttnn.__file__).read_text()]
    rival = sentence_transformers.SentenceTransformer(directory, device="cpu")
    expected = rival.encode([text or " " for text in texts])
    exact = tttnn.Embedder.load("minilm-l6", EmbedConfig(precision="float32")).embed(texts)
    np.testing.assert_allclose(exact, expected, atol=2e-6)  # float32 roundings over six layers
    report = EmbedReport()
    half = tttnn.Embedder.load("minilm-l6", EmbedConfig(precision="bfloat16")).embed(texts, report=report)
    assert (half * expected).sum(1).min() > 0.999
    assert report.padded_tokens == report.tokens


@pytest.mark.models
def test_a_long_text_costs_what_its_beginning_costs() -> None:
    embedder = tttnn.Embedder.load("minilm-l6")
    text = "All happy families are alike; every unhappy family is unhappy in its own way. " * 60_000
    embedder.embed([text[:10_000]])
    started = time.perf_counter()
    vectors = embedder.embed([text, text[:10_000]])
    assert time.perf_counter() - started < 2.0
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
