"""Upkeep, purge, verification and repair of the feature versions beside the one that is served."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from lodestream.errors import StoreError
from lodestream.schema import TABLES
from lodestream.storage.compaction import compact, rebuild_indexes
from lodestream.storage.debris import sweep_debris
from lodestream.storage.findings import Finding
from lodestream.storage.lease import Lease
from lodestream.storage.reader import locate_table
from lodestream.storage.snapshot import PointerRecord
from lodestream.storage.store import FeatureStore
from lodestream.storage.table import Table
from lodestream.storage.verify_content import check_content
from lodestream.storage.verify_files import check_debris, list_broken_parts
from lodestream.storage.version import VERSIONED_TABLES, KeptVersion
from lodestream.storage.version_keeper import list_slots
from lodestream.storage.writer import RETAINED_AGE, Writer


def has_dropped(pointer: PointerRecord, *, min_age: timedelta = RETAINED_AGE) -> bool:
    """Whether a version was dropped so long ago that its files can go."""
    return any(item.dropped_at <= datetime.now(UTC) - min_age for item in pointer.dropped)


def tend_versions(
    store: FeatureStore, merge: Callable[[Table], Table], *, sweep_after: timedelta, lease: Lease, run_id: str
) -> tuple[list[str], int]:
    """Merge files where that is due, remove old versions of tables and the tables of versions that were dropped.

    Args:
        store: the store.
        merge: merges the files of a table, or returns it as it is.
        sweep_after: age from which a file that no version names is taken for the leavings of a killed run.
        lease, run_id: of whoever does it.

    Returns:
        The folders of the tables whose files were merged, and how many leavings of killed runs were removed.

    Raises:
        LeaseLost, FencedError, CommitConflict: another writer took over.
    """
    merged: list[str] = []
    num_swept = 0
    for kept in store.pointer().versions:
        writer = store.begin_version(kept.name, lease=lease, run_id=run_id)
        before = {table.folder: table.version for table in writer.own_tables()}
        writer.rewrite(lambda _, table: merge(table))
        merged += [table.folder for table in writer.own_tables() if table.version != before[table.folder]]
        writer.finish(is_level=writer.is_level, max_unread=0)
        num_swept += sum(len(sweep_debris(table, min_age=sweep_after)) for table in writer.own_tables())
    remove_dropped(store, lease, min_age=RETAINED_AGE, stray_age=sweep_after)
    return merged, num_swept


def remove_dropped(store: FeatureStore, lease: Lease, *, min_age: timedelta, stray_age: timedelta) -> None:
    """Remove the tables of versions that were dropped ``min_age`` ago or earlier, and those that no version has."""
    pointer = store.pointer()
    if has_dropped(pointer, min_age=min_age) or list_strays(store, pointer):
        keeper = store.open_keeper(lease)
        keeper.remove_dropped(min_age=min_age)
        keeper.remove_strays(min_age=stray_age)


def purge_versions(store: FeatureStore, doc_ids: Sequence[str], *, lease: Lease, run_id: str) -> None:
    """Remove documents from every version beside the one that is served, and every version that was dropped.

    Raises:
        StoreError: something of them is left.
        LeaseLost, FencedError, CommitConflict: another writer took over.
    """
    for kept in store.pointer().versions:
        writer = store.begin_version(kept.name, lease=lease, run_id=run_id)
        writer.remove_documents(doc_ids)
        writer.rewrite(lambda _, table: rebuild_indexes(compact(table)))
        writer.finish(is_level=False, max_unread=0, min_age=timedelta(0))
        for table in writer.own_tables():
            clear_table(table)
    remove_dropped(store, lease, min_age=timedelta(0), stray_age=timedelta(0))


def clear_table(table: Table) -> None:
    """Remove whatever a table has besides this version of it. The lease is held, and every older epoch is fenced off:
    nobody can still publish what these files hold.

    Raises:
        StoreError: something could not be removed.
    """
    sweep_debris(table, min_age=timedelta(0))
    if left := set(table.list_versions()) - {table.version}:
        raise StoreError(
            f"the documents are deleted, but versions {sorted(left)} of {table.location} could not be removed",
            "look at the rights on the store's files, and run lodestream gc in an hour",
        )


def check_versions(
    store: FeatureStore, pointer: PointerRecord, *, deep: bool, sweep_after: timedelta
) -> Iterator[Finding]:
    """Yield what is wrong with the versions beside the one that is served, and the tables that no version has."""
    for kept in pointer.versions:
        try:
            tables = _open_own(store, kept)
        except StoreError as error:
            what = (
                f"feature version {kept.name} cannot be opened: {error.message}; lodestream versions drop {kept.name}"
            )
            yield Finding(kind="version-gone", what=what, place=kept.name, mend="none", version=kept.name)
            continue
        for finding in check_content(tables, deep=deep):
            yield replace(finding, what=f"feature version {kept.name}: {finding.what}", version=kept.name)
        for table in tables.values():
            yield from check_debris(table, sweep_after=sweep_after)
    for slot in list_strays(store, pointer):
        what = f"the tables in slot {slot} belong to no feature version: lodestream gc removes them"
        yield Finding(kind="debris", what=what, place=slot, mend="none", is_note=True)


def repair_versions(
    store: FeatureStore, findings: Sequence[Finding], *, deep: bool, lease: Lease, run_id: str
) -> list[str]:
    """Take damage out of the versions that have findings; the next look at a version computes what is missing.

    Returns:
        The versions that were changed.
    """
    damaged = {finding.version for finding in findings if finding.mend not in ("none", "sweep")}
    changed = [kept for kept in store.pointer().versions if kept.name in damaged]
    for kept in changed:
        writer = store.begin_version(kept.name, lease=lease, run_id=run_id)
        own = tuple(finding for finding in findings if finding.version == kept.name)
        mend_files(writer, own)
        # Looked at again: what was in a file that is left out is missing only now.
        tables = {name: writer.base.open_table(name) for name in VERSIONED_TABLES}
        wrong = {
            doc_id
            for finding in check_content(tables, deep=deep)
            if finding.mend in ("recompute", "drop")
            for doc_id in finding.doc_ids
        }
        if wrong:
            writer.remove_documents(sorted(wrong))
        writer.finish(is_level=False)
    return [kept.name for kept in changed]


def list_strays(store: FeatureStore, pointer: PointerRecord) -> list[str]:
    """Return the slots of tables that no feature version has."""
    return sorted(list_slots(store.location) - pointer.named_slots())


def mend_files(writer: Writer, findings: tuple[Finding, ...]) -> bool:
    """Leave out the broken files among what was found, and make indexes anew where a file or an index is broken.

    Returns:
        Whether the indexes were made anew.
    """
    writer.rewrite(lambda _, table: _drop_broken(table, findings))
    wants_indexes = any(finding.mend in ("rebuild indexes", "drop file") for finding in findings)
    if wants_indexes:
        writer.rewrite(lambda _, table: rebuild_indexes(table))
    return wants_indexes


def _drop_broken(table: Table, findings: tuple[Finding, ...]) -> Table:
    broken = list_broken_parts(table, findings)
    return table.drop_fragments(broken) if broken else table


def _open_own(store: FeatureStore, kept: KeptVersion) -> dict[str, Table]:
    return {
        name: Table.open(
            locate_table(store.location, name, kept.slot),
            TABLES[name].make_schema(kept.dim),
            version=kept.tables[name],
        )
        for name in VERSIONED_TABLES
    }
