"""Some weeks of real edits, replayed: few tokens are encoded again, and the end is what a rebuild gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.replay import Files, Replayed, TableRows, assert_rebuilt, counting_encoder, read_stream, run_refresh
from tests.support.workspace import Workspace

NUM_TICKS = 20
NUM_UNTOUCHED = 15


@pytest.mark.parametrize("kind", ["files", "table"])
def test_weeks_of_edits_end_as_a_rebuild(
    streams_folder: Path, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    base, ticks = read_stream(streams_folder / "stream_peps_12m.parquet")
    ticks = ticks[:NUM_TICKS]
    edited = {name for tick in ticks for name in (*tick.texts, *tick.deleted)}
    base = base.restrict(edited | set(sorted(base.texts.keys() - edited)[:NUM_UNTOUCHED]))
    workspace = Workspace.create(tmp_path / "work", {}, "encoder.num_threads=1")
    replayed: Replayed = Files(workspace)
    if kind == "table":
        replayed = TableRows(workspace, request.getfixturevalue("postgres_url"), "rst")
    with counting_encoder():
        replayed.apply(base)
        first = run_refresh(replayed, base.at_s)
        assert first.tokens_encoded > 0.9 * first.tokens
        done = []
        for tick in ticks:
            replayed.apply(tick)
            done.append(run_refresh(replayed, tick.at_s))
        nothing = run_refresh(replayed, ticks[-1].at_s)
        assert (nothing.changed, nothing.tokens) == (0, 0)
        assert sum(one.changed + one.moved for one in done) >= NUM_TICKS
        assert sum(one.tokens_encoded for one in done) < 0.4 * sum(one.tokens for one in done)
        assert_rebuilt(replayed)
