"""Texts are plain text: what spells a control token is read as letters, for every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

import tttnn
from tests.conftest import tiny_gpt2
from tttnn.lm.neighbor_tokens import portion_of
from tttnn.lm.score import Scorer
from tttnn.lm.tokens import TextTokens, prefix_token
from tttnn.retrieval.neighbors import Neighbor

LETTERS = "abcdefghijklmnopqrstuvwxyz<>/|_ ▁"
SPECIAL = ["<unk>", "<s>", "</s>"]


def made(model: Any, pre_tokenizer: Any, **names: str) -> Any:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", bos_token="<s>", unk_token="<unk>", **names
    )


def bpe() -> Any:
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, *LETTERS])}
    return made(tokenizer_models.BPE(vocabulary, [], unk_token="<unk>"), pre_tokenizers.Metaspace())


def unigram() -> Any:
    """Its words hold the control tokens, and the likeliest reading of their letters is they."""
    pieces = [(piece, 0.0) for piece in SPECIAL] + [(letter, -5.0) for letter in LETTERS]
    return made(tokenizer_models.Unigram(pieces, unk_id=0, byte_fallback=False), pre_tokenizers.Metaspace())


def words() -> Any:
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, "a", "b"])}
    return made(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"), pre_tokenizers.WhitespaceSplit())


def turns() -> Any:
    """With further control tokens, one of them named by nobody but its own entry."""
    tokenizer = bpe()
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<think>", special=False)])
    return tokenizer


def python() -> Any:
    return ByT5Tokenizer()


TOKENIZERS: dict[str, tuple[Callable[[], Any], str]] = {
    "bpe": (bpe, "a</s>b"),
    "bos": (bpe, "<s>a"),
    "unigram": (unigram, "ab</s>c"),
    "words": (words, "a </s> b <s>"),
    "turns": (turns, "<|im_start|>a"),
    "python": (python, "a</s>b"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_text_that_spells_a_control_token_is_read_as_its_letters(name: str) -> None:
    make, text = TOKENIZERS[name]
    tokenizer = make()
    control = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    control |= set(tokenizer.all_special_ids)
    control -= {tokenizer.unk_token_id}
    assert not control.isdisjoint(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = TextTokens(tokenizer).ids(text)
    assert control.isdisjoint(ids)
    assert len(ids) > len(tokenizer(text, add_special_tokens=False)["input_ids"])
    read = TextTokens(tokenizer, "tokens").ids(text)
    assert read == tokenizer(text, add_special_tokens=False)["input_ids"]
    # The tokenizer itself is left as it was.
    assert not control.isdisjoint(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_other_texts_are_read_as_ever(name: str) -> None:
    tokenizer = TOKENIZERS[name][0]()
    for text in ("a", "", "  a  b ", "a < / s > b", "<", "ab|c", "unknown: Ü🐍"):
        assert TextTokens(tokenizer).ids(text) == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ["bpe", "unigram", "words"])
def test_offsets_go_with_the_tokens(name: str) -> None:
    make, text = TOKENIZERS[name]
    found = TextTokens(make()).tokenized(text)
    assert found.tokens == TextTokens(make()).ids(text)
    assert found.offsets is not None
    assert len(found.offsets) == len(found.tokens)
    assert found.offsets == sorted(found.offsets)
    at = text.index("<")
    assert [text[begin:end] for begin, end in found.offsets if at <= begin < text.index(">") + 1][1:] == [
        *text[at + 1 : text.index(">") + 1]
    ]


def test_a_tokenizer_that_knows_no_such_option_is_taken(tokenizer: Any) -> None:
    class Own:
        bos_token_id = eos_token_id = 256

        def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> Any:
            return tokenizer(text, add_special_tokens=add_special_tokens)

    assert TextTokens(Own()).ids("ab") == tokenizer("ab")["input_ids"]


def test_prompts_begin_as_the_tokenizer_begins_them() -> None:
    tokenizer = bpe()
    assert TextTokens(tokenizer).prompt("ab", 99) == (tokenizer("ab")["input_ids"], 0)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    ids, begins = TextTokens(tokenizer).prompt("ab", 99)
    assert begins == 1
    assert [*ids, 2] == tokenizer("ab")["input_ids"]
    # Written out, it is letters after the tokenizer's own; and the token itself, once, where texts hold tokens.
    ids, _ = TextTokens(tokenizer).prompt("<s>ab", 99)
    assert ids.count(1) == 1
    assert len(ids) > 4
    assert TextTokens(tokenizer, "tokens").prompt("<s>ab", 99)[0] == TextTokens(tokenizer, "tokens").ids("<s>ab")
    assert TextTokens(tokenizer, "tokens").prompt("ab", 99)[0][0] == 1


def test_the_token_before_a_text() -> None:
    tokenizer = bpe()
    assert TextTokens(tokenizer).prefix() == prefix_token(tokenizer) == 1
    tokenizer.bos_token = None
    assert TextTokens(tokenizer).prefix() == 2


@pytest.mark.parametrize("read_as", ["text", "tokens"])
def test_training_scoring_and_prompts_agree(read_as: Any, tokenizer: Any) -> None:
    text = "a<|endoftext|>b"
    count = 3 if read_as == "tokens" else len(text)
    config = tttnn.AdaptConfig(control_tokens=read_as, precision="float32", guard="query", guard_min_tokens=100)
    trainer = tttnn.TestTimeTrainer(tiny_gpt2(), tokenizer, None, config)
    with trainer.adapt(text, neighbors=[Neighbor(0, 0.1, text)]) as adapted:
        assert adapted.report.neighbors[0].tokens == count
        assert adapted.report.neighbors[0].trained_span == (0, len(text))
        assert f"has {count} tokens" in adapted.report.guard.reason
        assert adapted.score(text, context=text).tokens == count
        assert trainer.continued(text, max_new_tokens=1).prompt_tokens == count
    trainer.release()
    plain = TextTokens(tokenizer, read_as)
    assert portion_of(plain, Neighbor(0, 0.1, text), 64).tokens == plain.ids(text)
    assert Scorer(tiny_gpt2(), plain).score(text).tokens == count


def test_a_prompt_keeps_the_tokenizers_own_beginning_when_it_is_cut() -> None:
    tokenizer = bpe()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.backend_tokenizer.decoder = decoders.Metaspace()
    model = tiny_gpt2()
    read: list[list[int]] = []
    model.register_forward_pre_hook(
        lambda _, __, inputs: read.append(inputs["input_ids"][0].tolist()), with_kwargs=True
    )
    trainer = tttnn.TestTimeTrainer(model, tokenizer, None)
    read.clear()
    made = trainer.continued("ab" * 100, max_new_tokens=28)
    assert read[0][0] == 1
    assert len(read[0]) == made.prompt_tokens == 100
    assert read[0][1:] == tokenizer("ab" * 100)["input_ids"][-99:]
    trainer.release()


def test_of_a_prompt_of_millions_of_letters_the_end_alone_is_read(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read: list[int] = []
    original = TextTokens.ids

    def watched(self: TextTokens, text: str) -> list[int]:
        read.append(len(text))
        return original(self, text)

    monkeypatch.setattr(TextTokens, "ids", watched)
    model = tiny_gpt2(n_positions=64)
    trainer = tttnn.TestTimeTrainer(model, tokenizer, None, tttnn.AdaptConfig(precision="float32", guard="query"))
    text = "".join(chr(97 + i * i % 26) for i in range(4_000_000))
    read.clear()
    made = trainer.continued(text, max_new_tokens=8)
    with trainer.adapt(text, neighbors=[tttnn.Neighbor(0, 0.1, text)]) as adapted:
        assert adapted.report.guard.scores
        assert adapted.generate(max_new_tokens=4) == adapted.generate(text[-1000:], max_new_tokens=4)
    assert max(read) <= 64 * 64
    assert made.text == trainer.generate(text[-1000:], max_new_tokens=8)
    assert (made.prompt_tokens, made.prompt_cut) == (56, 64 * 64 - 1 - 56)
    assert "a text of 4000000 characters is read from its last 4096 on" in caplog.text
