"""EmbeddingGemma: Gemma 3 whose tokens see both sides, with windows in five layers of six."""

from __future__ import annotations

import math
from typing import Final

from lodestream.kernels.architectures.config import ModelConfig
from lodestream.kernels.architectures.description import Architecture, EncoderDescription, LayerKind, NormKind
from lodestream.kernels.architectures.layer_types import read_windowed
from lodestream.kernels.architectures.llama_names import PRE_NORM_NAMES
from lodestream.kernels.architectures.rotary import read_rotary

_FULL_THETA: Final = 1_000_000.0
_WINDOW_THETA: Final = 10_000.0


def describe_gemma(config: ModelConfig) -> EncoderDescription:
    """Reads EmbeddingGemma's config.json."""
    config.require("hidden_activation", "gelu_pytorch_tanh", default="gelu_pytorch_tanh")
    config.require("use_bidirectional_attention", True)
    config.require("attn_logit_softcapping", None)
    dim, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim, num_layers = config.integer("head_dim", default=256), config.integer("num_hidden_layers")
    full = read_rotary(config, head_dim=head_dim, theta=_FULL_THETA, layer_type="full_attention")
    window = read_rotary(
        config,
        head_dim=head_dim,
        theta=_WINDOW_THETA,
        theta_names=("rope_local_base_freq",),
        layer_type="sliding_attention",
        is_scaled=False,
    )
    # sliding_window counts both sides.
    reach = config.integer("sliding_window", default=4096) // 2
    is_windowed = read_windowed(
        config,
        num_layers,
        every_names=("_sliding_window_pattern", "sliding_window_pattern"),
        every=6,
        first_is_full=False,
    )
    has_bias = config.flag("attention_bias", default=False)
    return EncoderDescription(
        vocab_size=config.integer("vocab_size"),
        dim=dim,
        inner_dim=config.integer("intermediate_size"),
        num_heads=num_heads,
        num_key_heads=config.integer("num_key_value_heads", default=num_heads),
        head_dim=head_dim,
        max_tokens=config.integer("max_position_embeddings"),
        norm=NormKind(kind="rms", eps=config.number("rms_norm_eps", default=1e-6), adds_one=True),
        norm_place="around",
        mlp="geglu_tanh",
        scale=1 / math.sqrt(config.number("query_pre_attn_scalar", default=256)),
        layers=tuple(
            LayerKind(reach=reach if windowed else None, rotary=window if windowed else full)
            for windowed in is_windowed
        ),
        qkv_bias=has_bias,
        output_bias=has_bias,
        has_head_norms=True,
        embedding_scale=math.sqrt(dim),
    )


GEMMA: Final = Architecture(
    describe=describe_gemma,
    prefixes=("model.",),
    ignored=("rotary_emb.inv_freq", "rotary_emb_local.inv_freq", "embed_tokens.embed_scale"),
    names={
        **PRE_NORM_NAMES,
        "layers.{i}.post_attention_layernorm": "layers.{i}.attention_update_norm",
        "layers.{i}.pre_feedforward_layernorm": "layers.{i}.mlp_norm",
        "layers.{i}.post_feedforward_layernorm": "layers.{i}.mlp_update_norm",
    },
)
