"""Sparse attention as an encoder calls it: cells, mask and attention of one layer, errors of all layers, and rungs.

A call measures its own error at the correction rows. A segment over the bound is encoded again with the next larger
share of a fixed ladder, the last rung of which is dense. What a rung gives for a segment depends on that segment alone,
so that the same input ends on the same rung and gives the same codes, whatever was computed before or beside it.

T packed tokens, H heads, D head dim, N segments, L layers, R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from lodestream.kernels.attention.api import Attended, attend
from lodestream.kernels.attention.cells import summarise_cells
from lodestream.kernels.attention.correction import SampledError
from lodestream.kernels.attention.gate import GateTable
from lodestream.kernels.attention.layout import BlockLayout
from lodestream.kernels.block_mask import MaskRecipe, bound_shares, build_mask

_BINS_PER_DOUBLING: Final = 8
_SMALLEST_EXPONENT: Final = -20
_NUM_BINS: Final = 24 * _BINS_PER_DOUBLING


def attend_sparsely(
    q_THD: torch.Tensor,
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    layout: BlockLayout,
    recipe: MaskRecipe,
    *,
    floor_R: torch.Tensor | None = None,
    scale: float | None = None,
) -> Attended:
    """One layer's sparse attention with all that compensates for what is dropped, and its error.

    Args:
        q_THD, k_THD, v_THD: [T, H, D], see ``attention.api.attend``.
        layout: the segments.
        recipe: how much is kept.
        floor_R: of ``block_mask.floor_rows``.
        scale: factor of the logits, 1 / sqrt(D) where None.
    """
    cells = summarise_cells(k_THD, v_THD, layout)
    mask = build_mask(q_THD, cells, layout, recipe, floor_R=floor_R, scale=scale)
    return attend(q_THD, k_THD, v_THD, mask, cells, scale=scale, correction_step="by length")


def pick_sparse(
    layout: BlockLayout, recipe: MaskRecipe, gate: GateTable, *, floor_R: torch.Tensor | None = None
) -> list[bool]:
    """Which segments are attended sparsely: those for which that is faster however the mask turns out.

    Args:
        layout: the segments.
        recipe: how much is kept.
        gate: break-even on this kind of machine.
        floor_R: of ``block_mask.floor_rows``, on the CPU.
    """
    shares = bound_shares(layout, recipe, floor_R=floor_R)
    return [gate.takes_sparse(s.num_tokens, share) for s, share in zip(layout.segments, shares, strict=True)]


def measure_segments(errors: Sequence[SampledError]) -> torch.Tensor:
    """float32 [N]: the error of each segment, its mean in the layer where that is largest."""
    return torch.stack([error.summarise()[0] for error in errors]).amax(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """The kept shares that a segment may be computed with, and the error that makes it climb.

    Attributes:
        shares: ascending; the last is 1, which is dense attention.
        bound: the largest error of a segment, as of ``measure_segments``.
    """

    shares: tuple[float, ...]
    bound: float

    def __post_init__(self) -> None:
        if list(self.shares) != sorted(set(self.shares)) or self.shares[-1:] != (1.0,) or self.shares[0] <= 0:
            raise ValueError(f"the shares of a ladder ascend from above 0 to 1, which is dense: {self.shares}")
        if not self.bound >= 0:
            raise ValueError(f"the bound of an error is not negative: {self.bound}")


def climb(
    encode: Callable[[Sequence[int], float], torch.Tensor | None], num_segments: int, ladder: Ladder
) -> list[float]:
    """Encodes segments on the lowest rung that keeps each of them within the bound.

    Args:
        encode: encodes the segments of the numbers given with a share, keeps their states in place of earlier ones,
            and returns their errors, float32 [numbers]; for the share 1 it may return None.
        num_segments: N.
        ladder: shares and bound.

    Returns:
        The share that each segment ended with. Reading the errors waits for the device once a rung, not once a layer.
    """
    used = [0.0] * num_segments
    numbers = list(range(num_segments))
    for share in ladder.shares:
        if not numbers:
            break
        errors = encode(numbers, share)
        for number in numbers:
            used[number] = share
        if share == 1.0:
            break
        if errors is None:
            raise ValueError(f"no error was measured with a share of {share}")
        # An error that is no number is over every bound.
        is_within = (errors <= ladder.bound).tolist()
        numbers = [number for number, within in zip(numbers, is_within, strict=True) if not within]
    return used


@dataclass(slots=True, kw_only=True)
class ErrorTally:
    """Errors of the layers over many calls, for the summary of a run. Not thread-safe.

    Counts by size: tallies of parts add up to the tally of the whole, bit by bit. A percentile is the upper end of its
    bin, at most 9 % too large; what is below 2 ** -20 counts as that.
    """

    num_layers: int
    counts: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.counts = torch.zeros(self.num_layers, _NUM_BINS, dtype=torch.int64)

    def add(self, layer: int, error: SampledError) -> None:
        """Counts the samples of one call of a layer; on a GPU it does not wait."""
        if self.counts.device != error.after_S.device:
            self.counts = self.counts.to(error.after_S.device)
        places = torch.ceil(torch.log2(error.after_S.double()).sub(_SMALLEST_EXPONENT) * _BINS_PER_DOUBLING)
        bins = places.nan_to_num(nan=_NUM_BINS - 1, posinf=_NUM_BINS - 1, neginf=0).clamp(0, _NUM_BINS - 1).long()
        self.counts[layer].scatter_add_(0, bins, torch.ones_like(bins))

    def merge(self, other: ErrorTally) -> None:
        """Adds what another tally of the same layers counted."""
        self.counts += other.counts.to(self.counts.device)

    def summarise(self) -> list[tuple[float, float]]:
        """(mean, 99th percentile) of each layer; zeros where nothing was counted. Waits for the device."""
        counts = self.counts.cpu()
        exponents = torch.arange(_NUM_BINS, dtype=torch.float64) / _BINS_PER_DOUBLING + _SMALLEST_EXPONENT
        upper = torch.exp2(exponents)
        # Within a bin the samples lie, on average, near its middle.
        middle = torch.exp2(exponents - 0.5 / _BINS_PER_DOUBLING)
        summaries = []
        for row in counts:
            total = int(row.sum())
            reached = torch.cumsum(row, 0) >= -(-99 * total // 100)
            tail = float(upper[int(reached.int().argmax())])
            summaries.append((float((row * middle).sum() / total), tail) if total else (0.0, 0.0))
        return summaries
