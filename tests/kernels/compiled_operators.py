"""The small Triton kernels compiled for sm_80, sm_90 and sm_100; ``test_operators_fused.py`` runs this.

With ``-s`` it prints the table of registers, shared memory and occupancy.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lodestream.kernels.add_norm import fused as add_norm_fused
from lodestream.kernels.embed_norm import fused as embed_norm_fused
from lodestream.kernels.fused_forms import Launch
from lodestream.kernels.glu import fused as glu_fused
from lodestream.kernels.glu.kinds import Activated, Activation
from lodestream.kernels.gpu_check.inputs import make_rows, make_tables, name_norm
from lodestream.kernels.rope import fused as rope_fused
from lodestream.kernels.rope.table import make_rotary_table
from lodestream.kernels.span_pool import fused as span_pool_fused
from tests.support.triton_compiler import SHARED_BYTES, compile_kernel

DTYPE = torch.bfloat16
NUM_ROWS = 64


def plan_add_norm(dim: int, norm: str, *, sandwich: bool = False) -> tuple[Any, Launch]:
    launch = add_norm_fused.plan_launch(
        make_rows(NUM_ROWS, dim, dtype=DTYPE),
        make_rows(NUM_ROWS, dim),
        name_norm(norm, dim),
        stream="sum",
        bias_C=None if sandwich else make_rows(1, dim, dtype=DTYPE)[0],
        update_norm=name_norm(norm, dim, seed=2) if sandwich else None,
        dtype=DTYPE,
    )
    return add_norm_fused.add_norm_kernel, launch


def plan_embed_norm(dim: int) -> tuple[Any, Launch]:
    launch = embed_norm_fused.plan_launch(
        torch.zeros(NUM_ROWS, dtype=torch.int64),
        make_tables(dim, dtype=DTYPE),
        name_norm("layer", dim),
        positions_T=torch.zeros(NUM_ROWS, dtype=torch.int64),
        types_T=None,
        stream="normed",
        stream_dtype=torch.float32,
        dtype=DTYPE,
        num_rows=NUM_ROWS,
    )
    return embed_norm_fused.embed_norm_kernel, launch


def plan_glu(width: int, activation: Activation, activated: Activated) -> tuple[Any, Launch]:
    x = make_rows(NUM_ROWS, width, dtype=DTYPE)
    return glu_fused.glu_kernel, glu_fused.plan_launch(x, activation, activated=activated, bias_I=None)


def plan_rope(heads: int, key_heads: int, head_dim: int, norm: str | None) -> tuple[Any, Launch]:
    total = heads + 2 * key_heads
    qkv = make_rows(NUM_ROWS, total * head_dim, dtype=DTYPE).view(NUM_ROWS, total, head_dim)
    weights = None if norm is None else name_norm(norm, head_dim)
    table = make_rotary_table(theta=10_000.0, head_dim=head_dim, num_positions=NUM_ROWS)
    q, k = qkv[:, :heads], qkv[:, heads : heads + key_heads]
    launch = rope_fused.plan_launch(q, k, torch.arange(NUM_ROWS), table, q_norm=weights, k_norm=weights)
    return rope_fused.rope_kernel, launch


def plan_span_pool(dim: int) -> tuple[Any, Launch]:
    ends = torch.tensor([NUM_ROWS])
    return span_pool_fused.pool_spans_kernel, span_pool_fused.plan_launch(
        make_rows(NUM_ROWS, dim), torch.zeros_like(ends), ends
    )


CASES = {
    "embed_norm, 384": plan_embed_norm(384),
    "embed_norm, 768": plan_embed_norm(768),
    "add_norm, LayerNorm, 384": plan_add_norm(384, "layer"),
    "add_norm, LayerNorm, 768": plan_add_norm(768, "layer"),
    "add_norm, LayerNorm, 1,152": plan_add_norm(1152, "layer"),
    "add_norm, RMSNorm, 1,024": plan_add_norm(1024, "rms"),
    "add_norm, RMSNorm twice, 768": plan_add_norm(768, "1 + rms", sandwich=True),
    "glu, GELU, 1,536": plan_glu(1536, "gelu", "all"),
    "glu, GeGLU, 1,152": plan_glu(2304, "gelu", "first"),
    "glu, SwiGLU, 3,072": plan_glu(6144, "silu", "last"),
    "rope, 12 + 12 heads of 64": plan_rope(12, 12, 64, None),
    "rope, 16 + 8 heads of 128, normed": plan_rope(16, 8, 128, "rms"),
    "span_pool, 384": plan_span_pool(384),
    "span_pool, 768": plan_span_pool(768),
    "span_pool, 1,152": plan_span_pool(1152),
}


@pytest.mark.parametrize("architecture", sorted(SHARED_BYTES))
@pytest.mark.parametrize("case", CASES)
def test_machine_code(case: str, architecture: int) -> None:
    kernel, launch = CASES[case]
    code = compile_kernel(kernel, launch.arguments, launch.constants, architecture)
    num_warps = int(launch.constants["num_warps"])
    warps = code.count_blocks(num_warps=num_warps) * num_warps
    print(
        f"\n| {case} | sm_{architecture} | {num_warps} | {code.registers} | {code.num_spills} | {code.shared_bytes} "
        f"| {code.num_wide_loads} of {code.num_loads} | {warps} |"
    )
    assert code.num_spills == 0
    assert code.shared_bytes <= SHARED_BYTES[architecture]
    # What moves is rows: 16 bytes at a time, but for indices and angles.
    assert code.num_wide_loads >= 0.6 * code.num_loads
    assert warps >= 16
