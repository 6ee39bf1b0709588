"""What is fixed before a segment is computed: its rows, exact rows by density, the gate, and rungs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lodestream.kernels.attention.budget import Ladder, cut_segment, find_exact_rows, plan_segment
from lodestream.kernels.attention.cells import summarise_cells
from lodestream.kernels.attention.gate import GateTable
from lodestream.kernels.attention.layout import plan_blocks
from lodestream.kernels.block_mask import MaskRecipe, build_mask
from lodestream.kernels.gpu_check.attention_oracle import make_inputs

OPEN = GateTable(engine="e", head_dim=32, points=((1, 1.0),))


@pytest.mark.parametrize("num_tokens", [1, 64, 517, 1024, 1025, 2000, 4096])
@pytest.mark.parametrize("num_exact", [0, 1])
def test_least_share_is_what_a_mask_keeps_at_least(num_tokens: int, num_exact: int) -> None:
    cut = cut_segment(num_tokens)
    layout = plan_blocks([num_tokens], query_block=cut.query_block)
    assert (cut.num_rows, cut.num_blocks) == (layout.segments[0].num_rows, layout.segments[0].num_blocks)
    q, k, v = make_inputs(num_tokens, 32)
    is_exact = torch.zeros(layout.num_rows, dtype=torch.bool)
    is_exact[:num_exact] = True
    recipe = MaskRecipe(max_share=1e-6, count_step=cut.count_step, reach=cut.reach)
    mask = build_mask(q, summarise_cells(k, v, layout), layout, recipe, exact_R=is_exact)
    kept = float(mask.keep_HP.double().mean())
    assert kept == pytest.approx(cut.least_share(is_exact.numpy()), abs=1e-9)


def test_rows_that_touch_dense_text_are_exact() -> None:
    cut = cut_segment(1300)
    density = np.zeros(1300, np.float32)
    density[130:140] = 0.95
    density[512:640] = 0.4
    density[1299] = 0.8
    assert np.flatnonzero(find_exact_rows(density, cut, exact_density=0.8)).tolist() == [1, 10]
    assert not find_exact_rows(np.ones(1300, np.float32), cut, exact_density=1.01).any()


def plan(num_tokens: int, exact_rows: int, gate: GateTable) -> tuple[float, ...] | None:
    is_exact = np.zeros(cut_segment(num_tokens).num_rows, np.bool_)
    is_exact[:exact_rows] = True
    found = plan_segment(num_tokens, is_exact, shares=(0.3, 0.5), bound=0.1, last_dense=False, gate=gate)
    return None if found is None else found.ladder.shares


def test_exact_rows_come_on_top_and_the_gate_takes_them_into_account() -> None:
    gate = GateTable(engine="e", head_dim=32, points=((2048, 0.5),))
    assert plan(1000, 0, gate) is None
    assert plan(4096, 0, gate) == (0.3, 0.5, 1.0)
    assert plan(4096, 8, gate) == (pytest.approx(0.25 + 0.75 * 0.3), 1.0)
    assert plan(4096, 16, gate) is None
    assert plan(4096, 16, OPEN) == (pytest.approx(0.65), pytest.approx(0.75), 1.0)
    assert plan(4096, 32, OPEN) is None, "nothing but exact rows is dense attention"


@pytest.mark.parametrize(
    ("shares", "bound"), [((0.5, 0.25, 1.0), 0.1), ((0.5,), 0.1), ((), 0.1), ((0.0, 1.0), 0.1), ((1.0,), -1.0)]
)
def test_ladders_that_lead_nowhere_are_refused(shares: tuple[float, ...], bound: float) -> None:
    with pytest.raises(ValueError, match="ladder|bound"):
        Ladder(shares=shares, bound=bound)
