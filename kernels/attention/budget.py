"""How one segment is attended sparsely: fixed by its length and the density of its text before anything is computed.

What is planned here is part of the segment's fingerprint, and is known without torch: the stage that names fingerprints
never loads it.

R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lodestream.kernels.attention.gate import GateTable

HEAD_DIMS: Final = (32, 64, 128)
KEY_BLOCK: Final = 64
_SHORT_TOKENS: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentCut:
    """How a segment is cut into rows, and what of them is kept whatever the scores say.

    Attributes:
        num_tokens: of the segment, special tokens included.
        query_block: tokens of a row.
        count_step, reach: as of ``block_mask.MaskRecipe``.
    """

    num_tokens: int
    query_block: int
    count_step: int
    reach: int

    @property
    def num_rows(self) -> int:
        return -(-self.num_tokens // self.query_block)

    @property
    def num_blocks(self) -> int:
        return -(-self.num_tokens // KEY_BLOCK)

    def least_share(self, is_exact_R: NDArray[np.bool_]) -> float:
        """The share of pairs that forced blocks and exact rows alone come to."""
        rows = np.arange(self.num_rows)
        per_row = -(-self.num_blocks // self.num_rows)
        first = np.maximum(rows * per_row - self.reach, 0)
        last = np.minimum((rows + 1) * per_row + self.reach, self.num_blocks)
        counts = last - first + (first > 0)
        counts = np.where(is_exact_R, self.num_blocks, counts)
        counts = np.minimum(-(-counts // self.count_step) * self.count_step, self.num_blocks)
        return float(counts.sum() / (self.num_rows * self.num_blocks))


def cut_segment(num_tokens: int) -> SegmentCut:
    """The cut for a length: in short segments finer rows, which choose better; in long ones rows that cost less."""
    if num_tokens <= _SHORT_TOKENS:
        return SegmentCut(num_tokens=num_tokens, query_block=64, count_step=1, reach=0)
    return SegmentCut(num_tokens=num_tokens, query_block=128, count_step=4, reach=1)


def find_exact_rows(density_T: NDArray[np.float32], cut: SegmentCut, *, exact_density: float) -> NDArray[np.bool_]:
    """bool [R]: which rows touch text that is attended exactly.

    That is all that density decides. A floor that grows with it was measured to be worse: it takes from other rows of
    the same budget, and how dense a text is says little about where its attention goes.

    Args:
        density_T: float32 [T], in [0, 1], 0 for special tokens.
        cut: the segment's rows.
        exact_density: from there on text is exact; above 1 for never.
    """
    padded = np.zeros(cut.num_rows * cut.query_block, np.bool_)
    padded[: len(density_T)] = density_T >= np.float32(exact_density)
    return np.asarray(padded.reshape(cut.num_rows, cut.query_block).any(1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """The kept shares that a segment may be computed with, and the error that makes it climb.

    Attributes:
        shares: ascending; the last is 1, which is dense attention.
        bound: the largest mean error of a layer, as of ``correction.SampledError``.
    """

    shares: tuple[float, ...]
    bound: float

    def __post_init__(self) -> None:
        if list(self.shares) != sorted(set(self.shares)) or self.shares[-1:] != (1.0,) or self.shares[0] <= 0:
            raise ValueError(f"the shares of a ladder ascend from above 0 to 1, which is dense: {self.shares}")
        if not self.bound >= 0:
            raise ValueError(f"the bound of an error is not negative: {self.bound}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentPlan:
    """How one segment is attended sparsely.

    Attributes:
        cut: its rows.
        exact_rows: R flags: rows of which nothing is dropped.
        ladder: shares of all pairs, exact rows included.
        last_dense: whether the last layer is dense.
    """

    cut: SegmentCut
    exact_rows: tuple[bool, ...]
    ladder: Ladder
    last_dense: bool


def plan_segment(
    num_tokens: int,
    is_exact_R: NDArray[np.bool_],
    *,
    shares: Sequence[float],
    bound: float,
    last_dense: bool,
    gate: GateTable,
) -> SegmentPlan | None:
    """The plan of a segment; None where dense attention is as fast as the lowest share, or faster.

    Args:
        num_tokens: special tokens included.
        is_exact_R: which rows of ``cut_segment(num_tokens)`` are exact.
        shares: of what is not exact, ascending, below 1. Exact rows come on top: a budget that they had to share would
            leave the others nothing but their neighbours.
        bound: see ``Ladder``.
        last_dense: see ``SegmentPlan``.
        gate: break-even. A rung that it does not let through is left out; the one above the last is dense.
    """
    cut = cut_segment(num_tokens)
    exact_share = float(is_exact_R.mean())
    least = cut.least_share(is_exact_R)
    wanted = [exact_share + (1 - exact_share) * share for share in shares]
    rungs = [share for share in wanted if gate.takes_sparse(num_tokens, max(share, least)) and share < 1]
    if not rungs:
        return None
    return SegmentPlan(
        cut=cut,
        exact_rows=tuple(is_exact_R.tolist()),
        ladder=Ladder(shares=(*rungs, 1.0), bound=bound),
        last_dense=last_dense,
    )
