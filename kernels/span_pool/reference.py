"""The eager form of span pooling, in plain torch: what the operator means, and what every other form is tested against.

T packed tokens, C model dim, S spans.
"""

from __future__ import annotations

import torch

MAX_CODE = 127


def mean_spans(states_TC: torch.Tensor, span_starts_S: torch.Tensor, span_ends_S: torch.Tensor) -> torch.Tensor:
    """float32 [S, C]: mean of the states in each span."""
    lengths = span_ends_S - span_starts_S
    # segment_reduce adds the rows of a span one after the other, whatever other spans there are; a difference of
    # running sums would depend on all that lies before.
    if bool((span_starts_S[1:] == span_ends_S[:-1]).all()) and int(span_starts_S[0]) == 0:
        rows = states_TC[: int(span_ends_S[-1])]
    else:
        index = torch.repeat_interleave(span_starts_S - torch.cumsum(lengths, 0) + lengths, lengths)
        rows = states_TC[index + torch.arange(len(index))]
    sums = torch.segment_reduce(rows.float().contiguous(), "sum", lengths=lengths, axis=0)
    return sums / lengths[:, None].float()


def quantise(vectors_SC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows -> (codes int8 [S, C], scales float16 [S], norms float32 [S]): unit vector = codes x scale."""
    vectors = vectors_SC.float()
    norms = torch.linalg.vector_norm(vectors, dim=1)
    unit = vectors / torch.where(norms > 0, norms, torch.ones_like(norms))[:, None]
    # A length that underflows counts as zero, whatever tiny values there are.
    unit[norms == 0] = 0
    scales = _smallest_half_at_least(unit.abs().amax(dim=1) / MAX_CODE)
    divisor = torch.where(scales > 0, scales, torch.ones_like(scales)).float()
    codes = torch.round(unit / divisor[:, None]).clamp(-MAX_CODE, MAX_CODE).to(torch.int8)
    return codes, scales, norms


def _smallest_half_at_least(values: torch.Tensor) -> torch.Tensor:
    halves = values.to(torch.float16)
    # Non-negative float16 are ordered as their bits: the next one up is one more.
    next_up = (halves.view(torch.int16) + 1).view(torch.float16)
    return torch.where(halves.float() < values, next_up, halves)
