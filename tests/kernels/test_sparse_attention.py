"""What an encoder calls: errors that are measured tell the truth, and segments over the bound climb."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from lodestream.kernels.attention.correction import SampledError
from lodestream.kernels.attention.dense import attend_dense
from lodestream.kernels.attention.gate import GateTable
from lodestream.kernels.attention.layout import plan_blocks
from lodestream.kernels.block_mask import MaskRecipe, floor_rows
from lodestream.kernels.sparse_attention import (
    ErrorTally,
    Ladder,
    attend_sparsely,
    climb,
    measure_segments,
    pick_sparse,
)
from tests.support.attention_oracle import make_inputs

LADDER = (0.25, 0.5, 1.0)


def make_smooth_inputs(lengths: Sequence[int], noise: Sequence[float]) -> tuple[torch.Tensor, ...]:
    """Segments whose neighbours ask for the same, more or less; the noise decides how hard each is to correct."""
    parts = []
    for number, (length, share) in enumerate(zip(lengths, noise, strict=True)):
        q, k, v = make_inputs(length, 32, seed=number)
        parts.append((q[::32].repeat_interleave(32, 0)[:length] + share * q, k, v))
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def make_error(values: list[float]) -> SampledError:
    errors = torch.tensor(values)
    return SampledError(before_S=errors, after_S=errors, bounds=(0, len(values)))


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_measured_error_is_that_of_all_tokens_or_a_little_more(share: float) -> None:
    layout = plan_blocks([2000])
    q, k, v = make_smooth_inputs([2000], [0.2])
    result = attend_sparsely(q, k, v, layout, MaskRecipe(max_share=share))
    dense = attend_dense(q, k, v, layout)
    true = (result.out_THD - dense).flatten(1).norm(dim=1) / dense.flatten(1).norm(dim=1)
    assert result.error is not None
    measured = float(measure_segments([result.error])[0])
    assert float(true.mean()) <= measured <= 3 * float(true.mean())


def test_density_makes_rows_exact() -> None:
    layout = plan_blocks([1500])
    q, k, v = make_inputs(1500, 32)
    density = torch.zeros(1500)
    density[512:640] = 1
    floor = floor_rows(density, layout, exact_density=0.9)
    result = attend_sparsely(q, k, v, layout, MaskRecipe(max_share=0.4), floor_R=floor)
    error = (result.out_THD - attend_dense(q, k, v, layout)).flatten(1).norm(dim=1)
    assert float(error[512:640].max()) < 1e-4 < float(error[640:].mean())


def test_gate_closes_for_short_segments_and_for_those_that_are_mostly_exact() -> None:
    layout = plan_blocks([1000, 4096, 4096])
    gate = GateTable(engine="e", head_dim=32, points=((2048, 0.5),))
    floor = torch.zeros(layout.num_rows)
    floor[layout.segments[2].rows] = 1
    recipe = MaskRecipe(max_share=0.4)
    assert pick_sparse(layout, recipe, gate, floor_R=floor) == [False, True, False]
    assert pick_sparse(layout, MaskRecipe(max_share=0.6), gate) == [False, False, False]


def test_segments_over_the_bound_climb_alone_or_together() -> None:
    lengths, noise = [700, 900, 800, 600], [0.01, 1.5, 0.02, 1.0]
    layout = plan_blocks(lengths)
    qkv = make_smooth_inputs(lengths, noise)
    asked: list[tuple[tuple[int, ...], float]] = []

    def encode(numbers: Sequence[int], share: float) -> torch.Tensor | None:
        asked.append((tuple(numbers), share))
        if share == 1:
            return None
        segments = [layout.segments[number] for number in numbers]
        own = [torch.cat([x[segment.tokens] for segment in segments]) for x in qkv]
        own_layout = plan_blocks([segment.num_tokens for segment in segments])
        error = attend_sparsely(own[0], own[1], own[2], own_layout, MaskRecipe(max_share=share)).error
        assert error is not None
        return measure_segments([error])

    first = encode(range(4), LADDER[0])
    assert first is not None
    bound = float(first.sort().values[1])
    asked.clear()
    together = climb(encode, 4, Ladder(shares=LADDER, bound=bound))
    assert asked[0] == ((0, 1, 2, 3), 0.25)
    assert len(asked[1][0]) == 2, "two of them are over a bound that two of them keep"
    alone = [climb(lambda _, s, n=n: encode([n], s), 1, Ladder(shares=LADDER, bound=bound))[0] for n in range(4)]  # type: ignore[misc]
    assert alone == together
    assert climb(encode, 4, Ladder(shares=LADDER, bound=0)) == [1.0] * 4
    assert climb(encode, 4, Ladder(shares=LADDER, bound=1e9)) == [0.25] * 4


def test_an_error_that_is_no_number_climbs() -> None:
    used = climb(lambda numbers, _: torch.full((len(numbers),), float("nan")), 2, Ladder(shares=LADDER, bound=1e9))
    assert used == [1.0, 1.0]


def test_error_of_a_segment_is_that_of_its_worst_layer() -> None:
    errors = [
        SampledError(before_S=x, after_S=x, bounds=(0, 2, 3))
        for x in (torch.tensor([0.1, 0.3, 0.0]), torch.tensor([0.0, 0.1, 0.5]))
    ]
    torch.testing.assert_close(measure_segments(errors), torch.tensor([0.2, 0.5]))


def test_tally_of_parts_is_that_of_the_whole() -> None:
    values = torch.rand(3000, generator=torch.Generator().manual_seed(0)).tolist()
    whole, first, second = (ErrorTally(num_layers=2) for _ in range(3))
    whole.add(1, make_error(values))
    first.add(1, make_error(values[:1000]))
    second.add(1, make_error(values[1000:]))
    first.merge(second)
    assert torch.equal(whole.counts, first.counts)
    (mean, tail), true = whole.summarise()[1], torch.tensor(values)
    assert mean == pytest.approx(float(true.mean()), rel=0.03)
    exact = float(true.sort().values[2969])
    assert exact <= tail <= 1.1 * exact
    assert whole.summarise()[0] == (0.0, 0.0)


def test_tally_takes_what_is_nothing_or_no_number() -> None:
    tally = ErrorTally(num_layers=1)
    tally.add(0, make_error([0.0] * 99))
    assert tally.summarise()[0][1] == pytest.approx(2**-20)
    tally.add(0, make_error([float("nan"), float("inf"), 1e30]))
    assert tally.summarise()[0][1] > 10


@pytest.mark.parametrize(
    ("shares", "bound"), [((0.5, 0.25, 1.0), 0.1), ((0.5,), 0.1), ((), 0.1), ((0.0, 1.0), 0.1), ((1.0,), -1.0)]
)
def test_ladders_that_lead_nowhere_are_refused(shares: tuple[float, ...], bound: float) -> None:
    with pytest.raises(ValueError, match="ladder|bound"):
        Ladder(shares=shares, bound=bound)
