"""One block of an encoder: attention, MLP and the norms between them, as its description says.

T packed tokens, R rows (T filled up), C model dim, H query heads, J key heads, D head dim, N = H + 2 J.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import torch

from lodestream.kernels.add_norm.api import add_norm
from lodestream.kernels.architectures.description import EncoderDescription, MlpKind
from lodestream.kernels.encoder.tensors import ModelTensors
from lodestream.kernels.glu.api import glu
from lodestream.kernels.glu.kinds import Activation
from lodestream.kernels.linear import PackedLinear
from lodestream.kernels.norm import Norm
from lodestream.kernels.rope.api import rope
from lodestream.kernels.rope.table import RotaryTable
from lodestream.kernels.segment_attention import Attend, AttentionLayer

_GATES: Final[dict[MlpKind, Activation]] = {"geglu": "gelu", "geglu_tanh": "gelu_tanh", "swiglu": "silu"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Weights of attention, and what its kernel has to know; ``heads`` gives queries, keys and values side by side."""

    layer: AttentionLayer
    heads: PackedLinear
    output: PackedLinear
    query_norm: Norm | None
    key_norm: Norm | None
    rotary: RotaryTable | None

    def __call__(self, branch_RC: torch.Tensor, positions_R: torch.Tensor, attend: Attend) -> torch.Tensor:
        """[R, C] in the dtype of ``branch_RC``."""
        layer = self.layer
        heads_RND = self.heads(branch_RC).view(len(branch_RC), layer.num_heads + 2 * layer.num_key_heads, -1)
        if self.rotary is not None:
            q_RHD, k_RJD, _ = layer.split(heads_RND)
            turned = rope(q_RHD, k_RJD, positions_R, self.rotary, q_norm=self.query_norm, k_norm=self.key_norm)
            q_RHD.copy_(turned[0])
            k_RJD.copy_(turned[1])
        return self.output(attend(heads_RND, layer))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """``gate`` is None where the MLP has no second half, or where ``inner`` gives the activated half and the other side
    by side; ``activation`` is what is then done to them. Elsewhere an activation is part of its linear."""

    inner: PackedLinear
    gate: PackedLinear | None
    outer: PackedLinear
    activation: Activation | None = None

    def __call__(self, branch_RC: torch.Tensor) -> torch.Tensor:
        """[R, C] in the dtype of ``branch_RC``."""
        inner_RI = self.inner(branch_RC)
        if self.gate is not None:
            inner_RI.mul_(self.gate(branch_RC))
        if self.activation is not None:
            inner_RI = glu(inner_RI, self.activation, activated="first")
        return self.outer(inner_RI)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """``after_attention`` and ``after_mlp`` are the norms of the sums: with norms before attention and MLP, the latter
    is that of the next block, or the final one."""

    attention: Attention
    attention_update_norm: Norm | None
    after_attention: Norm
    mlp: Mlp
    mlp_update_norm: Norm | None
    after_mlp: Norm
    stream: Literal["sum", "normed"]

    def __call__(
        self,
        branch_RC: torch.Tensor,
        stream_RC: torch.Tensor,
        positions_R: torch.Tensor,
        attend: Attend,
        *,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next block's branch, in ``dtype``, and the residual stream, whose memory is used again."""
        branch_RC, stream_RC = add_norm(
            self.attention(branch_RC, positions_R, attend),
            stream_RC,
            self.after_attention,
            stream=self.stream,
            update_norm=self.attention_update_norm,
        )
        return add_norm(
            self.mlp(branch_RC),
            stream_RC,
            self.after_mlp,
            stream=self.stream,
            update_norm=self.mlp_update_norm,
            dtype=dtype,
        )


def read_attention(
    tensors: ModelTensors,
    description: EncoderDescription,
    index: int,
    *,
    rotary: RotaryTable | None,
    dtype: torch.dtype,
) -> Attention:
    """Takes the weights of a layer's attention."""
    d = description
    name = f"layers.{index}.attention"
    widths: tuple[int, ...] = (d.num_heads * d.head_dim, d.num_key_heads * d.head_dim, d.num_key_heads * d.head_dim)
    parts: tuple[str, ...] = tuple(f"{name}.{part}" for part in ("query", "key", "value"))
    if f"{name}.qkv.weight" in tensors:
        parts, widths = (f"{name}.qkv",), (sum(widths),)
    head_kind = replace(d.norm, has_bias=False)
    norms = [
        tensors.norm(f"{name}.{part}_norm", d.head_dim, head_kind) for part in ("query", "key") if d.has_head_norms
    ]
    return Attention(
        layer=AttentionLayer(
            index=index,
            num_heads=d.num_heads,
            num_key_heads=d.num_key_heads,
            scale=d.scale,
            is_causal=d.is_causal,
            reach=d.layers[index].reach,
        ),
        heads=tensors.linear(parts, widths, d.dim, bias=d.qkv_bias, dtype=dtype),
        output=tensors.linear((f"{name}.output",), (d.dim,), d.num_heads * d.head_dim, bias=d.output_bias, dtype=dtype),
        query_norm=norms[0] if norms else None,
        key_norm=norms[1] if norms else None,
        rotary=rotary,
    )


def read_mlp(
    tensors: ModelTensors,
    description: EncoderDescription,
    index: int,
    *,
    dtype: torch.dtype,
    joins_halves: bool,
) -> Mlp:
    """Takes the weights of a layer's MLP. On a CPU the halves of a gated one become two linears, whatever their order
    in the file: the activation is then part of the gate's, and no pass of its own. On a GPU they are joined: one
    product, and one pass for activation and gate."""
    d = description
    name = f"layers.{index}.mlp"
    outer = tensors.linear((f"{name}.out",), (d.dim,), d.inner_dim, bias=d.mlp_out_bias, dtype=dtype)
    if d.mlp == "gelu":
        inner = tensors.linear(
            (f"{name}.in",), (d.inner_dim,), d.dim, bias=d.mlp_in_bias, dtype=dtype, activation="gelu"
        )
        return Mlp(inner=inner, gate=None, outer=outer)
    for order in ("gate_up", "up_gate"):
        if f"{name}.{order}.weight" in tensors:
            tensors.split(f"{name}.{order}", [f"{name}.{half}" for half in order.split("_")])
    if joins_halves:
        halves = (f"{name}.gate", f"{name}.up")
        inner = tensors.linear(halves, (d.inner_dim,) * 2, d.dim, bias=d.mlp_in_bias, dtype=dtype)
        return Mlp(inner=inner, gate=None, outer=outer, activation=_GATES[d.mlp])
    gate, up = (
        tensors.linear(
            (f"{name}.{half}",), (d.inner_dim,), d.dim, bias=d.mlp_in_bias, dtype=dtype, activation=activation
        )
        for half, activation in (("gate", _GATES[d.mlp]), ("up", None))
    )
    return Mlp(inner=gate, gate=up, outer=outer)
