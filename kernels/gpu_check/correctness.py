"""Results of every kernel against float64, on the device where the kernels run.

Each check gives the largest error as a share of the budget: above 1 the kernel is wrong. It also runs the kernel twice
for the same bits, and lets nothing wait for the device. Codes of spans are held to those of the eager form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, get_args

import torch

from lodestream.kernels.attention.cells import CellSummary
from lodestream.kernels.attention.layout import BlockMask, mask_all, mask_window, plan_blocks
from lodestream.kernels.fused_forms import import_fused
from lodestream.kernels.glu.kinds import Activated, Activation
from lodestream.kernels.gpu_check.attention_oracle import attend_in_float64, make_cells, make_inputs, make_random_mask
from lodestream.kernels.gpu_check.inputs import (
    WIDTHS,
    make_hard_rows,
    make_rows,
    make_tables,
    make_tokens,
    name_norm,
    place,
)
from lodestream.kernels.gpu_check.oracle import (
    Expected,
    expect_add_norm,
    expect_embed_norm,
    expect_glu,
    expect_rope,
    measure_excess,
)
from lodestream.kernels.gpu_check.target import Target
from lodestream.kernels.rope.table import make_rotary_table
from lodestream.kernels.span_pool import reference

_LENGTHS: Final = (1, 63, 127, 517, 2100)
_ROWS: Final = (1, 63, 517)
_NORMS: Final = ("layer", "layer without bias", "rms", "1 + rms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """``measure()`` gives the largest error as a share of what is allowed."""

    kernel: str
    case: str
    measure: Callable[[], float]


def list_checks(target: Target) -> Iterator[Check]:
    """All checks of a target; with the interpreter they are few and small."""
    for dtype in target.dtypes:
        yield from _check_attention(target, dtype)
        yield from _check_add_norm(target, dtype)
        yield from _check_embed_norm(target, dtype)
        yield from _check_glu(target, dtype)
        yield from _check_rope(target, dtype)
        yield from _check_span_pool(target, dtype)


def _run_twice(
    target: Target, operator: str, function: str, *arguments: Any, used_up: int | None = None, **options: Any
) -> tuple[torch.Tensor, ...] | None:
    """Results on the CPU; None where two calls differ. The argument ``used_up`` is given anew to each call."""
    form = getattr(import_fused(operator), function)
    options = {name: place(value, target.device) for name, value in options.items()}
    placed = [[place(argument, target.device) for argument in arguments] for _ in range(3)]
    for number in range(3):
        if used_up is not None:
            placed[number][used_up] = placed[number][used_up].clone()
    # The first call compiles, and copies tables to the device.
    form(*placed[0], **options)
    with target.forbid_waiting():
        first = _as_tuple(form(*placed[1], **options))
        second = _as_tuple(form(*placed[2], **options))
    same = all(torch.equal(_bits(a), _bits(b)) for a, b in zip(first, second, strict=True))
    return tuple(result.cpu() for result in first) if same else None


def _as_tuple(results: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (results,) if isinstance(results, torch.Tensor) else results


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.int8)


def _judge(found: tuple[torch.Tensor, ...] | None, *expected: Expected) -> float:
    if found is None:
        return math.inf
    return max(measure_excess(a, b) for a, b in zip(found, expected, strict=True))


def _check_attention(target: Target, dtype: torch.dtype) -> Iterator[Check]:
    lengths = _LENGTHS if target.is_gpu else (1, 100)

    def measure(head_dim: int, mask: BlockMask, compensation: str) -> float:
        q, k, v = make_inputs(mask.layout.num_tokens, head_dim, dtype=dtype)
        cells: CellSummary | None = None if mask.window else make_cells(k, v, mask, compensation)
        expected = attend_in_float64(q, k, v, mask, compensation=compensation)
        found = _run_twice(target, "attention", "attend_blocks", q, k, v, mask, cells, scale=head_dim**-0.5)
        return _judge(
            found,
            Expected(values=expected.out_THD, budget=torch.tensor(expected.out_budget)),
            Expected(values=expected.lse_TH, budget=torch.tensor(expected.lse_budget)),
        )

    for head_dim in (32, 64, 128) if target.is_gpu else (32,):
        for query_block in (64, 128) if target.is_gpu else (64,):
            layout = plan_blocks(lengths, query_block=query_block)
            random = make_random_mask(layout, num_heads=2)
            cases = [(random, name) for name in ("slope", "means", "none")]
            cases += [(mask_all(layout), "slope"), (mask_window(layout, window=128), "none")]
            for (mask, compensation), name in zip(cases, ("slope", "means", "dropped", "dense", "window"), strict=True):
                yield Check(
                    kernel="attention",
                    case=f"{dtype}, head dim {head_dim}, rows of {query_block}, {name}",
                    measure=partial(measure, head_dim, mask, compensation),
                )


def _check_add_norm(target: Target, dtype: torch.dtype) -> Iterator[Check]:
    def measure(dim: int, norm_name: str, stream: str) -> float:
        norm, bias, worst = name_norm(norm_name, dim), make_rows(1, dim, dtype=dtype, seed=2)[0], 0.0
        rows = [make_rows(num_rows, dim, dtype=dtype) for num_rows in (_ROWS if target.is_gpu else (3,))]
        for update in (*rows, make_hard_rows(dim, dtype)):
            residual = make_rows(len(update), dim, seed=1)
            before = name_norm(norm_name, dim, seed=4) if dim == 768 else None
            branch, summed, normed = expect_add_norm(
                update, residual, norm, bias_C=bias, update_norm=before, dtype=dtype, rounds_sum=False
            )
            options = {"stream": stream, "bias_C": bias, "update_norm": before, "dtype": dtype}
            found = _run_twice(target, "add_norm", "add_norm", update, residual, norm, used_up=1, **options)
            worst = max(worst, _judge(found, branch, summed if stream == "sum" else normed))
        return worst

    for dim in WIDTHS if target.is_gpu else (384,):
        for norm_name in _NORMS:
            for stream in ("sum", "normed"):
                yield Check(
                    kernel="add_norm",
                    case=f"{dtype}, {norm_name}, {dim} wide, stream is {stream}",
                    measure=partial(measure, dim, norm_name, stream),
                )


def _check_embed_norm(target: Target, dtype: torch.dtype) -> Iterator[Check]:
    def measure(dim: int, stream: str, num_tokens: int) -> float:
        tables, norm = make_tables(dim, dtype=dtype, first_position=2), name_norm("layer", dim)
        options: dict[str, Any] = {
            "positions_T": torch.arange(num_tokens),
            "types_T": make_tokens(num_tokens, limit=2),
            "dtype": dtype,
            "stream_dtype": torch.float32,
            "num_rows": num_tokens + 3,
        }
        tokens = make_tokens(num_tokens)
        branch, summed, normed = expect_embed_norm(tokens, tables, norm, **options)
        found = _run_twice(target, "embed_norm", "embed_norm", tokens, tables, norm, stream=stream, **options)
        return _judge(found, branch, summed if stream == "sum" else normed)

    for dim in WIDTHS if target.is_gpu else (384,):
        for stream in ("sum", "normed"):
            for num_tokens in _ROWS if target.is_gpu else (5,):
                yield Check(
                    kernel="embed_norm",
                    case=f"{dtype}, {dim} wide, {num_tokens} tokens, stream is {stream}",
                    measure=partial(measure, dim, stream, num_tokens),
                )


def _check_glu(target: Target, dtype: torch.dtype) -> Iterator[Check]:
    def measure(activation: Activation, activated: Activated, width: int) -> float:
        worst = 0.0
        bias = make_rows(1, width, dtype=dtype, seed=8)[0]
        for x in (make_rows(_ROWS[-1] if target.is_gpu else 17, width, dtype=dtype), make_hard_rows(width, dtype)):
            if dtype == torch.float16 and float(x.abs().max()) >= 256:
                continue  # a product of two such halves is beyond float16
            expected = expect_glu(x, activation, activated=activated, bias_I=bias, rounds_steps=False)
            found = _run_twice(target, "glu", "glu", x, activation, activated=activated, bias_I=bias)
            worst = max(worst, _judge(found, expected))
        return worst

    for activation in get_args(Activation):
        for activated in get_args(Activated):
            for width in (384, 2304) if target.is_gpu else (200,):
                yield Check(
                    kernel="glu",
                    case=f"{dtype}, {activation}, {activated}, {width} wide",
                    measure=partial(measure, activation, activated, width),
                )


def _check_rope(target: Target, dtype: torch.dtype) -> Iterator[Check]:
    def measure(heads: tuple[int, int], head_dim: int, norm_name: str | None) -> float:
        num_tokens = 517 if target.is_gpu else 3
        table = make_rotary_table(theta=10_000.0, head_dim=head_dim, num_positions=600)
        positions = torch.arange(num_tokens) * 7 % 600
        norms = [None if norm_name is None else name_norm(norm_name, head_dim, seed=seed) for seed in (1, 2)]
        qkv = make_rows(num_tokens, sum(heads) * head_dim, dtype=dtype).view(num_tokens, sum(heads), head_dim)
        q, k = qkv[:, : heads[0]], qkv[:, heads[0] :]
        found = _run_twice(target, "rope", "rope", q, k, positions, table, q_norm=norms[0], k_norm=norms[1])
        return _judge(found, *(expect_rope(x, positions, table, n) for x, n in zip((q, k), norms, strict=True)))

    for heads, head_dim in (((12, 12), 64), ((16, 8), 128), ((3, 1), 256)) if target.is_gpu else (((3, 1), 64),):
        for norm_name in (None, "rms", "1 + rms"):
            yield Check(
                kernel="rope",
                case=f"{dtype}, {heads[0]} + {heads[1]} heads of {head_dim}, norm {norm_name}",
                measure=partial(measure, heads, head_dim, norm_name),
            )


def _check_span_pool(target: Target, dtype: torch.dtype) -> Iterator[Check]:
    def measure(dim: int) -> float:
        num_tokens = 2100 if target.is_gpu else 60
        states = make_rows(num_tokens, dim, dtype=dtype)
        starts = torch.cat([torch.arange(0, num_tokens - 50, 7), torch.tensor([0, num_tokens - 1])])
        ends = torch.cat([starts[:-2] + 1 + starts[:-2] % 43, torch.tensor([num_tokens, num_tokens])])
        found = _run_twice(target, "span_pool", "pool_spans", states, starts, ends)
        if found is None:
            return math.inf
        codes, scales, norms = reference.quantise(reference.mean_spans(states.double(), starts, ends))
        # Of the codes, only those at ties may differ, by one; the others follow from the definition.
        differences = (found[0].int() - codes.int()).abs()
        return max(
            float(differences.max()),
            float((differences > 0).double().mean()) / 1e-3,
            float(((found[1] - scales).abs() / scales).max()) / 2**-9,
            float(((found[2].float() - norms).abs() / norms).max()) / 2**-10,
        )

    for dim in WIDTHS if target.is_gpu else (384,):
        yield Check(kernel="span_pool", case=f"{dtype}, {dim} wide", measure=partial(measure, dim))
