"""config.json of the tiny models, as published and as newer transformers write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

Form = Literal["published", "renamed"]

DIM: Final = 32
INNER: Final = 48
VOCAB: Final = 300
LAYERS: Final = 3

_SIZES: Final = {"vocab_size": VOCAB, "hidden_size": DIM, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
_BERT: Final = {**_SIZES, "num_attention_heads": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
_WINDOWED: Final = ["full_attention", "sliding_attention", "sliding_attention"]

CONFIGS: Final[Mapping[str, Mapping[Form, Mapping[str, Any]]]] = {
    "bert": {
        "published": {**_BERT, "model_type": "bert", "max_position_embeddings": 96, "type_vocab_size": 2},
        "renamed": {**_BERT, "model_type": "bert", "max_position_embeddings": 96, "type_vocab_size": 2},
    },
    "xlm-roberta": {
        form: {
            **_BERT,
            "model_type": "xlm-roberta",
            "max_position_embeddings": 98,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
            "pad_token_id": 1,
        }
        for form in ("published", "renamed")
    },
    "modernbert": {
        "published": {
            **_SIZES,
            "model_type": "modernbert",
            "num_attention_heads": 2,
            "hidden_activation": "gelu",
            "max_position_embeddings": 128,
            "norm_eps": 1e-5,
            "norm_bias": False,
            "attention_bias": False,
            "mlp_bias": False,
            "local_attention": 16,
            "global_attn_every_n_layers": 3,
            "global_rope_theta": 160000.0,
            "local_rope_theta": 10000.0,
            "pad_token_id": 0,
        },
        "renamed": {
            **_SIZES,
            "model_type": "modernbert",
            "num_attention_heads": 2,
            "max_position_embeddings": 128,
            "local_attention": 16,
            "layer_types": _WINDOWED,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
            "pad_token_id": 0,
        },
    },
    "nomic": {
        "published": {
            "model_type": "nomic_bert",
            "vocab_size": VOCAB,
            "n_embd": DIM,
            "n_head": 2,
            "n_layer": LAYERS,
            "n_inner": INNER,
            "n_positions": 128,
            "layer_norm_epsilon": 1e-12,
            "activation_function": "swiglu",
            "prenorm": False,
            "parallel_block": False,
            "use_rms_norm": False,
            "qkv_proj_bias": False,
            "mlp_fc1_bias": False,
            "mlp_fc2_bias": False,
            "rotary_emb_base": 1000,
            "rotary_emb_fraction": 1.0,
            "rotary_emb_interleaved": False,
            "rotary_emb_scale_base": None,
            "rotary_scaling_factor": None,
            "type_vocab_size": 2,
        },
        "renamed": {
            **_SIZES,
            "model_type": "nomic_bert",
            "num_attention_heads": 2,
            "head_dim": 16,
            "hidden_act": "silu",
            "layer_norm_eps": 1e-12,
            "max_position_embeddings": 128,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
            "type_vocab_size": 2,
            "pad_token_id": 0,
        },
    },
    "gte": {
        "published": {
            **_BERT,
            "model_type": "new",
            "max_position_embeddings": 128,
            "position_embedding_type": "rope",
            "layer_norm_type": "layer_norm",
            "logn_attention_scale": False,
            "logn_attention_clip1": False,
            "pack_qkv": True,
            "rope_theta": 20000,
            "rope_scaling": {"type": "ntk", "factor": 8.0},
            "type_vocab_size": 1,
        },
        "renamed": {
            **_BERT,
            "model_type": "gte",
            "max_position_embeddings": 128,
            # What the fixed NTK scaling above comes to: theta x 8, and all frequencies by the eighth root of 8 less.
            "rope_parameters": {"rope_type": "linear", "rope_theta": 160000.0, "factor": 8.0 ** (2 / 16)},
            "type_vocab_size": 1,
            "pad_token_id": 0,
        },
    },
    "qwen3": {
        "published": {
            **_SIZES,
            "model_type": "qwen3",
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "hidden_act": "silu",
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000,
            "rope_scaling": None,
            "use_sliding_window": False,
            "sliding_window": None,
            "attention_bias": False,
            "tie_word_embeddings": True,
        },
        "renamed": {
            **_SIZES,
            "model_type": "qwen3",
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "hidden_act": "silu",
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-6,
            "layer_types": ["full_attention"] * LAYERS,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "tie_word_embeddings": True,
        },
    },
    "gemma": {
        "published": {
            **_SIZES,
            "model_type": "gemma3_text",
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 128,
            "query_pre_attn_scalar": 24,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "sliding_window": 16,
            "_sliding_window_pattern": 3,
            "use_bidirectional_attention": True,
            "attn_logit_softcapping": None,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
        "renamed": {
            **_SIZES,
            "model_type": "gemma3_text",
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 128,
            "query_pre_attn_scalar": 24,
            "rms_norm_eps": 1e-6,
            "sliding_window": 16,
            "use_bidirectional_attention": True,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    },
}
