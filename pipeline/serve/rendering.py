"""Feature rows as JSON values and as Arrow tables, with vectors in the encoding that was asked for."""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lodestream.pipeline.serve.models import VectorEncoding
from lodestream.pipeline.serve.parts import EncodedTexts, StoredDocument
from lodestream.pipeline.serve.service import DocumentRead
from lodestream.schema import TIMESTAMP
from lodestream.storage.codec import decode_rows

FEATURE_COLUMNS: Final = (
    "granularity",
    "ordinal",
    "parent",
    "kind",
    "char_start",
    "char_end",
    "token_count",
    "density",
)
_RENDERED: Final = (*FEATURE_COLUMNS, "codes", "scale", "computed_at")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_JSON_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z


def to_json(values: Any) -> bytes:
    """JSON bytes; numpy arrays and times included."""
    return orjson.dumps(values, option=_JSON_OPTIONS)


def render_documents(reads: Sequence[DocumentRead], encoding: VectorEncoding) -> list[dict[str, Any]]:
    """The values of models.DocumentFeatures, one for each read. The rows of all of them are gone through at once, which
    takes a tenth of the time for many documents of a row each."""
    documents = [read.stored for read in reads if read.stored is not None and read.stored.batches]
    features: Iterator[dict[str, Any]] = iter(())
    moments: Iterator[datetime] = iter(())
    if documents:
        rows = _join(documents, documents[0].schema).select(_RENDERED).combine_chunks()
        features = iter(render_rows(rows, encoding))
        moments = iter(_find_newest(rows, [document.num_rows for document in documents]))
    values: list[dict[str, Any]] = []
    for read in reads:
        stored = read.stored
        if stored is None:
            values.append({"id": read.doc_id, "status": read.status, "features": []})
            continue
        num_rows = stored.num_rows
        values.append(
            {
                "id": read.doc_id,
                "status": read.status,
                "reason": stored.quarantine_reason,
                "source": stored.source,
                "source_version": stored.source_version,
                "computed_at": next(moments) if num_rows else None,
                "lossy": stored.is_lossy,
                "features": list(islice(features, num_rows)),
            }
        )
    return values


def _join(documents: Iterable[StoredDocument], schema: pa.Schema) -> pa.Table:
    """The rows of documents, one after the other."""
    return pa.Table.from_batches([batch for document in documents for batch in document.batches], schema=schema)


def _find_newest(rows: pa.Table, sizes: Sequence[int]) -> list[datetime]:
    """When the newest row of each run of rows was computed."""
    times_us = rows.column("computed_at").to_numpy().astype("datetime64[us]").astype(np.int64)
    newest = np.maximum.reduceat(times_us, np.cumsum([0, *sizes[:-1]]))
    # Arrow makes a time of each row in five microseconds; there are few documents, and many rows.
    return [_EPOCH + timedelta(microseconds=moment) for moment in newest.tolist()]


def render_text(index: int, num_tokens: int, rows: pa.Table, encoding: VectorEncoding) -> dict[str, Any]:
    """The values of models.TextFeatures."""
    return {"index": index, "num_tokens": num_tokens, "features": render_rows(rows, encoding)}


def render_rows(rows: pa.Table, encoding: VectorEncoding) -> list[dict[str, Any]]:
    """The values of models.Feature, one for each row."""
    columns = [_as_values(rows.column(name)) for name in FEATURE_COLUMNS]
    values = [dict(zip(FEATURE_COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)]
    if not values:
        return values
    codes, scales = read_codes(rows)
    if encoding == "int8":
        for value, row, scale in zip(values, codes, scales.tolist(), strict=True):
            value["codes"], value["scale"] = _to_base64(row), scale
        return values
    vectors = decode_rows(codes, scales)
    for value, vector in zip(values, vectors, strict=True):
        value["vector"] = vector if encoding == "float" else encode_vector(vector)
    return values


def encode_vector(vector: NDArray[np.float32]) -> str:
    """float32 values, little endian, in base64."""
    return _to_base64(vector.astype("<f4", copy=False))


def read_codes(rows: pa.Table) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Codes int8 [N, D] and scales float16 [N] of feature rows, at least one."""
    column = rows.column("codes")
    dim = column.type.list_size
    parts = [chunk.values.to_numpy()[chunk.offset * dim : (chunk.offset + len(chunk)) * dim] for chunk in column.chunks]
    codes = (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(rows.num_rows, dim)
    return codes, rows.column("scale").to_numpy()


def keep_granularities(rows: pa.Table, granularities: Sequence[str]) -> pa.Table:
    """The rows of some granularities."""
    return rows.filter(pc.is_in(rows.column("granularity"), pa.array(list(granularities), pa.string())))


# ---- Arrow -----------------------------------------------------------------------------------------------------------


def tabulate_documents(reads: Sequence[DocumentRead], encoding: VectorEncoding, *, schema: pa.Schema) -> pa.Table:
    """One row for each feature, and one with nulls for each document without any.

    Args:
        schema: schema.features_schema(D).
    """
    stored = [read.stored for read in reads]
    rows = _join([document for document in stored if document is not None], schema)
    num_rows = [document.num_rows if document is not None else 0 for document in stored]
    moments = iter(_find_newest(rows, [number for number in num_rows if number]) if rows.num_rows else ())

    def say(name: str) -> list[Any]:
        return [getattr(document, name, None) for document in stored]

    owners = {
        "id": pa.array([read.doc_id for read in reads], pa.string()),
        "status": pa.array([read.status for read in reads], pa.string()),
        "reason": pa.array(say("quarantine_reason"), pa.string()),
        "source": pa.array(say("source"), pa.string()),
        "source_version": pa.array(say("source_version"), pa.string()),
        "computed_at": pa.array([next(moments) if number else None for number in num_rows], TIMESTAMP),
        "lossy": pa.array([document is not None and document.is_lossy for document in stored], pa.bool_()),
    }
    return _tabulate(rows, num_rows, encoding, owners)


def tabulate_texts(encoded: EncodedTexts, encoding: VectorEncoding, granularities: Sequence[str]) -> pa.Table:
    """One row for each feature, and one with nulls for each text without any."""
    kept = [keep_granularities(rows, granularities) for rows in encoded.rows]
    owners = {
        "index": pa.array(np.arange(len(kept)), pa.int32()),
        "num_tokens": pa.array(encoded.num_tokens, pa.int64()),
    }
    return _tabulate(pa.concat_tables(kept), [rows.num_rows for rows in kept], encoding, owners)


def to_arrow_stream(table: pa.Table, metadata: Mapping[str, Any]) -> bytes:
    """The table as an Arrow IPC stream with ``metadata`` in its schema."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        sink, table.schema.with_metadata({name: str(value) for name, value in metadata.items()})
    ) as writer:
        writer.write_table(table.combine_chunks())
    return bytes(sink.getvalue())


def _tabulate(
    rows: pa.Table, num_rows: Sequence[int], encoding: VectorEncoding, owners: Mapping[str, pa.Array]
) -> pa.Table:
    """The features of owners (documents or texts), each behind what is said of its owner.

    Args:
        rows: of all owners, one after the other.
        num_rows: of each owner.
        encoding: of the vectors.
        owners: what is said, one value an owner.
    """
    features = {name: rows.column(name).combine_chunks() for name in FEATURE_COLUMNS}
    if encoding == "int8":
        features |= {"codes": _read_column(rows, pa.int8()), "scale": rows.column("scale").combine_chunks()}
    else:
        features["vector"] = _read_column(rows, pa.float32())
    lengths = np.maximum(num_rows, 1)
    has_none = np.repeat(np.equal(num_rows, 0), lengths)
    if has_none.any():
        places = pa.array(np.cumsum(~has_none) - 1, mask=has_none)
        features = {name: column.take(places) for name, column in features.items()}
    places = pa.array(np.repeat(np.arange(len(lengths)), lengths))
    return pa.table({name: values.take(places) for name, values in owners.items()} | features)


def _read_column(rows: pa.Table, kind: pa.DataType) -> pa.Array:
    """Codes (int8) or vectors (float32) as lists whose values may be null, as those of a document without rows are."""
    dim = rows.column("codes").type.list_size
    if not rows.num_rows:
        return pa.nulls(0, pa.list_(kind, dim))
    codes, scales = read_codes(rows)
    values = codes if pa.types.is_int8(kind) else decode_rows(codes, scales)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dim)


def _as_values(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_float16(column.type):
        return [round(value, 4) for value in column.to_numpy().tolist()]
    values: list[Any] = column.to_numpy().tolist() if pa.types.is_integer(column.type) else column.to_pylist()
    return values


def _to_base64(array: NDArray[Any]) -> str:
    return binascii.b2a_base64(array.tobytes(), newline=False).decode("ascii")
