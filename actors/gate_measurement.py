"""Measures when sparse attention is worth it on this machine: once, when a feature version is made.

The table is kept in the recipe of the feature version, so that every later run, on whatever machine, takes the same
path for the same segment.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

import torch

from lodestream.actors.attention import SPARSE_FROM
from lodestream.kernels.attention.budget import cut_segment
from lodestream.kernels.attention.dense import attend_dense
from lodestream.kernels.attention.gate import GateTable, Measurement, build_gate
from lodestream.kernels.attention.layout import plan_blocks
from lodestream.kernels.block_mask import MaskRecipe
from lodestream.kernels.sparse_attention import attend_sparsely

LENGTHS: Final = (SPARSE_FROM["auto"], 4096, 8192)
"""Longer segments take the last one's break-even, shorter ones are dense: see docs/kernels.md."""

SHARES: Final = (0.25, 0.4, 0.6, 0.8)
ROUNDS: Final = 3
_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure_gate(*, engine: str, precision: str, num_heads: int, head_dim: int, max_tokens: int) -> GateTable:
    """The break-even table of this machine, with the threads that torch has now.

    Args:
        engine: what the table is to name.
        precision: "fp32" or "bf16".
        num_heads, head_dim: H and D of the model. Sparse heads take the threads one by one, so that with several
            threads as many heads are measured as keep them busy twice, or all; with one thread one.
        max_tokens: of a segment; longer ones are not measured.

    Dense and sparse attention take turns, and the fastest of ROUNDS counts: what else the machine does makes single
    rounds slower, never faster. Cost: a few seconds at 8,192 tokens and one thread.
    """
    num_threads = torch.get_num_threads()
    num_heads = min(num_heads, 2 * num_threads if num_threads > 1 else 1)
    measurements = []
    with torch.inference_mode():
        for num_tokens in LENGTHS:
            if num_tokens <= max_tokens:
                measurements += _measure_length(num_tokens, num_heads, head_dim, _DTYPES[precision])
    return build_gate(engine, head_dim, measurements)


def _measure_length(num_tokens: int, num_heads: int, head_dim: int, dtype: torch.dtype) -> list[Measurement]:
    cut = cut_segment(num_tokens)
    layout = plan_blocks([num_tokens], query_block=cut.query_block)
    # Time depends on the number of blocks alone, so that any values do.
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, num_tokens, num_heads, head_dim, generator=generator).to(dtype)

    def attend_share(share: float) -> Callable[[], object]:
        recipe = MaskRecipe(max_share=share, count_step=cut.count_step, reach=cut.reach)
        return lambda: attend_sparsely(q, k, v, layout, [recipe], bound=math.inf)

    # One thread's own time is not disturbed by what else the machine does.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    forms: list[Callable[[], object]] = [lambda: attend_dense(q, k, v, layout), *map(attend_share, SHARES)]
    fastest = [float("inf")] * len(forms)
    for _ in range(ROUNDS):
        for place, form in enumerate(forms):
            started = clock()
            form()
            fastest[place] = min(fastest[place], clock() - started)
    return [
        Measurement(num_tokens=num_tokens, kept_share=share, ratio=seconds / fastest[0])
        for share, seconds in zip(SHARES, fastest[1:], strict=True)
    ]
