"""The feature store: a folder, or a prefix in a bucket, with the tables and the pointer that says which of their
versions are published.

<store>/features.lance      one row per span, with its vector
<store>/documents.lance     one row per document, with its text
<store>/source_state.lance  one row per document, with what its source said of it
<store>/pointer/            the published pointer: numbered records; one object pointer.json in an object store

A further feature version has tables of its own: features-<slot>.lance and documents-<slot>.lance.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from lodestream.errors import CommitConflict, StoreCorrupt, StoreNotFound, StoreSchemaMismatch
from lodestream.schema import SCHEMA_VERSION, TABLES
from lodestream.storage.coordination import open_lease, require_no_marker
from lodestream.storage.durability import make_folder, sync_new_files
from lodestream.storage.lease import DEFAULT_TTL_S, Lease, name_holder
from lodestream.storage.location import Location, Place
from lodestream.storage.reader import Snapshot, locate_table, open_tables
from lodestream.storage.registers.protocol import make_nonce
from lodestream.storage.snapshot import (
    OLDEST_SCHEMA_VERSION,
    PointerRecord,
    Retention,
    open_register,
    read_pointer,
)
from lodestream.storage.table import Table
from lodestream.storage.transaction import RunIdentity, Transaction
from lodestream.storage.version_keeper import VersionKeeper
from lodestream.storage.version_writer import VersionWriter, describe_kept
from lodestream.storage.writer import require_claim

__all__ = ["FeatureStore", "Snapshot", "Transaction", "VersionWriter"]


class FeatureStore:
    """A store in a local folder or an object store.

    Guarantees: readers see whole published snapshots and nothing else; a writer that is killed at any moment leaves the
    published snapshot as it was; what is published has been flushed to the disk. Safe for use by many threads and
    processes; of two writers one has the lease, and one that was overtaken is told (LeaseLost, FencedError).

    Not guaranteed: anything on file systems without atomic hard links.
    """

    def __init__(self, location: Location, *, dim: int) -> None:
        self.location = location
        self.dim = dim

    @property
    def root(self) -> Path:
        """The store's folder, where it lies on a local disk."""
        return self.location.path

    @classmethod
    def open(cls, place: Place) -> FeatureStore:
        """Open a store that exists.

        Args:
            place: the store's folder, URI or Location.

        Raises:
            StoreNotFound: there is none.
            StoreSchemaMismatch: another version of lodestream wrote it.
            StoreCorrupt: its pointer is torn.
        """
        location = Location.parse(place)
        pointer, _ = read_pointer(location)
        require_schema(location, pointer)
        return cls(location, dim=pointer.dim)

    @classmethod
    def open_or_create(cls, place: Place, *, dim: int) -> FeatureStore:
        """Open a store for vectors of width ``dim``; create it, with nothing published, where there is none.

        Raises:
            StoreSchemaMismatch: the store there holds vectors of another width, or is of another version.
            StoreUnwritable: no rights, no room, or a file stands there.
        """
        location = Location.parse(place)
        if open_register(location, create=True).read() is None:
            require_no_marker(location)
            _create(location, dim)
        store = cls.open(location)
        if store.dim != dim:
            raise StoreSchemaMismatch(
                f"the store at {location} holds vectors of width {store.dim}, the encoder makes vectors of width {dim}",
                "set store.uri to a new folder, or encoder.model back to a model of that width",
            )
        return store

    def pointer(self) -> PointerRecord:
        """Read the published pointer."""
        return read_pointer(self.location)[0]

    def open_snapshot(
        self,
        sequence: int | Literal["latest"] = "latest",
        *,
        as_of: datetime | None = None,
        version: str | None = None,
    ) -> Snapshot:
        """Open a published snapshot, or what there is of a feature version beside the one that is served.

        Args:
            sequence: its number.
            as_of: a moment (with a time zone); opens the snapshot that was the latest one then. Only with "latest".
            version: a feature version, whose documents may lie behind those of the one that is served. Only with
                "latest".

        Raises:
            StoreNotFound: nothing is published yet.
            NotFoundError: this sequence is not published, or no longer kept; there is no such version.
        """
        pointer = self.pointer()
        if not pointer.history:
            raise StoreNotFound(f"nothing is published at {self.location} yet", "lodestream run")
        if version is not None and version != pointer.version:
            return Snapshot(self.location, describe_kept(pointer, pointer.find_version(version)))
        if sequence != "latest":
            if as_of is not None:
                raise ValueError("a snapshot is named by its number or by a moment, not by both")
            record = pointer.find_snapshot(sequence)
        elif as_of is not None and as_of.tzinfo is None:
            raise ValueError("a moment needs a time zone")
        else:
            record = pointer.history[-1] if as_of is None else pointer.find_latest(as_of)
        return Snapshot(self.location, record)

    def open_tables(self) -> dict[str, Table]:
        """Open the tables at the versions that are published; those of a store without a snapshot are empty."""
        pointer = self.pointer()
        return open_tables(self.location, pointer.dim, pointer.tables, slot=pointer.slot)

    def open_lease(
        self, purpose: str, *, ttl_s: float = DEFAULT_TTL_S, show_wait: Callable[[str], None] = lambda _: None
    ) -> Lease:
        """Return the store's lease, not acquired yet.

        Args:
            purpose: what it is held for, in messages.
            ttl_s: without a sign of life for so long a holder is taken for dead.
            show_wait: called with a sentence when a holder that may be dead has to be watched.
        """
        return Lease(
            open_lease(self.location, ttl_s=ttl_s),
            holder=name_holder(purpose),
            place=str(self.location),
            ttl_s=ttl_s,
            floor=lambda: self.pointer().epoch,
            show_wait=show_wait,
        )

    def note_run(self, change: Callable[[dict[str, Any]], dict[str, Any]], *, lease: Lease) -> None:
        """Change what the pointer says of the last run, and nothing else: for a run that could not publish.

        Args:
            change: is given what the pointer says, and returns what it is to say.
            lease: the store's lease, held.

        Raises:
            LeaseLost: the lease is not held any more.
            FencedError: a writer with a newer epoch has begun; its pointer is left alone.
            CommitConflict: another writer was faster.
        """
        pointer, version = read_pointer(self.location)
        # A swap under a newer writer's hands would end that writer's run.
        require_claim(pointer, lease, self.location)
        open_register(self.location).cas(version, pointer.follow(run=change(dict(pointer.run))).to_json())

    def begin(
        self,
        *,
        lease: Lease,
        run_id: str,
        kind: str,
        feature_version: str,
        recipe: dict[str, Any],
        retention: Retention | None = None,
        model: str | None = None,
    ) -> Transaction:
        """Begin to write. Continues from the chunks that a killed run of the same feature version had staged.

        Args:
            lease: the store's lease, held; several transactions may follow each other under one.
            run_id: name of the run.
            kind: "backfill" or "refresh"; for the record.
            feature_version: staged work of another feature version is dropped.
            recipe: what the feature version is made of, JSON values.
            retention: which snapshots are kept from now on; None leaves that as it is.
            model: where the model was found; None leaves that as it is.

        Raises:
            CommitConflict: another writer began at this moment.
            LeaseLost: the lease is not held any more.
            FencedError: a writer with a newer epoch has begun.
        """
        found = read_pointer(self.location)
        identity = RunIdentity(run_id=run_id, kind=kind, feature_version=feature_version, recipe=recipe, model=model)
        return Transaction(
            self.location, open_register(self.location), found, identity, lease=lease, retention=retention
        )

    def begin_version(self, name: str, *, lease: Lease, run_id: str) -> VersionWriter:
        """Begin to write a feature version beside the one that is served; goes on from what it has.

        Args:
            name: the version.
            lease: the store's lease, held.
            run_id: name of the run.

        Raises:
            NotFoundError: there is no such version.
            StoreCorrupt: its tables cannot be opened.
            CommitConflict, LeaseLost, FencedError: as for begin.
        """
        found = read_pointer(self.location)
        return VersionWriter(self.location, open_register(self.location), found, name, lease=lease, run_id=run_id)

    def open_keeper(self, lease: Lease) -> VersionKeeper:
        """Begin to add or drop feature versions. Raises what ``begin`` raises."""
        return VersionKeeper(self.location, lease=lease)


def _create(location: Location, dim: int) -> None:
    if location.is_local:
        make_folder(location.path)
    try:
        tables = {
            name: Table.create(locate_table(location, name, ""), kind.make_schema(dim)) for name, kind in TABLES.items()
        }
    except StoreCorrupt:
        if open_register(location, create=True).read() is None:
            raise
        return  # somebody else created the store meanwhile, and has written to it already
    if location.is_local:
        for table in tables.values():
            sync_new_files(table.path, frozenset())
    pointer = PointerRecord(
        sequence=0,
        epoch=0,
        nonce=make_nonce(),
        schema_version=SCHEMA_VERSION,
        dim=dim,
        tables={name: table.version for name, table in tables.items()},
    )
    try:
        open_register(location).cas(None, pointer.to_json())
    except CommitConflict:
        return  # somebody else created the same store at this moment


def require_schema(location: Location, pointer: PointerRecord) -> None:
    """Refuse a store that another version of lodestream wrote.

    Raises:
        StoreSchemaMismatch: the pointer says another schema than this version's.
    """
    if pointer.schema_version == SCHEMA_VERSION:
        return
    advice = "lodestream migrate"
    if pointer.schema_version < OLDEST_SCHEMA_VERSION:
        advice = "set store.uri to a new folder and run: lodestream run"
    if pointer.schema_version > SCHEMA_VERSION:
        advice = "pip install --upgrade lodestream"
    raise StoreSchemaMismatch(
        f"the store at {location} has schema version {pointer.schema_version}, this lodestream has {SCHEMA_VERSION}",
        advice,
    )
