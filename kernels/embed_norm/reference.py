"""The eager form of embeddings and their norm, in plain torch: what the operator means, and the form for CPUs."""

from __future__ import annotations

from typing import Literal

import torch

from lodestream.kernels.embed_norm.tables import EmbeddingTables
from lodestream.kernels.norm import Norm, apply_norm


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
    words_VC = tables.words_VC
    num_tokens = len(token_ids_T)
    rows_RC = torch.zeros(num_rows, words_VC.shape[1], dtype=words_VC.dtype, device=words_VC.device)
    torch.index_select(words_VC, 0, token_ids_T, out=rows_RC[:num_tokens])
    rows_RC = rows_RC.float()
    own = rows_RC[:num_tokens]
    if tables.types_UC is not None:
        own += tables.types_UC[0] if types_T is None else tables.types_UC[types_T]
    if tables.positions_PC is not None:
        own += tables.positions_PC[tables.first_position :][positions_T]
    if tables.scale != 1:
        own *= tables.scale
    normed_RC = apply_norm(rows_RC, norm)
    stream_RC = (normed_RC if stream == "normed" else rows_RC).to(stream_dtype)
    return (stream_RC if stream == "normed" and dtype == stream_dtype else normed_RC.to(dtype)), stream_RC
