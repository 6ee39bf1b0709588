"""Norms of rows, as the operators take them that end in one, and their eager form.

T rows, C width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A norm and its weights.

    Attributes:
        kind: "layer" takes the mean off and divides by the standard deviation, "rms" divides by the root of the mean
            square.
        weight_C: factor of each column.
        bias_C: added to each column; of a "layer" norm only.
        eps: added to the variance, or to the mean square.
        adds_one: the factor is 1 + weight (Gemma).
    """

    kind: Literal["layer", "rms"]
    weight_C: torch.Tensor
    bias_C: torch.Tensor | None = None
    eps: float
    adds_one: bool = False

    def __post_init__(self) -> None:
        if self.kind == "rms" and self.bias_C is not None:
            raise ValueError("an RMSNorm has no bias")
        if self.bias_C is not None and self.bias_C.shape != self.weight_C.shape:
            raise ValueError(f"a bias of {tuple(self.bias_C.shape)} for a weight of {tuple(self.weight_C.shape)}")


def apply_norm(x_TC: torch.Tensor, norm: Norm) -> torch.Tensor:
    """float32 [..., C]: the norm of each row, in plain torch."""
    x_TC = x_TC.float()
    weight_C = norm.weight_C.float()
    if norm.adds_one:
        weight_C = 1 + weight_C
    if norm.kind == "rms":
        # F.rms_norm is three times slower on a CPU, where it is made of single steps over all of x.
        squares_T1: torch.Tensor = torch.linalg.vector_norm(x_TC, dim=-1, keepdim=True).square_()
        return (x_TC * squares_T1.div_(len(weight_C)).add_(norm.eps).rsqrt_()).mul_(weight_C)
    bias_C = None if norm.bias_C is None else norm.bias_C.float()
    return F.layer_norm(x_TC, weight_C.shape, weight_C, bias_C, norm.eps)
