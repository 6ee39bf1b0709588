"""The Triton form of block-sparse attention: interpreted on the CPU, and compiled for processors that are not here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lodestream.kernels.attention.api import attend
from lodestream.kernels.attention.cells import summarise_cells
from lodestream.kernels.attention.layout import plan_blocks
from lodestream.kernels.block_mask import MaskRecipe, build_mask
from lodestream.kernels.gpu_check.attention_oracle import ODD_LENGTHS, attend_in_float64, make_inputs
from tests.support.triton_process import needs_triton, run_tests

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@needs_triton
def test_interpreted(tmp_path: Path) -> None:
    run_tests("interpreted_attention.py", interpret=True, folder=tmp_path)


@needs_triton
def test_compiled_for_processors_that_are_not_here(tmp_path: Path) -> None:
    run_tests("compiled_attention.py", interpret=False, folder=tmp_path)


def test_triton_is_not_imported_on_a_cpu() -> None:
    code = "import sys, lodestream.kernels.attention.api, lodestream.kernels.block_mask; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_on_a_gpu(head_dim: int, dtype: torch.dtype) -> None:
    """Results of float64, the same bits twice, and nothing that waits for the device."""
    layout = plan_blocks([*ODD_LENGTHS, 2100])
    q, k, v = (x.cuda() for x in make_inputs(layout.num_tokens, head_dim, dtype=dtype))
    attend(q, k, v, build_mask(q, summarise_cells(k, v, layout), layout, MaskRecipe(max_share=0.4)))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = []
        for _ in range(2):
            cells = summarise_cells(k, v, layout)
            mask = build_mask(q, cells, layout, MaskRecipe(max_share=0.4))
            results.append(attend(q, k, v, mask, cells, with_lse=True))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(results[0].out_THD, results[1].out_THD)
    expected = attend_in_float64(q, k, v, mask)
    assert float((results[0].out_THD.cpu().double() - expected.out_THD).abs().max()) <= expected.out_budget
