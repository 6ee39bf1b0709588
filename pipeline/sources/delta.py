"""Delta tables: the change data feed where it is on, the files of a version otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final

import pyarrow as pa

from lodestream.errors import ConfigError, SourceContract, SourceUnavailable
from lodestream.pipeline.sources.lake import LakeChanges, LakePlace, Place
from lodestream.pipeline.sources.parquet_rows import read_place, scan_fragment
from lodestream.pipeline.sources.rows import RawRow

_FEED_SETTING: Final = "delta.enableChangeDataFeed"
_KEPT_ROW: Final = frozenset(("insert", "update_postimage"))


@dataclass(frozen=True, slots=True)
class DeltaOpener:
    """Opens a Delta table."""

    place: LakePlace

    def open(self, version: int | None = None) -> DeltaVersion:
        """See ``LakeOpener.open``."""
        try:
            from deltalake import DeltaTable
            from deltalake.exceptions import DeltaError, DeltaProtocolError, TableNotFoundError
        except ImportError:
            raise ConfigError(
                f"sources.{self.place.source}: deltalake is not installed", "pip install 'lodestream[delta]'"
            ) from None
        name = f"sources.{self.place.source}"
        try:
            return DeltaVersion(
                self.place, DeltaTable(self.place.uri, version=version, storage_options=dict(self.place.options))
            )
        except TableNotFoundError:
            raise SourceContract(
                f"{name}: there is no Delta table at {self.place.uri}", f"correct {name}.uri; its features are kept"
            ) from None
        except DeltaProtocolError as error:
            raise SourceContract(f"{name}: {error}", "write the table without that feature") from None
        except (DeltaError, OSError) as error:
            raise SourceUnavailable(f"{name}: {error}", "the next run tries again; nothing was deleted") from None


class DeltaVersion:
    """One version of a Delta table; see ``LakeTable``."""

    def __init__(self, place: LakePlace, table: Any) -> None:
        self._place = place
        self._table = table
        self.version: int = table.version()
        self.identity = str(table.metadata().id)
        self.stamp = ""
        self.schema: pa.Schema = pa.schema(table.schema().to_arrow())
        is_on = table.metadata().configuration.get(_FEED_SETTING, "").lower() == "true"
        self.feed = (
            (True, "the change data feed names the rows that changed: exact")
            if is_on
            else (False, f"all rows are compared by hash when the version changes ({_FEED_SETTING} is not on)")
        )

    def scan(self) -> Iterator[RawRow]:
        """All rows; ``place`` is the file, the row group and the place in it."""
        for path, fragment in sorted(self._fragments.items()):
            for row in scan_fragment(fragment, self._place.id_column, self._place.text_column):
                yield RawRow(id=row.id, text=row.text, place=(path, *row.place))

    def changed(self, version: int, stamp: str) -> LakeChanges | None:
        """What the feed says; of several changes of a row the one of the last version counts."""
        from deltalake.exceptions import DeltaError

        if not self.feed[0] or version >= self.version:
            return None
        lake = self._place
        try:
            stream = self._table.load_cdf(starting_version=version + 1, ending_version=self.version)
            feed = pa.RecordBatchReader.from_stream(stream).read_all()
            columns = [feed[name].to_pylist() for name in (lake.id_column, lake.text_column, *_FEED_COLUMNS)]
        except (DeltaError, KeyError, OSError, pa.ArrowException):
            return None  # the feed was turned on later, or its files are gone: all rows are compared
        last: dict[Any, tuple[int, str | None, bool]] = {}
        for row_id, text, change, at in zip(*columns, strict=True):
            is_kept = change in _KEPT_ROW
            before = last.get(row_id)
            # Within one version a row that is deleted and inserted is there.
            if before is None or at > before[0] or (at == before[0] and is_kept):
                last[row_id] = (at, text, is_kept)
        rows = [RawRow(id=i, text=(text or "").encode(), place=()) for i, (_, text, kept) in last.items() if kept]
        gone = frozenset(str(row_id) for row_id, (_, _, kept) in last.items() if not kept and row_id is not None)
        return LakeChanges(rows=tuple(rows), gone=gone)

    def read(self, wanted: Sequence[tuple[Any, Place]]) -> Mapping[str, RawRow]:
        """Rows by file and place, or by id where that is not known."""
        lake, fragments = self._place, self._fragments
        found = {}
        for row_id, place in wanted:
            if place:
                path, *rest = place
                key = f"{lake.uri} {path}"
                make = partial(fragments.__getitem__, path)
                row = read_place(key, make, (rest[0], rest[1]), lake.id_column, lake.text_column)
                if row is not None:
                    found[str(row_id)] = row
        unplaced = [row_id for row_id, place in wanted if not place]
        if unplaced:
            found |= read_by_id(self._dataset, unplaced, lake.id_column, lake.text_column)
        return found

    @cached_property
    def _dataset(self) -> Any:
        from deltalake.exceptions import DeltaProtocolError

        try:
            return self._table.to_pyarrow_dataset()
        except DeltaProtocolError as error:
            raise SourceContract(
                f"sources.{self._place.source}: {error}", "rewrite the table without that feature"
            ) from None

    @cached_property
    def _fragments(self) -> dict[str, Any]:
        return {fragment.path: fragment for fragment in self._dataset.get_fragments()}


_FEED_COLUMNS: Final = ("_change_type", "_commit_version")


def read_by_id(dataset: Any, row_ids: Sequence[Any], id_column: str, text_column: str) -> dict[str, RawRow]:
    """Rows of a dataset (of Arrow's or Lance's) by id."""
    import pyarrow.dataset as pads

    table = dataset.to_table(columns=[id_column, text_column], filter=pads.field(id_column).isin(list(row_ids)))
    pairs = zip(table.column(id_column).to_pylist(), table.column(text_column).to_pylist(), strict=True)
    return {str(row_id): RawRow(id=row_id, text=(text or "").encode(), place=()) for row_id, text in pairs}
