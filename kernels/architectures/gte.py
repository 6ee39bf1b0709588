"""GTE (``new`` in published files): BERT with rotary positions and GeGLU."""

from __future__ import annotations

import math
from typing import Final

from lodestream.kernels.architectures.config import ModelConfig
from lodestream.kernels.architectures.description import Architecture, EncoderDescription, LayerKind, NormKind
from lodestream.kernels.architectures.llama_names import POST_NORM_NAMES
from lodestream.kernels.architectures.rotary import read_rotary


def describe_gte(config: ModelConfig) -> EncoderDescription:
    """Reads GTE's config.json, as published or as newer transformers write it."""
    config.require("hidden_act", "gelu", default="gelu")
    config.require("position_embedding_type", "rope", default="rope")
    config.require("layer_norm_type", "layer_norm", default="layer_norm")
    for name in ("logn_attention_scale", "logn_attention_clip1"):
        config.require(name, False, default=False)
    dim, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim = dim // num_heads
    rotary = read_rotary(config, head_dim=head_dim, theta=10_000.0 if config.find("model_type") == "new" else 160_000.0)
    return EncoderDescription(
        vocab_size=config.integer("vocab_size"),
        dim=dim,
        inner_dim=config.integer("intermediate_size"),
        num_heads=num_heads,
        num_key_heads=num_heads,
        head_dim=head_dim,
        max_tokens=config.integer("max_position_embeddings"),
        norm=NormKind(kind="layer", eps=config.number("layer_norm_eps", default=1e-12), has_bias=True),
        norm_place="after",
        mlp="geglu",
        scale=1 / math.sqrt(head_dim),
        layers=(LayerKind(rotary=rotary),) * config.integer("num_hidden_layers"),
        qkv_bias=True,
        output_bias=True,
        mlp_out_bias=True,
        num_types=config.integer("type_vocab_size", default=1),
        has_embedding_norm=True,
    )


GTE: Final = Architecture(
    describe=describe_gte,
    prefixes=("new.", "gte."),
    ignored=("embeddings.position_ids", "embeddings.rotary_emb.inv_freq"),
    names={
        "embeddings.word_embeddings": "embeddings.words",
        "embeddings.token_type_embeddings": "embeddings.types",
        "embeddings.LayerNorm": "embeddings.norm",
        "encoder.layer.{i}.attention.qkv_proj": "layers.{i}.attention.qkv",
        "encoder.layer.{i}.attention.q_proj": "layers.{i}.attention.query",
        "encoder.layer.{i}.attention.k_proj": "layers.{i}.attention.key",
        "encoder.layer.{i}.attention.v_proj": "layers.{i}.attention.value",
        "encoder.layer.{i}.attention.o_proj": "layers.{i}.attention.output",
        "encoder.layer.{i}.attn_ln": "layers.{i}.attention_norm",
        "encoder.layer.{i}.mlp.up_gate_proj": "layers.{i}.mlp.up_gate",
        "encoder.layer.{i}.mlp.down_proj": "layers.{i}.mlp.out",
        "encoder.layer.{i}.mlp_ln": "layers.{i}.mlp_norm",
        **POST_NORM_NAMES,
    },
)
