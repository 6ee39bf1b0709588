"""Embeddings and their norm as one Triton kernel: a program is one row."""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl

from lodestream.kernels.add_norm.fused import describe_norm, norm_row
from lodestream.kernels.embed_norm.tables import EmbeddingTables
from lodestream.kernels.fused_forms import Launch, choose_warps, lay_columns_side_by_side
from lodestream.kernels.norm import Norm


def embed_norm(
    token_ids_T: torch.Tensor,
    tables: EmbeddingTables,
    norm: Norm,
    *,
    positions_T: torch.Tensor | None,
    types_T: torch.Tensor | None,
    stream: Literal["sum", "normed"],
    stream_dtype: torch.dtype,
    dtype: torch.dtype,
    num_rows: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``api.embed_norm``."""
    launch = plan_launch(
        token_ids_T,
        tables,
        norm,
        positions_T=positions_T,
        types_T=types_T,
        stream=stream,
        stream_dtype=stream_dtype,
        dtype=dtype,
        num_rows=num_rows,
    )
    branch_RC, stream_RC = launch.run(embed_norm_kernel)
    return branch_RC, stream_RC


def plan_launch(
    token_ids_T: torch.Tensor,
    tables: EmbeddingTables,
    norm: Norm,
    *,
    positions_T: torch.Tensor | None,
    types_T: torch.Tensor | None,
    stream: Literal["sum", "normed"],
    stream_dtype: torch.dtype,
    dtype: torch.dtype,
    num_rows: int,
) -> Launch:
    """The launch of ``embed_norm``; its outputs are branch and stream."""
    words = lay_columns_side_by_side(tables.words_VC)
    positions = None if tables.positions_PC is None else lay_columns_side_by_side(tables.positions_PC)
    types = None if tables.types_UC is None else lay_columns_side_by_side(tables.types_UC)
    dim = words.shape[1]
    branch_RC = torch.empty(num_rows, dim, dtype=dtype, device=words.device)
    is_one = stream == "normed" and dtype == stream_dtype
    stream_RC = branch_RC if is_one else torch.empty(num_rows, dim, dtype=stream_dtype, device=words.device)
    block = triton.next_power_of_2(dim)
    arguments = (
        token_ids_T,
        token_ids_T if positions_T is None else positions_T,
        token_ids_T if types_T is None else types_T,
        words,
        words if positions is None else positions[tables.first_position :],
        words if types is None else types,
        norm.weight_C,
        norm.weight_C if norm.bias_C is None else norm.bias_C,
        branch_RC,
        stream_RC,
        tables.scale,
        norm.eps,
        len(token_ids_T),
        words.stride(0),
        0 if positions is None else positions.stride(0),
        0 if types is None else types.stride(0),
    )
    constants: dict[str, int | bool | str] = {
        "C": dim,
        "BLOCK": block,
        "HAS_POSITIONS": positions is not None,
        "TYPES": "none" if types is None else "all 0" if types_T is None else "own",
        "NORM": describe_norm(norm),
        "STREAM": "branch" if is_one else stream,
        "num_warps": choose_warps(block),
    }
    return Launch(outputs=(branch_RC, stream_RC), grid=(num_rows,), arguments=arguments, constants=constants)


@triton.jit
def embed_norm_kernel(
    TOKEN_IDS,
    POSITIONS,
    TYPES_OF_TOKENS,
    WORD_ROWS,
    POSITION_ROWS,
    TYPE_ROWS,
    WEIGHT,
    BIAS,
    BRANCH,
    STREAM_ROWS,
    scale,
    eps,
    num_tokens,
    words_stride,
    positions_stride,
    types_stride,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_POSITIONS: tl.constexpr,
    TYPES: tl.constexpr,
    NORM: tl.constexpr,
    STREAM: tl.constexpr,
):
    row = tl.program_id(0)
    place = tl.arange(0, BLOCK)
    is_column = place < C
    # Rows behind the tokens look at the last one, and read nothing of what it names.
    token = tl.minimum(row, num_tokens - 1)
    is_read = place < tl.where(row < num_tokens, C, 0)
    token_id = tl.load(TOKEN_IDS + token).to(tl.int64)
    x = tl.load(WORD_ROWS + token_id * words_stride + place, mask=is_read, other=0.0).to(tl.float32)
    if TYPES == "all 0":
        x += tl.load(TYPE_ROWS + place, mask=is_read, other=0.0).to(tl.float32)
    if TYPES == "own":
        type_ = tl.load(TYPES_OF_TOKENS + token).to(tl.int64)
        x += tl.load(TYPE_ROWS + type_ * types_stride + place, mask=is_read, other=0.0).to(tl.float32)
    if HAS_POSITIONS:
        position = tl.load(POSITIONS + token).to(tl.int64)
        x += tl.load(POSITION_ROWS + position * positions_stride + place, mask=is_read, other=0.0).to(tl.float32)
    x *= scale
    stream_place = STREAM_ROWS + row.to(tl.int64) * C + place
    if STREAM == "sum":
        tl.store(stream_place, x.to(STREAM_ROWS.dtype.element_ty), mask=is_column)
    x = norm_row(x, place, WEIGHT, BIAS, eps, C, NORM)
    if STREAM == "normed":
        tl.store(stream_place, x.to(STREAM_ROWS.dtype.element_ty), mask=is_column)
    tl.store(BRANCH + row.to(tl.int64) * C + place, x.to(BRANCH.dtype.element_ty), mask=is_column)
