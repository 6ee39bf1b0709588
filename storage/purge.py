"""Taking a document out of a store altogether: out of every snapshot, and out of every file.

A deletion leaves the rows in the older snapshots and, until they are merged, in the files. Here the files that hold
deleted rows are rewritten, the indexes are made anew, and the earlier snapshots are given up, since their files hold
the rows. What went into a backup or an export stays there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lodestream.errors import NotFoundError, StoreNotFound
from lodestream.storage.compaction import compact, rebuild_indexes
from lodestream.storage.lease import Lease
from lodestream.storage.maintenance import begin_upkeep, measure_store
from lodestream.storage.reader import open_tables
from lodestream.storage.snapshot import SnapshotRecord
from lodestream.storage.store import FeatureStore
from lodestream.storage.table import Table
from lodestream.storage.version_upkeep import clear_table, purge_versions
from lodestream.storage.version_writer import describe_kept


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgePlan:
    """What a purge would remove and what is lost by it.

    ``doc_ids``          the documents
    ``num_rows``         their rows in the published snapshot, by table
    ``held_by``          the snapshots that can be opened and hold one of them
    ``lost_sequences``   the snapshots that can no longer be opened afterwards
    ``lost_run``         the unfinished run whose staged work is given up, if there is one
    """

    doc_ids: tuple[str, ...]
    num_rows: dict[str, int]
    held_by: tuple[int, ...]
    lost_sequences: tuple[int, ...]
    lost_run: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Purge:
    """What a purge did: the plan, the snapshot that is published now, and the store's bytes before and after."""

    plan: PurgePlan
    sequence: int
    bytes_before: int
    bytes_after: int

    def as_dict(self) -> dict[str, Any]:
        """The values as JSON."""
        return {**asdict(self), "freed_bytes": self.bytes_before - self.bytes_after}


def plan_purge(store: FeatureStore, doc_ids: Sequence[str]) -> PurgePlan:
    """Find out what a purge of these documents would do; changes nothing.

    Raises:
        NotFoundError: no snapshot and no unfinished run has a document of one of these names.
        StoreNotFound: nothing is published yet.
    """
    pointer = store.pointer()
    if not pointer.history:
        raise StoreNotFound(f"nothing is published at {store.location} yet", "lodestream run")
    wanted = pa.array(sorted(set(doc_ids)), pa.string())
    found: set[str] = set()
    held_by: list[int] = []
    for record in pointer.history:
        held = _find_held(store, record, wanted)
        found |= held
        held_by += [record.sequence] if held else []
    if pointer.staged is not None:
        found |= _find_held(store, replace(pointer.history[-1], tables=pointer.staged.tables), wanted)
    for kept in pointer.versions:
        found |= _find_held(store, describe_kept(pointer, kept), wanted)
    missing = sorted(set(doc_ids) - found)
    if missing:
        raise NotFoundError(
            f"no snapshot holds {', '.join(missing)}",
            "give the names as lodestream search prints them",
        )
    return PurgePlan(
        doc_ids=tuple(wanted.to_pylist()),
        num_rows={name: table.count(pc.field("doc_id").isin(wanted)) for name, table in store.open_tables().items()},
        held_by=tuple(held_by),
        lost_sequences=tuple(record.sequence for record in pointer.history),
        lost_run=pointer.staged.run_id if pointer.staged else None,
    )


def purge_documents(store: FeatureStore, plan: PurgePlan, *, lease: Lease, run_id: str) -> Purge:
    """Remove the documents of ``plan``.

    Once it returns, no file of the store holds their text, features or names, but for the run reports in the pointer,
    which name documents that failed.

    Raises:
        LeaseLost, FencedError, CommitConflict: another writer took over; what is published stays as it was.
    """
    _, bytes_before = measure_store(store)
    # First, so that a purge which is killed still finds the documents when it is asked for again.
    purge_versions(store, plan.doc_ids, lease=lease, run_id=run_id)
    pointer = store.pointer()
    if pointer.staged is not None:
        begin_upkeep(store, pointer, run_id, lease).abandon()
        pointer = store.pointer()
    transaction = begin_upkeep(store, pointer, run_id, lease)
    transaction.remove_documents(plan.doc_ids)
    snapshot = transaction.publish_rewritten(_rewrite_fully, forget_earlier=True)
    for table in store.open_tables().values():
        clear_table(table)
    _, bytes_after = measure_store(store)
    return Purge(plan=plan, sequence=snapshot.sequence, bytes_before=bytes_before, bytes_after=bytes_after)


def _rewrite_fully(name: str, table: Table) -> Table:
    return rebuild_indexes(compact(table))


def _find_held(store: FeatureStore, held: SnapshotRecord, wanted: pa.Array) -> set[str]:
    found: set[str] = set()
    for table in open_tables(store.location, held.dim, held.tables, slot=held.slot).values():
        found |= set(table.read(["doc_id"], where=pc.field("doc_id").isin(wanted))["doc_id"].to_pylist())
    return found
