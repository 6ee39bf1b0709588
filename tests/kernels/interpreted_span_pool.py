"""The Triton kernel of span pooling in Triton's interpreter, with TRITON_INTERPRET=1.

``test_operators_fused.py`` runs this.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lodestream.kernels.gpu_check.inputs import DTYPES, ODD_ROWS, WIDTHS, make_rows
from lodestream.kernels.span_pool import fused as span_pool_fused
from lodestream.kernels.span_pool import reference
from tests.support.interpreted_launch import launch_kernel, measure_mutant, surround


def make_spans(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Spans of all lengths, some of them empty, overlapping and in no order."""
    spans = [(0, num_tokens), (num_tokens // 3, num_tokens // 3 + 1), (num_tokens - 1, num_tokens), (0, 0)]
    spans += [(num_tokens, num_tokens), (num_tokens // 2, min(num_tokens, num_tokens // 2 + 37))]
    starts, ends = torch.tensor(spans).unbind(1)
    return starts.contiguous(), ends.contiguous()


def pool(
    states: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor, module: ModuleType = span_pool_fused
) -> tuple[torch.Tensor, ...]:
    launch = module.plan_launch(states, starts, ends)
    launch_kernel(module.pool_spans_kernel, launch, *launch.outputs)
    return launch.outputs


def _next_down(half: torch.Tensor) -> float:
    return float((half.view(torch.int16) - 1).view(torch.float16))


def excess_span_pool(
    states: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor, module: ModuleType = span_pool_fused
) -> float:
    """Against the eager form: the same norms and scales but for a last bit, codes off by one at ties only; and against
    the mean in float64: half a step, and what sums of the span may add.
    """
    codes, scales, norms = pool(surround(states), starts, ends, module)
    worst = 0.0
    for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        if start == end:
            worst = max(worst, 2 * float(codes[row].abs().max() + scales[row] + norms[row]))
            continue
        mean = states[start:end].double().mean(0)
        norm = mean.norm()
        # Roundings of the sum, of the length and of the divisions, as a share of the largest state.
        relative = 2.0**-24 * (math.sqrt(end - start) + math.sqrt(states.shape[1]) + 8)
        error = relative * float(states[start:end].abs().max() / norm)
        unit = mean / norm
        decoded = codes[row].double() * float(scales[row])
        step = float(unit.abs().max()) / 127
        smallest = 2.0**-24
        worst = max(
            worst,
            float((decoded - unit).abs().max()) / (0.5 * float(scales[row]) + 2 * error),
            abs(float(norms[row]) - float(norm)) / float(norm * (2.0**-11 + error) + smallest),
            _next_down(scales[row]) / (step + error / 127),
            (step - error / 127) / max(float(scales[row]), 1e-30),
        )
    return math.inf if math.isnan(worst) or bool(norms.isnan().any()) else worst


@pytest.mark.parametrize("num_tokens", ODD_ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_span_pool(num_tokens: int, dtype: torch.dtype) -> None:
    for dim in WIDTHS if num_tokens < 100 else (384,):
        assert excess_span_pool(make_rows(num_tokens, dim, dtype=dtype), *make_spans(num_tokens)) <= 1


def test_codes_are_those_of_the_eager_form() -> None:
    states = make_rows(300, 384)
    starts = torch.arange(0, 290, 5)
    ends = starts + torch.arange(len(starts)) % 9 + 1
    codes, scales, norms = pool(states, starts, ends)
    eager, eager_scales, eager_norms = reference.quantise(reference.mean_spans(states, starts, ends))
    differences = (codes.int() - eager.int()).abs()
    assert int(differences.max()) <= 1
    assert float((differences > 0).double().mean()) < 1e-3
    torch.testing.assert_close(scales, eager_scales, rtol=2**-10, atol=0)
    torch.testing.assert_close(norms, eager_norms.half(), rtol=2**-10, atol=0)


def test_spans_depend_on_their_own_states_alone() -> None:
    states = make_rows(200, 384)
    starts, ends = torch.tensor([0, 50, 120]), torch.tensor([60, 120, 200])
    together = pool(states, starts, ends)
    poisoned = states.clone()
    poisoned[:50] = math.nan
    poisoned[120:] = math.inf
    for found, expected in zip(pool(poisoned, starts[1:2], ends[1:2]), together, strict=True):
        assert torch.equal(found[0], expected[1])
    for found, expected in zip(pool(states, starts.flip(0), ends.flip(0)), together, strict=True):
        assert torch.equal(found.flip(0), expected)


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (0, 9), (5, 4), (2**40, 2**40 + 1)])
def test_spans_outside_the_states_have_no_norm_and_read_nothing(start: int, end: int) -> None:
    _, _, norms = pool(make_rows(8, 384), torch.tensor([start, 0]), torch.tensor([end, 8]))
    assert math.isnan(float(norms[0]))
    assert math.isfinite(float(norms[1]))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_states_that_are_no_numbers_have_no_finite_norm(value: float) -> None:
    states = make_rows(4, 384)
    states[2, 3] = value
    _, _, norms = pool(states, torch.tensor([0, 0]), torch.tensor([4, 2]))
    assert not math.isfinite(float(norms[0]))
    assert math.isfinite(float(norms[1]))


def test_lengths_that_underflow_are_zero() -> None:
    codes, scales, norms = pool(torch.full((4, 384), 1e-30), torch.tensor([0]), torch.tensor([4]))
    assert not codes.any()
    assert not scales.any()
    assert not norms.any()


def measure_span_pool(module: ModuleType) -> float:
    states = make_rows(63, 384)
    states[40:50] = -states[40:50]
    # One state of equal values: every quotient is a code and a half step, to be rounded to even.
    ties = torch.arange(384).float()[None, :] % 255 - 127
    ties = torch.where(ties.abs() == 127, ties, (ties + 0.5).clamp(-126.5, 126.5))
    tie_codes = pool(ties * 2.0**-12, torch.tensor([0]), torch.tensor([1]), module)[0]
    worst = math.inf if int((tie_codes[0].float() - ties[0]).abs().max() > 0.51) else 0.0
    return max(worst, excess_span_pool(states, *make_spans(63), module))


SPAN_POOL_MUTATIONS = {
    "tokens of the next span": ("(first + token < count)", "(first + token <= count)"),
    "the last token is left out": ("(first + token < count)", "(first + token < count - 1)"),
    "a sum instead of a mean": ("tl.maximum(count, 1)", "tl.minimum(count, 1)"),
    "the scale is rounded to nearest": (
        "half.to(tl.float32) < step, next_up, half",
        "half.to(tl.float32) < step, half, half",
    ),
    "the scale is the next one always": (
        "half.to(tl.float32) < step, next_up, half",
        "half.to(tl.float32) < step * 2, next_up, half",
    ),
    "codes are cut off": ("(code + 12582912.0) - 12582912.0", "code"),
    "codes lose their sign": ("tl.maximum(code, -127.0)", "tl.maximum(code, 0.0)"),
    "codes of 128 steps": ("tl.abs(unit), 0), 127.0", "tl.abs(unit), 0), 128.0"),
    "the norm is that of the sum": ("tl.sqrt_rn(tl.sum(mean * mean, 0))", "tl.sqrt_rn(tl.sum(mean * mean, 0)) * 2.0"),
    "states are read as if side by side": ("* states_stride + place", "* C + place"),
}


def test_kernels_without_a_mutation_pass(tmp_path: Path) -> None:
    assert measure_mutant(span_pool_fused, tmp_path, ("tl.store", "tl.store"), measure_span_pool) <= 1


@pytest.mark.parametrize("name", SPAN_POOL_MUTATIONS)
def test_mutation_of_span_pool_is_found(name: str, tmp_path: Path) -> None:
    assert measure_mutant(span_pool_fused, tmp_path, SPAN_POOL_MUTATIONS[name], measure_span_pool) > 1
