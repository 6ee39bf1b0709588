"""Columns: how they are encoded in the files, and the exact types of rows that come from engines and from Lance."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

_ZSTD: Final = {"lance-encoding:compression": "zstd"}
_REPETITIVE: Final = ("ordinal", "parent", "computed_at")


def compress_fields(schema: pa.Schema) -> pa.Schema:
    """Return ``schema`` with the encodings that Lance does not choose by itself; what is appended later has them too.

    Numbers that hardly differ from row to row are packed to their widest value otherwise (docs/bench/rows.jsonl has
    what that saves). Codes, scales and hashes are as good as random: compressing them would cost time for nothing.
    """
    return pa.schema([field.with_metadata(_ZSTD) if field.name in _REPETITIVE else field for field in schema])


def conform_rows(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return ``rows`` in the exact types and order of ``schema``.

    Engines that carry tables about drop some of a schema's details (that a column has no nulls, for instance).

    Raises:
        ValueError: a column is missing, has another type, or holds nulls where there may be none.
    """
    if rows.schema.equals(schema):
        return rows
    if set(rows.column_names) != set(schema.names):
        raise ValueError(f"columns {sorted(rows.column_names)} given, {sorted(schema.names)} wanted")
    rows = rows.select(schema.names)
    for field in schema:
        if not field.nullable and rows[field.name].null_count:
            raise ValueError(f"column {field.name} holds {rows[field.name].null_count} nulls")
    return rows.cast(schema)


def as_batch(rows: pa.Table) -> pa.RecordBatch:
    """Return all rows, perhaps none, as one batch."""
    batches = rows.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=rows.schema)


def conforms(found: pa.Schema, wanted: pa.Schema) -> bool:
    """Whether a table that Lance opened has the wanted columns."""
    # Lance does not keep whether the items of a list may be null.
    return found.names == wanted.names and all(
        mine.equals(theirs)
        or (pa.types.is_fixed_size_list(theirs.type) and mine.type.list_size == theirs.type.list_size)
        for mine, theirs in zip(found, wanted, strict=True)
    )


def conform_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch that Lance read in the exact types of ``schema``."""
    columns = [_conform_column(column, field.type) for field, column in zip(schema, batch.columns, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def find_equal(left: pa.Array | pa.ChunkedArray, right: pa.Array | pa.ChunkedArray) -> Any:
    """Return where two columns of equal length have the same value, or neither has one, as booleans without nulls."""
    both_null = pc.and_(pc.is_null(left), pc.is_null(right))
    return pc.or_(pc.fill_null(pc.equal(left, right), False), both_null)


def _conform_column(column: pa.Array, wanted: pa.DataType) -> pa.Array:
    if column.type == wanted:
        return column
    return pa.FixedSizeListArray.from_arrays(column.flatten(), type=wanted)  # lists only: see conforms
