"""Tiny random models made without network, and the real ones behind the `models` marker."""

from __future__ import annotations

import os
import signal

# Before torch is imported: two processes whose threads spin slow each other down many times over.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

import tttnn
from tttnn.retrieval.neighbors import Neighbor, SearchResult
from tttnn.retrieval.retriever import RetrieverInfo
from tttnn.store.document import Document

transformers_logging.disable_progress_bar()

PILE_MINI = Path(__file__).resolve().parents[2] / "shared" / "data" / "pile-mini"

TEXTS = [
    "The cat sat on the mat and looked at the moon.",
    "def quicksort(items):\n    return sorted(items)\n",
    "Bits per byte is the log-likelihood of a text, divided by its length in bytes.",
    "Nearest neighbors come first; smaller distances are nearer. Ünïcödé 🐍 too.",
    "A document that is a little longer than the others, so that it needs two windows of training. " * 2,
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-instruction", action="store_true", help="interrupt a query at every one of its bytecodes")
    said = "all 10,000 inputs of the fuzz, 1,000 events of the storm and ten minutes of mixed load"
    parser.addoption("--thorough", action="store_true", help=said)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A shell starts jobs in the background with SIGINT ignored; Python then has no KeyboardInterrupt to test."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def byte_tokenizer() -> Any:
    """Every byte is one token; end of text is token 256."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet)} | {"<|endoftext|>": 256}
    backend = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", bos_token="<|endoftext|>", model_max_length=1_000_000_000
    )


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Every byte is one token."""
    return byte_tokenizer()


def tiny_gpt2(**settings: Any) -> Any:
    """Two layers, tied head, dropout on: 0.04 M random parameters."""
    torch.manual_seed(7)
    options = {"vocab_size": 257, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 2} | settings
    return GPT2LMHeadModel(GPT2Config(**options, bos_token_id=256, eos_token_id=256))


def tiny_llama(**settings: Any) -> Any:
    """Two layers, untied head, grouped attention."""
    torch.manual_seed(7)
    options = {
        "vocab_size": 257,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    } | settings
    return LlamaForCausalLM(LlamaConfig(**options, bos_token_id=256, eos_token_id=256))


def save_model(folder: Path, model: Any, tokenizer: Any) -> str:
    """Write a model and its tokenizer as a directory that `load` takes; return its name."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def model() -> Any:
    return tiny_gpt2()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A folder with all that a server needs; see `served.save_everything`."""
    from tests.served import save_everything

    made = tmp_path_factory.mktemp("served")
    save_everything(made, tokenizer)
    return made


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """What `folder` is, with a model that writes words."""
    from tests.served import NAME, save_everything, teach

    made = tmp_path_factory.mktemp("taught")
    save_everything(made, tokenizer)
    teach(made / NAME, tokenizer)
    return made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium; the test is skipped where none is installed."""
    from tests.browser import Browser

    with Browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


class FakeRetriever:
    """Returns the first k of a fixed list of neighbors; `queries` are those it was asked, with their k."""

    def __init__(self, texts: list[str]) -> None:
        self.documents = [Document(text, {"pile_set_name": "Fake"}) for text in texts]
        self.neighbors = [Neighbor(i, 0.1 * i, d.text, d.meta) for i, d in enumerate(self.documents)]
        self.queries: list[tuple[str, int]] = []

    def search(
        self,
        query: str,
        k: int,
        *,
        exclude_digests: Collection[str] = (),
        where: Any = None,
        with_vectors: bool = False,
    ) -> SearchResult:
        self.queries.append((query, k))
        kept = [neighbor for neighbor in self.neighbors if neighbor.digest not in set(exclude_digests)]
        return SearchResult(tuple(kept[:k]), requested=k, excluded=len(self.neighbors) - len(kept))

    def describe(self) -> RetrieverInfo:
        return RetrieverInfo("fake")


@pytest.fixture
def retriever() -> FakeRetriever:
    return FakeRetriever(TEXTS)


@pytest.fixture
def trainer(model: Any, tokenizer: Any, retriever: FakeRetriever) -> Iterator[tttnn.TestTimeTrainer]:
    config = tttnn.AdaptConfig(num_neighbors=5, max_length=64, learning_rate=1e-3, precision="float32")
    made = tttnn.TestTimeTrainer(model, tokenizer, retriever, config)
    yield made
    made.release()


def state_of(model: Any) -> dict[str, torch.Tensor]:
    """Copies of every parameter and buffer, those that are not saved included."""
    return {name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}


def assert_same_state(model: Any, before: dict[str, torch.Tensor]) -> None:
    after = state_of(model)
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        same = torch.equal(
            tensor.contiguous().view(-1).view(torch.uint8), after[name].contiguous().view(-1).view(torch.uint8)
        )
        assert same, f"{name} differs"


@pytest.fixture(scope="session")
def smollm2() -> str:
    """Directory of SmolLM2-135M."""
    return tttnn.models.resolve("smollm2-135m")


@pytest.fixture(scope="session")
def minilm() -> Any:
    return tttnn.Embedder.load("minilm-l6")


@pytest.fixture(scope="session")
def pile_mini() -> Path:
    if not PILE_MINI.is_dir():
        pytest.skip("the pile-mini corpus is not beside this checkout")
    return PILE_MINI


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes with one thread, and then with as many as before: a forked child has no other OpenMP threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
