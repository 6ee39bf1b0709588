"""The eager form of activations, in plain torch: what the operator means, and the form for CPUs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lodestream.kernels.glu.kinds import Activated, Activation


def glu(
    x_TI: torch.Tensor, activation: Activation, *, activated: Activated, bias_I: torch.Tensor | None
) -> torch.Tensor:
    """See ``api.glu``."""
    if bias_I is not None:
        x_TI = (x_TI.float() + bias_I).to(x_TI.dtype)
    if activated == "all":
        return _activate(x_TI, activation)
    first, last = x_TI.chunk(2, dim=1)
    if activated == "first":
        return _activate(first, activation).mul_(last)
    return _activate(last, activation).mul_(first)


def _activate(x_TI: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation == "silu":
        return F.silu(x_TI)
    return F.gelu(x_TI, approximate="tanh" if activation == "gelu_tanh" else "none")
