"""Block-sparse attention in float64, token by token from the definition, with the error that other forms may have.

It shares the sizes of blocks and cells with the code under test, and nothing else. It computes on the CPU, wherever its
inputs lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lodestream.kernels.attention.cells import CellSummary, summarise_cells
from lodestream.kernels.attention.layout import CELL, KEY_BLOCK, BlockLayout, BlockMask, make_mask

ODD_LENGTHS = (1, 63, 127, 517)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Result in float64, and the largest error that is allowed for it."""

    out_THD: torch.Tensor
    lse_TH: torch.Tensor
    out_budget: float
    lse_budget: float


def make_inputs(
    num_tokens: int, head_dim: int, *, num_heads: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v [T, H, D] with the offset and the neighbourhoods that the keys of real texts have, as a strided view."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(num_tokens, 3, num_heads, head_dim, generator=generator)
    topics = torch.randn(num_tokens // 20 + 1, 3, num_heads, head_dim, generator=generator)
    qkv += topics.repeat_interleave(20, dim=0)[:num_tokens]
    qkv[:, 1] += torch.randn(num_heads, head_dim, generator=generator)
    q, k, v = qkv.to(dtype).unbind(1)
    return q, k, v


def make_cells(k: torch.Tensor, v: torch.Tensor, mask: BlockMask, compensation: str) -> CellSummary | None:
    """What stands in, by the name of the compensation: "none", "means" or "slope"."""
    if compensation == "none":
        return None
    return summarise_cells(k, v, mask.layout, with_slope=compensation == "slope")


def make_random_mask(layout: BlockLayout, *, num_heads: int, share: float = 0.4, seed: int = 0) -> BlockMask:
    """Each pair kept with probability ``share``, and one of each row in any case."""
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(num_heads, layout.num_pairs, generator=generator) < share
    for segment in layout.segments:
        rows = keep[:, segment.pairs].view(num_heads, segment.num_rows, segment.num_blocks)
        rows.scatter_(2, torch.randint(segment.num_blocks, (num_heads, segment.num_rows, 1), generator=generator), True)
    return make_mask(layout, keep)


def attend_in_float64(
    q_THD: torch.Tensor,
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    mask: BlockMask,
    *,
    compensation: str = "slope",
    scale: float | None = None,
    rounds_logits: bool = False,
) -> Expected:
    """What ``api.attend`` has to give, without correction rows.

    ``rounds_logits``: the form under test keeps logits in the dtype of the queries.
    """
    scale = q_THD.shape[2] ** -0.5 if scale is None else scale
    outs, lses, budgets = [], [], []
    for segment in mask.layout.segments:
        keep = mask.keep_of(segment).cpu()
        for head in range(q_THD.shape[1]):
            q, k, v = (x[segment.tokens, head].cpu().double() for x in (q_THD, k_THD, v_THD))
            kept = keep[min(head, len(keep) - 1)].repeat_interleave(mask.layout.query_block, 0)[: len(q)]
            out, lse, largest = _attend(
                q, k, v, kept, scale=scale, compensation="none" if mask.window else compensation, window=mask.window
            )
            outs.append(out)
            lses.append(lse)
            budgets.append(_budget(q, v, largest, dtype=q_THD.dtype, rounds_logits=rounds_logits))
    out_budget, lse_budget = (max(values) for values in zip(*budgets, strict=True))
    return Expected(
        out_THD=_join(outs, mask.layout), lse_TH=_join(lses, mask.layout), out_budget=out_budget, lse_budget=lse_budget
    )


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kept: torch.Tensor,
    *,
    scale: float,
    compensation: str,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    num_tokens = len(k)
    place = torch.arange(num_tokens)
    logits = scale * q @ k.T
    seen = kept[:, place // KEY_BLOCK]
    if window is not None:
        seen = seen & ((place[:, None] - place[None, :]).abs() <= window // 2)
    largest = float((scale * q.abs() @ k.abs().T).max()) / math.sqrt(q.shape[1])
    largest = max(largest, float(logits.abs().max()))
    logits = logits.masked_fill(~seen, -math.inf)
    if compensation == "none":
        return torch.softmax(logits, 1) @ v, torch.logsumexp(logits, 1), largest
    membership = torch.nn.functional.one_hot(place // CELL).double()
    counts = membership.sum(0)
    key_means, value_means = membership.T @ k / counts[:, None], membership.T @ v / counts[:, None]
    cell_block = torch.arange(len(counts)) * CELL // KEY_BLOCK
    cell_logits = (scale * q @ key_means.T + counts.log()).masked_fill(kept[:, cell_block], -math.inf)
    together = torch.cat([logits, cell_logits], 1)
    weights = torch.softmax(together, 1)
    out = weights @ torch.cat([v, value_means])
    if compensation == "slope":
        covariance = (k - key_means[place // CELL]).T @ v / num_tokens
        out += weights[:, num_tokens:].sum(1, keepdim=True) * scale * (q @ covariance)
    return out, torch.logsumexp(together, 1), largest


def _budget(
    q: torch.Tensor, v: torch.Tensor, largest: float, *, dtype: torch.dtype, rounds_logits: bool
) -> tuple[float, float]:
    """Error of results and of log-sum-exp.

    A float32 product of D terms is off by about sqrt(head_dim) roundings of its largest part, which moves a
    weight by that share of itself; the sum over keys adds sqrt(num_tokens) roundings. In half precision the means, the
    slope and the weights of the softmax are rounded, and the result is. All of them at their largest, which leaves room
    for the largest of many.
    """
    unit32, unit = 2.0**-24, torch.finfo(dtype).eps / 2
    num_tokens, head_dim = q.shape
    logit_error = unit32 * math.sqrt(head_dim) * largest
    relative = unit32 * math.sqrt(num_tokens)
    if dtype != torch.float32:
        logit_error += unit * largest / (1 if rounds_logits else math.sqrt(CELL))
        relative += 3 * unit
    relative += 2 * logit_error
    return relative * float(v.abs().max()), 2 * (logit_error + unit32 * max(largest, math.log(num_tokens)))


def _join(parts: Sequence[torch.Tensor], layout: BlockLayout) -> torch.Tensor:
    num_heads = len(parts) // len(layout.segments)
    return torch.cat([torch.stack(list(parts[i : i + num_heads]), 1) for i in range(0, len(parts), num_heads)])
