"""Linear layers: on a CPU through oneDNN with weights packed once, plain ones on a GPU and where torch lacks that.

The operators are private to torch, so that they are tried at load and compared with ``F.linear`` before they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
import torch.nn.functional as F

from lodestream.kernels.glu.api import glu
from lodestream.kernels.glu.kinds import Activation

MANY_ROWS: Final = 512
"""From here on the number of rows was never seen to matter. For fewer, oneDNN may split a long inner dimension
differently, and with it the last bit of the sum: seen for bf16, 1536 wide, on one processor below 512 rows, on another
for one row alone."""

ROW_STEP: Final = 128
"""Many rows are filled up to a multiple of this. With as many sizes as there are batches, oneDNN compiles its kernels
for each of them and the heap falls to pieces: half a gigabyte after 240 batches."""

_FEW_STEPS: Final = ((128, 16), (MANY_ROWS, 64))
"""Steps of fewer rows: (up to so many, a multiple of that)."""

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
        self._form = _Form(
            num_out=weight.shape[0],
            num_in=weight.shape[1],
            dtype=dtype,
            activation=activation,
            has_bias=bias is not None,
        )
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
        if num_rows < MANY_ROWS and (more := self._fill_few(num_rows) - num_rows):
            x_TK = F.pad(x_TK, (0, 0, 0, more))
        if self._packed is not None:
            y = _run_packed(x_TK, self._packed, self._bias, self._activation)
        else:
            assert self._weight is not None
            y = F.linear(x_TK, self._weight, self._bias)
            y = glu(y, self._activation) if self._activation else y
        return y[:num_rows]

    def _fill_few(self, num_rows: int) -> int:
        """The rows that fewer than MANY_ROWS are filled up to: the next size at which they get the bits of many."""
        filled = plan_rows(num_rows)
        if self._packed is None or not _is_alike(filled, self._form, torch.get_num_threads()):
            return MANY_ROWS
        return filled


def plan_rows(num_rows: int) -> int:
    """The rows that a batch of ``num_rows`` is filled up to. There are few such sizes, and small ones for few rows."""
    step = next((step for limit, step in _FEW_STEPS if num_rows <= limit), ROW_STEP)
    return -(-num_rows // step) * step


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """What oneDNN chooses its kernel by, besides the number of rows and of threads."""

    num_out: int
    num_in: int
    dtype: torch.dtype
    activation: Activation | None
    has_bias: bool


@cache
def _is_alike(num_rows: int, form: _Form, num_threads: int) -> bool:
    """Whether so few rows get the bits that they get among MANY_ROWS; asked once a process, where they first come.

    Half of the rows are drawn, for the activation; the other half are sums of exactly nothing, of which an output shows
    the rounding errors alone: another order of adding changes most of them.

    Args:
        num_threads: those in force, for which it is asked.
    """
    generator = torch.Generator().manual_seed(0)
    half = -(-form.num_in // 2)
    shuffled = torch.randperm(form.num_in, generator=generator)
    parts = torch.randn(MANY_ROWS, half, generator=generator), torch.randn(form.num_out, half, generator=generator)
    x, weight = (torch.cat([p, p[:, : form.num_in - half]], 1)[:, shuffled].to(form.dtype) for p in parts)
    signs = torch.ones(form.num_in)
    signs[half:] = -1
    x[::2] *= signs[shuffled].to(form.dtype)
    packed = _pack_weight(weight)
    if packed is None:
        return False
    bias = torch.zeros(form.num_out, dtype=form.dtype) if form.has_bias else None
    among_many = _run_packed(x, packed, bias, form.activation)[:num_rows]
    return torch.equal(_run_packed(x[:num_rows], packed, bias, form.activation), among_many)


@cache
def _is_right(num_out: int, num_in: int, dtype: torch.dtype, activation: Activation | None) -> bool:
    """Whether the packed form of this shape can be had and gives what ``F.linear`` gives; asked once a process."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(MANY_ROWS, num_in, generator=generator).to(dtype)
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
