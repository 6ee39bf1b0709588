"""Span pooling as callers use it. On a CPU the eager form serves; other forms come behind the same name."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lodestream.errors import DocumentError
from lodestream.kernels.span_pool import reference


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledSpans:
    """Vectors of S spans: codes int8 [S, C], scales float16 [S], norms float16 [S]; unit vector = codes x scale."""

    codes: torch.Tensor
    scales: torch.Tensor
    norms: torch.Tensor


def pool_spans(states_TC: torch.Tensor, span_starts_S: torch.Tensor, span_ends_S: torch.Tensor) -> PooledSpans:
    """Mean over the tokens of each span, made a unit vector, as int8 codes.

    Args:
        states_TC: float32 or bfloat16 [T, C], token states.
        span_starts_S, span_ends_S: int64 [S], half-open, each span at least one token; they may overlap.

    Raises:
        ValueError: a span is empty or lies outside the states.
        DocumentError: a norm is too large for float16, or the states are not finite.

    Numerics: sums in float32, in the order of the tokens; a code is off by one at ties of rounding only.
    Cost: one read of the states in the spans.
    """
    if len(span_starts_S) == 0:
        return quantise_rows(states_TC[:0].float())
    if bool((span_starts_S >= span_ends_S).any()) or int(span_starts_S.min()) < 0:
        raise ValueError("every span needs at least one token")
    if int(span_ends_S.max()) > len(states_TC):
        raise ValueError(f"a span ends at {int(span_ends_S.max())}, but there are {len(states_TC)} tokens")
    return quantise_rows(reference.mean_spans(states_TC, span_starts_S, span_ends_S))


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
    if not bool(torch.isfinite(halves).all()):
        raise DocumentError("the encoder's output is not finite, or too large for float16", "check the model's weights")
    return PooledSpans(codes=codes, scales=scales, norms=halves)
