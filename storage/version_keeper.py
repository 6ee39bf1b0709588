"""Which feature versions a store keeps: making the tables of one, dropping one, and removing what was dropped."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from lodestream.errors import ConfigError, NotFoundError
from lodestream.schema import TABLES
from lodestream.storage import steps
from lodestream.storage.durability import sync_new_files
from lodestream.storage.failures import explain_errors
from lodestream.storage.lease import Lease
from lodestream.storage.location import Location
from lodestream.storage.reader import locate_table
from lodestream.storage.snapshot import PointerRecord, open_register, read_pointer
from lodestream.storage.table import Table
from lodestream.storage.version import (
    VERSIONED_TABLES,
    DroppedSlot,
    KeptVersion,
    check_name,
    make_slot,
    read_slot,
)
from lodestream.storage.writer import Writer


class VersionKeeper(Writer):
    """Changes which versions there are; writes no row. Begins like every writer: the pointer's epoch goes up."""

    def __init__(self, location: Location, *, lease: Lease) -> None:
        found = read_pointer(location)
        super().__init__(location, open_register(location), found, lease=lease, written=(), slot=found[0].slot)
        self._claim({})

    @property
    def pointer(self) -> PointerRecord:
        """The pointer as this writer knows it."""
        return self._pointer

    def add(self, name: str, *, dim: int, feature_version: str, recipe: Mapping[str, Any], model: str) -> KeptVersion:
        """Make the empty tables of a version.

        Raises:
            ConfigError: there is a version of this name, or it cannot be a name.
            StoreUnwritable: no rights or no room.
            FencedError, CommitConflict: another writer took over.
        """
        self._require_open()
        if check_name(name) in (self._pointer.version, *(kept.name for kept in self._pointer.versions)):
            raise ConfigError(f"there is a feature version {name} already", "give it another name")
        slot = make_slot()
        places = {table: locate_table(self._location, table, slot) for table in VERSIONED_TABLES}
        tables = {table: Table.create(place, TABLES[table].make_schema(dim)) for table, place in places.items()}
        if self._location.is_local:
            for table in tables.values():
                sync_new_files(table.path, frozenset())
        steps.reach("version.created")
        kept = KeptVersion(
            name=name,
            slot=slot,
            dim=dim,
            tables={table: made.version for table, made in tables.items()},
            feature_version=feature_version,
            recipe=dict(recipe),
            created_at=datetime.now(UTC),
            model=model,
        )
        self._swing(versions=(*self._pointer.versions, kept))
        steps.reach("version.added")
        return kept

    def drop(self, name: str) -> None:
        """Give a version up, with the snapshots in which it was served. Its files go an hour later, see
        ``remove_dropped``.

        Raises:
            NotFoundError: there is no such version beside the one that is served.
            FencedError, CommitConflict: another writer took over.
        """
        self._require_open()
        kept = self._pointer.find_version(name)
        self._swing(
            versions=tuple(other for other in self._pointer.versions if other.name != name),
            history=tuple(record for record in self._pointer.history if record.slot != kept.slot),
            former="" if self._pointer.former == name else self._pointer.former,
            dropped=(*self._pointer.dropped, DroppedSlot(slot=kept.slot, dropped_at=datetime.now(UTC))),
        )
        steps.reach("version.dropped")

    def remove_dropped(self, *, min_age: timedelta) -> list[str]:
        """Remove the files of versions that were dropped ``min_age`` ago or earlier; whoever reads them still fails.

        Returns:
            Their slots.
        """
        self._require_open()
        horizon = datetime.now(UTC) - min_age
        old = [item.slot for item in self._pointer.dropped if item.dropped_at <= horizon]
        for slot in old:
            self._require_newest()
            _remove_tables(self._location, slot)
            steps.reach("version.removed")
        if old:
            self._swing(dropped=tuple(item for item in self._pointer.dropped if item.slot not in old))
        return old

    def remove_strays(self, *, min_age: timedelta) -> list[str]:
        """Remove tables that no version has: of one that was killed before the pointer named it.

        Returns:
            Their slots.
        """
        self._require_open()
        horizon = datetime.now(UTC) - min_age
        removed = []
        for slot in list_slots(self._location) - self._pointer.named_slots():
            places = [locate_table(self._location, table, slot) for table in VERSIONED_TABLES]
            if all(item.modified_at <= horizon for place in places for item in place.list_objects()):
                self._require_newest()
                _remove_tables(self._location, slot)
                removed.append(slot)
        return removed


def list_slots(location: Location) -> set[str]:
    """Return the slots whose tables have files, but for the first version's."""
    with explain_errors(location):
        found = {read_slot(name) for name in location.list_folders()}
    return {slot for slot in found if slot}


def require_other(pointer: PointerRecord, name: str) -> KeptVersion:
    """Return a version that may be dropped or served in the place of the one that is.

    Raises:
        ConfigError: it is the one that is served.
        NotFoundError: there is no such version.
    """
    if name == pointer.version:
        raise ConfigError(f"the feature version {name} is the one that is served", "lodestream versions list")
    return pointer.find_version(name)


def find_former(pointer: PointerRecord) -> KeptVersion:
    """Return the version that was served before the one that is.

    Raises:
        NotFoundError: there is none, or it was dropped.
    """
    if not pointer.former:
        raise NotFoundError("no other feature version was served before", "lodestream versions list")
    return pointer.find_version(pointer.former)


def _remove_tables(location: Location, slot: str) -> None:
    # The first version's slot is empty: its folders have the plain names.
    for table in VERSIONED_TABLES:
        place = locate_table(location, table, slot)
        with explain_errors(place):
            place.delete_objects([item.name for item in place.list_objects()])
            if place.is_local:
                shutil.rmtree(place.path, ignore_errors=True)
