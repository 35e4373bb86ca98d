"""The store and the weight arena beside one plain rival each, in seconds rather than minutes.

    python -m pytest benchmarks/bench_quick.py

`bench_store.py` and `bench_arena.py` compare with every rival, interleaved; this file is for the daily look.
"""

from __future__ import annotations

import copy
import mmap
import random
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from transformers import LlamaConfig, LlamaForCausalLM

import tttnn
from tttnn.training.optimizer import build_optimizer
from tttnn.weights.arena import WeightArena


@pytest.fixture(scope="module")
def texts(smoke: bool) -> list[str]:
    """Source files of this Python, in an order of their own."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(root.glob("*.py"))[: 20 if smoke else None]
    return [path.read_text(encoding="utf-8") for path in paths]


class TestReadingOneQuerysDocuments:
    """Fifty documents by id, in the random order in which a search finds them."""

    @pytest.fixture
    def ids(self, texts: list[str]) -> list[int]:
        return random.Random(0).choices(range(len(texts)), k=50)

    def test_tttnn(self, benchmark: Any, tmp_path: Path, texts: list[str], ids: list[int]) -> None:
        with tttnn.TextStoreWriter(tmp_path / "texts.zst") as writer:
            for text in texts:
                writer.append(text)
        with tttnn.TextStore.open(tmp_path / "texts.zst") as store:
            benchmark.group = "store: read 50 documents by id"
            found = benchmark(store.read_many, ids, texts_only=True)
        assert found == [texts[i] for i in ids]

    def test_zstandard_frames_over_mmap(self, benchmark: Any, tmp_path: Path, texts: list[str], ids: list[int]) -> None:
        compressor = zstandard.ZstdCompressor(level=6, write_checksum=True)
        frames = [compressor.compress(text.encode()) for text in texts]
        (tmp_path / "frames").write_bytes(b"".join(frames))
        offsets = [0]
        for frame in frames:
            offsets.append(offsets[-1] + len(frame))
        decompressor = zstandard.ZstdDecompressor()
        with open(tmp_path / "frames", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            benchmark.group = "store: read 50 documents by id"
            found = benchmark(
                lambda: [decompressor.decompress(mapped[offsets[i] : offsets[i + 1]]).decode() for i in ids]
            )
        assert found == [texts[i] for i in ids]


@pytest.fixture
def model(smoke: bool) -> Any:
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}
    if not smoke:
        size = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 10, "vocab_size": 49152}
    made = LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=4, tie_word_embeddings=True))
    for parameter in made.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    return made


class TestRestore:
    def test_arena(self, benchmark: Any, model: Any) -> None:
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        gradients = {name: p.grad for name, p in model.named_parameters()}
        arena = WeightArena(model)
        optimizer = build_optimizer(arena, tttnn.AdaptConfig())

        def train() -> None:
            arena.begin()
            for name, p in model.named_parameters():
                p.grad = gradients[name].clone()
            optimizer.step(1e-4)
            assert not torch.equal(model.lm_head.weight, before["model.embed_tokens.weight"])

        benchmark.group = "arena: restore"
        benchmark.pedantic(arena.restore, setup=train, rounds=5)
        arena.verify()
        for name, p in model.named_parameters():
            assert torch.equal(p, before[name])
        arena.release()

    def test_load_state_dict(self, benchmark: Any, model: Any) -> None:
        saved = copy.deepcopy(model.state_dict())

        def train() -> None:
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(1e-3)

        benchmark.group = "arena: restore"
        benchmark.pedantic(model.load_state_dict, args=(saved,), setup=train, rounds=5)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, saved[name])


class TestStep:
    """The third step of a query, with clipping: moments are there and are read."""

    def run(self, benchmark: Any, model: Any, step: Any) -> None:
        gradients = [p.grad.clone() for p in model.parameters()]

        def set_gradients() -> None:
            for p, gradient in zip(model.parameters(), gradients, strict=True):
                p.grad = gradient.clone()

        for _ in range(2):
            set_gradients()
            step()
        benchmark.group = "arena: clip and AdamW"
        benchmark.pedantic(step, setup=set_gradients, rounds=5)

    def test_fused(self, benchmark: Any, model: Any) -> None:
        arena = WeightArena(model)
        optimizer = build_optimizer(arena, tttnn.AdaptConfig())
        start = model.lm_head.weight.detach().clone()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        arena.begin()
        for name, p in model.named_parameters():
            p.grad = gradients[name]
        self.run(benchmark, model, lambda: optimizer.step(1e-4))
        moved = (model.lm_head.weight - start).abs().max()
        arena.restore()
        assert 0 < moved < 8 * 1e-4

    def test_torch_fused(self, benchmark: Any, model: Any) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
        start = model.lm_head.weight.detach().clone()

        def step() -> None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        self.run(benchmark, model, step)
        assert 0 < (model.lm_head.weight - start).abs().max() < 8 * 1e-4
