"""The one description that every encoder runs from. A loader of this folder makes it of a config.json.

Known without torch: a run that encodes nothing reads a model's description only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lodestream.kernels.architectures.config import ModelConfig

NormPlace = Literal["after", "before", "around"]
"""Where a block has its norms: after the sum (BERT), before attention and MLP (ModernBERT), or before and once more
after them, ahead of the sum (Gemma)."""

MlpKind = Literal["gelu", "geglu", "geglu_tanh", "swiglu"]
"""GELU is that of the error function; the last three multiply an activated half (the gate) with the other (up)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormKind:
    """A norm without its weights: see ``kernels.norm.Norm``."""

    kind: Literal["layer", "rms"]
    eps: float
    has_bias: bool = False
    adds_one: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryKind:
    """Rotary positions of a layer: pair r of a head turns by theta ** (-2 r / head_dim) / factor a position."""

    theta: float
    factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """What one layer has of its own.

    Attributes:
        reach: tokens that each token sees to either side; None for all of its segment.
        rotary: rotary positions; None where there are none.
        has_attention_norm: False where the layer takes its input as it is (ModernBERT's first).
    """

    reach: int | None = None
    rotary: RotaryKind | None = None
    has_attention_norm: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderDescription:
    """All that decides how an encoder computes, but its weights.

    Attributes:
        dim: C, width of the residual stream and of a token's state.
        inner_dim: width of the MLP, of one half where it has two.
        num_heads, num_key_heads: query heads, and key and value heads that they share.
        head_dim: D.
        max_tokens: most tokens of a segment.
        norm: kind of all norms.
        norm_place: where the blocks have them.
        mlp: kind of the MLP.
        scale: factor of attention's logits.
        layers: of each layer.
        is_causal: a token sees those before it only.
        qkv_bias, output_bias, mlp_in_bias, mlp_out_bias: which linears have a bias.
        has_head_norms: RMSNorm of each head's query and key, before the positions.
        first_position: row of a segment's first token in the table of learned positions; None where there is none.
        num_positions: rows of that table.
        num_types: rows of the table of token types, of which row 0 is added to every token; 0 where there is none.
        embedding_scale: factor of the embeddings.
        has_embedding_norm: a norm before the first layer. With norms before attention there is always one after the
            last layer.
    """

    vocab_size: int
    dim: int
    inner_dim: int
    num_heads: int
    num_key_heads: int
    head_dim: int
    max_tokens: int
    norm: NormKind
    norm_place: NormPlace
    mlp: MlpKind
    scale: float
    layers: tuple[LayerKind, ...]
    is_causal: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_in_bias: bool = False
    mlp_out_bias: bool = False
    has_head_norms: bool = False
    first_position: int | None = None
    num_positions: int = 0
    num_types: int = 0
    embedding_scale: float = 1.0
    has_embedding_norm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A family of models.

    Attributes:
        describe: reads a config.json.
        prefixes: what tensor names may begin with, before what ``names`` lists.
        names: a module's name in the file -> its name here; ``{i}`` stands for a layer's number. Several names in files
            may lead to one here: as published, and as newer releases of transformers rename them.
        ignored: modules that play no part in the states, as in ``names``; modules outside the layers and the embeddings
            (heads of other tasks) need not be listed.

    Names here: ``embeddings.{words,positions,types,norm}``, ``final_norm``, and of each layer ``layers.{i}.`` with
    ``attention.{query,key,value}`` or ``attention.qkv``, ``attention.output``, ``attention.{query_norm,key_norm}``,
    ``attention_norm``, ``attention_update_norm``, ``mlp_norm``, ``mlp_update_norm``, ``mlp.in``, or ``mlp.gate`` and
    ``mlp.up``, or the two in one linear as ``mlp.gate_up`` or ``mlp.up_gate``, and ``mlp.out``.
    """

    describe: Callable[[ModelConfig], EncoderDescription]
    names: Mapping[str, str]
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = field(default=())
