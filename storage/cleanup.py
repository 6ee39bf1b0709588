"""Removing the versions of tables that nobody reads."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from lodestream.storage.registers.protocol import CasRegister
from lodestream.storage.snapshot import PointerRecord
from lodestream.storage.table import Table


def remove_unread(
    tables: Mapping[str, Table], register: CasRegister, *, slot: str, epoch: int, max_unread: int, min_age: timedelta
) -> None:
    """Remove versions that are not named by the pointer, and followed too long ago to be open still.

    Args:
        tables: the tables as they were just published.
        register: holds the pointer.
        slot: of the feature version whose tables they are.
        epoch: of the writer; nothing is removed once the pointer has another one.
        max_unread: so many versions of a table may stay.
        min_age: versions that were the newest ones until less than so long ago stay in any case.
    """
    # Listed first and looked up in the pointer afterwards: what a newer writer publishes while this one sleeps in
    # between is not in the list, and what it had published before is in the pointer.
    listed = {name: table.list_versions() for name, table in tables.items()}
    found = register.read()
    pointer = None if found is None else PointerRecord.from_json(found[0])
    if pointer is None or pointer.epoch != epoch:
        return
    horizon = datetime.now(UTC) - min_age
    for name, table in tables.items():
        old = _list_followed(listed[name], horizon) if min_age else listed[name].keys()
        unread = old - pointer.named_versions(name, slot) - {table.version}
        if len(unread) > max_unread:
            table.remove_versions(unread)


def _list_followed(made_at: Mapping[int, datetime], horizon: datetime) -> set[int]:
    """Return the versions whose follower was made by ``horizon``: however old it is, a version may have been opened
    until it had one."""
    return {version for version, follower in pairwise(sorted(made_at)) if made_at[follower] <= horizon}
