"""Block-sparse attention as callers use it. The form is chosen by the device of the tensors.

T packed tokens, H heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import torch

from lodestream.kernels.attention import cpu
from lodestream.kernels.attention.budget import HEAD_DIMS
from lodestream.kernels.attention.cells import CellSummary
from lodestream.kernels.attention.correction import SampledError, correct_rows
from lodestream.kernels.attention.layout import BlockMask
from lodestream.kernels.fused_forms import import_fused

DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attended:
    """Result of a call.

    Attributes:
        out_THD: [T, H, D], contiguous, in the dtype of the queries.
        lse_TH: float32 [T, H], natural logarithm of each softmax's denominator, stand-ins included; that of the sparse
            rows, for corrected ones too. None where it was not asked for.
        error: what the correction rows measured; None where there are none.
    """

    out_THD: torch.Tensor
    lse_TH: torch.Tensor | None
    error: SampledError | None


def attend(
    q_THD: torch.Tensor,
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    mask: BlockMask,
    cells: CellSummary | None = None,
    *,
    scale: float | None = None,
    correction_step: int | Literal["by length"] | None = None,
    with_lse: bool = False,
) -> Attended:
    """Attention of each token to the tokens of its segment, exact where the mask keeps, summed up elsewhere.

    Each dropped cell of 16 tokens takes part in the softmax as one key: its mean, with the logarithm of its count added
    to the logit, and its mean value. What the means leave out comes in to first order, from the covariance of key and
    value inside all cells of the segment, weighted with the share of the softmax that went to stand-ins.

    Args:
        q_THD, k_THD, v_THD: float32, bfloat16 or float16 [T, H, D]; D 32, 64 or 128, values of a head side by side.
        mask: what is exact. With a window, nothing stands in for the rest.
        cells: of ``summarise_cells``; what stands in for what the mask drops. None to leave it out.
        scale: factor of the logits, 1 / sqrt(D) where None.
        correction_step: one exact query in so many, which corrects its neighbours; "by length" as
            ``correction.choose_step`` says, None for none.
        with_lse: whether the log-sum-exp is wanted; on a CPU it is extra work, on a GPU it is there anyway.

    Guarantees: the result of a segment does not depend on what shares its batch or on the order of the batch; the same
    input gives the same bits; on a GPU nothing waits for the device.
    Numerics: sums in float32. With everything kept this is dense attention. On a CPU the logits of bfloat16 queries are
    rounded to bfloat16.
    Cost: with a share s kept, s + (1 - s) / 16 + 1 / correction_step + D / n of the dense FLOPs.
    Source: stand-ins as in MRA-2 (arXiv 2207.10284), first order as in PISA (2602.01077), correction rows as in Delta
    attention (2505.11254).

    Raises:
        ValueError: shapes, dtypes or head dim do not fit.
        KernelUnavailable: tensors on a GPU, but no triton.
    """
    _check(q_THD, k_THD, v_THD, mask)
    scale = q_THD.shape[2] ** -0.5 if scale is None else scale
    cells = None if mask.window is not None else cells
    if q_THD.device.type == "cpu":
        out_THD, lse_TH = cpu.attend_blocks(q_THD, k_THD, v_THD, mask, cells, scale=scale, with_lse=with_lse)
    else:
        out_THD, lse_TH = import_fused("attention").attend_blocks(q_THD, k_THD, v_THD, mask, cells, scale=scale)
    error = None
    if correction_step is not None and mask.window is None:
        step = None if correction_step == "by length" else correction_step
        error = correct_rows(out_THD, q_THD, k_THD, v_THD, mask, step=step, scale=scale)
    return Attended(out_THD=out_THD, lse_TH=lse_TH, error=error)


def _check(q_THD: torch.Tensor, k_THD: torch.Tensor, v_THD: torch.Tensor, mask: BlockMask) -> None:
    if not q_THD.shape == k_THD.shape == v_THD.shape or q_THD.ndim != 3:
        raise ValueError(f"q, k and v need one shape [T, H, D], not {[tuple(x.shape) for x in (q_THD, k_THD, v_THD)]}")
    if q_THD.shape[0] != mask.layout.num_tokens:
        raise ValueError(f"the mask is for {mask.layout.num_tokens} tokens, but there are {q_THD.shape[0]}")
    if q_THD.shape[2] not in HEAD_DIMS:
        raise ValueError(f"head dim {q_THD.shape[2]} is none of {HEAD_DIMS}")
    if q_THD.dtype not in DTYPES or not q_THD.dtype == k_THD.dtype == v_THD.dtype:
        raise ValueError(f"q, k and v need one dtype of {DTYPES}, not {[x.dtype for x in (q_THD, k_THD, v_THD)]}")
    if mask.keep_HP.shape[0] not in (1, q_THD.shape[1]):
        raise ValueError(f"the mask is for {mask.keep_HP.shape[0]} heads, but there are {q_THD.shape[1]}")
