from __future__ import annotations

from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from lodestream.schema import features_schema
from lodestream.storage import steps
from lodestream.storage import table as table_module
from lodestream.storage.compaction import Clutter, compact, measure_clutter, rebuild_indexes
from lodestream.storage.table import Table
from tests.support.store_rows import DIM, make_features

SCHEMA = features_schema(DIM)
COLUMNS = ("key", "doc_id", "fingerprint")


@pytest.fixture
def table(tmp_path: Path) -> Table:
    table = Table.create(tmp_path / "features.lance", SCHEMA)
    for number in range(6):
        rows = make_features({f"d{number}": ["x", str(number)], "shared": [str(number)]})
        table = table.replace_documents(pa.array(["shared"]), rows).tidy(COLUMNS)
    return table


def read_sorted(table: Table) -> pa.Table:
    return table.read(SCHEMA.names, with_index=False).sort_by("key")


def require_indexes_right(table: Table) -> None:
    for name in COLUMNS:
        for value in table.read([name], with_index=False)[name].unique():
            where = pc.field(name) == value
            assert table.count(where) == table.read([name], where=where, with_index=False).num_rows > 0


def test_clutter_is_counted(table: Table) -> None:
    assert measure_clutter(table) == Clutter(num_small_files=6, num_deleted_rows=10, deleted_share=2 / 5)


def test_rows_and_indexes_stay_right(table: Table) -> None:
    compacted = compact(table)
    assert measure_clutter(compacted) == Clutter(num_small_files=1, num_deleted_rows=0, deleted_share=0.0)
    assert read_sorted(compacted).equals(read_sorted(table))
    require_indexes_right(compacted)
    assert compact(compacted).version == compacted.version
    later = compacted.replace_documents(pa.array(["d1"]), make_features({"e": ["new"]})).tidy(COLUMNS)
    require_indexes_right(compact(later))


def test_rows_of_others_are_rolled_over(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def intrude(step: str) -> None:
        monkeypatch.setattr(steps, "reach", lambda step: None)
        lance.write_dataset(make_features({"junk": ["junk"]}), str(table.path), mode="append")

    monkeypatch.setattr(steps, "reach", intrude)
    assert read_sorted(compact(table)).equals(read_sorted(table))


def test_rebuilt_indexes_are_new_files(table: Table) -> None:
    before = {segment.uuid for index in table.dataset.describe_indices() for segment in index.segments}
    rebuilt = rebuild_indexes(table)
    after = {segment.uuid for index in rebuilt.dataset.describe_indices() for segment in index.segments}
    assert len(after) == len(COLUMNS)
    assert not before & after
    require_indexes_right(rebuilt)


def test_indexes_of_large_tables_grow_in_parts(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts are merged once there are MAX_INDEX_SEGMENTS, and each look-up sees all of them meanwhile."""
    monkeypatch.setattr(table_module, "MIN_SEGMENTED_ROWS", 0)
    counts = []
    for number in range(table_module.MAX_INDEX_SEGMENTS + 2):
        rows = make_features({f"e{number}": [str(number)], "shared": [f"again {number}"]})
        table = table.replace_documents(pa.array(["shared"]), rows).tidy(COLUMNS)
        counts.append({len(index.segments) for index in table.dataset.describe_indices()})
        require_indexes_right(table)
    assert counts == [{2}, {3}, {4}, {1}, {2}, {3}]
