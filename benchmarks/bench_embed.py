"""Embedding beside sentence-transformers, ONNX Runtime and OpenVINO: time for the same texts, with cosine and overlap.

Run: pytest benchmarks/bench_embed.py [--smoke] [--benchmark-json FILE]

Texts are a seeded sample of pile-mini train, MiniLM-L6 reads their first 256 tokens, on all cores (torch's setting).
We and a rival take turns, so that a busy machine slows both: `ratio_median` and `ratio_min` are of the rival's time
over ours, round by round. `cosine` and `overlap_at_10` compare with the float32 vectors of sentence-transformers.
ONNX Runtime has the encoder in float32 (it has no bfloat16 on processors), OpenVINO in bfloat16; both get batches of 16
texts of like length, and their states are pooled by numpy.
"""

from __future__ import annotations

import io
import json
import random
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tttnn
from benchmarks.conftest import PILE_MINI
from tttnn.config import EmbedConfig
from tttnn.embedding.embed_report import EmbedReport

TEXTS = 200
ROUNDS = 5
BATCH = 16  # of the rivals that get batches
Embed = Callable[[list[str]], np.ndarray]


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


def sentence_transformers(precision: str) -> Embed:
    package = pytest.importorskip("sentence_transformers")
    model = package.SentenceTransformer(tttnn.models.resolve("minilm-l6"), device="cpu")
    model.to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    return lambda texts: np.asarray(model.encode(texts, convert_to_tensor=True).float().numpy())


@pytest.fixture(scope="module")
def expected(texts: list[str]) -> np.ndarray:
    return sentence_transformers("float32")(texts)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the encoder as an ONNX file: input_ids and attention_mask (batch, tokens) to last hidden states."""
    pytest.importorskip("onnx")
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tttnn.models.resolve("minilm-l6"), dtype=torch.float32).eval()

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return states

    path = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    example = torch.ones(2, 9, dtype=torch.int64)
    example[1, 5:] = 0
    names = ["input_ids", "attention_mask"]
    with warnings.catch_warnings():
        # The old exporter: states of the new one's file depend on padding, and ONNX Runtime is slower with it.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            States().eval(),
            (example, example),
            str(path),
            input_names=names,
            output_names=["states"],
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in [*names, "states"]},
            dynamo=False,
        )
    return path


def in_batches(run: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Embed:
    """Return an embedding by `run` (token ids, mask) -> states, of batches of like length."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tttnn.models.resolve("minilm-l6"))

    def embed(texts: list[str]) -> np.ndarray:
        ids = tokenizer(texts, truncation=True, max_length=256)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        vectors: list[Any] = [None] * len(ids)
        for begin in range(0, len(order), BATCH):
            batch = order[begin : begin + BATCH]
            longest = max(len(ids[i]) for i in batch)
            tokens, mask = np.zeros((2, len(batch), longest), np.int64)
            for row, i in enumerate(batch):
                tokens[row, : len(ids[i])] = ids[i]
                mask[row, : len(ids[i])] = 1
            states = run(tokens, mask)
            means = np.einsum("btd,bt->bd", states, mask.astype(np.float32), optimize=True)
            for i, mean in zip(batch, means / np.linalg.norm(means, axis=1, keepdims=True), strict=True):
                vectors[i] = mean
        return np.stack(vectors)

    return embed


def onnxruntime(path: Path) -> Embed:
    package = pytest.importorskip("onnxruntime")
    options = package.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = package.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return in_batches(lambda tokens, mask: session.run(None, {"input_ids": tokens, "attention_mask": mask})[0])


def openvino(path: Path) -> Embed:
    package = pytest.importorskip("openvino")
    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = package.Core().compile_model(path, "CPU", settings)
    return in_batches(lambda tokens, mask: model({"input_ids": tokens, "attention_mask": mask})[0])


@pytest.fixture
def rival(request: pytest.FixtureRequest) -> Embed:
    name: str = request.param
    if name.startswith("sentence-transformers"):
        return sentence_transformers(name.split()[1])
    path = request.getfixturevalue("exported")
    return onnxruntime(path) if name == "onnxruntime" else openvino(path)


def nearest(vectors: np.ndarray) -> np.ndarray:
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -2.0)
    return np.argsort(-similarity, axis=1)[:, :10]


def quality(vectors: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = zip(nearest(vectors).tolist(), nearest(expected).tolist(), strict=True)
    overlap = float(np.mean([len(set(a) & set(b)) / 10 for a, b in pairs]))
    return {"cosine": round(float((vectors * expected).sum(1).mean()), 5), "overlap_at_10": round(overlap, 4)}


@pytest.mark.models
@pytest.mark.data
@pytest.mark.benchmark(group="embed, in turn with a rival")
@pytest.mark.parametrize(
    ("precision", "rival"),
    [
        ("bfloat16", "sentence-transformers float32"),
        ("bfloat16", "sentence-transformers bfloat16"),
        ("bfloat16", "onnxruntime"),
        ("bfloat16", "openvino"),
        ("float32", "sentence-transformers float32"),
        ("float32", "onnxruntime"),
    ],
    indirect=["rival"],
)
def test_beside(
    benchmark: Any, texts: list[str], expected: np.ndarray, precision: Any, rival: Embed, smoke: bool
) -> None:
    embedder = tttnn.Embedder.load("minilm-l6", EmbedConfig(precision=precision))
    counted = EmbedReport()
    found = {"ours": embedder.embed(texts, report=counted), "rival": rival(texts)}  # also what a first call prepares
    seconds: dict[str, list[float]] = {"ours": [], "rival": []}

    def both() -> None:
        for name, embed in (("ours", embedder.embed), ("rival", rival)):
            begin = time.perf_counter()
            found[name] = embed(texts)
            seconds[name].append(time.perf_counter() - begin)

    benchmark.pedantic(both, rounds=1 if smoke else ROUNDS)
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["rival"], strict=True)]
    ours = quality(found["ours"], expected)
    benchmark.extra_info |= {
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "seconds": round(statistics.median(seconds["ours"]), 3),
        "seconds_rival": round(statistics.median(seconds["rival"]), 3),
        "tokens_per_second": round(counted.tokens / statistics.median(seconds["ours"])),
        "tokens": counted.tokens,
        "padded_tokens": counted.padded_tokens,
        "threads": torch.get_num_threads(),
        **ours,
        **{f"{name}_rival": value for name, value in quality(found["rival"], expected).items()},
    }
    assert ours["cosine"] >= 0.999
    assert ours["overlap_at_10"] >= 0.97
    assert benchmark.extra_info["cosine_rival"] >= 0.999


@pytest.mark.models
@pytest.mark.data
@pytest.mark.benchmark(group="embed, share of the matrix-product rate")
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_share_of_matrix_product_rate(
    benchmark: Any, texts: list[str], expected: np.ndarray, precision: Any, smoke: bool
) -> None:
    """The time that the products of real tokens would take at the rate of a large one, over that of embedding.

    Counted are the products of weights (2 operations for each weight of the layers and token) and of attention (2
    products of tokens x tokens x width for each text and layer). Padding, where there is any, is not.
    """
    embedder = tttnn.Embedder.load("minilm-l6", EmbedConfig(precision=precision))
    square = torch.randn(2048, 2048).to(getattr(torch, precision))
    rates: list[float] = []
    seconds: list[float] = []
    counted = EmbedReport()
    vectors = embedder.embed(texts, report=counted)

    def embed() -> None:
        begin = time.perf_counter()
        square @ square
        rates.append(2 * 2048**3 / (time.perf_counter() - begin))
        begin = time.perf_counter()
        embedder.embed(texts)
        seconds.append(time.perf_counter() - begin)

    benchmark.pedantic(embed, rounds=1 if smoke else ROUNDS)
    config = embedder.model.config
    weights = sum(p.numel() for p in embedder.model.encoder.parameters() if p.dim() == 2)
    lengths = [min(256, len(spans) + 2) for spans in map(embedder.token_spans, texts)]
    assert sum(lengths) == counted.tokens
    attention = 4 * sum(n * n for n in lengths) * config.hidden_size * config.num_hidden_layers
    operations = 2 * weights * counted.tokens + attention
    benchmark.extra_info |= {
        "gigaoperations": round(operations / 1e9, 1),
        "rate_of_products": round(max(rates) / 1e9, 1),
        "seconds": round(min(seconds), 3),
        "share": round(operations / max(rates) / min(seconds), 3),
        "tokens_per_second": round(counted.tokens / min(seconds)),
        "threads": torch.get_num_threads(),
        **quality(vectors, expected),
    }
    assert benchmark.extra_info["cosine"] >= 0.999


@pytest.mark.benchmark(group="pool a batch of (16, 256, 384)")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["native", "pytorch"])
def test_pool(benchmark: Any, kind: str, dtype: str) -> None:
    from tttnn.kernels.pooling import pool

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(16, 256, 384, generator=generator).to(getattr(torch, dtype))
    mask = torch.arange(256) < torch.randint(200, 257, (16, 1), generator=generator)
    out = np.empty((16, 384), np.float32)

    def native() -> np.ndarray:
        pool(hidden, mask.numpy().view(np.uint8), np.arange(16), out, "mean", True)
        return out

    def pytorch() -> np.ndarray:
        real = mask[..., None].float()
        mean = (hidden * real).sum(1) / real.sum(1).clamp(min=1e-9)
        vectors: np.ndarray = torch.nn.functional.normalize(mean, dim=1).numpy()
        return vectors

    with torch.inference_mode():
        found = benchmark(native if kind == "native" else pytorch)
        np.testing.assert_allclose(found, pytorch(), atol=1e-5)
