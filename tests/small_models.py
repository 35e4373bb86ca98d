"""Causal language models of every architecture that the installed transformers has, built small and random."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 300

KINDS = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _sizes() -> dict[str, int]:
    """What architectures call their sizes; a configuration takes those that it has."""
    named = {
        64: "hidden_size d_model n_embd dim embed_dim emb_dim word_embed_proj_dim embedding_size attention_hidden_size "
        "block_embed_dim d_embed dim_model residual_size lru_width attention_window_size sliding_window index_topk",
        96: "intermediate_size ffn_dim n_inner d_ff ffn_hidden_size encoder_ffn_dim decoder_ffn_dim dff dim_ff "
        "dense_intermediate_size feed_forward_size block_ff_dim",
        32: "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size ffn_hidden_size_moe "
        "moe_shared_expert_intermediate_size expert_ffn_hidden_size moe_ffn_hidden_size intermediate_size_mlp "
        "moe_shared_intermediate_size head_dim kv_channels attention_head_dim attention_head_size d_kv swa_head_dim "
        "global_head_dim v_head_dim",
        2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
        "num_decoder_layers num_attention_heads n_head n_heads num_heads encoder_attention_heads "
        "decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads num_experts_per_tok "
        "num_experts_per_token moe_topk moe_k top_k_experts experts_top_k moe_top_k index_n_heads "
        "linear_num_key_heads linear_num_value_heads eos_token_id",
        1: "num_key_value_heads num_kv_heads n_head_kv n_group topk_group n_shared_experts first_k_dense_replace "
        "num_expert_group moe_num_shared_experts bos_token_id",
        128: "max_position_embeddings n_positions n_ctx max_seq_len max_source_positions max_target_positions "
        "max_sequence_length context_length",
        4: "num_experts num_local_experts n_routed_experts moe_num_experts num_routed_experts time_step_rank "
        "mamba_dt_rank",
        16: "q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim chunk_size mamba_chunk_size rotary_dim "
        "index_head_dim linear_key_head_dim linear_value_head_dim",
        8: "state_size mamba_d_state ssm_state_size hidden_size_per_layer_input",
        0: "pad_token_id",
        VOCABULARY: "vocab_size src_vocab_size vocab_size_per_layer_input",
    }
    return {name: size for size, names in named.items() for name in names.split()}


SIZES = _sizes()

OWN: dict[str, dict[str, Any]] = {
    "axk1": {"head_dim": 16},
    "axk2": {"num_key_value_heads": 2, "head_dim": 16},
    "blt": {
        "encoder_hash_byte_group_vocab": 100,
        "encoder_hash_byte_group_size": [3, 4],
        "encoder_hash_byte_group_nb_functions": 1,
    },
    "deepseek_v2": {"num_key_value_heads": 2},
    "deepseek_v3": {"head_dim": 16, "num_key_value_heads": 2},
    "deepseek_v32": {"num_key_value_heads": 2, "head_dim": 16},
    "dbrx": {"attn_config": {"kv_n_heads": 1, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "diffllama": {"num_key_value_heads": 2},
    "dots3_note_text": {"num_key_value_heads": 2},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "intermediate_size": [96] * 4,
    },
    "glm_moe_dsa": {"num_key_value_heads": 2, "head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "inkling2_text": {"unpadded_vocab_size": VOCABULARY, "padded_vocab_size": VOCABULARY},
    "inkling2_loop_text": {"unpadded_vocab_size": VOCABULARY, "padded_vocab_size": VOCABULARY},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": {
        "linear_attn_config": {
            "head_dim": 32,
            "num_heads": 2,
            "short_conv_kernel_size": 4,
            "kda_layers": [1],
            "full_attn_layers": [2],
        },
        "linear_num_heads": 2,
        "linear_head_dim": 32,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 16},
    "mamba2": {"num_heads": 4, "head_dim": 32, "n_groups": 1, "expand": 2},
    "nemotron_h": {"layers_block_type": ["linear_attention", "full_attention"]},
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [32, 32],
        "attn_layers": ["local", "local"],
        "local_attn_chunk_length": 16,
        "num_buckets": None,
    },
    "roc_bert": {
        "shape_embed_dim": 16,
        "pronunciation_embed_dim": 16,
        "shape_vocab_size": VOCABULARY,
        "pronunciation_vocab_size": VOCABULARY,
    },
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "youtu": {"head_dim": 16},
    "zamba": {
        "num_hidden_layers": 6,
        "layer_types": ["linear_attention", "linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 128,
        "attention_head_dim": 64,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 128,
        "attention_head_dim": 64,
        "num_key_value_heads": 2,
        "mamba_headdim": 32,
        "n_mamba_heads": 4,
        "mamba_ngroups": 1,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""What an architecture must have beside the common sizes."""


def small_model(kind: str) -> Any:
    """Build a model of an architecture; whatever its configuration or constructor raises where that cannot be."""
    torch.manual_seed(7)
    return AutoModelForCausalLM.from_config(_small(CONFIG_MAPPING[kind], copy.deepcopy(OWN.get(kind, {})))).eval()


def _small(kind: Any, own: dict[str, Any]) -> Any:
    base = kind()
    settings: dict[str, Any] = {}
    for name, size in SIZES.items():
        read_only = isinstance(getattr(kind, name, None), property) and getattr(kind, name).fset is None
        if _has(base, name) and name not in getattr(kind, "attribute_map", {}) and not read_only:
            settings[name] = size
    for name in getattr(kind, "sub_configs", {}):
        inner = getattr(base, name, None)
        if inner is not None and not isinstance(inner, dict):
            settings[name] = _small(type(inner), {}).to_dict()
    settings |= own
    types, layers = getattr(base, "layer_types", None), settings.get("num_hidden_layers")
    # Some find the kinds of their layers by other settings.
    found = isinstance(getattr(kind, getattr(kind, "attribute_map", {}).get("layer_types", ""), None), property)
    if "layer_types" not in own and not found and types and layers and len(types) != layers:
        kinds = list(dict.fromkeys(types))
        settings["layer_types"] = (kinds * layers)[:layers]
    for _ in range(12):
        try:
            return kind(**settings)
        except (NotImplementedError, AttributeError) as error:
            refused = [name for name in settings if f"'{name}'" in str(error) or f"`{name}`" in str(error)]
            if not refused:
                raise
            for name in refused:
                del settings[name]
    return kind(**settings)


def _has(config: Any, name: str) -> bool:
    try:
        return hasattr(config, name)
    except Exception:  # a property that refuses to be read is one
        return True
