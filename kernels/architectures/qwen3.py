"""Qwen3: causal, RMSNorm before attention and MLP and of each head, shared key heads, SwiGLU."""

from __future__ import annotations

import math
from typing import Final

from lodestream.kernels.architectures.config import ModelConfig
from lodestream.kernels.architectures.description import Architecture, EncoderDescription, LayerKind, NormKind
from lodestream.kernels.architectures.llama_names import PRE_NORM_NAMES
from lodestream.kernels.architectures.rotary import read_rotary


def describe_qwen3(config: ModelConfig) -> EncoderDescription:
    """Reads Qwen3's config.json."""
    config.require("hidden_act", "silu", default="silu")
    config.require("use_sliding_window", False, default=False)
    num_heads = config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", default=128)
    num_layers = config.integer("num_hidden_layers")
    if set(config.find("layer_types") or ()) - {"full_attention"}:
        raise config.refuse("layer_types", config.find("layer_types"), "not supported (full_attention alone is)")
    has_bias = config.flag("attention_bias", default=False)
    return EncoderDescription(
        vocab_size=config.integer("vocab_size"),
        dim=config.integer("hidden_size"),
        inner_dim=config.integer("intermediate_size"),
        num_heads=num_heads,
        num_key_heads=config.integer("num_key_value_heads", default=num_heads),
        head_dim=head_dim,
        max_tokens=config.integer("max_position_embeddings"),
        norm=NormKind(kind="rms", eps=config.number("rms_norm_eps", default=1e-6)),
        norm_place="before",
        mlp="swiglu",
        scale=1 / math.sqrt(head_dim),
        layers=(LayerKind(rotary=read_rotary(config, head_dim=head_dim, theta=10_000.0)),) * num_layers,
        is_causal=True,
        qkv_bias=has_bias,
        output_bias=has_bias,
        has_head_norms=True,
    )


QWEN3: Final = Architecture(
    describe=describe_qwen3,
    prefixes=("model.",),
    ignored=("rotary_emb.inv_freq", "layers.{i}.self_attn.rotary_emb.inv_freq"),
    names={**PRE_NORM_NAMES, "layers.{i}.post_attention_layernorm": "layers.{i}.mlp_norm"},
)
