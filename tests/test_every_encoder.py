"""Every encoder of the installed transformers that can be built small: its vectors are those of each text alone.

Or it is refused, by one sentence; which ones are is written here.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import tttnn
from tests.encoders import byte_tokenizer
from tttnn.config import EmbedConfig
from tttnn.embedding.loading import encoder_of
from tttnn.errors import TttnnError

KINDS = sorted(
    {
        *modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        *modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
        *modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        *("gpt2", "opt", "qwen3", "gemma3_text", "xlnet", "layoutlm", "splinter", "ernie", "canine", "bert-generation"),
    }
    & {*modeling_auto.MODEL_MAPPING_NAMES}
)

REFUSED = {
    "canine": "failed",  # it joins characters, and there are too few of them in a word
    "reformer": "another each time",  # hashes are drawn anew
}

MOST = 3_000_000
"""Parameters of what counts as small."""

SMALL: dict[int, tuple[str, ...]] = {
    32: (
        *("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "embed_dim", "input_embedding_size"),
        *("output_embedding_size", "word_embed_proj_dim", "projection_dim"),
    ),
    48: ("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim", "d_inner"),
    2: (
        *("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers"),
        *("num_encoder_layers", "num_decoder_layers", "num_attention_heads", "n_heads", "n_head", "num_heads"),
        *("encoder_attention_heads", "decoder_attention_heads", "num_encoder_attention_heads"),
        "num_decoder_attention_heads",
    ),
    1: ("num_key_value_heads", "bos_token_id", "pad_token_id"),
    16: ("head_dim", "d_kv", "attention_head_size", "sliding_window", "local_attention"),
    64: ("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions"),
    4: ("num_experts", "num_local_experts"),
    300: ("vocab_size", "src_vocab_size", "tgt_vocab_size", "vocab_size_per_layer_input"),
}

SPECIAL: dict[str, dict[str, Any]] = {
    "big_bird": {"block_size": 8, "num_random_blocks": 1},
    "bigbird_pegasus": {"block_size": 8, "num_random_blocks": 1},
    "convbert": {"head_ratio": 1, "conv_kernel_size": 3, "num_attention_heads": 2},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16},
    "funnel": {"block_sizes": [1, 1], "d_head": 16, "num_decoder_layers": 1},
    "led": {"attention_window": [16, 16]},
    "longformer": {"attention_window": [16, 16]},
    "mobilebert": {"intra_bottleneck_size": 16, "embedding_size": 16, "true_hidden_size": 16},
    "modernbert": {"global_attn_every_n_layers": 2},
    "reformer": {
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh"],
        "feed_forward_size": 48,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
    },
    "roc_bert": {
        "shape_embed_dim": 8,
        "pronunciation_embed_dim": 8,
        "shape_vocab_size": 300,
        "pronunciation_vocab_size": 300,
    },
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
}

TEXTS = ["one text", "", "another text, rather longer than the first one", "x", "two tens", "🐍 naïve " * 3]


def small_config(kind: str) -> Any:
    """A configuration of which every size that goes by a known name is small."""
    made = CONFIG_MAPPING[kind]
    renamed = getattr(made, "attribute_map", {})
    fields = {name: size for size, names in SMALL.items() for name in names}
    base = made()
    known = {name: size for name, size in fields.items() if hasattr(base, name) and name not in renamed}
    known |= SPECIAL.get(kind, {})
    types = getattr(base, "layer_types", None)
    if types:
        known["layer_types"] = [types[0], types[-1]]
    while True:
        try:
            return made(**known)
        except NotImplementedError as problem:  # "does not support the setting of `num_hidden_layers`"
            named = [name for name in known if f"`{name}`" in str(problem) or name.replace("_", " ") in str(problem)]
            if not named:
                named = [name for name in known if "length limit" in str(problem) and name.startswith("max_position")]
            if not named:
                raise
            known = {name: size for name, size in known.items() if name not in named}


@functools.cache
def small_model(kind: str) -> Any:
    """A random small model of a kind, or a sentence that says why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = small_config(kind)
            with torch.device("meta"):
                size = sum(p.numel() for p in AutoModel.from_config(config).parameters())
            if size > MOST:
                return f"has {size} parameters however small it is made"
            torch.manual_seed(0)
            model = AutoModel.from_config(config).eval()
    except Exception as problem:  # each kind refuses sizes in its own way
        return f"cannot be built small: {str(problem).splitlines()[0] if str(problem) else type(problem).__name__}"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(3)  # so that vectors of different texts differ
    return model


def alone(model: Any, tokenizer: Any, text: str, max_length: int = 64) -> np.ndarray:
    """The mean state of one text's tokens, by transformers alone."""
    ids = tokenizer(text or " ", truncation=True, max_length=max_length)["input_ids"]
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
    mean: np.ndarray = states.last_hidden_state[0].float().mean(0).numpy()
    return mean


def built(kind: str, **settings: Any) -> tuple[Any, tttnn.Embedder]:
    model = small_model(kind)
    if isinstance(model, str):
        pytest.skip(model)
    try:
        embedder = tttnn.Embedder(model, byte_tokenizer(), EmbedConfig(**settings), name=kind)
    except TttnnError as problem:
        refusal = str(problem)
    else:
        assert kind not in REFUSED
        return encoder_of(model).eval(), embedder
    assert "\n" not in refusal
    if kind in REFUSED:
        assert REFUSED[kind] in refusal
    else:  # what transformers alone cannot do with texts, we cannot
        with pytest.raises(Exception):  # noqa: B017, PT011
            alone(encoder_of(model).eval(), byte_tokenizer(), TEXTS[0])
    pytest.skip(f"refused: {refusal}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_each_text_alone(kind: str) -> None:
    model, embedder = built(kind, precision="float32")
    longest = "long text of many words " * 8
    texts = [*TEXTS, longest]
    expected = np.stack([alone(model, byte_tokenizer(), text, embedder.max_length) for text in texts])
    size = np.linalg.norm(expected, axis=1).max()
    for found in (
        embedder.embed(texts),
        embedder.embed(texts[::-1])[::-1],
        np.stack([*map(embedder.embed, zip(texts))])[:, 0],
    ):
        np.testing.assert_allclose(found, expected, atol=2e-3 * size)  # the padded way may differ by so much
    half = built(kind, precision="bfloat16")[1].embed(texts)
    assert ((half * expected).sum(1) >= 0.97 * np.linalg.norm(half, axis=1) * np.linalg.norm(expected, axis=1)).all()


def test_most_kinds_are_tried() -> None:
    assert sum(not isinstance(small_model(kind), str) for kind in KINDS) >= 50
