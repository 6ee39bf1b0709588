"""Dense attention inside each segment of a packed batch, on a CPU.

A call of ``scaled_dot_product_attention`` per segment costs more than its arithmetic where segments are short.
Segments are therefore filled up to a multiple of LENGTH_STEP tokens, and those of one filled length share a call. How a
segment is filled depends on its own length only, so that its result does not depend on what shares its batch.

T packed tokens, R rows (T filled up), P tokens after filling segments, H query heads, J key heads, N = H + 2 J,
D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from lodestream.kernels.attention.dense import attend_heads
from lodestream.kernels.precision import PRODUCTS_FROM

LENGTH_STEP: Final = 16
WINDOW_BLOCK: Final = 128
"""Queries that share a gathered stretch of keys where tokens see a window only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionLayer:
    """What attention has to know of a layer.

    Attributes:
        index: number of the layer.
        num_heads, num_key_heads: H query heads, and J key and value heads, each for H / J query heads.
        scale: factor of the logits.
        is_causal: a token sees itself and those before it.
        reach: tokens that a token sees to either side; None for all of its segment.
    """

    index: int
    num_heads: int
    num_key_heads: int
    scale: float
    is_causal: bool = False
    reach: int | None = None

    def split(self, heads_RND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries [..., H, D], keys and values [..., J, D] of heads [..., N, D], as views."""
        keys_end = self.num_heads + self.num_key_heads
        return (
            heads_RND[..., : self.num_heads, :],
            heads_RND[..., self.num_heads : keys_end, :],
            heads_RND[..., keys_end:, :],
        )


Attend = Callable[[torch.Tensor, AttentionLayer], torch.Tensor]
"""One layer's attention over a batch: (heads [R, N, D]: queries, keys and values side by side, the layer) -> [R, H D]
in the same dtype. Rows of no segment come in finite and have to come out finite. The encoder calls it once a layer, in
their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Segments of one filled length. ``sizes``: tokens of each; ``mask`` is None where none of them is filled."""

    sizes: NDArray[np.int64]
    length: int
    mask: torch.Tensor | None

    @property
    def count(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """The windows of a group: G = segments x n blocks of B queries, K keys that a block may see.

    ``queries`` int64 [G, B] and ``keys`` int64 [G, K] are rows of the group, ``mask`` is [G, 1, B, K].
    """

    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor


class DenseAttention:
    """Dense attention for one batch; an ``Attend``.

    Args:
        lengths: tokens of the segments that lie end to end, T together.
        num_rows: R >= T, rows of what goes in and comes out; those from T on are no segment's and come out finite.
        dtype: of the heads.
    """

    def __init__(self, lengths: Sequence[int], *, num_rows: int, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._windows: dict[tuple[int, int], _Window] = {}
        sizes = np.asarray(lengths)
        starts = np.cumsum(sizes) - sizes
        filled = -(-sizes // LENGTH_STEP) * LENGTH_STEP
        is_filled = filled != sizes
        groups, gather = [], []
        scatter = np.zeros(num_rows, np.int64)
        offset = 0
        for length, masked in sorted(set(zip(filled.tolist(), is_filled.tolist(), strict=True))):
            members = np.flatnonzero((filled == length) & (is_filled == masked))
            places = np.arange(length)
            inside = places[None, :] < sizes[members, None]
            # What fills a segment is its own first token: finite, and masked out as a key.
            gather.append(np.where(inside, starts[members, None] + places, starts[members, None]).reshape(-1))
            scatter[(starts[members, None] + places)[inside]] = (offset + np.arange(inside.size).reshape(inside.shape))[
                inside
            ]
            mask = _as_mask(inside[:, None, None, :], dtype) if masked else None
            groups.append(_Group(sizes=sizes[members], length=length, mask=mask))
            offset += inside.size
        self._groups = groups
        gathered = np.concatenate(gather)
        is_in_order = len(gathered) == num_rows and bool((gathered == np.arange(num_rows)).all())
        self._gather = None if is_in_order else torch.from_numpy(gathered.astype(np.int64))
        self._scatter = None if is_in_order else torch.from_numpy(scatter)

    def __call__(self, heads_RND: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        """[R, H D] from [R, N, D]."""
        heads_PND = heads_RND if self._gather is None else heads_RND.index_select(0, self._gather)
        mixed_PHD = torch.empty(len(heads_PND), layer.num_heads, heads_PND.shape[2], dtype=heads_PND.dtype)
        start = 0
        for number, group in enumerate(self._groups):
            end = start + group.count * group.length
            if layer.reach is None or layer.reach >= group.length - 1:
                self._attend_all(heads_PND[start:end], mixed_PHD[start:end], group, layer)
            else:
                window = self._find_window(number, layer.reach)
                _attend_window(heads_PND[start:end], mixed_PHD[start:end], group, window, layer)
            start = end
        mixed_PC = mixed_PHD.flatten(1)
        return mixed_PC if self._scatter is None else mixed_PC.index_select(0, self._scatter)

    def _attend_all(
        self, heads_PND: torch.Tensor, mixed_PHD: torch.Tensor, group: _Group, layer: AttentionLayer
    ) -> None:
        if takes_products(group.length, heads_PND.dtype) and not layer.is_causal:
            _multiply_segments(heads_PND, mixed_PHD, group, layer)
            return
        shape = (group.count, group.length)
        # What fills a segment comes last, where no token of the segment sees it if it sees those before it only.
        mixed = _attend(
            *layer.split(heads_PND.view(*shape, *heads_PND.shape[1:])),
            layer,
            mask=None if layer.is_causal else group.mask,
        )
        mixed_PHD.view(*shape, *mixed_PHD.shape[1:]).copy_(mixed)

    def _find_window(self, number: int, reach: int) -> _Window:
        key = (number, reach)
        if key not in self._windows:
            self._windows[key] = _make_window(self._groups[number], reach, self._dtype)
        return self._windows[key]


def takes_products(num_tokens: int, dtype: torch.dtype) -> bool:
    """Whether a segment is attended by plain products: faster than torch's fused form in bfloat16 from PRODUCTS_FROM
    tokens on, whatever fills the segment up."""
    return dtype == torch.bfloat16 and num_tokens >= PRODUCTS_FROM


def _multiply_segments(heads_PND: torch.Tensor, mixed_PHD: torch.Tensor, group: _Group, layer: AttentionLayer) -> None:
    """Segments one by one, what fills them left out."""
    for number, size in enumerate(group.sizes.tolist()):
        start = number * group.length
        q, k, v = (x.transpose(0, 1) for x in layer.split(heads_PND[start : start + size]))
        shared = layer.num_heads // layer.num_key_heads
        if shared > 1:
            k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
        mixed_PHD[start : start + size] = attend_heads(q, k, v, scale=layer.scale).transpose(0, 1)
        mixed_PHD[start + size : start + group.length] = 0


def _attend_window(
    heads_PND: torch.Tensor, mixed_PHD: torch.Tensor, group: _Group, window: _Window, layer: AttentionLayer
) -> None:
    q, k, v = layer.split(heads_PND)
    num_blocks = len(window.queries)
    queries, keys = window.queries.flatten(), window.keys.flatten()
    mixed = _attend(
        q[queries].view(num_blocks, -1, *q.shape[1:]),
        k[keys].view(num_blocks, -1, *k.shape[1:]),
        v[keys].view(num_blocks, -1, *v.shape[1:]),
        layer,
        mask=window.mask,
    )
    # The last block of a segment may reach beyond it.
    whole = mixed.reshape(group.count, -1, *mixed_PHD.shape[1:])
    mixed_PHD.view(group.count, group.length, *mixed_PHD.shape[1:]).copy_(whole[:, : group.length])


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: AttentionLayer, *, mask: torch.Tensor | None
) -> torch.Tensor:
    """[segments, queries, H, D] of q of that shape, k and v [segments, keys, J, D]."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    shared = layer.num_heads // layer.num_key_heads
    if shared > 1:
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=layer.is_causal, scale=layer.scale)
    return mixed.transpose(1, 2)


def _make_window(group: _Group, reach: int, dtype: torch.dtype) -> _Window:
    margin = -(-reach // LENGTH_STEP) * LENGTH_STEP
    block_starts = np.arange(0, group.length, WINDOW_BLOCK)[:, None]
    query_nB = block_starts + np.arange(WINDOW_BLOCK)
    key_nK = block_starts + np.arange(-margin, WINDOW_BLOCK + margin)
    is_near = np.abs(query_nB[:, :, None] - key_nK[:, None, :]) <= reach
    sizes = group.sizes[:, None, None]
    is_key = (key_nK >= 0) & (key_nK < sizes)
    # A query that is no token's sees everything: a softmax over nothing is no number.
    sees = (is_near & is_key[:, :, None, :]) | (query_nB >= sizes)[..., None]
    first = np.arange(group.count)[:, None, None] * group.length
    rows = [
        (first + np.clip(places, 0, group.length - 1)).reshape(-1, places.shape[1]) for places in (query_nB, key_nK)
    ]
    return _Window(
        queries=torch.from_numpy(rows[0]),
        keys=torch.from_numpy(rows[1]),
        mask=_as_mask(sees.reshape(-1, 1, *sees.shape[2:]), dtype),
    )


def _as_mask(sees: NDArray[np.bool_], dtype: torch.dtype) -> torch.Tensor:
    """0 where a query sees a key, minus infinity where it does not."""
    return torch.from_numpy(np.where(sees, 0.0, -np.inf).astype(np.float32)).to(dtype)
