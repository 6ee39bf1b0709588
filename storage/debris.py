"""Files of a table that no version of it names: what a writer that was killed, or one at this moment, has written."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from lodestream.storage.failures import explain_errors
from lodestream.storage.location import StoredObject
from lodestream.storage.table import Table

_FOLDERS: Final = ("data", "_deletions", "_indices", "_transactions", "_versions")
_HINT: Final = "_versions/latest_version_hint.json"


def find_debris(table: Table) -> list[StoredObject]:
    """Return the files that no version names, oldest first.

    Raises:
        StoreCorrupt: the list of a version's files is torn.
    """
    with explain_errors(table.location):
        # Listed before the versions are read: a version committed in between names none of these.
        present = [item for item in table.location.list_objects() if item.name.split("/")[0] in _FOLDERS]
        named = {name for batch in table.dataset.tracked_files() for name in batch.column("path").to_pylist()}
    unnamed = [item for item in present if item.name not in named and item.name != _HINT]
    return sorted(unnamed, key=lambda item: item.modified_at)


def sweep_debris(table: Table, *, min_age: timedelta) -> list[StoredObject]:
    """Remove the files that no version names and that were last written ``min_age`` ago or earlier.

    Only for the writer that holds the lease: a version that another one is about to commit may name younger files.

    Returns:
        The files that were removed.
    """
    horizon = datetime.now(UTC) - min_age
    swept = [item for item in find_debris(table) if item.modified_at <= horizon]
    with explain_errors(table.location):
        table.location.delete_objects(item.name for item in swept)
    return swept


def total_bytes(files: Iterable[StoredObject]) -> int:
    """Return the size of some files together."""
    return sum(item.size_bytes for item in files)
