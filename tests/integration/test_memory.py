"""Memory of a backfill stays within its budget and hardly grows with the corpus; bench_memory.py has the long form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.memory import MemoryUse, cut_model, run_measured
from tests.support.workspace import Workspace, short_topics

MIB = 1 << 20
BUDGET_BYTES = 1024 * MIB
"""What bench_memory.py holds twenty times the demo's corpus to."""

GROWTH_BYTES = 64 * MIB
"""Eight times the corpus may cost this much more: far less than all its rows, texts and tensors kept at once."""

SETTINGS = ("run.executor=local", "run.chunk_bytes=64KiB", "run.chunk_documents=16")


def backfill(folder: Path, model: Path, copies: int) -> MemoryUse:
    """A run over ``copies`` times the same pages, each in words of its own so that nothing is reused."""
    workspace = Workspace.create(folder)
    for copy in range(copies):
        for name, text in short_topics(30).items():
            workspace.write(f"{copy}/{name}", text.replace(" the ", f" the {copy} ").replace(". ", f", {copy}. "))
    arguments = [part for setting in (*SETTINGS, f"encoder.model={model}") for part in ("--set", setting)]
    return run_measured(workspace.root, "run", "--json", *arguments, interval_s=0.05, timeout_s=120)


@pytest.fixture(scope="module")
def uses(tmp_path_factory: pytest.TempPathFactory) -> tuple[MemoryUse, MemoryUse]:
    folder = tmp_path_factory.mktemp("memory")
    model = cut_model(folder / "model")
    return backfill(folder / "small", model, 1), backfill(folder / "large", model, 8)


def test_within_the_budget_and_flat(uses: tuple[MemoryUse, MemoryUse]) -> None:
    small, large = uses
    tokens = [json.loads(use.output.splitlines()[-1])["tokens"]["encoded"] for use in uses]
    assert tokens[1] > 6 * tokens[0] > 0
    assert large.peak_bytes <= BUDGET_BYTES
    assert large.peak_bytes - small.peak_bytes <= GROWTH_BYTES, [use.peak_bytes // MIB for use in uses]
