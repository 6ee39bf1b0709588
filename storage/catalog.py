"""The documents of one snapshot in memory: which there are, what their rows in ``documents`` say, and the identity of
their content.

Two snapshots give a document the same identity exactly if neither its text nor its features were written in between:
it is made of the checksum of its features, the run that wrote it and the moment. So what was read of a document under
its identity stays true in every snapshot that has the same one.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lodestream.storage.columns import as_batch, find_equal
from lodestream.storage.reader import Snapshot

IDENTITY_BYTES: Final = 16
_IDENTITY: Final = ("features_checksum", "feature_version", "run_id", "updated_at")
_SAID: Final = ("source", "source_version", "quarantine_reason")
_COLUMNS: Final = ("doc_id", *_SAID, *_IDENTITY)


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """What a snapshot says of a document. ``identity``: of its content."""

    doc_id: str
    source: str
    source_version: str
    quarantine_reason: str | None
    identity: bytes


class Catalog:
    """The documents of a snapshot, sorted by name. Immutable; safe for many threads.

    Cost: about 150 bytes of memory a document.
    """

    def __init__(self, rows: pa.RecordBatch) -> None:
        self._rows = rows
        self._columns = {name: rows.column(name) for name in _COLUMNS}
        self._doc_ids = self._columns["doc_id"]

    @classmethod
    def read(cls, snapshot: Snapshot) -> Catalog:
        """Read the documents of ``snapshot``."""
        table = snapshot.open_table("documents").read(_COLUMNS)
        return cls(as_batch(table.take(pc.sort_indices(table, sort_keys=[("doc_id", "ascending")]))))

    def __len__(self) -> int:
        return len(self._doc_ids)

    @property
    def doc_ids(self) -> pa.StringArray:
        """The names, sorted."""
        return self._doc_ids

    def find(self, doc_id: str) -> CatalogEntry | None:
        """Return what is said of a document; None where there is none."""
        doc_ids = self._doc_ids
        row = bisect_left(range(len(doc_ids)), doc_id, key=lambda number: doc_ids[number].as_py())
        if row == len(doc_ids) or doc_ids[row].as_py() != doc_id:
            return None
        said = {name: self._columns[name][row].as_py() for name in _SAID}
        return CatalogEntry(doc_id=doc_id, identity=self._identify(row), **said)

    def match(self, before: Catalog) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find the documents that another catalog has with the same identity.

        Returns:
            Their rows here, and their rows in ``before``, in the same order.
        """
        places = pc.index_in(self._doc_ids, value_set=before._doc_ids)
        mine = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
        theirs = pc.drop_null(places).to_numpy().astype(np.int64)
        is_same = np.ones(len(mine), np.bool_)
        for name in _IDENTITY:
            left = self._columns[name].take(pa.array(mine))
            right = before._columns[name].take(pa.array(theirs))
            is_same &= find_equal(left, right).to_numpy(zero_copy_only=False)
        return mine[is_same], theirs[is_same]

    def find_changed(self, before: Catalog) -> list[str]:
        """Names of the documents of ``before`` that this has with another identity, or not at all."""
        _, theirs = self.match(before)
        is_changed = np.ones(len(before), np.bool_)
        is_changed[theirs] = False
        names: list[str] = before.doc_ids.filter(pa.array(is_changed)).to_pylist()
        return names

    def _identify(self, row: int) -> bytes:
        hashed = hashlib.blake2b(digest_size=IDENTITY_BYTES)
        values: list[Any] = [self._columns[name][row].as_py() for name in ("doc_id", *_IDENTITY)]
        hashed.update(repr(values).encode("utf-8", "surrogatepass"))
        return hashed.digest()
