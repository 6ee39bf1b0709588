"""Many documents rendered at once are what each of them is by itself."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pyarrow as pa
import pytest

from lodestream.pipeline.serve.models import VectorEncoding
from lodestream.pipeline.serve.parts import EncodedTexts, StoredDocument
from lodestream.pipeline.serve.rendering import (
    FEATURE_COLUMNS,
    render_documents,
    tabulate_documents,
    tabulate_texts,
)
from lodestream.pipeline.serve.service import DocumentRead
from lodestream.schema import features_schema
from lodestream.storage.codec import decode_rows
from tests.support.store_rows import DIM, make_features

SCHEMA = features_schema(DIM)
ENCODINGS: tuple[VectorEncoding, ...] = get_args(VectorEncoding)


def read(doc_id: str, num_sentences: int) -> DocumentRead:
    rows = make_features({doc_id: [f"{doc_id} {number}" for number in range(num_sentences)]})
    stored = StoredDocument(
        doc_id=doc_id,
        source="files",
        source_version="1",
        quarantine_reason=None if num_sentences else "binary",
        batches=rows.to_batches() if num_sentences else (),
        schema=SCHEMA,
    )
    return DocumentRead(doc_id=doc_id, status="FOUND" if num_sentences else "QUARANTINED", stored=stored)


NOT_THERE = DocumentRead(doc_id="d", status="NOT_FOUND", stored=None)
READS = [read("a", 3), NOT_THERE, read("b", 1), read("c", 0), read("a", 3), NOT_THERE]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("reads", [READS, READS[:1], [NOT_THERE], READS[2:4]])
def test_tables_and_values_hold_each_document(reads: list[DocumentRead], encoding: VectorEncoding) -> None:
    table = tabulate_documents(reads, encoding, schema=SCHEMA)
    assert table.equals(pa.concat_tables(tabulate_documents([one], encoding, schema=SCHEMA) for one in reads))
    values = render_documents(reads, encoding)
    assert str(values) == str([render_documents([one], encoding)[0] for one in reads])
    assert table.column("id").to_pylist() == [one["id"] for one in values for _ in range(max(1, len(one["features"])))]
    rows = [(one, feature) for one in values for feature in one["features"] or [None]]
    for given, (document, feature) in zip(table.to_pylist(), rows, strict=True):
        assert (given["status"], given["reason"]) == (document["status"], document.get("reason"))
        assert given["computed_at"] == document.get("computed_at")
        if feature is None:
            assert all(given[name] is None for name in (*FEATURE_COLUMNS, table.column_names[-1]))
        else:
            assert given["ordinal"] == feature["ordinal"] and given["kind"] == feature["kind"]


def test_vectors_of_a_table_are_the_stored_ones() -> None:
    rows = pa.concat_tables(one.stored.rows for one in READS if one.stored is not None)
    vectors = tabulate_documents(READS, "float", schema=SCHEMA).column("vector")
    codes = np.array(rows.column("codes").to_pylist(), np.int8)
    expected = decode_rows(codes, rows.column("scale").to_numpy())
    assert np.array_equal(np.array(vectors.drop_null().to_pylist(), np.float32), expected)


def test_a_text_without_features_has_a_row_of_nulls() -> None:
    rows = make_features({"0": ["one"]})
    encoded = EncodedTexts(rows=[rows, SCHEMA.empty_table()], num_tokens=[4, 0], num_encoded_tokens=4)
    table = tabulate_texts(encoded, "int8", ["sentence"])
    assert table.column("index").to_pylist() == [0, 1]
    assert table.column("num_tokens").to_pylist() == [4, 0]
    assert table.column("granularity").to_pylist() == ["sentence", None]
