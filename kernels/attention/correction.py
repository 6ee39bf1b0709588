"""Correction rows: a few queries computed exactly, which put right those between them and measure the error of a call.

The first token of a segment is one, and the middle of every group of ``step`` tokens. What the exact results differ by
is interpolated between them, and three quarters of that are added: neighbours share most of what a row lacks, not all
of it. The same differences tell how far off the call was, for no further work.

T packed tokens, H heads, D head dim, S sampled tokens, N segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from lodestream.kernels.attention.dense import attend_heads
from lodestream.kernels.attention.layout import BlockMask, SegmentBlocks

SHARED: Final = 0.75
"""Part of a difference that is added to the tokens between correction rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledError:
    """Error of one call at its sampled tokens: |sparse - exact| / |exact|, over the heads of a token together.

    Attributes:
        before_S: float32 [S], before the correction.
        after_S: float32 [S], what is left when a sampled token is corrected by the samples before and behind it, as if
            it were none itself. No token is as far from its nearest correction row as that, so this is more than what
            is left on average.
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
    return 8 if num_tokens <= 512 else 16 if num_tokens <= 2048 else 32 if num_tokens <= 8192 else 64


def count_samples(num_tokens: int, step: int) -> int:
    """Correction rows of a segment."""
    return 1 if num_tokens == 1 else 1 + -(-num_tokens // step)


def sample_tokens(segment: SegmentBlocks, step: int, *, device: torch.device | str = "cpu") -> torch.Tensor:
    """int64 [S], ascending: the sampled tokens of a segment, numbered within it."""
    num_groups = count_samples(segment.num_tokens, step) - 1
    middles = (torch.arange(num_groups, device=device) * step + step // 2).clamp(max=segment.num_tokens - 1)
    return torch.cat([middles.new_zeros(1), middles])


def correct_rows(
    out_THD: torch.Tensor,
    q_THD: torch.Tensor,
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    mask: BlockMask,
    *,
    step: int | None,
    scale: float,
    exact_SHD: torch.Tensor | None = None,
) -> SampledError:
    """Corrects ``out_THD`` in place.

    Args:
        out_THD: [T, H, D], result of a sparse call.
        q_THD, k_THD, v_THD: [T, H, D], what it was given.
        mask: what the call kept. Rows that kept everything are exact, and stay as they are.
        step: tokens a group, at least 2; by ``choose_step`` where None.
        scale: factor of the logits.
        exact_SHD: float32 [S, H, D], dense attention of the sampled tokens of all segments, where that is known;
            ``step`` is None then.

    Numerics: differences in float32. Cost: 1 / step of dense attention.
    Source: Delta attention, arXiv 2505.11254, which adds a correction row's difference in full to all of its group;
    docs/kernels.md says what interpolation and the factor are worth.
    """
    before, after, bounds = [], [], [0]
    for segment in mask.layout.segments:
        size = choose_step(segment.num_tokens) if step is None else step
        sampled = sample_tokens(segment, size, device=q_THD.device)
        out = out_THD[segment.tokens]
        bounds.append(bounds[-1] + len(sampled))
        if exact_SHD is None:
            q, k, v = (x[segment.tokens].transpose(0, 1) for x in (q_THD, k_THD, v_THD))
            exact = attend_heads(q[:, sampled], k, v, scale=scale).transpose(0, 1).float()
        else:
            exact = exact_SHD[bounds[-2] : bounds[-1]]
        deltas = exact - out[sampled].float()
        before.append(_relate(deltas, exact))
        after.append(measure_rest(deltas, exact))
        between = _interpolate(deltas, sampled, segment.num_tokens)
        corrected = out.float() + between * _weigh_tokens(mask, segment)
        corrected.index_copy_(0, sampled, exact)
        out.copy_(corrected)
    return SampledError(before_S=torch.cat(before), after_S=torch.cat(after), bounds=tuple(bounds))


def measure_rest(deltas_SHD: torch.Tensor, exact_SHD: torch.Tensor) -> torch.Tensor:
    """float32 [S]: ``SampledError.after_S`` of one segment, of exact results and what they differ by."""
    return _relate(deltas_SHD - SHARED * _take_neighbours(deltas_SHD), exact_SHD)


def _relate(deltas_SHD: torch.Tensor, exact_SHD: torch.Tensor) -> torch.Tensor:
    norms = exact_SHD.flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    related: torch.Tensor = deltas_SHD.flatten(1).norm(dim=1) / norms
    return related


def _weigh_tokens(mask: BlockMask, segment: SegmentBlocks) -> torch.Tensor:
    """float32 [n, H or 1, 1]: the part of a difference that each token of each head gets."""
    is_sparse = (mask.counts_HR[:, segment.rows] < segment.num_blocks).repeat_interleave(mask.layout.query_block, 1)
    return SHARED * is_sparse[:, : segment.num_tokens].T[:, :, None].float()


def _interpolate(deltas_SHD: torch.Tensor, sampled_S: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """float32 [num_tokens, H, D]: linear between the samples, and level behind the last."""
    place = torch.arange(num_tokens, device=sampled_S.device)
    right = torch.searchsorted(sampled_S, place).clamp(max=len(sampled_S) - 1)
    left = (right - 1).clamp(min=0)
    gap = (sampled_S[right] - sampled_S[left]).clamp(min=1)
    weight = ((place - sampled_S[left]) / gap).clamp(max=1)
    return torch.lerp(deltas_SHD[left], deltas_SHD[right], weight[:, None, None])


def _take_neighbours(deltas_SHD: torch.Tensor) -> torch.Tensor:
    """What a sample would be corrected by were it none: the middle of the samples beside it. A lone one has none."""
    if len(deltas_SHD) == 1:
        return torch.zeros_like(deltas_SHD)
    before = torch.cat([deltas_SHD[1:2], deltas_SHD[:-1]])
    behind = torch.cat([deltas_SHD[1:], deltas_SHD[-2:-1]])
    return (before + behind) / 2
