"""Dense attention of a packed batch through the block operator: one launch for all segments, the form for GPUs.

T packed tokens, R rows (T filled up), H query heads, J key heads, N = H + 2 J, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from lodestream.kernels.attention.api import attend
from lodestream.kernels.attention.budget import HEAD_DIMS
from lodestream.kernels.attention.layout import BlockMask, mask_all, mask_window, plan_blocks
from lodestream.kernels.segment_attention import AttentionLayer


class BlockAttention:
    """Attention for one batch, everything kept or in windows; an ``Attend``.

    What the operator does not have (causal, shared key heads, other head dims) is torch's fused attention, segment by
    segment. A segment's result does not depend on what shares its batch.

    Args:
        lengths: tokens of the segments that lie end to end, T together.
        num_rows: R >= T, rows of what goes in and comes out; those from T on come out as zeros.
    """

    def __init__(self, lengths: Sequence[int], *, num_rows: int) -> None:
        self._lengths = lengths
        self._num_rows = num_rows
        self._layout = plan_blocks(lengths)
        self._masks: dict[int | None, BlockMask] = {}

    def __call__(self, heads_RND: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        """[R, H D] from [R, N, D]."""
        q, k, v = layer.split(heads_RND[: self._layout.num_tokens])
        is_covered = not layer.is_causal and layer.num_heads == layer.num_key_heads and q.shape[2] in HEAD_DIMS
        if is_covered:
            mixed_THD = attend(q, k, v, self._find_mask(layer.reach, q.device), scale=layer.scale).out_THD
        else:
            parts = [torch.split(x, list(self._lengths)) for x in (q, k, v)]
            mixed_THD = torch.cat([_attend_segment(layer, *qkv) for qkv in zip(*parts, strict=True)])
        return F.pad(mixed_THD.flatten(1), (0, 0, 0, self._num_rows - len(mixed_THD)))

    def _find_mask(self, reach: int | None, device: torch.device) -> BlockMask:
        if reach not in self._masks:
            self._masks[reach] = (
                mask_all(self._layout, device=device)
                if reach is None
                else mask_window(self._layout, window=2 * reach, device=device)
            )
        return self._masks[reach]


def _attend_segment(
    layer: AttentionLayer, q_nHD: torch.Tensor, k_nJD: torch.Tensor, v_nJD: torch.Tensor
) -> torch.Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q_nHD, k_nJD, v_nJD))
    mask = None
    if layer.reach is not None and layer.reach < len(q_nHD) - 1:
        place = torch.arange(len(q_nHD), device=q.device)
        distance = place[:, None] - place[None, :]
        mask = (distance.abs() <= layer.reach) & ((distance >= 0) if layer.is_causal else True)
    mixed = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=layer.is_causal and mask is None,
        scale=layer.scale,
        enable_gqa=layer.num_heads != layer.num_key_heads,
    )
    return mixed[0].transpose(0, 1)
