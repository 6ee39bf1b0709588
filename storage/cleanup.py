"""Removing the versions of tables that nobody reads."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from lodestream.storage.registers.protocol import CasRegister
from lodestream.storage.snapshot import PointerRecord
from lodestream.storage.table import Table


def remove_unread(
    tables: Mapping[str, Table], register: CasRegister, *, epoch: int, max_unread: int, min_age: timedelta
) -> None:
    """Remove versions that are not named by the pointer, and too old to be open still.

    Args:
        tables: the tables as they were just published.
        register: holds the pointer.
        epoch: of the writer; nothing is removed once the pointer has another one.
        max_unread: so many versions of a table may stay.
        min_age: younger versions stay in any case.
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
        old = {version for version, made_at in listed[name].items() if made_at <= horizon}
        unread = old - pointer.named_versions(name) - {table.version}
        if len(unread) > max_unread:
            table.remove_versions(unread)
