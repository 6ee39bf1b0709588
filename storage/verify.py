"""Verification of a store: the pointer against the tables, the tables against the files, the rows against each other.

``deep`` reads every byte: it compares the checksums and looks every indexed value up.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from lodestream.errors import StoreCorrupt, StoreError
from lodestream.schema import TABLES
from lodestream.storage.findings import Finding, Verification
from lodestream.storage.location import Location, Place
from lodestream.storage.reader import locate_table, open_tables
from lodestream.storage.snapshot import PointerRecord
from lodestream.storage.store import FeatureStore
from lodestream.storage.table import Table
from lodestream.storage.verify_content import check_content
from lodestream.storage.verify_files import check_debris, is_read_failure, say_why
from lodestream.storage.version import name_folder
from lodestream.storage.version_upkeep import check_versions

BACKUP = "restore the store from a backup, or move it away and run: lodestream run"


def verify_store(place: Place, *, deep: bool, sweep_after: timedelta) -> Verification:
    """Look at the published snapshot of a store, and at the feature versions beside it. Changes nothing, and may be
    called beside a run.

    Args:
        place: the store.
        deep: read everything and compare checksums.
        sweep_after: files that belong to no version are more than a note from this age.

    Raises:
        StoreNotFound: there is no store.
        StoreSchemaMismatch: another version of lodestream wrote it.
    """
    location = Location.parse(place)
    try:
        store = FeatureStore.open(location)
        pointer = store.pointer()
    except StoreCorrupt as error:
        torn = Finding(kind="pointer-torn", what=f"{error.message}; {error.hint}", place="pointer", mend="none")
        return Verification(sequence=0, is_deep=deep, num_rows={}, num_files=0, findings=(torn,))
    findings = [*_check_versions(location, pointer), *_note_staged(pointer)]
    tables, failures = _open_published(location, pointer)
    findings += failures
    if failures:
        return Verification(sequence=0, is_deep=deep, num_rows={}, num_files=0, findings=tuple(findings))
    findings += check_content(tables, deep=deep)
    for table in tables.values():
        findings += check_debris(table, sweep_after=sweep_after)
    findings += check_versions(store, pointer, deep=deep, sweep_after=sweep_after)
    return Verification(
        sequence=pointer.sequence,
        is_deep=deep,
        num_rows={name: table.count() for name, table in tables.items()},
        num_files=sum(1 for table in tables.values() for _ in table.location.list_objects()),
        findings=tuple(findings),
    )


def _open_published(location: Location, pointer: PointerRecord) -> tuple[dict[str, Table], list[Finding]]:
    try:
        return open_tables(location, pointer.dim, pointer.tables, slot=pointer.slot), []
    except BaseException as error:
        if not is_read_failure(error):
            raise
        what = f"the published snapshot {pointer.sequence} cannot be opened: {say_why(error)}; {BACKUP}"
        return {}, [Finding(kind="version-gone", what=what, place=str(location), mend="none")]


def _check_versions(location: Location, pointer: PointerRecord) -> Iterator[Finding]:
    for record in pointer.history[:-1]:
        for name, version in record.tables.items():
            place = locate_table(location, name, record.slot)
            try:
                Table.open(place, TABLES[name].make_schema(record.dim), version=version)
            except StoreError as error:
                yield Finding(
                    kind="old-snapshot-gone",
                    what=f"snapshot {record.sequence} cannot be opened any more: {error.message}",
                    place=name_folder(name, record.slot),
                    mend="none",
                    is_note=True,
                )
                break


def _note_staged(pointer: PointerRecord) -> Iterator[Finding]:
    if pointer.staged is not None:
        yield Finding(
            kind="unfinished-run",
            what=f"run {pointer.staged.run_id} has staged {pointer.staged.num_chunks} chunks; lodestream run continues",
            place="pointer",
            mend="none",
            is_note=True,
        )
