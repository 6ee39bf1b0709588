from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from lodestream.schema import features_schema
from lodestream.storage.checksum import UNCOVERED, sum_features, sum_text
from tests.support.store_rows import DIM, make_features

CONTENTS = {"a": ["x", "y z", "x"], "b": ["w"], "é": []}
ROWS = make_features(CONTENTS)


def sums(rows: pa.Table) -> dict[str, bytes]:
    found = sum_features(rows)
    return {doc_id: found.of(doc_id) for doc_id in CONTENTS}


def test_order_and_batches_do_not_matter() -> None:
    shuffled = ROWS.take(np.random.default_rng(0).permutation(ROWS.num_rows))
    pieces = pa.Table.from_batches(shuffled.to_batches(max_chunksize=2), schema=ROWS.schema)
    assert sums(pieces) == sums(ROWS)


def test_batches_without_rows_count_nothing() -> None:
    rows = make_features({"a": ["one", "two"]})
    parted = pa.Table.from_batches([*rows.slice(0, 0).to_batches(), _empty_batch(rows), *rows.to_batches()])
    assert sum_features(parted).of("a") == sum_features(rows).of("a") != bytes(8)


def _empty_batch(rows: pa.Table) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in rows.schema], schema=rows.schema)


def test_the_sum_stays_from_version_to_version() -> None:
    """A change of these bytes would call every stored document damaged."""
    assert {name: value.hex() for name, value in sums(ROWS).items()} == {
        "a": "9b5f3a4977a1286f",
        "b": "5716dc4d3671ef28",
        "é": "6c54d34b1ae5c989",
    }
    assert sum_text("naïve \ud800").hex() == "323a1137fee48f32"


def test_who_computed_a_row_and_when_is_left_out() -> None:
    assert sums(make_features(CONTENTS, run_id="another")) == sums(ROWS)


@pytest.mark.parametrize("name", [name for name in features_schema(DIM).names if name not in UNCOVERED])
def test_every_column_counts(name: str) -> None:
    """One bit of one row changes that document's sum and no other."""
    values = ROWS[name].combine_chunks()
    field = ROWS.schema.field(name)
    altered = ROWS.set_column(ROWS.schema.get_field_index(name), field, alter_first(values))
    before, after = sums(ROWS), sums(altered)
    assert before["a"] != after["a"]
    assert before["b"] == after["b"]


def alter_first(values: pa.Array) -> pa.Array:
    if pa.types.is_string(values.type):
        return pa.array([values[0].as_py() + "!", *values[1:].to_pylist()], values.type)
    inner = values.flatten() if pa.types.is_fixed_size_list(values.type) else values
    data = bytearray(inner.buffers()[1].to_pybytes())
    data[0] ^= 1
    flipped = pa.Array.from_buffers(inner.type, len(inner), [None, pa.py_buffer(bytes(data))], offset=inner.offset)
    return pa.FixedSizeListArray.from_arrays(flipped, type=values.type) if inner is not values else flipped


def test_lost_and_doubled_rows_show() -> None:
    assert sums(ROWS.slice(1))["a"] != sums(ROWS)["a"]
    assert sums(pa.concat_tables([ROWS, ROWS.slice(0, 1)]))["a"] != sums(ROWS)["a"]
    assert sums(pa.concat_tables([ROWS, ROWS.slice(0, 1), ROWS.slice(0, 1)]))["a"] != sums(ROWS)["a"]


def test_slices_are_read_where_they_are() -> None:
    batch = ROWS.combine_chunks().to_batches()[0]
    whole = sum_features(pa.Table.from_batches([batch.slice(4)]))
    copied = sum_features(pa.Table.from_pylist(batch.slice(4).to_pylist(), schema=batch.schema))
    assert [whole.of(name) for name in CONTENTS] == [copied.of(name) for name in CONTENTS]
