"""The gate: nothing sparse below break-even, and the table that measurements give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lodestream.errors import ConfigError
from lodestream.kernels.attention.gate import CPU_GATES, GateTable, Measurement, build_gate


def test_break_even_is_that_of_the_shorter_length() -> None:
    table = GateTable(engine="e", head_dim=32, points=((1024, 0.0), (2048, 0.25), (8192, 0.5)))
    assert [table.break_even(n) for n in (1, 1024, 2047, 2048, 8191, 8192, 10**6)] == [0, 0, 0, 0.25, 0.25, 0.5, 0.5]
    assert table.takes_sparse(4096, 0.25)
    assert not table.takes_sparse(4096, 0.26)
    assert not table.takes_sparse(1500, 0.01)
    assert not table.takes_sparse(9000, 0.0)


def test_table_is_stored_and_read() -> None:
    table = GateTable(engine="e", head_dim=64, points=((2048, 0.25),))
    assert GateTable.from_dict(json.loads(json.dumps(table.as_dict()))) == table


def test_measurements_open_the_gate_only_where_all_smaller_shares_win() -> None:
    ratios = {512: (0.9, 1.2, 0.8), 2048: (0.5, 0.8, 0.96), 8192: (0.3, 0.6, 0.94), 16384: (0.3, 0.97, 0.5)}
    measurements = [
        Measurement(num_tokens=n, kept_share=share, ratio=ratio)
        for n, values in ratios.items()
        for share, ratio in zip((0.125, 0.25, 0.5), values, strict=True)
    ]
    table = build_gate("e", 32, reversed(measurements))
    # 16384 tokens lose at a share of a quarter, and no shorter length gets more than that.
    assert table.points == ((512, 0.125), (2048, 0.125), (8192, 0.125), (16384, 0.125))
    assert build_gate("e", 32, measurements[:9]).points == ((512, 0.125), (2048, 0.25), (8192, 0.5))
    assert build_gate("e", 32, measurements[:9], largest_ratio=0.1).points == ((512, 0), (2048, 0), (8192, 0))


@pytest.mark.parametrize("gate", CPU_GATES, ids=lambda gate: f"{gate.engine} {gate.head_dim}")
def test_tables_for_a_cpu_are_those_that_were_measured(gate: GateTable, repository: Path) -> None:
    engine = gate.engine.removeprefix("torch-cpu ")
    measurements = []
    for text in (repository / "docs/bench/sparse_attention.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line["provider"].startswith(f"sparse {engine},") and line["config"]["head_dim"] == gate.head_dim:
            share = float(line["provider"].split(", ")[1].removesuffix(" kept"))
            if line["metric"] == "time / best dense, corrected" and line["config"]["threads"] == 1:
                measurements.append(Measurement(num_tokens=line["x"], kept_share=share, ratio=line["p50"]))
    assert build_gate(gate.engine, gate.head_dim, measurements) == gate


@pytest.mark.parametrize("points", [((2, 0.1), (1, 0.1)), ((1, 0.1), (1, 0.2)), ((1, 1.5),)])
def test_tables_out_of_order_are_refused(points: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(ConfigError, match="gate table"):
        GateTable(engine="e", head_dim=32, points=points)
