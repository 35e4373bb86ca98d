from __future__ import annotations

import json
import random
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import tttnn
from tttnn.cli.demo import HELD_OUT, MEASURED, SAMPLE_BYTES, WINDOW_TOKENS, draw_sample, run_demo, standard_library
from tttnn.store.document import Document, text_digest


def documents(count: int, length: int = 3000) -> list[Document]:
    return [
        Document("".join(random.Random(i).choices("abcdef \n", k=length)), {"path": f"{i:03}.txt"})
        for i in range(count)
    ]


def test_held_out_documents_are_whole_and_not_in_the_corpus(tokenizer: Any) -> None:
    given = documents(20)
    copies = [Document(document.text, {"path": f"copy-of-{document.meta['path']}"}) for document in given]
    sample = draw_sample(given + copies, tokenizer, seed=1)
    assert len(sample.held_out) == HELD_OUT
    held = {text_digest(document.text) for document in sample.held_out}
    assert len(held) == HELD_OUT
    corpus: dict[str, str] = {}
    for window in sample.windows:
        corpus[window.meta["name"]] = corpus.get(window.meta["name"], "") + window.text
        assert len(window.text) <= WINDOW_TOKENS
    assert not held & {text_digest(text) for text in corpus.values()}
    assert sorted(corpus.values()) == sorted(d.text for d in given if text_digest(d.text) not in held)


def test_the_sample_depends_on_the_seed_alone(tokenizer: Any) -> None:
    given = documents(20)
    first = draw_sample(given, tokenizer, seed=1)
    assert draw_sample(list(reversed(given)), tokenizer, seed=1).digest == first.digest
    assert draw_sample(given, tokenizer, seed=2).digest != first.digest


def test_the_sample_is_bounded(tokenizer: Any) -> None:
    sample = draw_sample(documents(12, length=SAMPLE_BYTES // 5), tokenizer, seed=0)
    assert SAMPLE_BYTES - WINDOW_TOKENS <= sample.num_bytes <= SAMPLE_BYTES
    assert sum(len(window.text.encode()) for window in sample.windows) == sample.num_bytes


@pytest.mark.parametrize("count", [0, 1, HELD_OUT])
def test_too_small_a_corpus_is_refused(tokenizer: Any, count: int) -> None:
    with pytest.raises(tttnn.TttnnError, match="at least 6 different documents"):
        draw_sample(documents(count), tokenizer, seed=0)


def test_every_python_has_the_default_corpus() -> None:
    assert sum(len(document.text) for document in standard_library()) > SAMPLE_BYTES


@pytest.mark.models
@pytest.mark.slow
def test_demo_on_a_small_corpus(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    root = Path(sysconfig.get_paths()["stdlib"])
    for name in ("heapq", "bisect", "textwrap", "shlex", "csv", "string", "glob", "queue", "sched", "calendar", "code"):
        (corpus / f"{name}.py").write_bytes((root / f"{name}.py").read_bytes())
    config = tttnn.AdaptConfig(num_neighbors=1, max_neighbor_tokens=128)
    said: list[str] = []
    result = run_demo(tmp_path / "out", corpus=corpus, seed=3, config=config, tell=said.append)
    numbers = json.loads(json.dumps(result.to_dict()))
    assert numbers["documents"] == MEASURED
    assert {"base_bits_per_byte", "adapted_bits_per_byte", "seconds", "seed"} <= numbers.keys()
    assert numbers["curve"]["0"] == numbers["base_bits_per_byte"]
    assert (tmp_path / "out" / "bits_per_byte.png").read_bytes().startswith(b"\x89PNG")
    assert result.prompt
    assert result.after
    datastores = sorted(path.name for path in (tmp_path / "out").glob("datastore-*"))
    again = run_demo(tmp_path / "out", corpus=corpus, seed=3, config=config)
    assert again.to_dict()["curve"] == numbers["curve"]
    assert sorted(path.name for path in (tmp_path / "out").glob("datastore-*")) == datastores
