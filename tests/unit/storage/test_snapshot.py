from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestream.errors import StoreCorrupt, StoreNotFound, StoreSchemaMismatch
from lodestream.storage.snapshot import (
    PointerRecord,
    SnapshotRecord,
    StagedWork,
    open_register,
    read_pointer,
)
from lodestream.storage.version import DroppedSlot, KeptVersion

TEXTS = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
DICTS = st.dictionaries(TEXTS, JSON, max_size=3)
TABLES_STRATEGY = st.fixed_dictionaries({"features": st.integers(1), "documents": st.integers(1)})
TIMES = st.datetimes(timezones=st.just(UTC))
NAMES = {"feature_version": TEXTS, "recipe": DICTS, "run_id": TEXTS}
SNAPSHOTS = st.builds(
    SnapshotRecord,
    sequence=st.integers(1),
    tables=TABLES_STRATEGY,
    published_at=st.none() | TIMES,
    dim=st.integers(1),
    checkpoint=DICTS,
    version=TEXTS,
    slot=TEXTS,
    model=TEXTS,
    **NAMES,
)
VERSIONS = st.builds(
    KeptVersion,
    name=TEXTS,
    slot=TEXTS,
    dim=st.integers(1),
    tables=TABLES_STRATEGY,
    feature_version=TEXTS,
    recipe=DICTS,
    created_at=TIMES,
    level=st.integers(0),
    served_until=st.none() | TIMES,
)
STAGED = st.builds(StagedWork, kind=TEXTS, tables=TABLES_STRATEGY, num_chunks=st.integers(0), staged_at=TIMES, **NAMES)
POINTERS = st.builds(
    PointerRecord,
    sequence=st.integers(0),
    epoch=st.integers(0),
    nonce=TEXTS,
    schema_version=st.integers(1),
    dim=st.integers(1),
    tables=TABLES_STRATEGY,
    staged=st.none() | STAGED,
    checkpoint=DICTS,
    published_at=st.none() | TIMES,
    checked_at=st.none() | TIMES,
    previous=st.none() | TEXTS,
    run=DICTS,
    history=st.lists(SNAPSHOTS, max_size=3).map(tuple),
    versions=st.lists(VERSIONS, max_size=2).map(tuple),
    former=TEXTS,
    dropped=st.lists(st.builds(DroppedSlot, slot=TEXTS, dropped_at=TIMES), max_size=2).map(tuple),
    **NAMES,
)


def make_pointer(**changes: Any) -> PointerRecord:
    values: dict[str, Any] = {
        "sequence": 3,
        "epoch": 4,
        "nonce": "n",
        "schema_version": 1,
        "dim": 8,
        "tables": {"features": 1, "documents": 2},
    }
    return PointerRecord(**(values | changes))


@given(POINTERS)
def test_json_round_trip(pointer: PointerRecord) -> None:
    assert PointerRecord.from_json(json.loads(json.dumps(pointer.to_json()))) == pointer


def test_times_are_stored_in_utc() -> None:
    local = datetime(2026, 5, 1, 12, 0, tzinfo=timezone(timedelta(hours=2)))
    values = make_pointer(published_at=local).to_json()
    assert values["published_at"] == "2026-05-01T10:00:00+00:00"
    assert PointerRecord.from_json(values).published_at == local


def test_follow_names_its_predecessor() -> None:
    first = make_pointer()
    second = first.follow(sequence=4)
    assert (second.previous, second.sequence, second.dim) == ("n", 4, 8)
    assert second.nonce != first.nonce and second.nonce != first.follow().nonce


def test_unknown_fields_are_ignored() -> None:
    assert PointerRecord.from_json(make_pointer().to_json() | {"colour": "red"}) == make_pointer()


def test_later_format_is_refused() -> None:
    with pytest.raises(StoreSchemaMismatch, match="pip install --upgrade lodestream"):
        PointerRecord.from_json(make_pointer().to_json() | {"format": 3})


@pytest.mark.parametrize("name", ["sequence", "tables", "history", "staged", "published_at"])
def test_missing_field(name: str) -> None:
    values = make_pointer().to_json()
    del values[name]
    with pytest.raises(StoreCorrupt):
        PointerRecord.from_json(values)


def test_named_versions() -> None:
    described: dict[str, Any] = {"feature_version": "f", "recipe": {}, "run_id": "r"}
    older = SnapshotRecord(sequence=1, tables={"documents": 1}, published_at=None, dim=8, **described)
    current = SnapshotRecord(sequence=2, tables={"documents": 4, "features": 9}, published_at=None, dim=8, **described)
    other = SnapshotRecord(
        sequence=3, tables={"documents": 5, "source_state": 6}, published_at=None, dim=4, slot="x", **described
    )
    kept = KeptVersion(
        name="b",
        slot="x",
        dim=4,
        tables={"documents": 8},
        feature_version="f",
        recipe={},
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    staged = StagedWork(
        kind="refresh", tables={"documents": 7}, num_chunks=1, staged_at=datetime(2026, 1, 1, tzinfo=UTC), **described
    )
    pointer = make_pointer(tables=current.tables, history=(older, current, other), staged=staged, versions=(kept,))
    assert (pointer.named_versions("documents", ""), pointer.named_versions("features", "")) == ({1, 4, 7}, {9})
    assert pointer.named_versions("documents", "x") == {5, 8}
    # What the sources said belongs to every version.
    assert pointer.named_versions("source_state", "") == pointer.named_versions("source_state", "x") == {6}
    assert pointer.named_versions("later", "") == set()


def test_what_snapshots_share_is_written_once() -> None:
    recipe = {"model": "m" * 1000}
    files = {f"part-{number}.jsonl": "s" * 50 for number in range(100)}
    described: dict[str, Any] = {
        "feature_version": "f",
        "recipe": recipe,
        "run_id": "r",
        "published_at": None,
        "dim": 8,
    }
    history = tuple(
        SnapshotRecord(
            sequence=number,
            tables={"features": number},
            checkpoint={"docs": {"cursor": {"files": files | {"part-0.jsonl": f"{number}"}}}},
            **described,
        )
        for number in range(1, 51)
    )
    pointer = make_pointer(history=history, checkpoint=history[-1].checkpoint, feature_version="f", recipe=recipe)
    values = pointer.to_json()
    assert len(json.dumps(values)) < 30_000 < len(json.dumps(files)) * len(history)
    assert PointerRecord.from_json(json.loads(json.dumps(values))) == pointer


def test_record_of_the_first_format_is_read() -> None:
    described: dict[str, Any] = {"feature_version": "f", "recipe": {"model": "m"}, "run_id": "r"}
    snapshot = {"sequence": 3, "tables": {"features": 1}, "published_at": None, "checkpoint": {"a": 1}, **described}
    values = make_pointer(**described).to_json()
    for name in ("recipes", "versions", "former", "dropped", "version", "slot", "model"):
        del values[name]
    values |= {"format": 1, "recipe": described["recipe"], "history": [snapshot]}
    pointer = PointerRecord.from_json(values)
    assert (pointer.version, pointer.slot, pointer.versions) == ("v1", "", ())
    assert (pointer.history[0].dim, pointer.history[0].checkpoint) == (8, {"a": 1})
    assert pointer.to_json()["format"] == 2


@pytest.mark.parametrize("bad", [{"published_at": "yesterday"}, {"history": [{}]}, {"staged": 3}])
def test_unreadable_field(bad: dict[str, Any]) -> None:
    with pytest.raises(StoreCorrupt):
        PointerRecord.from_json(make_pointer().to_json() | bad)


def test_read_pointer(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match="lodestream run"):
        read_pointer(str(tmp_path / "store"))
    version = open_register(tmp_path / "store").cas(None, make_pointer().to_json())
    assert read_pointer(str(tmp_path / "store")) == (make_pointer(), version)
    assert read_pointer((tmp_path / "store").as_uri()) == (make_pointer(), version)


def test_no_store_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("notes")
    with pytest.raises(StoreNotFound, match="it is a file"):
        read_pointer(str(tmp_path / "store"))


def test_reading_loads_no_engine(tmp_path: Path) -> None:
    open_register(tmp_path).cas(None, make_pointer().to_json())
    code = (
        "import sys; from lodestream.storage.snapshot import read_pointer;"
        f"assert read_pointer({str(tmp_path)!r})[0].sequence == 3;"
        "print(sorted({'lance', 'pyarrow', 'numpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
