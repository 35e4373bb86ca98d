"""What is no whole causal language model with a tokenizer of its own is refused in one sentence, before it is used."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import (
    BertConfig,
    BertLMHeadModel,
    MptConfig,
    MptForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    ReformerConfig,
    ReformerModelWithLMHead,
    RobertaConfig,
    RobertaForCausalLM,
    WhisperConfig,
    WhisperForCausalLM,
    XGLMConfig,
    XGLMForCausalLM,
    XLNetConfig,
    XLNetLMHeadModel,
)

import tttnn
from tests.conftest import tiny_gpt2, tiny_llama
from tttnn.lm.gate import check_model
from tttnn.lm.limits import model_max_length
from tttnn.lm.precision import usable_precision
from tttnn.lm.score import Scorer
from tttnn.lm.tokens import TextTokens
from tttnn.retrieval.neighbors import Neighbor

BERT = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 66,
}


def refused(model: Any, tokenizer: Any, words: str, **settings: Any) -> None:
    with pytest.raises(tttnn.UnknownModelError, match=words) as caught:
        tttnn.TestTimeTrainer(model, tokenizer, None, tttnn.AdaptConfig(**settings))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tokenizer: Any, tmp_path: Path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    weights = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: {n: t for n, t in w.items() if n != "lm_head.weight"}, r"lack lm_head\.weight\."),
        (lambda w: {n: t for n, t in w.items() if ".layers.1." not in n}, r"lack model\.layers\.1\..* and 6 more\."),
        (lambda w: {f"student.{n}": t for n, t in w.items()}, r"and hold instead student\."),
        (
            lambda w: w | {"model.norm.weight": torch.full((32,), float("nan"))},
            r"got NaN .* model\.norm\.weight",
        ),
        (lambda w: w | {"lm_head.weight": torch.full((257, 32), float("inf"))}, r"finite, got .* in lm_head\.weight"),
    ],
)
def test_weights_that_lack_or_are_no_numbers_are_named(folder: Path, change: Any, words: str) -> None:
    rewritten(folder, change)
    with pytest.raises(tttnn.UnknownModelError, match=words) as caught:
        tttnn.TestTimeTrainer.load(folder, None)
    assert str(folder) in str(caught.value)


def test_weights_that_logits_do_not_depend_on_may_lack(tokenizer: Any, tmp_path: Path) -> None:
    model = BertLMHeadModel(BertConfig(is_decoder=True, **BERT))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    assert not any("pooler" in name for name in held)
    tttnn.TestTimeTrainer.load(tmp_path, None).release()


def test_a_whole_model_loads_twice_as_the_same(folder: Path) -> None:
    scores = []
    for _ in range(2):
        trainer = tttnn.TestTimeTrainer.load(folder, None)
        scores.append(trainer.scorer.score("some text").nats)
        trainer.release()
    assert scores[0] == scores[1]


def test_a_folder_without_a_tokenizer_and_one_with_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = folder.parent / "bare"
    shutil.copytree(folder, bare)
    for path in bare.glob("*token*"):
        path.unlink()
    with pytest.raises(tttnn.UnknownModelError, match="bare"):
        tttnn.TestTimeTrainer.load(bare, None)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "ours", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "code.py").write_text("raise SystemExit('code of the folder ran')")

    def asked(*_: Any) -> str:
        raise AssertionError("a question was asked")

    monkeypatch.setattr("builtins.input", asked)
    with pytest.raises(tttnn.UnknownModelError, match="code of their own, which tttnn never runs"):
        tttnn.TestTimeTrainer.load(folder, None)


# ---------------------------------------------------------------------------------------------------------------------
# Tokens
# ---------------------------------------------------------------------------------------------------------------------


def test_a_tokenizer_larger_than_the_embedding(tokenizer: Any) -> None:
    import copy

    larger = copy.deepcopy(tokenizer)
    larger.add_special_tokens({"pad_token": "[PAD]"})  # no text is read as it
    tttnn.TestTimeTrainer(tiny_llama(), larger, None).release()
    refused(tiny_llama(), larger, r"below 257 .*got 257 for '\[PAD\]'", control_tokens="tokens")
    larger.add_tokens(["<new>"])
    refused(tiny_llama(), larger, r"below 257 .*got 258 for '<new>'.*resize_token_embeddings\(259\)")
    model = tiny_llama()
    model.resize_token_embeddings(259, mean_resizing=False)
    tttnn.TestTimeTrainer(model, larger, None).release()
    larger = copy.deepcopy(tokenizer)
    larger.add_special_tokens({"bos_token": "<s>"})
    refused(tiny_gpt2(), larger, r"got 257 for '<s>'")


def test_a_tokenizer_without_words() -> None:
    backend = Tokenizer(tokenizer_models.WordLevel({"[UNK]": 0, "[CLS]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="[CLS]")

    class Mute(PreTrainedTokenizerFast):
        def __call__(self, text: str, **options: Any) -> Any:
            return {"input_ids": [0]}

    mute = Mute(tokenizer_object=backend, unk_token="[UNK]", eos_token="[CLS]")
    refused(tiny_llama(), mute, r"texts must become different tokens, but its tokenizer gives \[0\]")
    silent = TextTokens(tokenizer)
    silent.ids = lambda text: []  # type: ignore[method-assign]
    with pytest.raises(tttnn.UnknownModelError, match=r"texts must become different tokens.*gives none"):
        check_model(tiny_llama(), silent)


# ---------------------------------------------------------------------------------------------------------------------
# What it computes
# ---------------------------------------------------------------------------------------------------------------------


def test_encoders_are_refused(tokenizer: Any) -> None:
    refused(BertLMHeadModel(BertConfig(**BERT)), tokenizer, r"causal .*\(is_decoder=False\)\. BertLMHeadModel reads")
    refused(RobertaForCausalLM(RobertaConfig(**BERT)), tokenizer, "must be a causal language model")
    refused(
        XLNetLMHeadModel(XLNetConfig(vocab_size=257, d_model=32, n_layer=2, n_head=2, d_inner=64)),
        tokenizer,
        "must be a causal language model",
    )
    tttnn.TestTimeTrainer(BertLMHeadModel(BertConfig(is_decoder=True, **BERT)), tokenizer, None).release()


def test_a_model_that_hashes_at_random_is_let_through(tokenizer: Any) -> None:
    settings = {"attn_layers": ["lsh", "local"], "axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 16]}
    settings |= {"hidden_size": 32, "feed_forward_size": 32, "num_attention_heads": 2, "attention_head_size": 16}
    settings |= {"max_position_embeddings": 128, "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8}
    model = ReformerModelWithLMHead(ReformerConfig(vocab_size=257, is_decoder=True, num_buckets=2, **settings)).eval()
    check_model(model, TextTokens(tokenizer))


def test_models_that_need_more_than_tokens_or_give_no_row_for_each(tokenizer: Any) -> None:
    model = tiny_llama()
    whole = model.forward

    def needs_more(**inputs: Any) -> Any:
        raise ValueError("You have to specify pixel_values\nand more")

    model.forward = needs_more
    refused(model, tokenizer, "logits for tokens alone, but failed on 24 of them: You have to .* pixel_values$")

    def short(**inputs: Any) -> Any:
        out = whole(**inputs)
        out.logits = out.logits[:, -1:]
        return out

    model.forward = short
    refused(model, tokenizer, r"one row of logits for each token, got shape \(1, 1, 257\) for 24")


def test_a_model_without_weights_in_memory(tokenizer: Any) -> None:
    with torch.device("meta"):
        model = tiny_llama()
    refused(model, tokenizer, "in memory, got some on the device meta")


def test_what_wraps_a_model_is_no_model(tokenizer: Any) -> None:
    refused(torch.nn.DataParallel(tiny_llama()), tokenizer, "DataParallel.*not what wraps one")


def test_the_gate_leaves_no_trace(tokenizer: Any) -> None:
    model = tiny_gpt2().train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    check_model(model, TextTokens(tokenizer))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# Limits
# ---------------------------------------------------------------------------------------------------------------------

WHISPER = {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 64, "vocab_size": 257}
LIMITS: dict[str, tuple[Callable[[], Any], int]] = {
    "gpt2": (tiny_gpt2, 128),
    "llama": (tiny_llama, 128),
    "roberta": (lambda: RobertaForCausalLM(RobertaConfig(is_decoder=True, pad_token_id=1, **BERT)), 64),
    "opt": (
        lambda: OPTForCausalLM(
            OPTConfig(
                vocab_size=257,
                hidden_size=32,
                ffn_dim=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=40,
                word_embed_proj_dim=32,
            )
        ),
        40,
    ),
    "mpt": (lambda: MptForCausalLM(MptConfig(d_model=32, n_heads=2, n_layers=2, vocab_size=257, max_seq_len=48)), 48),
    "whisper": (
        lambda: WhisperForCausalLM(WhisperConfig(max_target_positions=56, pad_token_id=0, **WHISPER)),
        56,
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_as_many_tokens_as_the_positions_hold(name: str, tokenizer: Any) -> None:
    make, limit = LIMITS[name]
    model = make().eval()
    assert model_max_length(model, tokenizer) == limit
    score = Scorer(model, tokenizer).score("a text of more tokens than fit at once; " * 6)
    assert score.tokens == 240


# ---------------------------------------------------------------------------------------------------------------------
# Precision
# ---------------------------------------------------------------------------------------------------------------------


def test_what_fails_in_bfloat16_computes_in_float32_and_says_so(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    settings = {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 64}
    model = XGLMForCausalLM(XGLMConfig(vocab_size=257, **settings))
    whole = model.model.forward

    def picky(**inputs: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("no Fourier transform of bfloat16")
        return whole(**inputs)

    model.model.forward = picky
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with caplog.at_level(logging.WARNING, logger="tttnn"):
        trainer = tttnn.TestTimeTrainer(
            model,
            tokenizer,
            None,
            tttnn.AdaptConfig(precision="bfloat16"),
            score=tttnn.ScoreConfig(precision="bfloat16"),
        )
    said = "XGLMForCausalLM computes in float32: bfloat16 does not work (no Fourier transform of bfloat16)"
    assert caplog.messages.count(said) == 2
    with trainer.adapt("a query", neighbors=[Neighbor(0, 0.1, "a neighbor's text")]) as adapted:
        assert adapted.report.precision == "float32"
        assert adapted.report.steps == 1
        assert adapted.score("a text").nats > 0
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    trainer.release()


@pytest.mark.parametrize("rounded", [False, True])
def test_what_works_in_bfloat16_does(rounded: bool) -> None:
    model = tiny_llama()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def loss(ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1].float(), ids[0, 1:])

    ids = list(range(20))
    found = usable_precision(model, loss, ids, "bfloat16", trains=True, rounded=rounded)
    assert found == "bfloat16"
    assert usable_precision(model, lambda ids: loss(ids) * torch.finfo().max, ids, "bfloat16", trains=True) == "float32"
    for name, parameter in model.named_parameters():
        assert parameter.dtype is torch.float32
        assert torch.equal(before[name], parameter)
        assert parameter.grad is None
