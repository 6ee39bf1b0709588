"""In what the documents of a feature version differ from those of the version that is served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from lodestream.storage.columns import find_equal
from lodestream.storage.store import Snapshot

_COMPARED: Final = ("source", "uri", "content_hash", "source_version", "quarantine_reason", "text_checksum")
_COLUMNS: Final = ("doc_id", *_COMPARED, "num_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """In what a version differs from the one that is served.

    ``stale``       rows of documents that it has not, or has otherwise, as the served version has them, by doc_id:
                    ``doc_id``, ``source``, ``uri``, ``source_version``, ``quarantine_reason``, ``num_tokens``
    ``extra``       doc_ids that only it has
    ``num_failed``  documents that it cannot use and the served version can
    """

    stale: pa.Table
    extra: tuple[str, ...]
    num_failed: int

    def __bool__(self) -> bool:
        return bool(self.num_documents)

    @property
    def num_documents(self) -> int:
        """How many documents it lies behind by."""
        return int(self.stale.num_rows) + len(self.extra)


def find_gap(served: Snapshot, beside: Snapshot) -> Gap:
    """Compares the documents of two versions.

    Cost: about 300 bytes of memory a document; no text is read.
    """
    wanted = served.open_table("documents").read(_COLUMNS)
    found = beside.open_table("documents").read(_COLUMNS)
    places = pc.index_in(wanted["doc_id"].combine_chunks(), value_set=found["doc_id"].combine_chunks())
    twins = found.take(places)  # in the order of ``wanted``, nulls where there is none
    own = pc.is_null(wanted["quarantine_reason"])
    # What this version could not use it could not use again; a migrated store may not be sealed yet.
    excused = {
        "quarantine_reason": pc.and_(own, pc.fill_null(pc.equal(twins["num_tokens"], 0), False)),
        "text_checksum": pc.is_null(wanted["text_checksum"]),
    }
    is_same = pc.is_valid(twins["doc_id"])
    for name in _COMPARED:
        is_equal = find_equal(wanted[name], twins[name])
        is_same = pc.and_(is_same, pc.or_(is_equal, excused[name]) if name in excused else is_equal)
    extra = found["doc_id"].filter(pc.invert(pc.is_in(found["doc_id"], value_set=wanted["doc_id"].combine_chunks())))
    failed = pc.and_(is_same, pc.and_(own, pc.is_valid(twins["quarantine_reason"])))
    return Gap(
        stale=wanted.filter(pc.invert(is_same)).sort_by("doc_id"),
        extra=tuple(sorted(extra.to_pylist())),
        num_failed=pc.sum(failed).as_py() or 0,
    )
