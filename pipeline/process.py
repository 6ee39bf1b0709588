"""Settings that a process must have before torch or Ray are imported. Set here and nowhere else."""

from __future__ import annotations

import ctypes
import os
from typing import Final

ARENAS_VARIABLE: Final = "MALLOC_ARENA_MAX"
NUM_ARENAS: Final = max(2, os.cpu_count() or 1)
"""Heaps of glibc, one a core. Its own limit is eight a core: the threads of Lance, Arrow and the tokenizer use many,
and each keeps holes of its own (docs/throughput.md)."""

_M_ARENA_MAX: Final = -8  # of malloc.h

PROCESS_DEFAULTS: Final = {
    # For the processes that this one starts; this one has read it already.
    ARENAS_VARIABLE: str(NUM_ARENAS),
    # Idle OpenMP threads that spin take the other process's core: three times slower under contention, measured.
    "OMP_WAIT_POLICY": "passive",
    # Under `uv run` Ray would build the environment again in every worker.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's core warns on the terminal of every pool of actors that Ray Data makes.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "TOKENIZERS_PARALLELISM": "true",
}


def set_process_defaults() -> None:
    """Sets what the user has not set."""
    if ARENAS_VARIABLE not in os.environ:
        _limit_arenas(NUM_ARENAS)
    for name, value in PROCESS_DEFAULTS.items():
        os.environ.setdefault(name, value)


def _limit_arenas(number: int) -> None:
    """Keeps this process to so many heaps; a C library without them (musl, macOS) is left as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, number)
