"""Merging the data files of a table, and dropping the deleted rows in them. The other rows stay the same.

Every refresh adds a small file and marks rows of older ones as deleted. Look-ups and scans pay for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lodestream.storage import steps
from lodestream.storage.table import Table

if TYPE_CHECKING:
    from lance import LanceDataset

FULL_FILE_ROWS: Final = 1 << 20
"""Files of so many rows are not merged any further."""

_NUM_THREADS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Clutter:
    """What a table has gathered: files that could be merged, and deleted rows, with their largest share of a file."""

    num_small_files: int
    num_deleted_rows: int
    deleted_share: float


def measure_clutter(table: Table) -> Clutter:
    """Look at the list of a table's files; reads no rows."""
    files = [fragment.metadata for fragment in table.fragments()]
    small = [file for file in files if file.num_rows < FULL_FILE_ROWS]
    shares = [file.num_deletions / file.physical_rows for file in files if file.physical_rows]
    return Clutter(
        num_small_files=len(small),
        num_deleted_rows=sum(file.num_deletions for file in files),
        deleted_share=max(shares, default=0.0),
    )


def compact(table: Table, *, max_deleted_share: float = 0.0) -> Table:
    """Merge the small files of a table, and rewrite those with a larger share of deleted rows than that.

    Raises:
        CommitConflict: others kept committing to the table.
    """

    def merge_files(dataset: LanceDataset) -> None:
        dataset.optimize.compact_files(
            target_rows_per_fragment=FULL_FILE_ROWS,
            materialize_deletions_threshold=max_deleted_share,
            num_threads=_NUM_THREADS,
        )
        steps.reach("publish.compacted")

    return table.rewrite(merge_files)


def rebuild_indexes(table: Table) -> Table:
    """Make every index anew from the rows: one that is torn, or that still names rows which are gone.

    Raises:
        CommitConflict: others kept committing to the table.
    """

    def index_again(dataset: LanceDataset) -> None:
        for index in dataset.describe_indices():
            dataset.create_scalar_index(index.field_names[0], "BTREE", name=index.name, replace=True)

    return table.rewrite(index_again)
