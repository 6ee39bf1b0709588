"""Rows by document through the cache: memory, then disk, then the store, each tier asked for what the one before lacks.

What a document is called in the cache follows from the snapshot's catalog, which is made when a snapshot is about to
be served: a publish leaves the entries of all documents that it did not touch, and none of the others is asked for
again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from lodestream.pipeline.serve.cache_keeper import CacheKeeper
from lodestream.pipeline.serve.parts import StoredDocument
from lodestream.pipeline.serve.stored_rows import read_documents
from lodestream.pipeline.states import find_rows
from lodestream.schema import GRANULARITIES, Granularity, features_schema
from lodestream.storage.cache.entry import Entry, name_rows
from lodestream.storage.cache.layered import LayeredCache
from lodestream.storage.catalog import Catalog, CatalogEntry
from lodestream.storage.columns import as_batch
from lodestream.storage.store import Snapshot

_TIERS: Final = ("memory", "disk", "snapshot")
_REMEMBERED: Final = 16_384
"""Documents whose entries of the catalog are kept as they were found: a search in it takes as long as an answer."""
_HELD_ENTRIES: Final = 256
"""Entries that are read in the event loop at once: some milliseconds, as long as the way to a thread and back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What the catalog says of a document, and what its rows are called in the cache."""

    said: CatalogEntry
    keys: Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """A snapshot that is served: its documents, and the cache for vectors of its width. ``find``: the catalog's, which
    remembers what was asked for last."""

    snapshot: Snapshot
    schema: pa.Schema
    catalog: Catalog
    cache: LayeredCache
    find: Callable[[str], _Known | None]


class CachedRows:
    """A row source with a cache. What it gives is what the store has in that snapshot, vectors through a lossy codec
    excepted, which say so."""

    def __init__(self, keeper: CacheKeeper) -> None:
        self._keeper = keeper
        self._served: dict[int, _Served] = {}
        self._lock = threading.Lock()
        self._counts = dict.fromkeys((*_TIERS, "miss"), 0)

    def prepare(self, snapshot: Snapshot, *, before: Snapshot | None) -> None:
        """Reads the snapshot's catalog, unless its documents are those of ``before``."""
        known = self._served.get(before.sequence) if before is not None else None
        is_same = (
            before is not None
            and before.tables["documents"] == snapshot.tables["documents"]
            and before.version == snapshot.version
        )
        catalog = known.catalog if known is not None and is_same else Catalog.read(snapshot)
        served = _Served(
            snapshot=snapshot,
            schema=features_schema(snapshot.dim),
            catalog=catalog,
            cache=self._keeper.open(snapshot.dim),
            find=lru_cache(maxsize=_REMEMBERED)(partial(_find, catalog)),
        )
        for name in ("documents", "features"):  # opens the tables and their indexes, so that the first miss does not
            find_rows(snapshot, name, [""], ["doc_id"])
        with self._lock:
            self._served[snapshot.sequence] = served

    def find_catalog(self, snapshot: Snapshot) -> Catalog:
        """The documents of a snapshot, for other parts: that of one that is served is there already."""
        served = self._served.get(snapshot.sequence)
        is_there = served is not None and _is_same(served.snapshot, snapshot)
        return served.catalog if served is not None and is_there else Catalog.read(snapshot)

    def release(self, snapshot: Snapshot) -> None:
        """Its catalog goes; the cached rows stay."""
        with self._lock:
            served = self._served.get(snapshot.sequence)
            if served is not None and served.snapshot is snapshot:
                del self._served[snapshot.sequence]

    def get(
        self, snapshot: Snapshot, doc_ids: Sequence[str], granularities: Collection[Granularity]
    ) -> Mapping[str, StoredDocument]:
        """See parts.RowSource."""
        wanted = list(dict.fromkeys(doc_ids))
        served = self._served.get(snapshot.sequence)
        if served is None or not _is_same(served.snapshot, snapshot):  # an older one, asked for by its number
            documents = read_documents(snapshot, wanted, granularities)
        else:
            documents = self._get(served, wanted, [name for name in GRANULARITIES if name in granularities])
        self._note(documents.values(), num_missing=len(wanted) - len(documents))
        return documents

    def get_held(
        self, snapshot: Snapshot, doc_ids: Sequence[str], granularities: Collection[Granularity]
    ) -> Mapping[str, StoredDocument] | None:
        """See parts.RowSource."""
        served = self._served.get(snapshot.sequence)
        if served is None or served.snapshot is not snapshot or len(doc_ids) * len(granularities) > _HELD_ENTRIES:
            return None
        names = [name for name in GRANULARITIES if name in granularities]
        known: dict[str, _Known] = {}
        for doc_id in doc_ids:
            found = served.find(doc_id)
            if found is None:
                return None
            known[doc_id] = found
        keys = {name: [document.keys[name] for document in known.values()] for name in names}
        if not all(served.cache.holds_in_memory(name, keys[name]) for name in names):
            return None
        held: list[list[Entry]] = []
        for name in names:
            entries = served.cache.get_from_memory(name, keys[name])
            if entries is None:  # evicted by another thread a moment ago, or too old
                return None
            held.append(entries)
        documents = {
            doc_id: _describe(served, document.said, entries, "memory")
            for (doc_id, document), *entries in zip(known.items(), *held, strict=True)
        }
        self._note(documents.values(), num_missing=0)
        return documents

    def _note(self, documents: Iterable[StoredDocument], *, num_missing: int) -> None:
        with self._lock:
            for document in documents:
                self._counts[document.tier] += 1
            self._counts["miss"] += num_missing

    def count(self) -> Mapping[str, int]:
        """Documents found, by the farthest tier that one had to be asked in, and those not found."""
        with self._lock:
            return dict(self._counts)

    def _get(
        self, served: _Served, doc_ids: Sequence[str], granularities: Sequence[Granularity]
    ) -> dict[str, StoredDocument]:
        known = {doc_id: entry for doc_id in doc_ids if (entry := served.find(doc_id)) is not None}
        documents: dict[str, StoredDocument] = {}
        missing: list[str] = []
        for doc_id, document in known.items():
            found = [served.cache.get(name, document.keys[name]) for name in granularities]
            held = [pair for pair in found if pair is not None]
            if len(held) < len(granularities):
                missing.append(doc_id)
                continue
            tier = max((tier for _, tier in held), key=_TIERS.index, default="memory")
            documents[doc_id] = _describe(served, document.said, [entry for entry, _ in held], tier)
        if missing:
            documents |= _read(served, {doc_id: known[doc_id] for doc_id in missing}, granularities)
        return documents


def _find(catalog: Catalog, doc_id: str) -> _Known | None:
    said = catalog.find(doc_id)
    return None if said is None else _Known(said=said, keys={g: name_rows(said.identity, g) for g in GRANULARITIES})


def _read(
    served: _Served, known: Mapping[str, _Known], granularities: Sequence[Granularity]
) -> dict[str, StoredDocument]:
    """Documents from the store; their rows go to the cache."""
    stored = read_documents(served.snapshot, list(known), granularities)
    documents = {}
    for doc_id, document in stored.items():
        said, keys = known[doc_id].said, known[doc_id].keys
        entries = []
        for name in granularities:
            entry = Entry(rows=_pick(document.rows, name), source=said.source)
            served.cache.put(name, keys[name], entry)
            entries.append(entry)
        documents[doc_id] = _describe(served, said, entries, "snapshot")
    return documents


def _describe(served: _Served, said: CatalogEntry, entries: Sequence[Entry], tier: str) -> StoredDocument:
    return StoredDocument(
        doc_id=said.doc_id,
        source=said.source,
        source_version=said.source_version,
        quarantine_reason=said.quarantine_reason,
        batches=[entry.rows for entry in entries if entry.rows.num_rows],
        schema=served.schema,
        tier=tier,
        is_lossy=any(entry.is_lossy for entry in entries),
    )


def _is_same(one: Snapshot, other: Snapshot) -> bool:
    return one is other or one.tables == other.tables


def _pick(rows: pa.Table, granularity: str) -> pa.RecordBatch:
    """The rows of one granularity, as one batch with memory of its own."""
    return as_batch(rows.filter(pc.equal(rows.column("granularity"), granularity)))
