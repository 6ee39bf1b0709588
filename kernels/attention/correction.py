"""Correction rows: a few queries computed exactly, which put right their neighbours and measure the error of a call.

Every group of ``step`` tokens has one, in its middle. What the exact result differs by is added to the whole group
(Delta attention). The same differences tell how far off the call was, for no further work.

T packed tokens, H heads, D head dim, S sampled tokens, N segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lodestream.kernels.attention.dense import attend_heads
from lodestream.kernels.attention.layout import BlockLayout, SegmentBlocks


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledError:
    """Error of one call at its sampled tokens: |sparse - exact| / |exact|, over the heads of a token together.

    Attributes:
        before_S: float32 [S], before the correction.
        after_S: float32 [S], what is left when a sampled token is corrected by the group before it (the first by the
            one behind it) in place of its own. No token is as far from its own correction row as that, so this is more
            than what is left on average.
        bounds: N + 1 numbers, where the samples of each segment begin; the last is S.
    """

    before_S: torch.Tensor
    after_S: torch.Tensor
    bounds: tuple[int, ...]

    def summarise(self) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [N], [N]: mean and 99th percentile of ``after_S`` over each segment."""
        parts = [self.after_S[a:b] for a, b in zip(self.bounds, self.bounds[1:], strict=False)]
        # The smallest sample that 99 % of them do not exceed: no interpolation, so that it was seen somewhere.
        tails = [torch.sort(part).values[-(-99 * len(part) // 100) - 1] for part in parts]
        return torch.stack([part.mean() for part in parts]), torch.stack(tails)


def choose_step(num_tokens: int) -> int:
    """Tokens for each correction row of a segment: long segments have enough rows to measure by with fewer."""
    return 16 if num_tokens <= 2048 else 32 if num_tokens <= 8192 else 64


def sample_tokens(segment: SegmentBlocks, step: int) -> torch.Tensor:
    """int64 [S]: the sampled tokens of a segment, numbered within it."""
    num_groups = -(-segment.num_tokens // step)
    return (torch.arange(num_groups) * step + step // 2).clamp(max=segment.num_tokens - 1)


def correct_rows(
    out_THD: torch.Tensor,
    q_THD: torch.Tensor,
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    layout: BlockLayout,
    *,
    step: int | None,
    scale: float,
) -> SampledError:
    """Corrects ``out_THD`` in place.

    Args:
        out_THD: [T, H, D], result of a sparse call.
        q_THD, k_THD, v_THD: [T, H, D], what it was given.
        layout: the batch.
        step: tokens a group; by ``choose_step`` where None.
        scale: factor of the logits.

    Numerics: differences in float32. Cost: 1 / step of dense attention.
    Source: Delta attention, arXiv 2505.11254; there the queries before the next correction row, here those around it.
    """
    before, after, bounds = [], [], [0]
    for segment in layout.segments:
        size = choose_step(segment.num_tokens) if step is None else step
        sampled = sample_tokens(segment, size).to(q_THD.device, non_blocking=True)
        out = out_THD[segment.tokens]
        q, k, v = (
            x.transpose(0, 1) for x in (q_THD[segment.tokens][sampled], k_THD[segment.tokens], v_THD[segment.tokens])
        )
        exact = attend_heads(q, k, v, scale=scale).transpose(0, 1).float()
        deltas = exact - out[sampled].float()
        norms = exact.flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        before.append(deltas.flatten(1).norm(dim=1) / norms)
        after.append((deltas - _take_neighbours(deltas)).flatten(1).norm(dim=1) / norms)
        bounds.append(bounds[-1] + len(sampled))
        corrected = out.float() + deltas.repeat_interleave(size, dim=0)[: segment.num_tokens]
        out.copy_(corrected)
    return SampledError(before_S=torch.cat(before), after_S=torch.cat(after), bounds=tuple(bounds))


def _take_neighbours(deltas_SHD: torch.Tensor) -> torch.Tensor:
    """What the group before each sample is corrected by; a lone sample has none, and stays uncorrected."""
    if len(deltas_SHD) == 1:
        return torch.zeros_like(deltas_SHD)
    return torch.cat([deltas_SHD[1:2], deltas_SHD[:-1]])
