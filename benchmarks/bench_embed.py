"""Embedding beside sentence-transformers in float32 and bfloat16: time for the same texts, with cosine and overlap.

Run: pytest benchmarks/bench_embed.py [--smoke] [--benchmark-json FILE]

Texts are a seeded sample of pile-mini train, MiniLM-L6 reads their first 256 tokens, on all cores. `cosine` and
`overlap_at_10` in the extra information compare with the float32 vectors of sentence-transformers.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import tttnn
from benchmarks.conftest import PILE_MINI
from tttnn.config import EmbedConfig
from tttnn.embed import EmbedReport

TEXTS = 400


@pytest.fixture(scope="module")
def texts(smoke: bool) -> list[str]:
    path = PILE_MINI / "train.jsonl.zst"
    if not path.exists():
        pytest.skip("the pile-mini corpus is not beside this checkout")
    import zstandard

    with path.open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        every = [json.loads(line)["text"] for line in lines]
    return random.Random(0).sample(every, 40 if smoke else TEXTS)


@pytest.fixture(scope="module")
def rival() -> Any:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    return sentence_transformers.SentenceTransformer(tttnn.models.resolve("minilm-l6"), device="cpu")


@pytest.fixture(scope="module")
def expected(rival: Any, texts: list[str]) -> np.ndarray:
    vectors: np.ndarray = rival.encode(texts)
    return vectors


def nearest(vectors: np.ndarray) -> np.ndarray:
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -2.0)
    return np.argsort(-similarity, axis=1)[:, :10]


def measure(benchmark: Any, embed: Callable[[], np.ndarray], texts: list[str], expected: np.ndarray) -> None:
    vectors = benchmark.pedantic(embed, rounds=3)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = float((vectors * expected).sum(1).mean())
    pairs = zip(nearest(vectors).tolist(), nearest(expected).tolist(), strict=True)
    overlap = float(np.mean([len(set(a) & set(b)) / 10 for a, b in pairs]))
    counted = EmbedReport()
    tttnn.Embedder.load("minilm-l6").embed(texts, report=counted)
    benchmark.extra_info |= {
        "cosine": round(cosine, 5),
        "overlap_at_10": round(overlap, 4),
        "tokens": counted.tokens,
        "padded_tokens": counted.padded_tokens,
        "threads": torch.get_num_threads(),
    }
    assert cosine >= 0.999
    assert overlap >= 0.97


@pytest.mark.models
@pytest.mark.data
@pytest.mark.benchmark(group="embed")
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_tttnn(benchmark: Any, texts: list[str], expected: np.ndarray, precision: Any) -> None:
    embedder = tttnn.Embedder.load("minilm-l6", EmbedConfig(precision=precision))
    measure(benchmark, lambda: embedder.embed(texts), texts, expected)


@pytest.mark.models
@pytest.mark.data
@pytest.mark.benchmark(group="embed")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_sentence_transformers(
    benchmark: Any, rival: Any, texts: list[str], expected: np.ndarray, precision: str
) -> None:
    model = rival.to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    measure(benchmark, lambda: model.encode(texts, convert_to_tensor=True).float().numpy(), texts, expected)
    rival.to(torch.float32)


@pytest.mark.benchmark(group="pool a batch of (16, 256, 384)")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["native", "pytorch"])
def test_pool(benchmark: Any, kind: str, dtype: str) -> None:
    from tttnn.embed import _pool

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(16, 256, 384, generator=generator).to(getattr(torch, dtype))
    mask = torch.arange(256) < torch.randint(200, 257, (16, 1), generator=generator)
    out = np.empty((16, 384), np.float32)

    def native() -> np.ndarray:
        _pool(hidden, mask.numpy().view(np.uint8), np.arange(16), out, "mean", True)
        return out

    def pytorch() -> np.ndarray:
        real = mask[..., None].float()
        mean = (hidden * real).sum(1) / real.sum(1).clamp(min=1e-9)
        vectors: np.ndarray = torch.nn.functional.normalize(mean, dim=1).numpy()
        return vectors

    with torch.inference_mode():
        found = benchmark(native if kind == "native" else pytorch)
        np.testing.assert_allclose(found, pytorch(), atol=1e-5)
