"""Bringing a store of an older schema up to date, in one swing of the pointer like any other write.

Schema 1 had no table ``source_state``: it is made from what ``documents`` knows of each document's source. Sizes and
times were not kept, so they are null, and the next run looks at every document once. Nor had ``documents`` checksums:
the columns are added, and stay null until a document is written again or ``lodestream verify --repair`` fills them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from lodestream.errors import StoreNotFound, StoreSchemaMismatch
from lodestream.schema import CHECKSUM_FIELDS, DOCUMENTS_SCHEMA, SCHEMA_VERSION, SOURCE_STATE_SCHEMA, TABLES
from lodestream.storage.coordination import open_lease
from lodestream.storage.durability import sync_new_files
from lodestream.storage.lease import DEFAULT_TTL_S, Lease, name_holder
from lodestream.storage.location import Location, Place
from lodestream.storage.reader import locate_table
from lodestream.storage.snapshot import (
    OLDEST_SCHEMA_VERSION,
    PointerRecord,
    SnapshotRecord,
    open_register,
    read_pointer,
)
from lodestream.storage.table import Table

_DOCUMENT_COLUMNS: Final = ("doc_id", "source", "source_version", "content_hash", "quarantine_reason", "updated_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """What a migration did. ``dropped_run_id`` is the unfinished run whose staged work was given up, if any."""

    schema_before: int
    schema_after: int
    sequence: int
    num_documents: int
    dropped_run_id: str | None


def migrate_store(place: Place, *, ttl_s: float = DEFAULT_TTL_S) -> Migration:
    """Bring the store at ``place`` to this version's schema. A store that is there already is left as it is.

    Snapshots before the current one cannot be opened any more, and an unfinished run begins anew. A migration that is
    killed leaves the store as it was.

    Raises:
        StoreNotFound: there is no store, or nothing is published in it.
        StoreSchemaMismatch: a later version of lodestream wrote it, or one before the first that can be migrated.
        LeaseHeld: a run is under way.
        CommitConflict, FencedError: a run published meanwhile; migrate again.
    """
    location = Location.parse(place)
    pointer, _ = read_pointer(location)
    if pointer.schema_version == SCHEMA_VERSION:
        return _describe(pointer, pointer, num_documents=0, dropped_run_id=None)
    with Lease(
        open_lease(location, ttl_s=ttl_s),
        holder=name_holder("migrate"),
        place=str(location),
        ttl_s=ttl_s,
        floor=lambda: read_pointer(location)[0].epoch,
    ) as lease:
        return _migrate(location, lease)


def _migrate(location: Location, lease: Lease) -> Migration:
    pointer, version = read_pointer(location)
    dropped = pointer.staged.run_id if pointer.staged else None
    if pointer.schema_version == SCHEMA_VERSION:
        return _describe(pointer, pointer, num_documents=0, dropped_run_id=None)
    if not OLDEST_SCHEMA_VERSION <= pointer.schema_version < SCHEMA_VERSION:
        raise StoreSchemaMismatch(
            f"the store at {location} has schema version {pointer.schema_version}; those from "
            f"{OLDEST_SCHEMA_VERSION} to {SCHEMA_VERSION} can be migrated",
            "pip install --upgrade lodestream",
        )
    if not pointer.sequence:
        raise StoreNotFound(f"nothing is published at {location}, so there is nothing to migrate", "lodestream run")
    documents = _open_published(location, pointer)
    states = _make_states(location, documents, run_id=pointer.run_id)
    documents = documents.add_columns(CHECKSUM_FIELDS)
    tables = {**pointer.tables, "documents": documents.version, "source_state": states.version}
    migrated = _follow(pointer, tables, lease)
    if location.is_local:
        for table in (documents, states):
            sync_new_files(table.path, frozenset())
    lease.require()
    open_register(location).cas(version, migrated.to_json())
    return _describe(pointer, migrated, num_documents=states.count(), dropped_run_id=dropped)


def _open_published(location: Location, pointer: PointerRecord) -> Table:
    return Table.open(locate_table(location, "documents", ""), DOCUMENTS_SCHEMA, version=pointer.tables["documents"])


def _make_states(location: Location, documents: Table, *, run_id: str) -> Table:
    place = locate_table(location, "source_state", "")
    # A migration that was killed before it swung the pointer left its rows: they are rolled over.
    is_there = not place.child("_versions").is_empty()
    empty = Table.open(place, SOURCE_STATE_SCHEMA, version=1) if is_there else Table.create(place, SOURCE_STATE_SCHEMA)
    rows = derive_states(documents.read(_DOCUMENT_COLUMNS), run_id=run_id)
    return empty.replace_documents(pa.array([], pa.string()), rows).tidy(TABLES["source_state"].indexed)


def derive_states(documents: pa.Table, *, run_id: str) -> pa.Table:
    """Return rows of ``source_state`` that say no more than rows of ``documents`` do."""
    count = documents.num_rows
    failed = pc.is_valid(documents["quarantine_reason"])
    never = pa.scalar(None, documents["updated_at"].type)
    failed_at = pc.if_else(failed, documents["updated_at"], never)
    columns = {
        **{name: documents[name] for name in ("doc_id", "source", "source_version", "content_hash")},
        **{name: pa.nulls(count, pa.int64()) for name in ("size_bytes", "mtime_ns", "ctime_ns")},
        "object_id": pa.nulls(count, pa.string()),
        "first_seen_at": documents["updated_at"],
        "stated_at": documents["updated_at"],
        "quarantine_reason": documents["quarantine_reason"],
        "quarantine_attempts": failed.cast(pa.int32()),
        "first_failed_at": failed_at,
        "retry_at": failed_at,
        "run_id": pa.array([run_id] * count, pa.string()),
    }
    return pa.table({name: columns[name] for name in SOURCE_STATE_SCHEMA.names}).cast(SOURCE_STATE_SCHEMA)


def _follow(pointer: PointerRecord, tables: dict[str, int], lease: Lease) -> PointerRecord:
    record = SnapshotRecord(
        sequence=pointer.sequence + 1,
        tables=tables,
        feature_version=pointer.feature_version,
        recipe=pointer.recipe,
        run_id=pointer.run_id,
        published_at=datetime.now(UTC),
        dim=pointer.dim,
        checkpoint=pointer.checkpoint,
    )
    # The epoch goes up with it: a run of the older lodestream that is still under way is fenced off.
    return pointer.follow(
        schema_version=SCHEMA_VERSION,
        epoch=lease.epoch,
        writer=lease.token,
        sequence=record.sequence,
        tables=tables,
        published_at=record.published_at,
        staged=None,
        history=(record,),
    )


def _describe(
    before: PointerRecord, after: PointerRecord, *, num_documents: int, dropped_run_id: str | None
) -> Migration:
    return Migration(
        schema_before=before.schema_version,
        schema_after=after.schema_version,
        sequence=after.sequence,
        num_documents=num_documents,
        dropped_run_id=dropped_run_id,
    )
