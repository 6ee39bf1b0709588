"""Span pooling as callers use it. The form is chosen by the device of the states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lodestream.errors import DocumentError
from lodestream.kernels.fused_forms import import_fused, send
from lodestream.kernels.span_pool import reference


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledSpans:
    """Vectors of S spans: codes int8 [S, C], scales float16 [S], norms float16 [S]; unit vector = codes x scale.

    On a GPU they are not checked yet: what a CPU would have refused has a norm that is not finite.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    norms: torch.Tensor

    def to_host(self) -> PooledSpans:
        """The same on the CPU, checked; this waits for the device.

        Raises:
            DocumentError: a norm is not finite: so are the states, or a span lies outside of them.
        """
        codes, scales, norms = (part.cpu() for part in (self.codes, self.scales, self.norms))
        _require_finite(norms)
        return PooledSpans(codes=codes, scales=scales, norms=norms)


def pool_spans(
    states_TC: torch.Tensor,
    span_starts_S: torch.Tensor,
    span_ends_S: torch.Tensor,
    *,
    head: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> PooledSpans:
    """Mean over the tokens of each span, made a unit vector, as int8 codes.

    Args:
        states_TC: float32, bfloat16 or float16 [T, C], token states.
        span_starts_S, span_ends_S: int64 [S], half-open, each span at least one token; they may overlap. For states on
            a GPU they lie there or on the CPU; there nobody looks at them: an empty span is a row of zeros, one outside
            the states has norm NaN.
        head: applied to the means, float32 [S, C], before they are made unit vectors; on a CPU, to which states come.

    Guarantees: a span's vector does not depend on what else there is; on a GPU nothing waits for the device.

    Raises:
        ValueError: a span on the CPU is empty or lies outside the states.
        DocumentError: on a CPU, a norm is too large for float16, or the states are not finite; on a GPU ``to_host``
            says so.
        KernelUnavailable: states on a GPU, but no triton.

    Numerics: sums in float32, in the order of the tokens; a code is off by one at ties of rounding only.
    Cost: one read of the states in the spans.
    """
    if head is not None:
        states_TC, span_starts_S, span_ends_S = states_TC.cpu(), span_starts_S.cpu(), span_ends_S.cpu()
    if len(span_starts_S) and span_starts_S.device.type == "cpu":
        _check_spans(len(states_TC), span_starts_S, span_ends_S)
    if states_TC.device.type != "cpu":
        spans = [send(places.contiguous(), states_TC.device) for places in (span_starts_S, span_ends_S)]
        codes, scales, norms = import_fused("span_pool").pool_spans(states_TC, *spans)
        return PooledSpans(codes=codes, scales=scales, norms=norms)
    means_SC = reference.mean_spans(states_TC, span_starts_S, span_ends_S) if len(span_starts_S) else states_TC[:0]
    return quantise_rows(means_SC.float() if head is None else head(means_SC.float()))


def quantise_rows(vectors_SC: torch.Tensor) -> PooledSpans:
    """Unit vectors of the rows as int8 codes, with the rows' lengths.

    Args:
        vectors_SC: float32 [S, C]; a zero row gives zero codes, scale and norm.

    Raises:
        DocumentError: a row is not finite or too long for float16.

    Numerics: scale = smallest float16 >= max|v| / 127 of the unit vector v; codes = v / scale, ties to even.
    """
    codes, scales, norms = reference.quantise(vectors_SC)
    halves = norms.to(torch.float16)
    _require_finite(halves)
    return PooledSpans(codes=codes, scales=scales, norms=halves)


def _check_spans(num_tokens: int, span_starts_S: torch.Tensor, span_ends_S: torch.Tensor) -> None:
    if bool((span_starts_S >= span_ends_S).any()) or int(span_starts_S.min()) < 0:
        raise ValueError("every span needs at least one token")
    if int(span_ends_S.max()) > num_tokens:
        raise ValueError(f"a span ends at {int(span_ends_S.max())}, but there are {num_tokens} tokens")


def _require_finite(norms_S: torch.Tensor) -> None:
    if not bool(torch.isfinite(norms_S).all()):
        raise DocumentError("the encoder's output is not finite, or too large for float16", "check the model's weights")
