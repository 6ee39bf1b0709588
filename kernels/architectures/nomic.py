"""Nomic: BERT with rotary positions and SwiGLU. Published files have GPT-2's keys and flash-attention's names."""

from __future__ import annotations

import math
from typing import Final

from lodestream.kernels.architectures.config import ModelConfig
from lodestream.kernels.architectures.description import Architecture, EncoderDescription, LayerKind, NormKind
from lodestream.kernels.architectures.llama_names import POST_NORM_NAMES
from lodestream.kernels.architectures.rotary import read_rotary


def describe_nomic(config: ModelConfig) -> EncoderDescription:
    """Reads Nomic's config.json, as published or as newer transformers write it."""
    for name in ("prenorm", "parallel_block", "rotary_emb_interleaved", "use_rms_norm", "causal", "norm_mlp"):
        config.require(name, False, default=False)
    config.require("rotary_emb_fraction", 1.0, default=1.0)
    config.require("rotary_emb_scale_base", None)
    config.require("num_experts", 0, default=0)
    config.require("activation_function", "swiglu", default="swiglu")
    config.require("hidden_act", "silu", default="silu")
    dim, num_heads = config.integer("n_embd", "hidden_size"), config.integer("n_head", "num_attention_heads")
    head_dim = config.integer("head_dim", default=dim // num_heads)
    max_tokens = config.integer("n_positions", "max_position_embeddings")
    if config.find("rotary_scaling_factor") is not None:
        # Up to here nothing is scaled; beyond, the angles would depend on a segment's length.
        max_tokens = min(max_tokens, config.integer("max_trained_positions", default=2048))
    rotary = read_rotary(config, head_dim=head_dim, theta=1000.0, theta_names=("rotary_emb_base", "rope_theta"))
    qkv_bias = config.flag("qkv_proj_bias", default=False)
    return EncoderDescription(
        vocab_size=config.integer("vocab_size"),
        dim=dim,
        inner_dim=config.integer("n_inner", "intermediate_size"),
        num_heads=num_heads,
        num_key_heads=num_heads,
        head_dim=head_dim,
        max_tokens=max_tokens,
        norm=NormKind(
            kind="layer", eps=config.number("layer_norm_epsilon", "layer_norm_eps", default=1e-12), has_bias=True
        ),
        norm_place="after",
        mlp="swiglu",
        scale=1 / math.sqrt(head_dim),
        layers=(LayerKind(rotary=rotary),) * config.integer("n_layer", "num_hidden_layers"),
        qkv_bias=qkv_bias,
        output_bias=qkv_bias,
        mlp_in_bias=config.flag("mlp_fc1_bias", default=False),
        mlp_out_bias=config.flag("mlp_fc2_bias", default=False),
        num_types=config.integer("type_vocab_size", default=2),
        has_embedding_norm=True,
    )


NOMIC: Final = Architecture(
    describe=describe_nomic,
    prefixes=("bert.", "nomic_bert."),
    ignored=("embeddings.position_ids", "embeddings.token_type_ids"),
    names={
        "embeddings.word_embeddings": "embeddings.words",
        "embeddings.token_type_embeddings": "embeddings.types",
        "emb_ln": "embeddings.norm",
        "encoder.layers.{i}.attn.Wqkv": "layers.{i}.attention.qkv",
        "encoder.layers.{i}.attn.out_proj": "layers.{i}.attention.output",
        "encoder.layers.{i}.norm1": "layers.{i}.attention_norm",
        "encoder.layers.{i}.mlp.fc11": "layers.{i}.mlp.up",
        "encoder.layers.{i}.mlp.fc12": "layers.{i}.mlp.gate",
        "encoder.layers.{i}.mlp.fc2": "layers.{i}.mlp.out",
        "encoder.layers.{i}.norm2": "layers.{i}.mlp_norm",
        # As newer transformers rename them.
        "embeddings.LayerNorm": "embeddings.norm",
        **POST_NORM_NAMES,
    },
)
