"""Sparse attention as an encoder calls it: cells, mask and attention of one layer, errors of all layers, and rungs.

A call measures its own error at the correction rows. A layer over the bound is computed again with the next larger
share of a fixed ladder, the last rung of which is dense. What a rung gives for a segment depends on that segment alone,
so that the same input ends on the same rung and gives the same codes, whatever was computed before or beside it.

T packed tokens, H heads, D head dim, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from lodestream.kernels.attention.api import Attended, attend
from lodestream.kernels.attention.budget import FLOOR_STEPS, SegmentPlan
from lodestream.kernels.attention.cells import summarise_cells
from lodestream.kernels.attention.correction import SampledError
from lodestream.kernels.attention.dense import attend_dense
from lodestream.kernels.attention.error_bins import BINS_PER_DOUBLING, NUM_BINS, SMALLEST_EXPONENT, summarise_bins
from lodestream.kernels.attention.layout import BlockLayout, BlockMask, plan_blocks
from lodestream.kernels.block_mask import MaskRecipe, build_mask


def attend_sparsely(
    q_THD: torch.Tensor,
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    layout: BlockLayout,
    recipe: MaskRecipe,
    *,
    floor_R: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple[Attended, BlockMask]:
    """One layer's sparse attention with all that compensates for what is dropped, and its error.

    Args:
        q_THD, k_THD, v_THD: [T, H, D], see ``attention.api.attend``.
        layout: the segments.
        recipe: how much is kept.
        floor_R: float32 [R], 0 to 1; 1 makes a row exact.
        scale: factor of the logits, 1 / sqrt(D) where None.

    Returns:
        The result, and what the mask kept.
    """
    cells = summarise_cells(k_THD, v_THD, layout)
    mask = build_mask(q_THD, cells, layout, recipe, floor_R=floor_R, scale=scale)
    result = attend(q_THD, k_THD, v_THD, mask, cells, scale=scale, correction_step="by length")
    return result, mask


class SparseSegment:
    """The attention of one segment in one encoder call: each layer on the lowest rung that keeps it within the bound.

    A layer over the bound is computed again on the next rung, where the segment then stays: what made one layer hard
    makes the next hard too, and a segment that climbed in every layer would cost more than dense attention.

    Guarantees: the states depend on the segment and its plan alone, the rungs included.
    """

    def __init__(self, plan: SegmentPlan, *, num_layers: int) -> None:
        """Args:
        plan: of the segment.
        num_layers: layers that ``attend`` is called for.
        """
        self.plan = plan
        self.tally = ErrorTally(num_layers=num_layers)
        """Errors of what was used, by layer."""
        self.num_climbs = 0
        """Layers that were computed again."""
        self.kept: list[float] = []
        """Share of the pairs that each layer computed exactly in the end."""
        self._layout = plan_blocks([plan.cut.num_tokens], query_block=plan.cut.query_block)
        self._floor_R = torch.tensor(plan.floor_steps, dtype=torch.float32) / FLOOR_STEPS
        self._rung = 0

    def attend(
        self, layer: int, q_THD: torch.Tensor, k_THD: torch.Tensor, v_THD: torch.Tensor, *, scale: float | None = None
    ) -> torch.Tensor:
        """[T, H, D]: attention of one layer; layers are asked for in their order.

        Args:
            layer: from 0 on.
            q_THD, k_THD, v_THD: [T, H, D], see ``attention.api.attend``.
            scale: factor of the logits, 1 / sqrt(D) where None.

        Reading the error waits for the device once a layer, on a CPU for nothing.
        """
        ladder = self.plan.ladder
        is_last = layer == self.tally.num_layers - 1
        while ladder.shares[self._rung] < 1 and not (is_last and self.plan.last_dense):
            cut = self.plan.cut
            recipe = MaskRecipe(max_share=ladder.shares[self._rung], count_step=cut.count_step, reach=cut.reach)
            result, mask = attend_sparsely(
                q_THD, k_THD, v_THD, self._layout, recipe, floor_R=self._floor_R.to(q_THD.device), scale=scale
            )
            assert result.error is not None
            # An error that is no number is over every bound.
            if float(result.error.summarise()[0][0]) <= ladder.bound:
                self.tally.add(layer, result.error)
                self.kept.append(float(mask.keep_HP.float().mean()))
                return result.out_THD
            self._rung += 1
            self.num_climbs += 1
        self.kept.append(1.0)
        return attend_dense(q_THD, k_THD, v_THD, self._layout, scale=scale)


@dataclass(slots=True, kw_only=True)
class ErrorTally:
    """Errors of the layers over many calls, for the summary of a run. Not thread-safe.

    Counts by size: tallies of parts add up to the tally of the whole, bit by bit. A percentile is the upper end of its
    bin, at most 9 % too large; what is below 2 ** -20 counts as that.
    """

    num_layers: int
    counts: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.counts = torch.zeros(self.num_layers, NUM_BINS, dtype=torch.int64)

    def add(self, layer: int, error: SampledError) -> None:
        """Counts the samples of one call of a layer; on a GPU it does not wait."""
        if self.counts.device != error.after_S.device:
            self.counts = self.counts.to(error.after_S.device)
        places = torch.ceil(torch.log2(error.after_S.double()).sub(SMALLEST_EXPONENT) * BINS_PER_DOUBLING)
        bins = places.nan_to_num(nan=NUM_BINS - 1, posinf=NUM_BINS - 1, neginf=0).clamp(0, NUM_BINS - 1).long()
        self.counts[layer].scatter_add_(0, bins, torch.ones_like(bins))

    def merge(self, other: ErrorTally) -> None:
        """Adds what another tally of the same layers counted."""
        self.counts += other.counts.to(self.counts.device)

    def as_lists(self) -> list[list[int]]:
        """The counts by layer, as ``error_bins`` takes them. Waits for the device."""
        counts: list[list[int]] = self.counts.tolist()
        return counts

    def summarise(self) -> list[tuple[float, float]]:
        """(mean, 99th percentile) of each layer; zeros where nothing was counted. Waits for the device."""
        return [summarise_bins(row) for row in self.as_lists()]
