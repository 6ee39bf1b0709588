"""The eager form of rotary positions, in plain torch: what the operator means, and the form for CPUs."""

from __future__ import annotations

import torch

from lodestream.kernels.norm import Norm, apply_norm
from lodestream.kernels.rope.table import RotaryTable


def rope(
    q_THD: torch.Tensor,
    k_TJD: torch.Tensor,
    positions_T: torch.Tensor,
    table: RotaryTable,
    *,
    q_norm: Norm | None,
    k_norm: Norm | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``api.rope``."""
    cos_T1R = table.cos_PR[positions_T][:, None, :]
    sin_T1R = table.sin_PR[positions_T][:, None, :]
    return _turn(q_THD, cos_T1R, sin_T1R, q_norm), _turn(k_TJD, cos_T1R, sin_T1R, k_norm)


def _turn(x_THD: torch.Tensor, cos_T1R: torch.Tensor, sin_T1R: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    dtype = x_THD.dtype
    x_THD = x_THD.float() if norm is None else apply_norm(x_THD, norm)
    first, last = x_THD.chunk(2, dim=2)
    turned_THD = torch.empty(x_THD.shape, device=x_THD.device)
    turned_first, turned_last = turned_THD.chunk(2, dim=2)
    torch.mul(first, cos_T1R, out=turned_first).addcmul_(last, sin_T1R, value=-1)
    torch.mul(last, cos_T1R, out=turned_last).addcmul_(first, sin_T1R)
    return turned_THD.to(dtype)
