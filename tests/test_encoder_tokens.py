"""Texts to token ids: those of the whole text, whatever it is, though of a giant only a part is read."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.encoders import CLS, PAD, SEP, byte_tokenizer, tiny_bert, tiny_embedder
from tttnn import Embedder
from tttnn.config import EmbedConfig
from tttnn.embedding import tokens as module
from tttnn.embedding.tokens import EncoderTokens

WORDS = [
    *("the", "cat", "sat", "on", "a", "mat", "and", "some", "dogs", "ran", "far", "off", "to", "see"),
    *("what", "there", "was", "in", "all", "world"),
]


@functools.cache
def word_tokenizer() -> Any:
    """Words and their parts, as BERT's: spaces and control characters leave nothing, long words are unknown."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    backend.train_from_iterator([" ".join(WORDS), '!"[]SEPCL the The 0123456789'], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


@functools.cache
def one_word_tokenizer() -> Any:
    """Without a pre-tokenizer, as Llama's: a whole text is one word."""
    backend = Tokenizer(models.BPE(unk_token="[UNK]", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "_")
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["[UNK]", "[PAD]"], show_progress=False)
    backend.train_from_iterator([" ".join(WORDS)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")


LENGTHS = st.integers(4, 30)
TOKENIZERS = {"bytes": byte_tokenizer, "words": word_tokenizer, "one word": one_word_tokenizer}


def by_transformers(tokenizer: Any, text: str, length: int, side: str) -> list[int]:
    tokenizer.truncation_side = side
    ids: list[int] = tokenizer(text, truncation=True, max_length=length)["input_ids"]
    return ids


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", TOKENIZERS)
@given(
    words=st.lists(st.sampled_from([*WORDS, "\n", "🐍", "x" * 150, "naïve,"]), max_size=400), length=st.integers(4, 30)
)
@settings(max_examples=40, deadline=None)
def test_the_same_as_of_the_whole_text(name: str, side: Any, words: list[str], length: int) -> None:
    tokenizer = TOKENIZERS[name]()
    text = " ".join(words) or "a"
    found = EncoderTokens(TOKENIZERS[name](), length, truncation=side).encode([text])
    expected = by_transformers(tokenizer, text, length, side)
    assert found.ids == [expected or [tokenizer.pad_token_id]]
    assert found.truncated == (len(tokenizer(text)["input_ids"]) > length)


GIANTS = {
    "a word of letters": "abcdefghij" * 400_000,
    "one letter": "a" * 4_000_000,
    "spaces": " " * 4_000_000,
    "control characters": "\x00\x07" * 2_000_000,
    "a document": " ".join(WORDS) * 200_000,
    "long words": ("x" * 5_000 + " ") * 800,
    "snakes": "🐍" * 2_000_000,
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_of_a_giant_only_so_much_is_tokenised_as_is_kept(name: str, side: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    length = 16
    tokens = EncoderTokens(TOKENIZERS[name](), length, truncation=side)
    seen: list[int] = []
    own = EncoderTokens._split

    def watched(self: EncoderTokens, pieces: list[str]) -> Any:
        seen.extend(map(len, pieces))
        return own(self, pieces)

    monkeypatch.setattr(EncoderTokens, "_split", watched)
    for what, giant in GIANTS.items():
        seen.clear()
        found = tokens.encode([giant])
        # Each try reads four times as much as the one before.
        assert sum(seen) <= 1.5 * length * module._MOST_CHARACTERS_PER_TOKEN, what
        assert found.truncated == 1, what
        assert 1 <= len(found.ids[0]) <= length, what
        if what == "a document":
            assert sum(seen) < 10_000


@pytest.mark.parametrize("text", [" ", "\n\n\t", "\x00", "\x00\x01\x1f", "\u200b", "\ufeff", "\ud800", "\ud83d \udc0d"])
def test_texts_of_nothing_have_a_vector_all_the_same(text: str) -> None:
    for tokenizer, model in ((byte_tokenizer(), tiny_bert()), (word_tokenizer(), tiny_bert())):
        embedder = Embedder(model, tokenizer, EmbedConfig(precision="float32"))
        vectors = embedder.embed([text, "", "a"])
        assert np.isfinite(vectors).all()


def test_a_text_without_tokens_is_its_special_tokens_or_the_padding() -> None:
    bare = word_tokenizer()
    assert EncoderTokens(bare, 8).encode(["\x00", " ", "", "the"]).ids[:3] == [[bare.pad_token_id]] * 3
    assert EncoderTokens(byte_tokenizer(), 8).encode([""]).ids == EncoderTokens(byte_tokenizer(), 8).encode([" "]).ids


def test_a_text_that_spells_a_special_token_is_text() -> None:
    tokens = EncoderTokens(byte_tokenizer(), 64)
    texts = ["a [SEP] b", "[CLS]", "[PAD][PAD]", "no [MASK] of ours"]
    for text, ids in zip(texts, tokens.encode(texts).ids, strict=True):
        assert ids[0] == CLS
        assert ids[-1] == SEP
        assert not {CLS, SEP, PAD} & {*ids[1:-1]}
        assert len(ids) == len(text) + 2  # a token for each byte
    # As tokens they would be a word less, and padding would be no text at all.
    vectors = tiny_embedder().embed(["a [SEP] b", "a [PAD] b", "a b"])
    assert len({row.tobytes() for row in vectors}) == 3


def test_tokens_that_were_added_and_are_not_special_stay_tokens() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["brown"])
    assert 259 in EncoderTokens(tokenizer, 64).encode(["the brown fox"]).ids[0]


def test_where_special_tokens_stand_is_seen_with_any_alphabet() -> None:
    backend = Tokenizer(models.BPE({"[CLS]": 1, "[SEP]": 2, "的": 3}, []))  # what it does not know is nothing
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokens = EncoderTokens(PreTrainedTokenizerFast(tokenizer_object=backend), 8)
    assert tokens.encode(["的 的"]).ids == [[1, 3, 3, 2]]


def test_progress_moves_with_every_batch() -> None:
    embedder = tiny_embedder(batch_tokens=256)
    seen: list[tuple[str, int, int | None]] = []
    embedder.embed([f"text {i} " * (i % 5) for i in range(1300)], progress=lambda *call: seen.append(call))
    done = [call[1] for call in seen]
    assert done == sorted({*done})
    assert done[-1] == 1300
    assert len(done) > 100
    assert {(call[0], call[2]) for call in seen} == {("embed", 1300)}
