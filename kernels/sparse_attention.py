"""Sparse attention as an encoder calls it: cells, mask and attention of one layer, errors of all layers, and rungs.

A layer is computed with the first share of a fixed ladder whose error at the correction rows keeps the bound; the last
rung is dense. The error is known before the layer is computed, so that a share that does not do costs little. What a
rung gives for a segment depends on that segment alone: the same input ends on the same rung and gives the same codes,
whatever was computed before or beside it.

T packed tokens, H heads, D head dim, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import torch

from lodestream.kernels.attention.api import attend
from lodestream.kernels.attention.budget import SegmentPlan
from lodestream.kernels.attention.cells import summarise_cells
from lodestream.kernels.attention.correction import SampledError, correct_rows
from lodestream.kernels.attention.cost import account_flops, count_trial_flops
from lodestream.kernels.attention.error_bins import BINS_PER_DOUBLING, NUM_BINS, SMALLEST_EXPONENT, summarise_bins
from lodestream.kernels.attention.layout import BlockLayout, BlockMask, plan_blocks
from lodestream.kernels.attention.trial import try_masks
from lodestream.kernels.block_mask import MaskRecipe, build_masks
from lodestream.kernels.segment_attention import AttentionLayer, DenseAttention

HOPELESS: Final = 1.5
"""How far over the bound every fourth head has to be so that the others are not looked at."""
_HEADS_APART: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseLayer:
    """One layer's sparse attention of one segment.

    Attributes:
        out_THD: [T, H, D], corrected.
        error: what the correction rows measured.
        mask: what was kept.
        place: which of the recipes it was.
    """

    out_THD: torch.Tensor
    error: SampledError
    mask: BlockMask
    place: int


def attend_sparsely(
    q_THD: torch.Tensor,
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    layout: BlockLayout,
    recipes: Sequence[MaskRecipe],
    *,
    bound: float,
    exact_R: torch.Tensor | None = None,
    scale: float | None = None,
) -> SparseLayer | None:
    """One layer's sparse attention with all that compensates for what is dropped, and its error.

    Args:
        q_THD, k_THD, v_THD: [T, H, D], see ``attention.api.attend``.
        layout: of one segment.
        recipes: how much is kept, from first to last choice.
        bound: the first recipe is taken whose mean error, as of ``correction.SampledError``, is at most this.
        exact_R: bool [R], rows that keep everything; none where None.
        scale: factor of the logits, 1 / sqrt(D) where None.

    Returns:
        The result; None where no recipe keeps the bound. An error that is no number is over every bound.

    Cost: None costs what cells, masks and correction rows do; docs/kernels.md says how much that is. Reading the errors
    waits for the device once.
    """
    scale = q_THD.shape[2] ** -0.5 if scale is None else scale
    cells = summarise_cells(k_THD, v_THD, layout)
    masks = build_masks(q_THD, cells, layout, recipes, exact_R=exact_R, scale=scale)
    trial = try_masks(q_THD, k_THD, v_THD, cells, masks, scale=scale)
    place = next((place for place, error in enumerate(trial.errors_M.tolist()) if error <= bound), None)
    if place is None:
        return None
    out_THD = attend(q_THD, k_THD, v_THD, masks[place], cells, scale=scale).out_THD
    error = correct_rows(out_THD, q_THD, k_THD, v_THD, masks[place], step=None, scale=scale, exact_SHD=trial.exact_SHD)
    return SparseLayer(out_THD=out_THD, error=error, mask=masks[place], place=place)


def is_hopeless(
    q_THD: torch.Tensor,
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    layout: BlockLayout,
    recipe: MaskRecipe,
    *,
    bound: float,
    exact_R: torch.Tensor | None = None,
    scale: float | None = None,
) -> bool:
    """Whether every fourth head alone errs by HOPELESS times the bound; arguments as of ``attend_sparsely``.

    Cost: a quarter of what ``attend_sparsely`` takes to find that no recipe does.
    """
    q_THD, k_THD, v_THD = (x[:, ::_HEADS_APART] for x in (q_THD, k_THD, v_THD))
    scale = q_THD.shape[2] ** -0.5 if scale is None else scale
    cells = summarise_cells(k_THD, v_THD, layout)
    masks = build_masks(q_THD, cells, layout, [recipe], exact_R=exact_R, scale=scale)
    (error,) = try_masks(q_THD, k_THD, v_THD, cells, masks, scale=scale).errors_M.tolist()
    return not error <= HOPELESS * bound


class SparseSegment:
    """The attention of one segment in one encoder call, an ``Attend``: each layer on the lowest rung that keeps it
    within the bound.

    A layer that no share does for is dense, and so are those after it: what made one hard makes the next hard too, and
    trying in vain in every layer would cost more than dense attention. Before the first layer that is tried, a few
    heads tell whether trying is worth it. Layers with a window are computed as they are anyway.

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
        """Rungs that were found to be over the bound."""
        self.kept: list[float] = []
        """Share of the pairs that each layer without a window computed exactly in the end."""
        self.flops = self.dense_flops = 0
        """FLOPs of the attention of those layers, trials included, and what dense attention would take."""
        self._layout = plan_blocks([plan.cut.num_tokens], query_block=plan.cut.query_block)
        self._exact_R = torch.tensor(plan.exact_rows)
        self._recipes = [
            MaskRecipe(max_share=share, count_step=plan.cut.count_step, reach=plan.cut.reach)
            for share in plan.ladder.shares[:-1]
        ]
        self._is_promising: bool | None = None
        self._dense: DenseAttention | None = None

    def __call__(self, heads_RND: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        """[R, H D] from [R, N, D], see ``segment_attention.Attend``.

        Reading the error waits for the device once a layer, on a CPU for nothing.
        """
        num_tokens = self.plan.cut.num_tokens
        if layer.reach is not None and layer.reach < num_tokens - 1:
            return self._attend_densely(heads_RND, layer)
        dense_flops = 4 * num_tokens**2 * layer.num_heads * heads_RND.shape[2]
        self.dense_flops += dense_flops
        if not (self.plan.last_dense and layer.index == self.tally.num_layers - 1):
            mixed_THD = self._climb(heads_RND[:num_tokens], layer)
            if mixed_THD is not None:
                mixed_RC = heads_RND.new_zeros(len(heads_RND), layer.num_heads * heads_RND.shape[2])
                mixed_RC[:num_tokens] = mixed_THD.flatten(1)
                return mixed_RC
        self.kept.append(1.0)
        self.flops += dense_flops
        return self._attend_densely(heads_RND, layer)

    def _climb(self, heads_TND: torch.Tensor, layer: AttentionLayer) -> torch.Tensor | None:
        """[T, H, D] on the first rung that keeps the bound; None where that is the dense one."""
        if self._is_promising is False:
            return None
        result = self._try_rungs(heads_TND, layer)
        self._is_promising = result is not None
        if result is None:
            self.num_climbs += len(self._recipes)
            return None
        self.num_climbs += result.place
        self.tally.add(layer.index, result.error)
        self.kept.append(float(result.mask.keep_HP.float().mean()))
        return result.out_THD

    def _try_rungs(self, heads_TND: torch.Tensor, layer: AttentionLayer) -> SparseLayer | None:
        q, k, v = layer.split(heads_TND)
        exact_R, bound, recipes = self._exact_R.to(q.device), self.plan.ladder.bound, self._recipes
        count = partial(count_trial_flops, len(q), head_dim=q.shape[2])
        if self._is_promising is None:
            self.flops += count(num_heads=-(-layer.num_heads // _HEADS_APART), num_tried=1)
            if is_hopeless(q, k, v, self._layout, recipes[-1], bound=bound, exact_R=exact_R, scale=layer.scale):
                return None
        result = attend_sparsely(q, k, v, self._layout, recipes, bound=bound, exact_R=exact_R, scale=layer.scale)
        if result is None:
            self.flops += count(num_heads=layer.num_heads, num_tried=len(recipes))
        else:
            self.flops += account_flops(
                result.mask, num_heads=layer.num_heads, head_dim=q.shape[2], num_tried=len(recipes)
            ).total
        return result

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
