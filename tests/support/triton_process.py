"""Tests of Triton kernels in processes of their own: interpreted or compiled is decided before triton is imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

KERNEL_TESTS = Path(__file__).resolve().parents[1] / "kernels"

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton, which there is for Linux only"
)


def run_tests(name: str, *, interpret: bool, folder: Path, arguments: tuple[str, ...] = ()) -> str:
    """Runs the tests of ``tests/kernels/<name>`` and returns what they printed; fails with it if one of them fails."""
    environment = dict(os.environ, TRITON_CACHE_DIR=str(folder), TRITON_DEFAULT_FP_FUSION="1", OMP_NUM_THREADS="1")
    environment.pop("TRITON_INTERPRET", None)
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments, str(KERNEL_TESTS / name)]
    done = subprocess.run(
        command, cwd=KERNEL_TESTS.parents[1], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, f"{name}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
