"""Upkeep of a store: what keeps look-ups fast, files few and the disk small, however many refreshes there were.

Indexes are brought up to date by every publish. The rest has a schedule of its own, by counts: once the files are too
many or hold too many deleted rows, they are merged, and the result is published like any other change. The snapshots
before stay readable in the old files until nobody keeps them any more.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

from lodestream.schema import TABLES
from lodestream.storage.compaction import Clutter, compact, measure_clutter
from lodestream.storage.debris import sweep_debris, total_bytes
from lodestream.storage.lease import Lease
from lodestream.storage.reader import locate_table
from lodestream.storage.snapshot import PointerRecord, Retention
from lodestream.storage.store import FeatureStore
from lodestream.storage.table import Table
from lodestream.storage.transaction import Transaction
from lodestream.storage.version_upkeep import has_dropped, tend_versions


@dataclass(frozen=True, slots=True, kw_only=True)
class UpkeepOptions:
    """When upkeep is due.

    ``max_small_files``    files of a table that could be merged
    ``max_deleted_share``  share of deleted rows in a file
    ``min_deleted_rows``   fewer deleted rows than this are no reason to rewrite a table's files
    ``retention``          which snapshots are kept from now on; None leaves that as it is
    ``sweep_after``        age from which a file that no version names is taken for the leavings of a killed run
    """

    max_small_files: int = 32
    max_deleted_share: float = 0.1
    min_deleted_rows: int = 10_000
    sweep_after: timedelta = timedelta(days=1)
    retention: Retention | None = None

    def is_due(self, clutter: Clutter) -> bool:
        """Whether the files of a table should be merged."""
        has_holes = clutter.num_deleted_rows >= self.min_deleted_rows
        return clutter.num_small_files > self.max_small_files or (
            has_holes and clutter.deleted_share > self.max_deleted_share
        )

    def merge(self, table: Table) -> Table:
        """Merge the files of a table where that is due."""
        if not self.is_due(measure_clutter(table)):
            return table
        return compact(table, max_deleted_share=self.max_deleted_share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """What upkeep did.

    ``compacted``    tables whose files were merged; those of a version beside the served one by their folder
    ``sequence``     the snapshot that is published now
    ``dropped``      snapshots that can no longer be opened
    ``num_swept``    files of killed runs that were removed
    ``num_files_before, num_files, bytes_before, bytes_after``  of the tables; merged files are kept beside the old
                     ones for as long as an older snapshot is, so that it may be larger afterwards
    ``postponed``    why nothing was merged; "" otherwise
    """

    compacted: tuple[str, ...]
    sequence: int
    dropped: tuple[int, ...]
    num_swept: int
    num_files_before: int
    num_files: int
    bytes_before: int
    bytes_after: int
    postponed: str = ""

    @property
    def freed_bytes(self) -> int:
        """By how much the store became smaller."""
        return self.bytes_before - self.bytes_after

    def as_dict(self) -> dict[str, Any]:
        """The values as JSON."""
        return {**asdict(self), "freed_bytes": self.freed_bytes}


def keep_up(store: FeatureStore, options: UpkeepOptions, *, lease: Lease, run_id: str) -> Upkeep | None:
    """Do what is due, and no more: the end of every run, under its lease.

    Returns:
        What was done; None where nothing was due.

    Raises:
        LeaseLost, FencedError, CommitConflict: another writer took over; what is published stays as it was.
    """
    pointer = store.pointer()
    if not pointer.sequence or pointer.staged is not None:
        return None
    if not has_dropped(pointer) and not list_due(store, options):
        return None
    return tend(store, options, lease=lease, run_id=run_id)


def collect_garbage(store: FeatureStore, options: UpkeepOptions, *, lease: Lease, run_id: str) -> Upkeep:
    """Do all that can be done: merge whatever can be merged, remove what nobody keeps.

    Raises:
        LeaseLost, FencedError, CommitConflict: another writer took over; what is published stays as it was.
    """
    thorough = replace(options, max_small_files=1, max_deleted_share=0.0, min_deleted_rows=1)
    return tend(store, thorough, lease=lease, run_id=run_id)


def tend(store: FeatureStore, options: UpkeepOptions, *, lease: Lease, run_id: str) -> Upkeep:
    """Merge the files of the tables where that is due, remove old versions, and sweep.

    Raises:
        LeaseLost, FencedError, CommitConflict: another writer took over; what is published stays as it was.
    """
    num_files_before, bytes_before = measure_store(store)
    pointer = store.pointer()
    due: tuple[str, ...] = ()
    if pointer.sequence and pointer.staged is None:
        due = list_due(store, options)
        transaction = begin_upkeep(store, pointer, run_id, lease, options.retention)
        transaction.publish_rewritten(lambda name, table: options.merge(table) if name in due else table)
    num_swept = sum(len(sweep_debris(table, min_age=options.sweep_after)) for table in store.open_tables().values())
    merged, num_swept_beside = tend_versions(
        store, options.merge, sweep_after=options.sweep_after, lease=lease, run_id=run_id
    )
    num_files, bytes_after = measure_store(store)
    after = store.pointer()
    kept = {record.sequence for record in after.history}
    return Upkeep(
        compacted=(*due, *merged),
        sequence=after.sequence,
        dropped=tuple(record.sequence for record in pointer.history if record.sequence not in kept),
        num_swept=num_swept + num_swept_beside,
        num_files_before=num_files_before,
        num_files=num_files,
        bytes_before=bytes_before,
        bytes_after=bytes_after,
        # Staged rows are not published, and a snapshot of merged files would have to leave them out.
        postponed=f"run {pointer.staged.run_id} is unfinished" if pointer.staged else "",
    )


def list_due(store: FeatureStore, options: UpkeepOptions) -> tuple[str, ...]:
    """Return the published tables whose files should be merged."""
    return tuple(name for name, table in store.open_tables().items() if options.is_due(measure_clutter(table)))


def begin_upkeep(
    store: FeatureStore, pointer: PointerRecord, run_id: str, lease: Lease, retention: Retention | None = None
) -> Transaction:
    """Begin a transaction that keeps the feature version which is published."""
    return store.begin(
        lease=lease,
        run_id=run_id,
        kind="upkeep",
        feature_version=pointer.feature_version,
        recipe=dict(pointer.recipe),
        retention=retention,
    )


def measure_store(store: FeatureStore) -> tuple[int, int]:
    """Return the number of files of a store's tables, those of all its feature versions, and their bytes."""
    places = {locate_table(store.location, name, slot) for slot in store.pointer().named_slots() for name in TABLES}
    files = [item for place in places for item in place.list_objects()]
    return len(files), total_bytes(files)
