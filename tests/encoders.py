"""Tiny random encoders and their tokenizer, made without network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import tttnn

PAD, CLS, SEP = 256, 257, 258


def byte_tokenizer(model_max_length: int = 64) -> Any:
    """Every byte is one token, words are split as by GPT-2, and [CLS] and [SEP] stand around the text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet)}
    vocabulary |= {"[PAD]": PAD, "[CLS]": CLS, "[SEP]": SEP}
    backend = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=model_max_length,
    )


def tiny_bert(seed: int = 3, **settings: Any) -> Any:
    """Two layers of 32 dimensions, dropout on until it is put into eval mode: 0.03 M random parameters."""
    torch.manual_seed(seed)
    options = {
        "vocab_size": 259,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,  # wide, so that vectors of different texts differ
    } | settings
    return BertModel(BertConfig(**options, pad_token_id=PAD))


def tiny_embedder(seed: int = 3, **settings: Any) -> tttnn.Embedder:
    """A float32 embedder of 32 dimensions that reads 64 tokens; `settings` are those of EmbedConfig."""
    options = {"precision": "float32", "normalize": "yes"} | settings
    return tttnn.Embedder(tiny_bert(seed), byte_tokenizer(), tttnn.EmbedConfig(**options), name=f"tiny-{seed}")


def save_encoder(directory: Path, *, pooling: str = "mean", normalize: bool = True, max_length: int = 48) -> Path:
    """Write a sentence-transformers directory with the tiny encoder."""
    tiny_bert().save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    folders = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": folders[kind], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_length}))
    (directory / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
    modes["pooling_mode_max_tokens"] = pooling == "max"
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | modes))
    return directory
