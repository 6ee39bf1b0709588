"""Looking at the rows of a snapshot: does each belong to a document, is each document complete, and is all as it was
written?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from lodestream.schema import TABLES
from lodestream.storage.checksum import FeatureSums, sum_text
from lodestream.storage.findings import Finding, Mend, list_some
from lodestream.storage.table import Table
from lodestream.storage.verify_files import is_read_failure, say_why

if TYPE_CHECKING:
    from lance import LanceFragment

_SPAN_COLUMNS: Final = ("key", "doc_id", "granularity", "ordinal", "parent", "char_start", "char_end")
_COUNTED: Final = {"sentence": "num_sentences", "paragraph": "num_paragraphs", "topic": "num_topics"}
_HOLDERS: Final = {"sentence": "paragraph", "paragraph": "topic", "topic": "document"}
_LOOKUP_VALUES: Final = 1000


@dataclass(slots=True)
class _Spans:
    """What the rows of one granularity of one document come to."""

    count: int = 0
    last: int = -1
    highest_parent: int = -1
    lowest_start: int = 0
    highest_end: int = 0
    shortest: int = 0


class FeatureTally:
    """The rows of ``features``, summed up by document."""

    def __init__(self, *, with_checksums: bool) -> None:
        self.sums = FeatureSums() if with_checksums else None
        self.spans: dict[str, dict[str, _Spans]] = defaultdict(dict)
        self._keys: list[pa.Array] = []
        self._key_owners: list[pa.Array] = []

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns that ``add`` wants; None for all."""
        return None if self.sums is not None else _SPAN_COLUMNS

    def add(self, rows: pa.RecordBatch) -> None:
        """Add rows, in any order."""
        if self.sums is not None:
            self.sums.add(rows)
        self._keys.append(rows.column("key"))
        self._key_owners.append(rows.column("doc_id"))
        table = pa.Table.from_batches([rows.select(_SPAN_COLUMNS)])
        table = table.append_column("length", pc.subtract(table["char_end"], table["char_start"]))
        wanted = [("ordinal", "count"), ("ordinal", "max"), ("parent", "max")]
        wanted += [("char_start", "min"), ("char_end", "max"), ("length", "min")]
        for row in table.group_by(["doc_id", "granularity"], use_threads=False).aggregate(wanted).to_pylist():
            spans = self.spans[row["doc_id"]].setdefault(row["granularity"], _Spans())
            spans.count += row["ordinal_count"]
            spans.last = max(spans.last, row["ordinal_max"])
            spans.highest_parent = max(spans.highest_parent, row["parent_max"])
            spans.lowest_start = min(spans.lowest_start, row["char_start_min"])
            spans.highest_end = max(spans.highest_end, row["char_end_max"])
            spans.shortest = min(spans.shortest, row["length_min"])

    def find_doubled(self) -> set[str]:
        """Return the documents of keys that come more than once."""
        if not self._keys:
            return set()
        keys = pa.table({"key": pa.chunked_array(self._keys), "doc_id": pa.chunked_array(self._key_owners)})
        return _find_doubled(keys, "key")


def check_rows(
    tables: Mapping[str, Table], sound: Mapping[str, Sequence[LanceFragment]], *, deep: bool
) -> Iterator[Finding]:
    """Yield what is wrong with the rows.

    Args:
        tables: the tables of a snapshot, or those of a feature version beside it, without ``source_state``.
        sound: the parts of each that can be read.
        deep: whether to compare the checksums.
    """
    places = {name: table.folder for name, table in tables.items()}
    tally = FeatureTally(with_checksums=deep)
    for batch in _scan(sound["features"], tally.columns or tables["features"].schema.names):
        tally.add(batch)
    yield from _complain(
        "duplicate-key", "rows whose key comes more than once", places["features"], tally.find_doubled()
    )
    names = [name for name in tables["documents"].schema.names if name not in ("uri", "title", "content_hash")]
    faults: dict[str, set[str]] = defaultdict(set)
    owners: list[str] = []
    for batch in _scan(sound["documents"], names):
        for row in batch.to_pylist():
            owners.append(row["doc_id"])
            for fault in _judge(row, tally, deep=deep):
                faults[fault].add(row["doc_id"])
    doubled = _find_doubled(pa.table({"doc_id": pa.array(owners, pa.string())}), "doc_id")
    yield from _complain("duplicate-key", "rows of the same document", places["documents"], doubled)
    for kind, (what, mend) in _FAULTS.items():
        place = places["documents" if kind == "text-altered" else "features"]
        yield from _complain(kind, what, place, faults[kind], mend=mend)
    orphans = tally.spans.keys() - set(owners)
    yield from _complain("orphan-features", "features without a document", places["features"], orphans, mend="drop")
    if "source_state" in tables:
        yield from _check_states(places["source_state"], sound["source_state"], set(owners))


_FAULTS: Final[Mapping[str, tuple[str, Mend]]] = {
    "rows-missing": ("features that are not as many as the document's row says", "recompute"),
    "span-outside": ("spans outside the document's text or outside the span that holds them", "recompute"),
    "features-altered": ("features that are not what was written (checksum)", "recompute"),
    "text-altered": ("text that is not what was written (checksum)", "recompute"),
    "unsealed": ("no checksum yet", "seal"),
}


def check_indexes(name: str, table: Table) -> Iterator[Finding]:
    """Look every value of the indexed columns up, and yield the indexes that find other rows than there are."""
    for column in TABLES[name].indexed:
        try:
            values = table.read([column], with_index=False)[column].combine_chunks()
            is_right = all(_finds(table, column, part) for part in _split_values(values))
            why = "it finds other rows than there are"
        except BaseException as error:
            if not is_read_failure(error):
                raise
            is_right, why = False, say_why(error)
        if not is_right:
            yield Finding(
                kind="index-wrong",
                what=f"the index of {name} on {column} is wrong: {why}",
                place=f"{table.folder}/_indices",
                mend="rebuild indexes",
            )


def _split_values(values: pa.Array) -> Iterator[pa.StructArray]:
    counted = values.value_counts()
    for start in range(0, len(counted), _LOOKUP_VALUES):
        yield counted.slice(start, _LOOKUP_VALUES)


def _finds(table: Table, column: str, counted: pa.StructArray) -> bool:
    found = table.read([column], where=pc.field(column).isin(counted.field("values")))
    wanted = dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))
    got = found[column].combine_chunks().value_counts()
    return wanted == dict(zip(got.field("values").to_pylist(), got.field("counts").to_pylist(), strict=True))


def _scan(parts: Sequence[LanceFragment], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for part in parts:
        for batch in part.to_batches(columns=list(columns)):
            if batch.num_rows:
                yield batch


def _judge(row: Mapping[str, Any], tally: FeatureTally, *, deep: bool) -> Iterator[str]:
    spans = tally.spans.get(row["doc_id"], {})
    if not _is_complete(row, spans):
        yield "rows-missing"
    elif not _is_inside(len(row["text"]), spans):
        yield "span-outside"
    if tally.sums is None:
        return
    if row["features_checksum"] is None or row["text_checksum"] is None:
        yield "unsealed"
    elif row["features_checksum"] != tally.sums.of(row["doc_id"]):
        yield "features-altered"
    if row["text_checksum"] not in (None, sum_text(row["text"])):
        yield "text-altered"


def _is_complete(row: Mapping[str, Any], spans: Mapping[str, _Spans]) -> bool:
    counts = {name: row[column] for name, column in _COUNTED.items()}
    if any(spans.get(name, _Spans()).count != count for name, count in counts.items()):
        return False
    num_documents = spans.get("document", _Spans()).count
    has_numbers = all(found.last + 1 == found.count for found in spans.values())
    return has_numbers and (num_documents == 1 or (not num_documents and not any(counts.values())))


def _is_inside(num_chars: int, spans: Mapping[str, _Spans]) -> bool:
    return all(
        found.lowest_start >= 0
        and found.shortest >= 0
        and found.highest_end <= num_chars
        and found.highest_parent <= max(0, spans.get(_HOLDERS.get(name, ""), _Spans()).last)
        for name, found in spans.items()
    )


def _check_states(place: str, parts: Sequence[LanceFragment], owners: set[str]) -> Iterator[Finding]:
    lost, named = set(), []
    for batch in _scan(parts, ["doc_id", "quarantine_reason"]):
        for doc_id, reason in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            named.append(doc_id)
            if doc_id not in owners and reason is None:
                lost.add(doc_id)
    # The next run would take their source for unchanged, and never compute them.
    yield from _complain("orphan-state", "a state of the source, but no document", place, lost)
    doubled = _find_doubled(pa.table({"doc_id": pa.array(named, pa.string())}), "doc_id")
    yield from _complain("duplicate-key", "states of the same document", place, doubled)


def _find_doubled(rows: pa.Table, column: str) -> set[str]:
    counted = rows.group_by(column, use_threads=False).aggregate([(column, "count")])
    doubled = counted.filter(pc.greater(counted[f"{column}_count"], 1))[column].combine_chunks()
    return set(rows.filter(pc.is_in(rows[column], value_set=doubled))["doc_id"].to_pylist()) if len(doubled) else set()


def _complain(kind: str, what: str, place: str, doc_ids: Iterable[str], mend: Mend = "recompute") -> Iterator[Finding]:
    names = sorted(doc_ids)
    if names:
        yield Finding(
            kind=kind,
            what=f"{what}: {list_some(names)}",
            place=place,
            mend=mend,
            doc_ids=tuple(names),
            is_note=kind == "unsealed",
        )
