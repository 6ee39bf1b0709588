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
from lodestream.kernels.attention.budget import SegmentPlan
from lodestream.kernels.attention.cells import summarise_cells
from lodestream.kernels.attention.correction import SampledError
from lodestream.kernels.attention.error_bins import BINS_PER_DOUBLING, NUM_BINS, SMALLEST_EXPONENT, summarise_bins
from lodestream.kernels.attention.layout import BlockLayout, BlockMask, plan_blocks
from lodestream.kernels.block_mask import MaskRecipe, build_mask
from lodestream.kernels.segment_attention import AttentionLayer, DenseAttention


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
    """The attention of one segment in one encoder call, an ``Attend``: each layer on the lowest rung that keeps it
    within the bound.

    A layer over the bound is computed again on the next rung, where the segment then stays: what made one layer hard
    makes the next hard too, and a segment that climbed in every layer would cost more than dense attention. Layers with
    a window are computed as they are anyway.

    Guarantees: the states depend on the segment and its plan alone, the rungs included.
    """

    def __init__(self, plan: SegmentPlan, *, num_layers: int) -> None:
        """Args:
        plan: of the segment.
        num_layers: of the encoder.
        """
        self.plan = plan
        self.tally = ErrorTally(num_layers=num_layers)
        """Errors of what was used, by layer."""
        self.num_climbs = 0
        """How often a layer was computed again."""
        self.kept: list[float] = []
        """Share of the pairs that each layer without a window computed exactly in the end."""
        self._layout = plan_blocks([plan.cut.num_tokens], query_block=plan.cut.query_block)
        self._floor_R = torch.tensor(plan.exact_rows, dtype=torch.float32)
        self._rung = 0
        self._dense: DenseAttention | None = None

    def __call__(self, heads_RND: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        """[R, H D] from [R, N, D], see ``segment_attention.Attend``.

        Reading the error waits for the device once a layer, on a CPU for nothing.
        """
        num_tokens = self.plan.cut.num_tokens
        if layer.reach is not None and layer.reach < num_tokens - 1:
            return self._attend_densely(heads_RND, layer)
        if not (self.plan.last_dense and layer.index == self.tally.num_layers - 1):
            mixed_THD = self._climb(heads_RND[:num_tokens], layer)
            if mixed_THD is not None:
                mixed_RC = heads_RND.new_zeros(len(heads_RND), layer.num_heads * heads_RND.shape[2])
                mixed_RC[:num_tokens] = mixed_THD.flatten(1)
                return mixed_RC
        self.kept.append(1.0)
        return self._attend_densely(heads_RND, layer)

    def _climb(self, heads_TND: torch.Tensor, layer: AttentionLayer) -> torch.Tensor | None:
        """[T, H, D] on the first rung from the present one that keeps the bound; None where that is the dense one."""
        ladder, cut = self.plan.ladder, self.plan.cut
        q, k, v = layer.split(heads_TND)
        while ladder.shares[self._rung] < 1:
            recipe = MaskRecipe(max_share=ladder.shares[self._rung], count_step=cut.count_step, reach=cut.reach)
            floor_R = self._floor_R.to(q.device)
            result, mask = attend_sparsely(q, k, v, self._layout, recipe, floor_R=floor_R, scale=layer.scale)
            assert result.error is not None
            # An error that is no number is over every bound.
            if float(result.error.summarise()[0][0]) <= ladder.bound:
                self.tally.add(layer.index, result.error)
                self.kept.append(float(mask.keep_HP.float().mean()))
                return result.out_THD
            self._rung += 1
            self.num_climbs += 1
        return None

    def _attend_densely(self, heads_RND: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        if self._dense is None:
            lengths, num_rows = [self.plan.cut.num_tokens], len(heads_RND)
            self._dense = DenseAttention(lengths, num_rows=num_rows, dtype=heads_RND.dtype)
        return self._dense(heads_RND, layer)


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
