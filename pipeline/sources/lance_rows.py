"""Lance tables: rows written since a version where row ids are stable, all rows otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from lodestream.errors import SourceContract, SourceUnavailable
from lodestream.pipeline.sources.delta import read_by_id
from lodestream.pipeline.sources.lake import LakeChanges, LakePlace, Place
from lodestream.pipeline.sources.rows import RawRow


@dataclass(frozen=True, slots=True)
class LanceOpener:
    """Opens a Lance table."""

    place: LakePlace

    def open(self, version: int | None = None) -> LanceVersion:
        """See ``LakeOpener.open``."""
        import lance

        name = f"sources.{self.place.source}"
        try:
            table = lance.dataset(self.place.uri, version=version, storage_options=dict(self.place.options) or None)
            return LanceVersion(self.place, table)
        except (ValueError, OSError) as error:
            reason = str(error).split(", /", maxsplit=1)[0]
            if "not found" in reason.lower():
                raise SourceContract(
                    f"{name}: there is no Lance table at {self.place.uri}", f"correct {name}.uri; its features are kept"
                ) from None
            raise SourceUnavailable(f"{name}: {reason}", "the next run tries again; nothing was deleted") from None


class LanceVersion:
    """One version of a Lance table; see ``LakeTable``."""

    def __init__(self, place: LakePlace, table: Any) -> None:
        self._place = place
        self._table = table
        self.version: int = table.version
        self.identity = place.uri
        self.stamp = self._find_stamp(self.version)
        self.schema: pa.Schema = table.schema
        self.feed = (
            (True, "rows carry the version that wrote them last: exact")
            if table.has_stable_row_ids
            else (False, "all rows are compared by hash when the version changes (row ids are not stable)")
        )

    def scan(self) -> Iterator[RawRow]:
        """All rows; ``place`` is the ordinal."""
        for at, (row_id, text) in enumerate(self._pairs(self._scanner().to_batches())):
            yield RawRow(id=row_id, text=(text or "").encode(), place=(at,))

    def changed(self, version: int, stamp: str) -> LakeChanges | None:
        """Rows that a later version wrote, and the ids of all rows."""
        if not self.feed[0] or version >= self.version or not stamp or self._find_stamp(version) != stamp:
            return None  # another table of the same name, or that version is gone
        delta = self._table.delta(compared_against=version)
        batches = chain(delta.get_inserted_rows(), delta.get_updated_rows())
        rows = [RawRow(id=row_id, text=(text or "").encode(), place=()) for row_id, text in self._pairs(batches)]
        ids = self._table.to_table(columns=[self._place.id_column]).column(0).to_pylist()
        return LakeChanges(rows=tuple(rows), listed=frozenset(str(row_id) for row_id in ids if row_id is not None))

    def read(self, wanted: Sequence[tuple[Any, Place]]) -> Mapping[str, RawRow]:
        """Rows by ordinal, or by id where that is not known."""
        id_column, text_column = self._place.id_column, self._place.text_column
        places = [place[0] for _, place in wanted if place]
        found = {}
        if places:
            table = self._table.take(places, columns=[id_column, text_column])
            for (row_id, text), at in zip(self._pairs(table.to_batches()), places, strict=True):
                found[str(row_id)] = RawRow(id=row_id, text=(text or "").encode(), place=(at,))
        unplaced = [row_id for row_id, place in wanted if not place]
        if unplaced:
            found |= read_by_id(self._table, unplaced, id_column, text_column)
        return found

    def _scanner(self) -> Any:
        return self._table.scanner(columns=[self._place.id_column, self._place.text_column], scan_in_order=True)

    def _pairs(self, batches: Any) -> Iterator[tuple[Any, str | None]]:
        for batch in batches:
            ids, texts = batch.column(self._place.id_column), batch.column(self._place.text_column)
            yield from zip(ids.to_pylist(), texts.to_pylist(), strict=True)

    def _find_stamp(self, version: int) -> str:
        """When a version was written; "" where it is gone."""
        for found in self._table.versions():
            if found["version"] == version:
                return str(found["timestamp"].isoformat())
        return ""
