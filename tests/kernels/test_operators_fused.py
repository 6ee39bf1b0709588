"""The Triton forms of the small operators: interpreted on the CPU, and compiled for processors that are not here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.triton_process import needs_triton, run_tests


@needs_triton
@pytest.mark.parametrize("name", ["norms", "glu_rope", "span_pool"])
def test_interpreted(name: str, tmp_path: Path) -> None:
    run_tests(f"interpreted_{name}.py", interpret=True, folder=tmp_path)


@needs_triton
def test_compiled_for_processors_that_are_not_here(tmp_path: Path) -> None:
    run_tests("compiled_operators.py", interpret=False, folder=tmp_path)


def test_triton_is_not_imported_on_a_cpu() -> None:
    operators = ("add_norm", "embed_norm", "glu", "rope", "span_pool")
    imports = ", ".join(f"lodestream.kernels.{operator}.api" for operator in operators)
    code = f"import sys, {imports}; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
