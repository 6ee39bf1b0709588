"""Verification of a store: the pointer against the tables, the tables against the files, the rows against each other.

``deep`` reads every byte: it compares the checksums and looks every indexed value up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from lodestream.errors import StoreCorrupt, StoreError
from lodestream.schema import TABLES
from lodestream.storage.findings import Finding, Verification
from lodestream.storage.location import Location, Place
from lodestream.storage.reader import open_tables
from lodestream.storage.snapshot import PointerRecord
from lodestream.storage.store import FeatureStore
from lodestream.storage.table import Table
from lodestream.storage.verify_files import check_debris, check_table_files, find_unreadable, is_read_failure, say_why
from lodestream.storage.verify_rows import check_indexes, check_rows

if TYPE_CHECKING:
    from lance import LanceFragment

BACKUP = "restore the store from a backup, or move it away and run: lodestream run"


def verify_store(place: Place, *, deep: bool, sweep_after: timedelta) -> Verification:
    """Look at the published snapshot of a store. Changes nothing, and may be called beside a run.

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
    for name, table in tables.items():
        findings += check_debris(name, table, sweep_after=sweep_after)
    return Verification(
        sequence=pointer.sequence,
        is_deep=deep,
        num_rows={name: table.count() for name, table in tables.items()},
        num_files=sum(1 for table in tables.values() for _ in table.location.list_objects()),
        findings=tuple(findings),
    )


def check_content(tables: dict[str, Table], *, deep: bool) -> list[Finding]:
    """Return what is wrong with the files and rows of some tables that belong together."""
    findings: list[Finding] = []
    sound: dict[str, Sequence[LanceFragment]] = {}
    for name, table in tables.items():
        findings += check_table_files(name, table)
        broken = {finding.place for finding in findings}
        torn, sound[name] = find_unreadable(name, table, broken=broken, deep=deep)
        findings += torn
    findings += check_rows(tables, sound, deep=deep)
    broken_tables = {finding.place.partition(".lance")[0] for finding in findings if finding.mend == "drop file"}
    if deep:
        for name in tables.keys() - broken_tables:
            findings += check_indexes(name, tables[name])
    return findings


def _open_published(location: Location, pointer: PointerRecord) -> tuple[dict[str, Table], list[Finding]]:
    try:
        return open_tables(location, pointer.dim, pointer.tables), []
    except BaseException as error:
        if not is_read_failure(error):
            raise
        what = f"the published snapshot {pointer.sequence} cannot be opened: {say_why(error)}; {BACKUP}"
        return {}, [Finding(kind="version-gone", what=what, place=str(location), mend="none")]


def _check_versions(location: Location, pointer: PointerRecord) -> Iterator[Finding]:
    for record in pointer.history[:-1]:
        for name, version in record.tables.items():
            try:
                Table.open(location.child(f"{name}.lance"), TABLES[name].make_schema(pointer.dim), version=version)
            except StoreError as error:
                yield Finding(
                    kind="old-snapshot-gone",
                    what=f"snapshot {record.sequence} cannot be opened any more: {error.message}",
                    place=f"{name}.lance",
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
