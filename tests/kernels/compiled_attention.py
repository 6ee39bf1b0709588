"""The Triton kernel compiled for sm_80, sm_90 and sm_100; ``test_attention_fused.py`` runs this.

With ``-s`` it prints the table of registers, shared memory, instructions a tile and occupancy.
"""

from __future__ import annotations

import pytest
import torch

from lodestream.kernels.attention import fused
from lodestream.kernels.attention.layout import mask_window, plan_blocks
from lodestream.kernels.fused_forms import Launch
from lodestream.kernels.gpu_check.attention_oracle import make_cells, make_inputs, make_random_mask
from tests.support.triton_compiler import SHARED_BYTES, compile_kernel

# Loads and stores of spilled registers, by head dim and architecture. On sm_80 a result of 128 x 128 in float32, the
# queries and a tile of logits do not quite fit the 255 registers of a thread: 4 with triton 3.9, none with 3.6.
SPILLS = {(128, 80): 4}
CASES = [(32, 128, None), (64, 128, None), (64, 64, None), (128, 128, None), (64, 128, 128)]


def plan(head_dim: int, query_block: int, window: int | None) -> Launch:
    layout = plan_blocks((63, 200), query_block=query_block)
    q, k, v = make_inputs(layout.num_tokens, head_dim, dtype=torch.bfloat16)
    if window is not None:
        return fused.plan_launch(q, k, v, mask_window(layout, window=window), None, scale=0.1)
    mask = make_random_mask(layout, num_heads=2)
    return fused.plan_launch(q, k, v, mask, make_cells(k, v, mask, "slope"), scale=0.1)


@pytest.mark.parametrize("architecture", sorted(SHARED_BYTES))
@pytest.mark.parametrize(("head_dim", "query_block", "window"), CASES)
def test_machine_code(head_dim: int, query_block: int, window: int | None, architecture: int) -> None:
    launch = plan(head_dim, query_block, window)
    code = compile_kernel(fused.attend_blocks_kernel, launch.arguments, launch.constants, architecture)
    num_warps = int(launch.constants["num_warps"])
    print(
        f"\n| {head_dim} | {query_block} | {window or '-'} | sm_{architecture} | {num_warps} | {code.registers} "
        f"| {code.num_spills} | {code.shared_bytes} | {', '.join(f'{all_} / {tensor}' for all_, tensor in code.loops)} "
        f"| {code.count_blocks(num_warps=num_warps)} |"
    )
    assert code.num_spills <= SPILLS.get((head_dim, architecture), 0)
    assert code.shared_bytes <= SHARED_BYTES[architecture]
    # Cells, whole blocks, the last block; or the one loop of a window.
    assert len(code.loops) == (3 if window is None else 1)
    assert all(tensor >= 2 for _, tensor in code.loops), "two products a tile, on the tensor cores"
    assert code.count_blocks(num_warps=num_warps) >= 1
