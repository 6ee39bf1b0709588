"""Feature rows as they lie in a page of the disk tier: what a document's rows share stands once, with the entry, and
what follows from the rest is left out.

An entry whose rows do not share it, or whose keys do not follow from their places, cannot be stored this way; it is
refused, and only the store has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lodestream.schema import GRANULARITIES, KEY_BYTES, PARAGRAPH_KINDS, features_schema, row_key
from lodestream.storage.cache.entry import Entry
from lodestream.storage.codec import decode_rows
from lodestream.storage.codec_int4 import as_int8, num_groups, pack_rows

PageCodec = Literal["int8", "int4"]

SHARED: Final = ("doc_id", "source_version", "run_id")
_KEPT: Final = ("ordinal", "parent", "char_start", "char_end", "token_count", "norm", "density", "fingerprint")
# What few names stand for is kept as their numbers, a byte each.
_NAMES: Final = {"granularity": pa.array(GRANULARITIES), "kind": pa.array(("", *PARAGRAPH_KINDS))}


@cache
def rows_schema(dim: int, codec: PageCodec) -> pa.Schema:
    """Columns of a page's rows."""
    features = features_schema(dim)
    numbers = [pa.field(name, pa.uint8()) for name in _NAMES]
    kept = [*(features.field(name) for name in _KEPT), *numbers, features.field("computed_at")]
    if codec == "int8":
        return pa.schema([*kept, features.field("codes"), features.field("scale")])
    groups = pa.list_(pa.field("item", pa.float16(), nullable=False), num_groups(dim))
    return pa.schema([*kept, pa.field("packed", pa.binary((dim + 1) // 2)), pa.field("scales", groups)])


ENTRIES_SCHEMA: Final = pa.schema(
    [
        pa.field("key", pa.binary(KEY_BYTES)),
        pa.field("kind", pa.string()),
        pa.field("made_at_s", pa.uint32()),
        pa.field("num_rows", pa.uint32()),
        pa.field("num_tokens", pa.uint32()),
        pa.field("is_lossy", pa.bool_()),
        pa.field("source", pa.string()),
        *(pa.field(name, pa.string()) for name in SHARED),
    ]
)
"""What a page says of each entry, in the order of their rows."""


def can_shrink(entry: Entry) -> bool:
    """Whether ``widen`` would give back these rows."""
    rows = entry.rows
    if not rows.num_rows:
        return True
    if any(pc.count_distinct(rows.column(name)).as_py() != 1 for name in SHARED):
        return False
    if any(not pc.all(pc.is_in(rows.column(name), value_set=names)).as_py() for name, names in _NAMES.items()):
        return False
    doc_id = rows.column("doc_id")[0].as_py()
    keys = _make_keys(entry.source, doc_id, rows.column("granularity"), rows.column("ordinal"))
    return bool(rows.column("key").equals(keys))


def describe(entry: Entry, codec: PageCodec) -> dict[str, Any]:
    """The row of ENTRIES_SCHEMA, but for the entry's name and time."""
    rows = entry.rows
    shared = {name: rows.column(name)[0].as_py() if rows.num_rows else "" for name in SHARED}
    return {
        "num_rows": rows.num_rows,
        "num_tokens": entry.num_tokens,
        "is_lossy": entry.is_lossy or codec == "int4",
        "source": entry.source,
        **shared,
    }


def shrink(entries: Sequence[Entry], dim: int, codec: PageCodec) -> pa.RecordBatch:
    """The rows of entries, one after the other, as one batch of ``rows_schema``."""
    rows = pa.Table.from_batches([entry.rows for entry in entries]).combine_chunks().to_batches()
    schema = rows_schema(dim, codec)
    if not rows:
        return pa.RecordBatch.from_pylist([], schema=schema)
    batch = rows[0]
    columns: dict[str, Any] = {name: batch.column(name) for name in (*_KEPT, "computed_at", "codes", "scale")}
    for name, names in _NAMES.items():
        columns[name] = pc.index_in(batch.column(name), value_set=names).cast(pa.uint8())
    if codec == "int4":
        codes = batch.column("codes").flatten().to_numpy().reshape(batch.num_rows, dim)
        packed, scales = pack_rows(decode_rows(codes, batch.column("scale").to_numpy(zero_copy_only=False)))
        width = packed.shape[1]
        columns["packed"] = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), len(packed), [None, pa.py_buffer(packed.tobytes())]
        )
        columns["scales"] = pa.FixedSizeListArray.from_arrays(
            pa.array(scales.reshape(-1)), type=schema.field("scales").type
        )
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def widen(rows: pa.RecordBatch, described: dict[str, Any], dim: int, codec: PageCodec) -> Entry:
    """The entry whose rows are ``rows``, part of what ``shrink`` returned."""
    schema = _features_schema(dim)
    num_rows = rows.num_rows
    columns: dict[str, Any] = {name: rows.column(name) for name in (*_KEPT, "computed_at")}
    columns |= {name: pa.repeat(pa.scalar(described[name], pa.string()), num_rows) for name in SHARED}
    columns |= {name: names.take(rows.column(name)) for name, names in _NAMES.items()}
    columns["key"] = _make_keys(described["source"], described["doc_id"], columns["granularity"], rows["ordinal"])
    if codec == "int8":
        columns |= {"codes": rows.column("codes"), "scale": rows.column("scale")}
    else:
        codes, row_scales = _restore(rows, dim)
        columns["codes"] = pa.FixedSizeListArray.from_arrays(
            pa.array(codes.reshape(-1)), type=schema.field("codes").type
        )
        columns["scale"] = pa.array(row_scales)
    return Entry(
        rows=pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema),
        source=described["source"],
        num_tokens=described["num_tokens"],
        is_lossy=described["is_lossy"],
    )


def _restore(rows: pa.RecordBatch, dim: int) -> tuple[Any, Any]:
    width = (dim + 1) // 2
    column = rows.column("packed")
    data = np.frombuffer(column.buffers()[1] or b"", np.uint8)[column.offset * width :][: rows.num_rows * width]
    scales = rows.column("scales").flatten().to_numpy(zero_copy_only=False).reshape(rows.num_rows, -1)
    return as_int8(data.reshape(rows.num_rows, width), scales, dim)


_features_schema = cache(features_schema)


def _make_keys(source: str, doc_id: str, granularities: pa.Array, ordinals: pa.Array) -> pa.Array:
    places = zip(granularities.to_pylist(), ordinals.to_pylist(), strict=True)
    keys = [row_key(source, doc_id, granularity, ordinal) for granularity, ordinal in places]
    return pa.array(keys, pa.binary(KEY_BYTES))
