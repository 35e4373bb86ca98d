"""Shared weights: several processes, one copy; the same bits as alone, and nobody can spoil it for the others."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import re
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tttnn
from tttnn import _core
from tttnn.config import AdaptConfig
from tttnn.errors import AdaptError, RestoreError
from tttnn.training.optimizer import build_optimizer
from tttnn.weights.arena import WeightArena
from tttnn.weights.shared_weights import SharedWeights

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memfd is Linux only"),
    pytest.mark.usefixtures("one_thread"),
]


class Net(nn.Module):
    """A tied weight, a transposed one, a buffer: half a million weights. Spawned processes need no transformers."""

    def __init__(self, dtype: torch.dtype = torch.float32, *, seed: int = 0, width: int = 512) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(257, width, dtype=dtype)
        self.middle = nn.Linear(width, width, dtype=dtype)
        self.middle.weight = nn.Parameter(self.middle.weight.detach().t())
        self.head = nn.Linear(width, 257, bias=False, dtype=dtype)
        self.head.weight = self.embedding.weight
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.tensor([1.0, 2.0], dtype=dtype))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.head(torch.tanh(self.middle(self.embedding(tokens))))
        return hidden.float() * self.scale[1].float()


def train(model: nn.Module, arena: WeightArena, *, steps: int = 3) -> str:
    """One query; return a digest of the trained weights."""
    optimizer = build_optimizer(arena, AdaptConfig())
    tokens = torch.arange(40) * 7 % 257
    arena.begin()
    try:
        for _ in range(steps):
            nn.functional.cross_entropy(model(tokens[:-1]), tokens[1:]).backward()
            optimizer.step(1e-3)
        return digest(model)
    finally:
        arena.restore()


def digest(model: nn.Module) -> str:
    result = hashlib.sha256()
    for tensor in [*model.parameters(), *model.buffers()]:
        result.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def mappings() -> list[dict[str, int]]:
    """Of each mapping of shared weights in this process: its first and last address, and kilobytes by kind."""
    found: list[dict[str, int]] = []
    wanted = False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii", errors="replace").splitlines():
        header = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if header:
            wanted = "memfd:tttnn-weights" in line
            if wanted:
                found.append({"begin": int(header[1], 16), "end": int(header[2], 16)})
        elif wanted and line.endswith(" kB"):
            name, amount, _ = line.split()
            found[-1][name.rstrip(":")] = int(amount)
    return found


def create(connection: Connection) -> None:
    """A process that shares weights, sends them, and waits to be killed."""
    connection.send(WeightArena(Net()).share())
    connection.recv()


def work(weights: SharedWeights, connection: Connection) -> None:
    """A process that adapts on shared weights and says what its memory looks like while another does the same."""
    torch.set_num_threads(1)
    model = Net()
    arena = WeightArena(model, shared=weights)
    del weights
    trained = train(model, arena)
    arena.verify()
    connection.send("ready")
    connection.recv()
    inside = [mappings()[0]["begin"] <= p.data_ptr() < mappings()[0]["end"] for p in model.parameters()]
    connection.send((trained, digest(model), inside, mappings()))
    connection.recv()


def test_processes_share_one_copy_that_outlives_its_maker() -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    maker = context.Process(target=create, args=(there,))
    maker.start()
    weights = here.recv()
    assert maker.pid is not None
    os.kill(maker.pid, signal.SIGKILL)
    maker.join()

    workers: list[tuple[Any, Connection]] = []
    for _ in range(2):
        mine, its = context.Pipe()
        process = context.Process(target=work, args=(weights, its))
        process.start()
        its.close()
        workers.append((process, mine))
    size = weights.nbytes
    del weights  # each worker has its own descriptor
    for _, connection in workers:
        assert connection.recv() == "ready"
    alone = Net()
    expected = train(alone, WeightArena(alone))
    for _, connection in workers:
        connection.send("measure")
        trained, restored, inside, found = connection.recv()
        assert trained == expected
        assert restored == digest(Net())
        # What is trained lies in the worker's own memory, and is put back from the one mapping.
        assert inside == [False] * len(list(alone.parameters()))
        assert len(found) == 1
        # Every page is in the other worker's mapping too, and none was copied for this one.
        assert found[0]["Shared_Clean"] + found[0]["Shared_Dirty"] >= size // 1024
        assert found[0]["Private_Clean"] + found[0]["Private_Dirty"] == 0
        assert found[0]["Anonymous"] == 0
    for process, connection in workers:
        connection.send("end")
        process.join()
        assert process.exitcode == 0
        process.close()
        connection.close()
    maker.close()
    here.close()
    there.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_as_a_private_arena(dtype: torch.dtype) -> None:
    alone = Net(dtype)
    private = WeightArena(alone)
    expected = train(alone, private)
    weights = private.share()
    models = [Net(dtype), Net(dtype)]
    arenas = [WeightArena(model, shared=weights) for model in models]
    del weights
    gc.collect()
    for _ in range(2):
        for model, arena in zip(models, arenas, strict=True):
            assert train(model, arena) == expected
            assert digest(model) == digest(alone)
            assert arena.digest() == private.digest()
            arena.verify()
    assert models[0].head.weight is models[0].embedding.weight
    arenas[0].release()
    assert digest(models[0]) == digest(alone)
    assert train(models[1], arenas[1]) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"precision": "bfloat16"},
        {"guard": "query"},
        {"trainable": "last-layers", "last_layers": 1},
    ],
)
def test_trainers_on_shared_weights_give_the_same_answer(
    settings: dict[str, Any], retriever: Any, tokenizer: Any
) -> None:
    from .conftest import tiny_gpt2  # not above: spawned processes would import transformers

    config = tttnn.AdaptConfig(num_neighbors=3, max_length=64, learning_rate=1e-3).with_(**settings)
    alone = tttnn.TestTimeTrainer(tiny_gpt2(), tokenizer, retriever, config)
    weights = alone.share_weights()
    other = tttnn.TestTimeTrainer(tiny_gpt2(), tokenizer, retriever, config, shared_weights=weights)
    assert other.fingerprint == alone.fingerprint
    for query in ("A cat", "The cat sat on the mat and looked at the moon, for a while, as cats do."):
        with alone.adapt(query) as mine, other.adapt(query) as shared:
            assert mine.report.losses == shared.report.losses
            assert mine.bits_per_byte("The cat sat") == shared.bits_per_byte("The cat sat")
    other.release()


def test_a_stray_write_stays_at_home_and_is_named() -> None:
    weights = WeightArena(Net()).share()
    careless, careful = Net(), Net()
    first = WeightArena(careless, shared=weights)
    second = WeightArena(careful, shared=weights)
    with torch.no_grad():
        careless.middle.bias.add_(1)  # no signal, and not the other's weights
    with pytest.raises(RestoreError, match=r"middle\.bias must stay as the arena left it, but it has version"):
        first.begin()
    second.begin()
    second.restore()
    second.verify()

    # What is not trained lies in the shared block itself: a write costs this process a page of its own.
    weights = WeightArena(Net(), trainable=["middle.weight"]).share()
    models = [Net(), Net()]
    third, fourth = (WeightArena(model, trainable=["middle.weight"], shared=weights) for model in models)
    models[0].middle.bias.data.add_(1)
    with pytest.raises(RestoreError, match=r"middle\.bias: pristine weights must keep fingerprint"):
        third.verify()
    for arena, model in ((second, careful), (fourth, models[1])):
        arena.verify()
        assert digest(model) == digest(Net())


def test_another_model_is_refused_by_name() -> None:
    weights = WeightArena(Net()).share()
    changed = Net()
    with torch.no_grad():
        changed.middle.bias[-1] += 1e-6
    before = digest(changed)
    with pytest.raises(AdaptError, match=r"middle\.bias must have the shared weights' fingerprint"):
        WeightArena(changed, shared=weights)
    assert digest(changed) == before

    cases: list[tuple[nn.Module, list[str] | None, str]] = [
        (Net(width=64), None, r"embedding\.weight must have shape \(257, 512\) as in the shared weights, got"),
        (Net(torch.bfloat16), None, r"embedding\.weight must have dtype torch\.float32"),
        (Net(), ["middle.*"], r"middle\.weight must have names"),
        (nn.Linear(3, 2), None, r"weight must have names"),
    ]
    for model, trainable, message in cases:
        with pytest.raises(AdaptError, match=message):
            WeightArena(model, trainable=trainable, shared=weights)

    class More(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("zero", torch.zeros(3))

    with pytest.raises(AdaptError, match="must have the 4 tensors of the shared weights, got 5"):
        WeightArena(More(), shared=weights)


def test_a_released_arena_shares_nothing() -> None:
    arena = WeightArena(Net())
    arena.release()
    with pytest.raises(AdaptError, match="released"):
        arena.share()


def test_what_is_not_sealed_is_refused(tmp_path: Path) -> None:
    memory = _core.SharedMemory(4096)
    with pytest.raises(ValueError, match="must be sealed"):
        _core.Block(memory)
    with pytest.raises(ValueError, match="must be sealed"):
        _core.SharedMemory(memory.fileno(), 4096)
    memory.seal()
    assert _core.SharedMemory(memory.fileno(), 4096).fileno() != memory.fileno()
    with pytest.raises(ValueError, match="must have 8192 bytes, got 4096"):
        _core.SharedMemory(memory.fileno(), 8192)
    with (tmp_path / "file").open("wb") as file:
        file.truncate(4096)
        with pytest.raises(ValueError, match="must be sealed"):
            _core.SharedMemory(file.fileno(), 4096)
