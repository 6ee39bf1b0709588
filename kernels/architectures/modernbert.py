"""ModernBERT: rotary positions, norms before attention and MLP, GeGLU, and windows in two layers of three."""

from __future__ import annotations

import math
from typing import Final

from lodestream.kernels.architectures.config import ModelConfig
from lodestream.kernels.architectures.description import Architecture, EncoderDescription, LayerKind, NormKind
from lodestream.kernels.architectures.layer_types import read_windowed
from lodestream.kernels.architectures.rotary import read_rotary

_FULL_THETA: Final = 160_000.0
_WINDOW_THETA: Final = 10_000.0


def describe_modernbert(config: ModelConfig) -> EncoderDescription:
    """Reads ModernBERT's config.json."""
    config.require("hidden_activation", "gelu", default="gelu")
    dim, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim, num_layers = dim // num_heads, config.integer("num_hidden_layers")
    full = read_rotary(
        config,
        head_dim=head_dim,
        theta=_FULL_THETA,
        theta_names=("global_rope_theta",),
        layer_type="full_attention",
    )
    window = read_rotary(
        config,
        head_dim=head_dim,
        theta=_WINDOW_THETA,
        theta_names=("local_rope_theta",),
        layer_type="sliding_attention",
    )
    # local_attention counts both sides.
    reach = config.integer("local_attention", default=128) // 2
    is_windowed = read_windowed(
        config, num_layers, every_names=("global_attn_every_n_layers",), every=3, first_is_full=True
    )
    layers = tuple(
        LayerKind(
            reach=reach if is_windowed[index] else None,
            rotary=window if is_windowed[index] else full,
            has_attention_norm=index > 0,
        )
        for index in range(num_layers)
    )
    has_bias = config.flag("attention_bias", default=False)
    mlp_has_bias = config.flag("mlp_bias", default=False)
    return EncoderDescription(
        vocab_size=config.integer("vocab_size"),
        dim=dim,
        inner_dim=config.integer("intermediate_size"),
        num_heads=num_heads,
        num_key_heads=num_heads,
        head_dim=head_dim,
        max_tokens=config.integer("max_position_embeddings"),
        norm=NormKind(
            kind="layer",
            eps=config.number("norm_eps", default=1e-5),
            has_bias=config.flag("norm_bias", default=False),
        ),
        norm_place="before",
        mlp="geglu",
        scale=1 / math.sqrt(head_dim),
        layers=layers,
        qkv_bias=has_bias,
        output_bias=has_bias,
        mlp_in_bias=mlp_has_bias,
        mlp_out_bias=mlp_has_bias,
        has_embedding_norm=True,
    )


MODERNBERT: Final = Architecture(
    describe=describe_modernbert,
    prefixes=("model.",),
    names={
        "embeddings.tok_embeddings": "embeddings.words",
        "embeddings.norm": "embeddings.norm",
        "layers.{i}.attn_norm": "layers.{i}.attention_norm",
        "layers.{i}.attn.Wqkv": "layers.{i}.attention.qkv",
        "layers.{i}.attn.Wo": "layers.{i}.attention.output",
        "layers.{i}.mlp_norm": "layers.{i}.mlp_norm",
        "layers.{i}.mlp.Wi": "layers.{i}.mlp.gate_up",
        "layers.{i}.mlp.Wo": "layers.{i}.mlp.out",
        "final_norm": "final_norm",
    },
)
