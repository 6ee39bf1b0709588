"""Reading one snapshot: features, documents, and the segments that need not be encoded again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lodestream.errors import StoreError
from lodestream.schema import FINGERPRINT_BYTES, GRANULARITIES, TABLES
from lodestream.storage.location import Location
from lodestream.storage.snapshot import SnapshotRecord
from lodestream.storage.table import Table
from lodestream.storage.version import name_folder

SEGMENT_COLUMNS: Final = (
    "doc_id",
    "granularity",
    "ordinal",
    "kind",
    "char_start",
    "char_end",
    "token_count",
    "codes",
    "scale",
    "norm",
    "density",
    "fingerprint",
    "computed_at",
)
STATE_COLUMNS: Final = (
    "doc_id",
    "source",
    "content_hash",
    "source_version",
    "feature_version",
    "quarantine_reason",
)

_LEAF_GRANULARITIES: Final = ("sentence", "paragraph")
_BATCH_VALUES: Final = 1000  # values of one look-up: enough to share its fixed cost, few enough for the filter's size


class Snapshot:
    """One state of the store, for reading. What it returns never changes, whatever is written meanwhile.

    Safe for use by many threads. Pickles as its place and versions, and opens them anew on the other side.

    A snapshot stays readable while the store keeps it, and for an hour after the next run began to write; that of a
    transaction's working state (``published_at`` is None) at least until that transaction ends.
    """

    def __init__(self, location: Location, record: SnapshotRecord, tables: Mapping[str, Table] | None = None) -> None:
        """Name the tables that ``record`` names, or take ``tables``, which are those. A table is opened on first use.

        Raises:
            StoreCorrupt: a table is gone.
        """
        self._location = location
        self._record = record
        self.dim = record.dim
        """Width of the vectors."""
        self._tables = (
            dict(tables) if tables is not None else defer_tables(location, record.dim, record.tables, slot=record.slot)
        )
        self._features, self._documents = self._tables["features"], self._tables["documents"]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._location, self._record)

    @property
    def sequence(self) -> int:
        """Number of the snapshot; later ones have higher numbers."""
        return self._record.sequence

    @property
    def feature_version(self) -> str:
        """The feature version that its last run wrote."""
        return self._record.feature_version

    @property
    def version(self) -> str:
        """The name of its feature version."""
        return self._record.version

    @property
    def model(self) -> str:
        """Where the model of its features was found; "" where that was not noted."""
        return self._record.model

    @property
    def recipe(self) -> dict[str, Any]:
        """What the feature version is made of: model, precision, and so on."""
        return dict(self._record.recipe)

    @property
    def published_at(self) -> datetime | None:
        """When it was published (UTC); None for a transaction's working state."""
        return self._record.published_at

    @property
    def run_id(self) -> str:
        """The run that published it."""
        return self._record.run_id

    @property
    def tables(self) -> dict[str, int]:
        """Version of each table."""
        return dict(self._record.tables)

    def open_table(self, name: str) -> Table:
        """Return a table (a name of schema.TABLES) at the snapshot's version."""
        return self._tables[name]

    def scan_features(
        self,
        columns: Sequence[str],
        *,
        granularity: str | None = None,
        min_density: float | None = None,
        doc_ids: Sequence[str] | None = None,
        batch_rows: int = 8192,
    ) -> Iterator[pa.RecordBatch]:
        """Yield feature rows in batches, in no promised order. Memory is bounded by a few batches.

        Args:
            columns: columns of the features' schema, in the order wanted.
            granularity: only rows of this granularity.
            min_density: only rows with at least this density.
            doc_ids: only rows of these documents; unknown ones are no error.
            batch_rows: rows of a batch at most.
        """
        conditions = [] if granularity is None else [pc.field("granularity") == granularity]
        read_columns = list(columns)
        if min_density is not None and "density" not in columns:
            read_columns.append("density")
        for chosen in _split(doc_ids):
            where = _join([*conditions, *_is_in("doc_id", chosen, pa.string())])
            for batch in self._features.scan(read_columns, where=where, batch_rows=batch_rows):
                # Arrow cannot hand a comparison of float16 down to the table.
                kept = batch if min_density is None else batch.filter(_dense(batch, min_density))
                if kept.num_rows:
                    yield kept.select(list(columns))

    def get_features(self, doc_id: str, granularity: str | None = None) -> pa.Table:
        """Return the feature rows of one document, all columns, by granularity (sentences first) and ordinal."""
        batches = self.scan_features(self._features.schema.names, granularity=granularity, doc_ids=[doc_id])
        rows = pa.Table.from_batches(batches, schema=self._features.schema)
        ranks = {name: rank for rank, name in enumerate(GRANULARITIES)}
        rank = [ranks[name] for name in rows["granularity"].to_pylist()]
        return rows.take(np.lexsort((rows["ordinal"].to_numpy(), np.asarray(rank, dtype=np.int8))))

    def get_document(self, doc_id: str) -> dict[str, Any] | None:
        """Return the document's row with its text; None if there is no such document."""
        rows = self._documents.read(self._documents.schema.names, where=pc.field("doc_id") == doc_id).to_pylist()
        found: dict[str, Any] | None = rows[0] if rows else None
        return found

    def document_states(self) -> pa.Table:
        """Return what a run compares sources with: STATE_COLUMNS of all documents, without their text.

        Cost: about 150 bytes of memory a document.
        """
        return self._documents.read(STATE_COLUMNS)

    def source_states(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of ``source_state``, in no promised order; ``columns`` None reads all of them.

        Cost: about 200 bytes of memory a document.
        """
        table = self._tables["source_state"]
        return table.read(table.schema.names if columns is None else columns)

    def find_segments(self, fingerprints: Sequence[bytes]) -> pa.Table:
        """Return the sentence and paragraph rows that carry one of the fingerprints.

        Args:
            fingerprints: any number of 16-byte values; equal ones count once.

        Returns:
            SEGMENT_COLUMNS, in no promised order. A segment that several documents share comes once for each.

        Cost:
            An index look-up a thousand fingerprints; staged rows have no index yet and are scanned.
        """
        tables = []
        for chosen in _split(list(dict.fromkeys(fingerprints))):
            where = _join(_is_in("fingerprint", chosen, pa.binary(FINGERPRINT_BYTES)))
            found = self._features.read(SEGMENT_COLUMNS, where=where)
            tables.append(found.filter(pc.is_in(found["granularity"], pa.array(_LEAF_GRANULARITIES))))
        empty = pa.schema([self._features.schema.field(name) for name in SEGMENT_COLUMNS]).empty_table()
        return pa.concat_tables([empty, *tables]).combine_chunks()

    def count_features(self) -> dict[str, int]:
        """Return the number of feature rows of each granularity."""
        return {name: self._features.count(pc.field("granularity") == name) for name in GRANULARITIES}

    def count_documents(self) -> int:
        """Return the number of documents, the quarantined ones included."""
        return self._documents.count()


def open_tables(location: Location, dim: int, versions: Mapping[str, int], *, slot: str) -> dict[str, Table]:
    """Open the tables of a store at the given versions, those of the feature version in ``slot``.

    Raises:
        StoreCorrupt: one of them is gone.
    """
    _require_names(versions)
    return {
        name: Table.open(locate_table(location, name, slot), kind.make_schema(dim), version=versions[name])
        for name, kind in TABLES.items()
    }


def defer_tables(location: Location, dim: int, versions: Mapping[str, int], *, slot: str) -> dict[str, Table]:
    """Name the tables that ``open_tables`` would open; each is opened on first use (see Table.defer).

    Raises:
        StoreCorrupt: one of them is gone.
    """
    _require_names(versions)
    return {
        name: Table.defer(locate_table(location, name, slot), kind.make_schema(dim), version=versions[name])
        for name, kind in TABLES.items()
    }


def _require_names(versions: Mapping[str, int]) -> None:
    if set(versions) != set(TABLES):
        raise StoreError(f"the store names the tables {sorted(versions)}", "pip install --upgrade lodestream")


def locate_table(location: Location, name: str, slot: str) -> Location:
    """Return where a table of the store at ``location`` is, that of the feature version in ``slot``."""
    return location.child(name_folder(name, slot))


def _split(values: Sequence[Any] | None) -> list[Any]:
    if values is None:
        return [None]
    return [values[start : start + _BATCH_VALUES] for start in range(0, len(values), _BATCH_VALUES)]


def _is_in(column: str, values: Sequence[Any] | None, kind: pa.DataType) -> list[Any]:
    return [] if values is None else [pc.field(column).isin(pa.array(values, kind))]


def _join(conditions: Sequence[Any]) -> Any:
    joined = None
    for condition in conditions:
        joined = condition if joined is None else joined & condition
    return joined


def _dense(batch: pa.RecordBatch, min_density: float) -> pa.Array:
    return pa.array(batch["density"].to_numpy(zero_copy_only=False).astype(np.float32) >= np.float32(min_density))
