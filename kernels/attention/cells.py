"""What stands in for dropped key blocks: the means of their cells, and one slope for what the means leave out.

T packed tokens, N segments, H heads, D head dim, C cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lodestream.kernels.attention.layout import CELL, BlockLayout, SegmentBlocks


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSummary:
    """The cells of a batch.

    Attributes:
        keys_CHD, values_CHD: mean key and mean value of each cell, in the dtype of keys and values; 0 for empty cells.
        key_variances_CHD: float32, variance of the keys of each cell, value by value; what their choice is made by.
        log_counts_C: float32, natural logarithm of each cell's number of tokens; minus infinity for empty cells.
        slopes_NHDD: in the dtype of the keys, covariance of key and value inside the cells, mean over the tokens of a
            segment; None where the means alone stand in.
    """

    keys_CHD: torch.Tensor
    values_CHD: torch.Tensor
    key_variances_CHD: torch.Tensor
    log_counts_C: torch.Tensor
    slopes_NHDD: torch.Tensor | None


def summarise_cells(
    k_THD: torch.Tensor, v_THD: torch.Tensor, layout: BlockLayout, *, with_slope: bool = True
) -> CellSummary:
    """Means of the cells and slopes of the segments.

    Args:
        k_THD, v_THD: float32, bfloat16 or float16 [T, H, D].
        layout: the batch.
        with_slope: whether the slopes are wanted.

    Numerics: sums in float32; means and slopes are rounded to the dtype of the keys, since that is what the matrix
    units multiply. The slope is a mean, not a sum, so that it fits float16.
    Cost: one read of keys and values, and 2 D^2 FLOPs a token and head.
    Source: means as in MRA-2 (arXiv 2207.10284), slope as in PISA (arXiv 2602.01077).
    """
    keys, values, variances, slopes = [], [], [], []
    for segment in layout.segments:
        key_cells = split_cells(k_THD[segment.tokens], segment)
        value_cells = split_cells(v_THD[segment.tokens], segment)
        keys.append(mean_cells(key_cells, segment))
        values.append(mean_cells(value_cells, segment))
        variances.append((mean_cells(key_cells.square(), segment) - keys[-1].square()).clamp_min(0))
        if with_slope:
            slopes.append(_measure_slope(key_cells - keys[-1][:, None], value_cells) / segment.num_tokens)
    return CellSummary(
        keys_CHD=torch.cat(keys).to(k_THD.dtype),
        values_CHD=torch.cat(values).to(k_THD.dtype),
        key_variances_CHD=torch.cat(variances),
        log_counts_C=log_cell_counts(layout).to(k_THD.device, non_blocking=True),
        slopes_NHDD=torch.stack(slopes).to(k_THD.dtype) if with_slope else None,
    )


def log_cell_counts(layout: BlockLayout) -> torch.Tensor:
    """float32 [C]: logarithm of the number of tokens of each cell."""
    counts = [
        min(CELL, max(0, segment.num_tokens - cell * CELL))
        for segment in layout.segments
        for cell in range(segment.num_cells)
    ]
    return torch.tensor([math.log(count) if count else -math.inf for count in counts])


def split_cells(x_nHD: torch.Tensor, segment: SegmentBlocks) -> torch.Tensor:
    """float32 [cells, CELL, H, D] of a segment's tokens, filled up with zeros."""
    surplus = segment.num_cells * CELL - segment.num_tokens
    return F.pad(x_nHD.float(), (0, 0, 0, 0, 0, surplus)).view(segment.num_cells, CELL, *x_nHD.shape[1:])


def mean_cells(cells_ctHD: torch.Tensor, segment: SegmentBlocks) -> torch.Tensor:
    """float32 [cells, H, D]: mean over the tokens of each cell of ``split_cells``."""
    sums = cells_ctHD.sum(1)
    places = torch.arange(segment.num_cells, device=sums.device) * CELL
    counts = (segment.num_tokens - places).clamp(1, CELL)
    return sums / counts[:, None, None]


def _measure_slope(deviations_ctHD: torch.Tensor, values_ctHD: torch.Tensor) -> torch.Tensor:
    """float32 [H, D, D]: sum over tokens of deviation x value. What fills the last cell has a value of zero."""
    return torch.matmul(deviations_ctHD.flatten(0, 1).permute(1, 2, 0), values_ctHD.flatten(0, 1).transpose(0, 1))
