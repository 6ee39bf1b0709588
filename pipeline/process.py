"""Settings that a process must have before torch or Ray are imported. Set here and nowhere else."""

from __future__ import annotations

import os
from typing import Final

PROCESS_DEFAULTS: Final = {
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
    for name, value in PROCESS_DEFAULTS.items():
        os.environ.setdefault(name, value)
