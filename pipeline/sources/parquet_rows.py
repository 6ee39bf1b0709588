"""Rows of Parquet files, found by file, row group and place in it.

A row group is decoded as a whole, so the ones read last are kept: documents are asked for in the order of their ids,
which is not that of the file.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from lodestream.errors import DocumentError
from lodestream.pipeline.sizes import MIB
from lodestream.pipeline.sources.rows import RawRow

if TYPE_CHECKING:
    import pyarrow.dataset as pads

MAX_KEPT_BYTES: Final = 256 * MIB

MakeFragment = Callable[[], "pads.ParquetFileFragment"]


def make_fragment(path: str) -> pads.ParquetFileFragment:
    """A file of the local file system."""
    import pyarrow.dataset as pads
    from pyarrow.fs import LocalFileSystem

    return pads.ParquetFileFormat().make_fragment(path, LocalFileSystem())


def check_columns(schema: pa.Schema, id_column: str, text_column: str) -> None:
    """The columns are there, the id is a number or text, and the text is text.

    Raises:
        DocumentError: they are not; the message names the column and what there is.
    """
    wanted = {id_column: (pa.types.is_integer, *_TEXT_TYPES), text_column: _TEXT_TYPES}
    for column, kinds in wanted.items():
        if column not in schema.names:
            raise DocumentError(f"no column {column}; there is {', '.join(schema.names)}", "correct the columns' names")
        found = schema.field(column).type
        value = found.value_type if pa.types.is_dictionary(found) else found
        if not any(kind(value) for kind in kinds):
            raise DocumentError(f"the column {column} is of type {found}", "name another column, or cast it to text")


def scan_fragment(fragment: pads.ParquetFileFragment, id_column: str, text_column: str) -> Iterator[RawRow]:
    """All rows of a file in order; ``place`` is the row group and the place in it."""
    for group in fragment.split_by_row_group():
        number = group.row_groups[0].id
        at = 0
        for batch in group.to_batches(columns=[id_column, text_column], use_threads=False):
            ids, texts = batch.column(0).to_pylist(), batch.column(1).to_pylist()
            for row_id, text in zip(ids, texts, strict=True):
                yield RawRow(id=row_id, text=(text or "").encode(), place=(number, at))
                at += 1


def read_place(key: str, make: MakeFragment, place: tuple[int, int], id_column: str, text_column: str) -> RawRow | None:
    """The row at a place; None where the file has none there.

    Args:
        key: names the file and its state, so that a file that was rewritten is not taken for what it was.
        make: opens the file.
        place: of ``scan_fragment``.
        id_column, text_column: the columns.
    """
    group, at = place
    table = _KEPT.get((key, group, id_column, text_column), lambda: _read_group(make(), group, id_column, text_column))
    if table is None or at >= table.num_rows:
        return None
    row_id, text = table.column(0)[at].as_py(), table.column(1)[at].as_py()
    return RawRow(id=row_id, text=(text or "").encode(), place=place)


def _read_group(fragment: pads.ParquetFileFragment, group: int, id_column: str, text_column: str) -> pa.Table | None:
    if group >= fragment.num_row_groups:
        return None
    return fragment.subset(row_group_ids=[group]).to_table(columns=[id_column, text_column])


class _KeptGroups:
    """The row groups used last, up to MAX_KEPT_BYTES; one process's own."""

    def __init__(self) -> None:
        self._tables: OrderedDict[tuple[Any, ...], pa.Table | None] = OrderedDict()
        self._num_bytes = 0

    def get(self, key: tuple[Any, ...], load: Callable[[], pa.Table | None]) -> pa.Table | None:
        """The table of a key, loaded where it is not kept."""
        if key in self._tables:
            self._tables.move_to_end(key)
            return self._tables[key]
        table = load()
        self._tables[key] = table
        self._num_bytes += table.nbytes if table is not None else 0
        while self._num_bytes > MAX_KEPT_BYTES and len(self._tables) > 1:
            _, dropped = self._tables.popitem(last=False)
            self._num_bytes -= dropped.nbytes if dropped is not None else 0
        return table


_KEPT: Final = _KeptGroups()

_TEXT_TYPES: Final = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
