"""One Lance table at one version, and the few things the store does with it.

Lance lets several writers commit at once and merges what they did; it never refuses. So every change here is made on
top of a given version and then checked to be the very next one; whatever else had come in between (the leavings of a
killed or overtaken writer) is rolled over by restoring the version that was asked for.

Lance is imported where the first table is read or changed: a run that finds nothing to do may never come there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from lodestream.errors import CommitConflict, StoreCorrupt, StoreSchemaMismatch
from lodestream.storage import steps
from lodestream.storage.columns import conform_batch, conforms
from lodestream.storage.dataset import (
    FILE_FORMAT,
    keeps_content,
    open_dataset,
    read_operation,
    read_version,
    require_manifest,
    restores,
    write_empty,
)
from lodestream.storage.failures import explain_errors
from lodestream.storage.location import Location, Place

if TYPE_CHECKING:
    from lance import LanceDataset, LanceFragment

MAX_INDEX_SEGMENTS: Final = 4
"""An index of more parts is merged into one: each part costs every look-up its share, each merge is written anew."""
MIN_SEGMENTED_ROWS: Final = 1 << 16
"""The indexes of tables with fewer rows are merged every time."""

_MAX_ATTEMPTS: Final = 3
_IO_BUFFER_BYTES: Final = 64 << 20  # Lance's own default is 2 GiB a scan


class Table:
    """An immutable version of a table. Every change returns the table at its new version. Safe for many threads."""

    def __init__(self, location: Location, schema: pa.Schema, version: int) -> None:
        """Name a version; it is opened on first use. See ``open`` and ``defer``."""
        self.location = location
        self.schema = schema
        self.version = version
        """The version that this object reads."""

    @classmethod
    def create(cls, place: Place, schema: pa.Schema) -> Table:
        """Create an empty table; one that is already there must be empty and of this schema.

        Raises:
            StoreCorrupt: there is a table with a past already.
            StoreUnwritable: no rights, no room, or a file stands there.
        """
        location = Location.parse(place)
        with explain_errors(location):
            if location.child("_versions").is_empty():
                try:
                    return cls._wrap(location, schema, write_empty(location, schema))
                except OSError as error:  # somebody else creates it at this moment
                    if not any(mark in str(error) for mark in ("already exists", "concurrent transaction")):
                        raise
            table = cls.open(location, schema, version=1)
            # Several who create it at once make several versions, all of them empty.
            if any(cls.open(location, schema, version=made).count() for made in range(table.head_version, 0, -1)):
                raise StoreCorrupt(
                    f"{location} holds data, but the pointer that names its published version is gone",
                    "restore the store's pointer from a backup, or move the store away",
                )
            return table

    @classmethod
    def open(cls, place: Place, schema: pa.Schema, *, version: int) -> Table:
        """Open one version.

        Raises:
            StoreCorrupt: the version or the whole table is gone.
            StoreSchemaMismatch: it has other columns.
        """
        table = cls(Location.parse(place), schema, version)
        _ = table._dataset
        return table

    @classmethod
    def defer(cls, place: Place, schema: pa.Schema, *, version: int) -> Table:
        """Name one version that is opened on first use; what else ``open`` raises is raised there.

        In an object store it is opened at once: nothing cheaper says that it is there.

        Raises:
            StoreCorrupt: the version or the whole table is gone.
        """
        location = Location.parse(place)
        if not location.is_local:
            return cls.open(location, schema, version=version)
        require_manifest(location, version)
        return cls(location, schema, version)

    @classmethod
    def _wrap(cls, location: Location, schema: pa.Schema, dataset: LanceDataset) -> Table:
        table = cls(location, schema, int(dataset.version))
        table._dataset = dataset
        return table

    @cached_property
    def _dataset(self) -> LanceDataset:
        dataset = open_dataset(self.location, self.version)
        if not conforms(dataset.schema, self.schema):
            raise StoreSchemaMismatch(
                f"{self.location} has other columns than this version of lodestream writes",
                "set store.uri to a new folder and run: lodestream run",
            )
        return dataset

    @property
    def path(self) -> Path:
        """The table's folder, where it lies on a local disk."""
        return self.location.path

    @property
    def folder(self) -> str:
        """The name of the table's folder in the store."""
        return self.location.uri.rpartition("/")[2]

    @property
    def head_version(self) -> int:
        """The newest version on the disk, whoever made it."""
        with explain_errors(self.location):
            return int(self._dataset.latest_version)

    def fragments(self) -> list[LanceFragment]:
        """Return the data files (each with its own list of deleted rows), oldest rows first."""
        with explain_errors(self.location):
            return list(self._dataset.get_fragments())

    @property
    def dataset(self) -> LanceDataset:
        """What Lance itself knows of this version; for upkeep and verification."""
        return self._dataset

    def scan(
        self, columns: Sequence[str], *, where: Any = None, batch_rows: int = 8192, with_index: bool = True
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows, in no promised order, as batches of the table's own types.

        Args:
            columns: names; what is not named is not read.
            where: an Arrow expression.
            batch_rows: rows a batch at most.
            with_index: False reads every row instead of asking the indexes.
        """
        schema = pa.schema([self.schema.field(name) for name in columns])
        with explain_errors(self.location):
            scanner = self._dataset.scanner(
                columns=list(columns),
                filter=where,
                batch_size=batch_rows,
                batch_readahead=4,
                io_buffer_size=_IO_BUFFER_BYTES,
                use_scalar_index=with_index,
            )
            for batch in scanner.to_batches():
                if batch.num_rows:
                    yield conform_batch(batch, schema)

    def read(self, columns: Sequence[str], *, where: Any = None, with_index: bool = True) -> pa.Table:
        """Return the rows that ``scan`` yields as one table."""
        schema = pa.schema([self.schema.field(name) for name in columns])
        return pa.Table.from_batches(self.scan(columns, where=where, with_index=with_index), schema=schema)

    def count(self, where: Any = None) -> int:
        """Return the number of rows."""
        with explain_errors(self.location):
            return int(self._dataset.count_rows(filter=where))

    def replace_documents(self, removed_doc_ids: pa.Array, rows: pa.Table) -> Table:
        """Remove all rows of some documents and add ``rows``, as one new version.

        Args:
            removed_doc_ids: string [K]; documents without rows are no error.
            rows: table of this schema.

        Returns:
            The table at the new version, or as it is if nothing would change.

        Raises:
            CommitConflict: others kept committing to the table.
        """
        for _ in range(_MAX_ATTEMPTS):
            with explain_errors(self.location):
                base = self._bring_to_head()
                operation = base._plan_replacement(removed_doc_ids, rows)
                if operation is None:
                    return self
                steps.reach("chunk.files_written")
                if committed := base._commit_next(operation):
                    return committed
        raise _busy(self.location)

    def tidy(self, indexed_columns: Sequence[str]) -> Table:
        """Bring the indexes up to date; the rows stay the same.

        Raises:
            CommitConflict: others kept committing to the table.
        """

        def update_indexes(dataset: LanceDataset) -> None:
            indexes = dataset.describe_indices()
            for name in set(indexed_columns) - {name for index in indexes for name in index.field_names}:
                dataset.create_scalar_index(name, "BTREE")
            if indexes:
                num_segments = max(len(index.segments) for index in indexes)
                is_cheap = num_segments >= MAX_INDEX_SEGMENTS or dataset.count_rows() < MIN_SEGMENTED_ROWS
                dataset.optimize.optimize_indices(num_indices_to_merge=num_segments if is_cheap else 0)
            steps.reach("publish.indexed")

        return self.rewrite(update_indexes)

    def rewrite(self, change: Callable[[LanceDataset], None]) -> Table:
        """Commit a change of how the rows are stored; the rows stay the same.

        Args:
            change: is given the dataset at this version, and commits to it. Called again if others commit meanwhile.

        Raises:
            CommitConflict: others kept committing to the table.
        """
        for _ in range(_MAX_ATTEMPTS):
            with explain_errors(self.location):
                base = self._bring_to_head()
                change(open_dataset(self.location, base.version))
                rewritten = Table._wrap(self.location, self.schema, open_dataset(self.location, self.head_version))
                if rewritten._keeps_content_since(base.version):
                    return rewritten
        raise _busy(self.location)

    def add_columns(self, fields: Sequence[pa.Field]) -> Table:
        """Add columns at the end, null in every row, as one new version. No row is rewritten.

        Raises:
            CommitConflict: others kept committing to the table.
        """
        for _ in range(_MAX_ATTEMPTS):
            with explain_errors(self.location):
                base = self._bring_to_head()
                dataset = open_dataset(self.location, base.version)
                dataset.add_columns(pa.schema(fields))
                if dataset.version == base.version + 1:
                    return Table._wrap(self.location, pa.schema([*self.schema, *fields]), dataset)
        raise _busy(self.location)

    def list_versions(self) -> dict[int, datetime]:
        """Return all versions that can be opened, whoever made them, and when they were made."""
        with explain_errors(self.location):
            found = self.location.child("_versions").list_objects()
            return {number: item.modified_at for item in found if (number := read_version(item.name)) is not None}

    def remove_versions(self, versions: Collection[int]) -> int:
        """Remove versions, and the files that no other version has. The newest version stays in any case.

        Files that no version ever had (of a writer that was killed, or is still at work) stay as well.

        Returns:
            Bytes freed.
        """
        if not versions:
            return 0
        with explain_errors(self.location):
            for name, tag in self._dataset.tags.list().items():
                if tag["version"] in versions:  # made by hand, or by an early lodestream; Lance would keep the version
                    self._dataset.tags.delete(name)
            # Only these: Lance's own rules of age and number know nothing of what the pointer names.
            done: Any = self._dataset.cleanup_old_versions(
                versions=sorted(versions), error_if_tagged_old_versions=False
            )
        return int(done.bytes_removed)

    def drop_fragments(self, fragment_ids: Sequence[int]) -> Table:
        """Leave out data files with all their rows, as one new version; the files are not read.

        Raises:
            CommitConflict: others kept committing to the table.
        """
        import lance

        for _ in range(_MAX_ATTEMPTS):
            with explain_errors(self.location):
                base = self._bring_to_head()
                operation = lance.LanceOperation.Delete([], list(fragment_ids), "true")
                if committed := base._commit_next(operation):
                    return committed
        raise _busy(self.location)

    def _commit_next(self, operation: Any) -> Table | None:
        """Commit on top of this version; None if the new version is not the next one."""
        import lance

        # Without retries Lance still merges with what others committed since: hence the check.
        dataset = lance.LanceDataset.commit(
            self.location.uri,
            operation,
            read_version=self.version,
            max_retries=0,
            enable_stable_row_ids=True,
            storage_options=self.location.lance_options,
        )
        return Table._wrap(self.location, self.schema, dataset) if dataset.version == self.version + 1 else None

    def _plan_replacement(self, removed_doc_ids: pa.Array, rows: pa.Table) -> Any:
        import lance

        updated: Any = None
        if len(removed_doc_ids) and self.count():
            # A join on doc_id, and not a filter: no document's name ever becomes part of a query's text.
            merge = self._dataset.merge_insert("doc_id").when_matched_delete()
            transaction, stats = merge.execute_uncommitted(pa.table({"doc_id": removed_doc_ids.unique()}))
            updated = transaction.operation if stats["num_deleted_rows"] else None
        fragments: Any = []
        if rows.num_rows:
            fragments = lance.fragment.write_fragments(
                rows, self._dataset, mode="append", data_storage_version=FILE_FORMAT, enable_stable_row_ids=True
            )
        if updated is None:
            return lance.LanceOperation.Append(fragments) if fragments else None
        return lance.LanceOperation.Update(
            removed_fragment_ids=updated.removed_fragment_ids,
            updated_fragments=updated.updated_fragments,
            new_fragments=fragments,
            fields_for_preserving_frag_bitmap=updated.fields_for_preserving_frag_bitmap,
            update_mode=updated.update_mode,
        )

    def _bring_to_head(self) -> Table:
        for _ in range(_MAX_ATTEMPTS):
            if self.head_version == self.version:
                return self
            dataset: Any = open_dataset(self.location, self.version)
            dataset.restore()
            steps.reach("chunk.restored")
            operation = read_operation(dataset, dataset.version)
            is_mine = restores(operation, self.version)
            if is_mine and dataset.latest_version == dataset.version:
                return Table._wrap(self.location, self.schema, open_dataset(self.location, dataset.version))
        raise _busy(self.location)

    def _keeps_content_since(self, version: int) -> bool:
        for later in range(version + 1, self.version + 1):
            if not keeps_content(read_operation(self._dataset, later)):
                return False
        return True


def _busy(location: Location) -> CommitConflict:
    return CommitConflict(
        f"another process keeps writing to {location}", "wait for the other run to end, then run the same command again"
    )
