"""The Lance dataset behind a table: making and opening it, and what Lance says of its versions.

Lance is imported where the first table is opened: a run that finds nothing to do may never come there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from lodestream.errors import StoreCorrupt
from lodestream.storage.columns import compress_fields
from lodestream.storage.failures import explain_errors
from lodestream.storage.location import Location

if TYPE_CHECKING:
    from lance import LanceDataset

FILE_FORMAT: Final = "2.1"

_RESTORE: Final = "restore the store from a backup, or move it away and run: lodestream run"
_COUNTED_FROM: Final = 2**64 - 1
_CACHE_BYTES: Final = 256 << 20


def write_empty(location: Location, schema: pa.Schema) -> LanceDataset:
    """Create a table without rows."""
    import lance

    return lance.write_dataset(
        compress_fields(schema).empty_table(),
        location.uri,
        data_storage_version=FILE_FORMAT,
        enable_stable_row_ids=True,
        storage_options=location.lance_options,
    )


def open_dataset(location: Location, version: int) -> LanceDataset:
    """Open one version.

    Raises:
        StoreCorrupt: the version or the whole table is gone.
    """
    import lance

    if location.is_local:
        _require_folder(location)
    with explain_errors(location):
        return lance.dataset(
            location.uri,
            version=version,
            index_cache_size_bytes=_CACHE_BYTES,
            metadata_cache_size_bytes=_CACHE_BYTES,
            storage_options=location.lance_options,
        )


def _require_folder(location: Location) -> None:
    if not location.path.is_dir():
        raise StoreCorrupt(f"the table {location} is gone", _RESTORE)


def require_manifest(location: Location, version: int) -> None:
    """Look for a version on the local disk, without asking Lance.

    Raises:
        StoreCorrupt: the version or the whole table is gone.
    """
    _require_folder(location)
    if not (location.path / "_versions" / f"{_COUNTED_FROM - version:020}.manifest").is_file():
        raise StoreCorrupt(f"version {version} of the table {location} is gone", _RESTORE)


def read_version(name: str) -> int | None:
    """Return the version of a manifest's file name, which counts downward so that the newest is listed first."""
    stem, _, suffix = name.rpartition(".")
    return _COUNTED_FROM - int(stem) if suffix == "manifest" and stem.isdecimal() else None


def restores(operation: Any, version: int) -> bool:
    """Whether a version was made by restoring ``version``."""
    import lance

    return isinstance(operation, lance.LanceOperation.Restore) and operation.version == version


def keeps_content(operation: Any) -> bool:
    """Whether a version has the rows of the one before it."""
    from lance import LanceOperation

    # Lance names ReserveFragments, which compaction commits first, by the base class.
    is_nameless = type(operation) is LanceOperation.BaseOperation
    return is_nameless or isinstance(operation, LanceOperation.Rewrite | LanceOperation.CreateIndex)


def read_operation(dataset: LanceDataset, version: int) -> Any:
    """Return what made a version, as Lance names it; None where Lance does not know."""
    import lance

    try:
        transaction = dataset.read_transaction(version)
    except TypeError as error:
        # pylance 14 cannot show a compaction that carried indexes along; nothing else has such a part.
        if "RewrittenIndex" not in str(error):
            raise
        return lance.LanceOperation.Rewrite(groups=[], rewritten_indices=[])
    return None if transaction is None else transaction.operation
