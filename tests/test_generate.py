"""One continuation: greedy whatever the checkpoint says, streamed text equal to the whole, and what it took."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from tests.conftest import tiny_gpt2, tiny_llama
from tttnn.errors import UnknownModelError
from tttnn.lm.generate import continued, drawing, fitted

PROMPT = list(b"hello world hello world")


def spelled(text: str | bytes) -> list[int]:
    """Tokens of the byte-level tokenizer, for any bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    alphabet = sorted(names.values())
    return [alphabet.index(names[byte]) for byte in (text.encode() if isinstance(text, str) else text)]


def sharp() -> Any:
    """A model whose greedy text varies."""
    return tiny_llama(initializer_range=0.3).eval()


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def spoken_by(model: Any, tokens: list[int]) -> None:
    """Make a model say these tokens one after the other, whatever is before."""
    made = iter(tokens)

    def forward(input_ids: torch.Tensor, **_: Any) -> Any:
        from transformers.modeling_outputs import CausalLMOutputWithPast

        logits = torch.zeros(1, 1, model.config.vocab_size)
        logits[0, 0, next(made)] = 9.0
        return CausalLMOutputWithPast(logits=logits)

    model.forward = forward


# ---------------------------------------------------------------------------------------------------------------------
# Models whose cache does not work
# ---------------------------------------------------------------------------------------------------------------------


def refusing(model: Any, refuses: Callable[[dict[str, Any]], bool]) -> Any:
    """Let a model's forward fail where it is called with certain arguments."""
    forward = model.forward

    def watched(*inputs: Any, **options: Any) -> Any:
        if refuses(options):
            raise ValueError("the cache has no such layers\nand more of this")
        return forward(*inputs, **options)

    model.forward = watched
    return model


def with_something_kept(options: dict[str, Any]) -> bool:
    kept = options.get("past_key_values") or options.get("cache")
    return kept is not None and kept.get_seq_length() > 0


@pytest.mark.parametrize("refuses", [lambda options: bool(options.get("use_cache")), with_something_kept])
def test_a_model_whose_cache_fails_goes_on_without(
    refuses: Callable[[dict[str, Any]], bool], tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = refusing(sharp(), refuses)
    pieces: list[str] = []
    for _ in range(2):
        made = continued(
            model, tokenizer, PROMPT, window=99, max_new_tokens=9, on_token=lambda piece, _: pieces.append(piece)
        )
    assert list(made.tokens) == greedy(sharp(), PROMPT, 9)
    assert "".join(pieces) == 2 * made.text
    assert [record.message for record in caplog.records] == [
        "LlamaForCausalLM generates without a cache, and slowly, because with one: the cache has no such layers"
    ]


def test_a_model_that_does_not_generate_is_refused(tokenizer: Any) -> None:
    model = refusing(sharp(), lambda options: True)
    with pytest.raises(UnknownModelError, match=r"must generate text, but failed on 2 tokens: the cache has no such l"):
        continued(model, tokenizer, PROMPT, window=99, max_new_tokens=9)


def test_an_error_of_a_callback_is_its_own(tokenizer: Any) -> None:
    def failing(piece: str, token: int) -> None:
        raise OSError("the reader is gone")

    with pytest.raises(OSError, match="the reader is gone"):
        continued(sharp(), tokenizer, PROMPT, window=99, max_new_tokens=9, on_token=failing)


# ---------------------------------------------------------------------------------------------------------------------
# What the checkpoint says
# ---------------------------------------------------------------------------------------------------------------------

OF_A_CHECKPOINT: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2},
    {"num_beams": 3},
    {"num_beams": 2, "num_return_sequences": 2},
    {"min_length": 60},
    {"max_length": 5},
    {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20},
    {"forced_bos_token_id": 65},
    {"forced_eos_token_id": 66},
    {"suppress_tokens": list(range(32, 110))},
    {"begin_suppress_tokens": list(range(200))},
    {"bad_words_ids": [[i] for i in range(100)]},
    {"return_dict_in_generate": True, "output_scores": True},
    {"cache_implementation": "static"},
    {"use_cache": False},
    {"max_time": 0.0},
    {"stop_strings": ["a", "e"]},
    {"encoder_repetition_penalty": 2.0},
]


@pytest.mark.parametrize("settings", OF_A_CHECKPOINT, ids=lambda settings: "+".join(settings))
def test_greedy_means_greedy(settings: dict[str, Any], tokenizer: Any) -> None:
    model = sharp()
    model.generation_config.eos_token_id = None
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    held = model.generation_config
    made = continued(model, tokenizer, PROMPT, window=128, max_new_tokens=12, **drawing(0.0))
    assert list(made.tokens) == greedy(model, PROMPT, 12)
    assert model.generation_config is held


def test_every_end_token_of_the_checkpoint_ends_a_text(tokenizer: Any) -> None:
    model = sharp()
    wanted = greedy(model, PROMPT, 12)
    for ends in (wanted[4], [255, wanted[4]]):
        model.generation_config.eos_token_id = ends
        made = continued(model, tokenizer, PROMPT, window=128, max_new_tokens=12)
        assert list(made.tokens) == wanted[: wanted.index(wanted[4]) + 1]
        assert made.ended_by == "eos"


# ---------------------------------------------------------------------------------------------------------------------
# Room in the window
# ---------------------------------------------------------------------------------------------------------------------


def test_a_prompt_too_long_keeps_its_beginning_tokens_and_its_end(caplog: pytest.LogCaptureFixture) -> None:
    prompt = list(range(50))
    with caplog.at_level(logging.WARNING, logger="tttnn"):
        assert fitted(prompt, 60, 10, begins=1) == prompt
        assert not caplog.records
        assert fitted(prompt, 40, 10, begins=1) == [0, *range(21, 50)]
    assert "a prompt of 50 tokens is cut to its last 29: the model reads 40 at once" in caplog.text
    assert fitted(prompt, 11, 10, begins=1) == [49]


def test_a_cut_is_told_in_the_result(tokenizer: Any) -> None:
    made = continued(sharp(), tokenizer, PROMPT, window=20, max_new_tokens=5)
    assert (made.prompt_tokens, made.prompt_cut) == (15, 8)
    assert made.tokens == continued(sharp(), tokenizer, PROMPT[8:], window=128, max_new_tokens=5).tokens


@pytest.mark.parametrize("count", [0, 128, 200])
def test_a_continuation_that_fills_the_window_is_refused(count: int, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=f"max_new_tokens must be between 1 and 127 .*got {count}"):
        continued(tiny_gpt2(), tokenizer, PROMPT, window=128, max_new_tokens=count)


def test_arguments_are_checked(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="prompt must hold at least one token"):
        continued(tiny_gpt2(), tokenizer, [], window=128, max_new_tokens=4)
    with pytest.raises(ValueError, match="temperature must be 0 or more, got -1"):
        drawing(-1)
    with pytest.raises(ValueError, match="temperature"):
        drawing(float("nan"))
    with pytest.raises(ValueError, match="top_p must be above 0 and at most 1, got 0"):
        drawing(1.0, 0.0)


# ---------------------------------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------------------------------


def test_a_seeded_draw_leaves_the_random_state_alone(tokenizer: Any) -> None:
    model = sharp()

    def drawn(seed: int | None) -> tuple[int, ...]:
        options = drawing(1.0, 0.95)
        return continued(model, tokenizer, PROMPT, window=128, max_new_tokens=12, seed=seed, **options).tokens

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert drawn(3) == drawn(3) != drawn(4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert drawn(None) != drawn(None)


# ---------------------------------------------------------------------------------------------------------------------
# Reading along
# ---------------------------------------------------------------------------------------------------------------------


def with_byte_tokens() -> Any:
    """Words after sentencepiece's fashion, and single bytes ``<0x00>`` that its decoder reads together."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁the", "▁cat", "s", "▁"]
    backend = Tokenizer(
        tokenizer_models.BPE(
            vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>", byte_fallback=True
        )
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def that_cleans_up() -> Any:
    """Words separated by spaces, some of which the tokenizer takes out again when it decodes."""
    words = ["[UNK]", "do", "n", "'", "t", ".", ",", "I", "##ve", "ve", "[SEP]", "?", "s"]
    backend = Tokenizer(tokenizer_models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]", clean_up_tokenization_spaces=True)


BYTES = 3
STREAMS: list[tuple[str, list[int]]] = [
    ("bytes", spelled("Ünïcödé 🐍, 日本語 and �.")),
    ("bytes", spelled(b"a\xf0\x9fb\xe6\x97\xff\xffcd\xf0")),  # never whole characters
    ("bytes", spelled("日".encode()[:2])),
    ("byte tokens", [259, 260, *(BYTES + b for b in "日本".encode()), 261, BYTES + 0x41, BYTES + 0xE6, 259, 262, 261]),
    ("byte tokens", [BYTES + 0x41, BYTES + 0xE6]),
    ("byte tokens", [259, 260, 2, 259, 259]),  # ends in between
    ("cleaning", [1, 2, 3, 4, 5, 7, 3, 9, 6, 2, 3, 12, 11, 3, 3, 1, 10]),
]


@pytest.mark.parametrize(("kind", "tokens"), STREAMS)
def test_pieces_joined_are_the_whole_text(kind: str, tokens: list[int], tokenizer: Any) -> None:
    used = {"bytes": lambda: tokenizer, "byte tokens": with_byte_tokens, "cleaning": that_cleans_up}[kind]()
    texts = []
    pieces: list[str] = []
    seen: list[int] = []

    def note(piece: str, token: int) -> None:
        pieces.append(piece)
        seen.append(token)

    for callback in (None, note):
        model = tiny_gpt2(vocab_size=300)
        model.generation_config.eos_token_id = used.eos_token_id
        spoken_by(model, tokens)
        made = continued(model, used, [7], window=128, max_new_tokens=len(tokens), on_token=callback)
        texts.append(made.text)
        assert len(seen) == (0 if callback is None else len(made.tokens))
    assert texts[0] == texts[1] == "".join(pieces) == used.decode(made.tokens, skip_special_tokens=True)
    assert tuple(seen) == made.tokens


def test_pieces_hold_no_half_character_and_come_early(tokenizer: Any) -> None:
    text = "Ünï 🐍 日本!"
    model = tiny_gpt2()
    spoken_by(model, spelled(text))
    pieces: list[str] = []
    continued(
        model,
        tokenizer,
        [7],
        window=128,
        max_new_tokens=len(text.encode()),
        on_token=lambda piece, _: pieces.append(piece),
    )
    assert [piece for piece in pieces if piece] == list(text)


@pytest.mark.parametrize("stop", [["END"], ["ND", "E"], ["x END", "E!"], ["", "Dx"], ["nowhere"]])
def test_no_part_of_a_stop_string_is_let_out(stop: list[str], tokenizer: Any) -> None:
    text = "an ENtry E, x ENDxE and more EN"
    whole = text[: min((text.find(string) for string in stop if string and string in text), default=len(text))]
    pieces: list[str] = []
    for callback in (None, lambda piece, _: pieces.append(piece)):
        model = tiny_gpt2()
        spoken_by(model, spelled(text))
        made = continued(model, tokenizer, [7], window=128, max_new_tokens=len(text), stop=stop, on_token=callback)
        assert made.text == whole
        assert made.ended_by == ("stop" if whole != text else "max_new_tokens")
    assert "".join(pieces) == whole


def test_a_stop_string_may_be_a_special_token(tokenizer: Any) -> None:
    model = tiny_gpt2()
    model.generation_config.eos_token_id = None
    spoken_by(model, [*spelled("abc"), 256, *spelled("def")])
    made = continued(model, tokenizer, [7], window=128, max_new_tokens=7, stop=["<|endoftext|>"])
    assert (made.text, made.ended_by, len(made.tokens)) == ("abc", "stop", 4)


def test_what_is_in_the_prompt_stops_nothing(tokenizer: Any) -> None:
    model = tiny_gpt2()
    spoken_by(model, spelled("c, abc"))
    made = continued(model, tokenizer, spelled("ab"), window=128, max_new_tokens=6, stop=["abc"])
    assert made.text == "c, "


def test_a_callback_may_end_the_text(tokenizer: Any) -> None:
    model = tiny_gpt2()
    spoken_by(model, spelled("one two three"))
    pieces: list[str] = []

    def enough(piece: str, _: int) -> bool:
        pieces.append(piece)
        return len(pieces) == 5

    made = continued(model, tokenizer, [7], window=128, max_new_tokens=13, on_token=enough)
    assert (made.text, made.ended_by, len(made.tokens)) == ("one t", "callback", 5)


@pytest.mark.parametrize("at", [1, 4, 7, 8])
def test_a_text_ended_after_any_token_is_the_same_in_pieces_and_in_one(at: int, tokenizer: Any) -> None:
    """Also in the middle of a character, at a stop string's beginning, and at the last token, which ends it anyway."""
    tokens = spelled("a日bSTO")
    texts, pieces = [], []
    for on_token in (None, lambda piece, _: pieces.append(piece)):
        asked = iter(range(1, 100))
        model = tiny_gpt2()
        spoken_by(model, tokens)
        made = continued(
            model,
            tokenizer,
            [7],
            window=128,
            max_new_tokens=8,
            stop=["STOP"],
            on_token=on_token,
            after_token=lambda asked=asked: next(asked) == at,
        )
        assert (len(made.tokens), made.ended_by) == (at, "max_new_tokens" if at == 8 else "callback")
        texts.append(made.text)
    assert texts[0] == texts[1] == "".join(pieces) == tokenizer.decode(tokens[:at])


def test_no_token_is_decoded_to_ask_whether_to_go_on(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **how: (decoded.append(len(ids)), decode(ids, **how))[1])
    continued(tiny_gpt2(), tokenizer, [7], window=128, max_new_tokens=9, after_token=lambda: False)
    assert decoded == [9], "once, at the end"


def test_a_callback_that_fails_leaves_nothing_behind(tokenizer: Any) -> None:
    model = sharp().train()
    held, before = model.generation_config, torch.random.get_rng_state()

    def fail(piece: str, token: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        continued(model, tokenizer, PROMPT, window=128, max_new_tokens=5, seed=3, on_token=fail, **drawing(1.0))
    assert model.training
    assert model.generation_config is held
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_it_took_is_told(trainer: Any) -> None:
    heard: list[str] = []
    with trainer.adapt("a query of some words") as adapted:
        text = adapted.generate(max_new_tokens=6, on_token=lambda piece, _: heard.append(piece))
        adapted.generate("x" * 300, max_new_tokens=3)
        first, second = adapted.report.generations
    assert "".join(heard) == text
    assert first.tokens == 6
    assert first.tokens_per_second == pytest.approx(6 / first.seconds)
    assert first.prompt_cut == 0
    assert (second.prompt_tokens, second.prompt_cut) == (125, 175)
    assert adapted.report.to_dict()["generations"][1]["ended_by"] == "max_new_tokens"
