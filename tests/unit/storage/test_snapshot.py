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
    SnapshotRecord, sequence=st.integers(1), tables=TABLES_STRATEGY, published_at=st.none() | TIMES, **NAMES
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
        PointerRecord.from_json(make_pointer().to_json() | {"format": 2})


@pytest.mark.parametrize("name", ["sequence", "tables", "history", "staged", "published_at"])
def test_missing_field(name: str) -> None:
    values = make_pointer().to_json()
    del values[name]
    with pytest.raises(StoreCorrupt):
        PointerRecord.from_json(values)


def test_named_versions() -> None:
    described: dict[str, Any] = {"feature_version": "f", "recipe": {}, "run_id": "r"}
    older = SnapshotRecord(sequence=1, tables={"documents": 1}, published_at=None, **described)
    current = SnapshotRecord(sequence=2, tables={"documents": 4, "features": 9}, published_at=None, **described)
    staged = StagedWork(
        kind="refresh", tables={"documents": 7}, num_chunks=1, staged_at=datetime(2026, 1, 1, tzinfo=UTC), **described
    )
    pointer = make_pointer(tables=current.tables, history=(older, current), staged=staged)
    assert (pointer.named_versions("documents"), pointer.named_versions("features")) == ({1, 4, 7}, {9})
    assert pointer.named_versions("later") == set()


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
