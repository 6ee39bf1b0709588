"""Linear layers: on a CPU through oneDNN with weights packed once, plain ones on a GPU and where torch lacks that.

The operators are private to torch, so that they are tried at load and compared with ``F.linear`` before they are used.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import torch
import torch.nn.functional as F

from lodestream.kernels.glu.api import glu
from lodestream.kernels.glu.kinds import Activation

MIN_ROWS: Final = 512
"""oneDNN splits a long inner dimension differently for few rows (seen for bf16, 1536 wide, below 512 rows), and with it
the last bit of the sum. Fewer rows are filled up to this, so that a row's result does not depend on how many there are.
"""

_PACKED_FOR_ROWS: Final = 2048

# oneDNN's names of an activation and its algorithm.
_ATTRIBUTES: Final[dict[Activation | None, tuple[str, str]]] = {
    None: ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "silu": ("swish", ""),
}


class PackedLinear:
    """y = x W^T + b, optionally followed by an activation. Each row of y depends on its row of x alone, bit for bit.

    Args:
        weight: [N, K], bias: [N] or None; both of ``dtype`` after this.
        activation: applied to the result; None for none.
        dtype: torch.float32 or torch.bfloat16.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        dtype: torch.dtype,
        activation: Activation | None = None,
    ) -> None:
        weight = weight.to(dtype).contiguous()
        self._bias = None if bias is None else bias.to(dtype).contiguous()
        self._activation = activation
        is_here = weight.device.type == "cpu"
        self._packed = _pack_weight(weight) if is_here and _is_right(*weight.shape, dtype, activation) else None
        self._weight = weight if self._packed is None else None

    @property
    def is_packed(self) -> bool:
        """Whether oneDNN's packed form is used."""
        return self._packed is not None

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """[T, N] from [T, K]."""
        num_rows = len(x_TK)
        if num_rows < MIN_ROWS:
            x_TK = F.pad(x_TK, (0, 0, 0, MIN_ROWS - num_rows))
        if self._packed is not None:
            y = _run_packed(x_TK, self._packed, self._bias, self._activation)
        else:
            assert self._weight is not None
            y = F.linear(x_TK, self._weight, self._bias)
            y = glu(y, self._activation) if self._activation else y
        return y[:num_rows]


@cache
def _is_right(num_out: int, num_in: int, dtype: torch.dtype, activation: Activation | None) -> bool:
    """Whether the packed form of this shape can be had and gives what ``F.linear`` gives; asked once a process."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(MIN_ROWS, num_in, generator=generator).to(dtype)
    weight = torch.randn(num_out, num_in, generator=generator).to(dtype)
    bias = torch.randn(num_out, generator=generator).to(dtype)
    packed = _pack_weight(weight)
    if packed is None:
        return False
    found = _run_packed(x, packed, bias, activation).float()
    wanted = F.linear(x.float(), weight.float(), bias.float())
    wanted = glu(wanted, activation) if activation else wanted
    tolerance = 2**-6 if dtype == torch.bfloat16 else 2**-16
    return bool((found - wanted).abs().max() <= tolerance * wanted.abs().max())


def _pack_weight(weight_NK: torch.Tensor) -> torch.Tensor | None:
    """The weight in oneDNN's own layout; None where this torch cannot do it."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_NK, _PACKED_FOR_ROWS)
        _run_packed(weight_NK[:1], packed, None, None)
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    return packed


def _run_packed(
    x_TK: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, activation: Activation | None
) -> torch.Tensor:
    attribute, algorithm = _ATTRIBUTES[activation]
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_TK, packed, bias, attribute, [], algorithm)
    return y
