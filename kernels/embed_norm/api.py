"""Embeddings and their norm as callers use them. The form is chosen by the device of the tensors.

T packed tokens, V vocabulary, P positions, U token types, C model dim, R rows (T filled up).
"""

from __future__ import annotations

from typing import Literal

import torch

from lodestream.kernels.embed_norm import reference
from lodestream.kernels.embed_norm.tables import EmbeddingTables
from lodestream.kernels.fused_forms import import_fused
from lodestream.kernels.norm import Norm


def embed_norm(
    token_ids_T: torch.Tensor,
    tables: EmbeddingTables,
    norm: Norm,
    *,
    positions_T: torch.Tensor | None = None,
    types_T: torch.Tensor | None = None,
    stream: Literal["sum", "normed"] = "normed",
    stream_dtype: torch.dtype = torch.float32,
    dtype: torch.dtype | None = None,
    num_rows: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm of the sum of each token's embeddings.

    Args:
        token_ids_T: int64 or int32 [T], each within the vocabulary: on a GPU nobody looks.
        tables: float32, bfloat16 or float16.
        norm: of the embeddings, or of the first layer where that comes next.
        positions_T: int64 or int32 [T], place of each token in its own segment; where the tables have positions.
        types_T: int64 or int32 [T]; None for type 0 throughout.
        stream: what later branches are added to: the normed rows (BERT, ModernBERT) or the sum before (Qwen3, Gemma).
        stream_dtype, dtype: of the stream and of the branch; None for that of the stream.
        num_rows: R >= T, rows of the results; those from T on are the norm of zeros.

    Returns:
        (branch [R, C], stream [R, C]): the normed rows, and what the next branch is added to. They are one tensor where
        they hold the same.

    Numerics: sums and norm in float32.
    Cost: one read of the rows of the tables, one write of what is returned.

    Raises:
        ValueError: no tokens, positions are missing, shapes do not fit.
        KernelUnavailable: tensors on a GPU, but no triton.
    """
    _check(token_ids_T, tables, norm, positions_T, types_T)
    num_rows = len(token_ids_T) if num_rows is None else num_rows
    if num_rows < len(token_ids_T):
        raise ValueError(f"{num_rows} rows do not hold {len(token_ids_T)} tokens")
    form = reference if token_ids_T.device.type == "cpu" else import_fused("embed_norm")
    results: tuple[torch.Tensor, torch.Tensor] = form.embed_norm(
        token_ids_T,
        tables,
        norm,
        positions_T=positions_T,
        types_T=types_T,
        stream=stream,
        stream_dtype=stream_dtype,
        dtype=stream_dtype if dtype is None else dtype,
        num_rows=num_rows,
    )
    return results


def _check(
    token_ids_T: torch.Tensor,
    tables: EmbeddingTables,
    norm: Norm,
    positions_T: torch.Tensor | None,
    types_T: torch.Tensor | None,
) -> None:
    if not len(token_ids_T):
        raise ValueError("there are no tokens to embed")
    if (tables.positions_PC is None) != (positions_T is None):
        raise ValueError("positions need a table of positions, and the table needs positions")
    if types_T is not None and tables.types_UC is None:
        raise ValueError("types need a table of types")
    for indices in (positions_T, types_T):
        if indices is not None and indices.shape != token_ids_T.shape:
            raise ValueError(f"{tuple(indices.shape)} positions or types for {tuple(token_ids_T.shape)} tokens")
    dim = tables.words_VC.shape[1]
    for table in (tables.positions_PC, tables.types_UC):
        if table is not None and table.shape[1] != dim:
            raise ValueError(f"tables of {dim} and of {table.shape[1]} columns")
    if norm.weight_C.shape != (dim,):
        raise ValueError(f"a norm of {tuple(norm.weight_C.shape)} for {dim} columns")
