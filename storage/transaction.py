"""Writing: chunks are committed to the tables one by one, and all of them become visible in one swing of the pointer.

Between the two the tables' new versions are *staged*: the pointer names them, nobody reads them, and a run that is
killed is continued from them. Order of a chunk: commit to the tables, flush, name the versions as staged. Order of
publishing: tidy the tables, flush, swing the pointer, clean up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import pyarrow as pa

from lodestream.errors import CommitConflict, CommitStateUnknown, FencedError, StoreError
from lodestream.schema import DOCUMENTS_SCHEMA, SOURCE_STATE_SCHEMA, TABLES
from lodestream.storage import steps
from lodestream.storage.chunk import check_chunk, seal_chunk, select_removed
from lodestream.storage.cleanup import remove_unread
from lodestream.storage.columns import conform_rows
from lodestream.storage.durability import list_files, sync_new_files
from lodestream.storage.lease import Lease
from lodestream.storage.location import Location
from lodestream.storage.reader import Snapshot, defer_tables, open_tables
from lodestream.storage.registers.protocol import CasRegister, Version
from lodestream.storage.snapshot import PointerRecord, Retention, SnapshotRecord, StagedWork
from lodestream.storage.table import Table

RETAINED_AGE: Final = timedelta(hours=1)
MAX_UNREAD_VERSIONS: Final = 16

_MAX_ATTEMPTS: Final = 3
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """What a run says of itself: its name, its kind, the feature version it writes and what that is made of."""

    run_id: str
    kind: str
    feature_version: str
    recipe: dict[str, Any]


class Transaction:
    """One writer's work from ``FeatureStore.begin`` to ``publish``.

    Guarantees: readers see all of it or nothing; a killed writer loses the chunk it was writing and no more; after a
    newer writer has begun, this one can neither stage nor publish (LeaseLost, FencedError). One thread only.
    """

    def __init__(
        self,
        location: Location,
        register: CasRegister,
        found: tuple[PointerRecord, Version],
        identity: RunIdentity,
        *,
        lease: Lease,
        retention: Retention | None = None,
    ) -> None:
        self._location = location
        self._register = register
        self._pointer, self._version = found
        self._identity = identity
        self._lease = lease
        require_claim(self._pointer, lease, location)
        self._is_open = True
        self._has_claimed = False
        staged = self._pointer.staged
        resumed = self._open_staged(staged)
        self.resumed = resumed is not None
        # A run that finds nothing to do never opens them.
        self._tables = resumed or defer_tables(location, self._pointer.dim, self._pointer.tables)
        self._num_chunks = staged.num_chunks if staged and self.resumed else 0
        # The epoch goes up before anything is written: from here on an older writer can do no harm.
        self._swing(
            epoch=lease.epoch,
            writer=lease.token,
            staged=staged if self.resumed else None,
            retention=retention or self._pointer.retention,
        )
        self._has_claimed = True
        steps.reach("begin.claimed")
        is_local = location.is_local  # an object store keeps what it has accepted
        self._known = {name: list_files(table.path) for name, table in self._tables.items()} if is_local else {}

    @property
    def epoch(self) -> int:
        """This writer's epoch."""
        return self._lease.epoch

    @property
    def base(self) -> Snapshot:
        """The working state: what is published and all chunks staged so far; each call pins the state of its moment."""
        record = SnapshotRecord(
            sequence=self._pointer.sequence,
            tables=self._versions(),
            feature_version=self._identity.feature_version,
            recipe=self._identity.recipe,
            run_id=self._identity.run_id,
            published_at=None,
        )
        return self._open_snapshot(record)

    def write_chunk(
        self,
        *,
        features: pa.Table,
        documents: pa.Table,
        deleted_doc_ids: Sequence[str],
        keep_features_of: Sequence[str] = (),
        source_state: pa.Table | None = None,
    ) -> None:
        """Stage some documents: each gets exactly the rows given here.

        Args:
            features: rows of the documents in ``documents``; their earlier rows vanish, also those with no successor.
            documents: one row a document.
            deleted_doc_ids: documents that vanish from all tables.
            keep_features_of: documents of ``documents`` whose earlier feature rows stay (quarantined, or only moved);
                ``features`` has none of them.
            source_state: one row for each document whose source said something new, whether it is in ``documents`` or
                not; the others keep theirs.

        Raises:
            ValueError: they contradict each other, or a key comes twice.
            FencedError, CommitConflict: another writer took over.
            StoreUnwritable: no rights or no room. Staged chunks stay.
        """
        self._require_open()
        states = SOURCE_STATE_SCHEMA.empty_table() if source_state is None else source_state
        rows = {
            "features": conform_rows(features, self._tables["features"].schema),
            "documents": conform_rows(documents, DOCUMENTS_SCHEMA),
            "source_state": conform_rows(states, self._tables["source_state"].schema),
        }
        check_chunk(rows, deleted_doc_ids, keep_features_of)
        rows["documents"] = seal_chunk(self._tables["documents"], rows, keep_features_of)
        removed = select_removed(self._tables, rows, deleted_doc_ids, keep_features_of)
        before = self._versions()
        # The tables are kept in step by the pointer alone: a kill between two commits leaves all of them unstaged.
        for name in TABLES:
            change = partial(self._tables[name].replace_documents, removed[name], rows[name])
            self._tables[name] = self._commit(change)
            steps.reach(f"chunk.{name}_committed")
        if self._versions() == before:
            return
        self._sync()
        steps.reach("chunk.synced")
        self._num_chunks += 1
        self._swing(staged=self._describe_staged())
        steps.reach("chunk.staged")

    def publish(self, *, checkpoint: dict[str, Any], run: dict[str, Any]) -> Snapshot:
        """Make everything staged visible, together with ``checkpoint``, and end the transaction.

        A run that staged nothing and kept the feature version publishes no new snapshot: sequence and table versions
        stay, only ``checkpoint``, ``run`` and ``checked_at`` move.

        Args:
            checkpoint: source -> cursor, JSON values.
            run: summary of the run, JSON values.

        Returns:
            The published snapshot.

        Raises:
            FencedError, CommitConflict: another writer took over; nothing is visible.
            CommitStateUnknown: the pointer must be read to see whether this is visible.
        """
        self._require_open()
        now = datetime.now(UTC)
        if self._changes_nothing():
            self._swing(checkpoint=checkpoint, run=run, checked_at=now, staged=None)
            self._is_open = False
            return self._open_snapshot(self._pointer.history[-1])
        snapshot = self._publish(now, self._pointer.history, checked_at=now, checkpoint=checkpoint, run=run)
        self._clean_up(max_unread=MAX_UNREAD_VERSIONS, min_age=RETAINED_AGE)
        steps.reach("publish.trimmed")
        return snapshot

    def rewrite(self, change: Callable[[str, Table], Table]) -> None:
        """Change the tables past the chunks: ``change`` is given each with its name. Not staged: a kill undoes it."""
        self._require_open()
        for name, table in self._tables.items():
            self._tables[name] = self._commit(partial(change, name, table))

    def publish_rewritten(
        self,
        change: Callable[[str, Table], Table],
        *,
        forget_earlier: bool = False,
        checkpoint: dict[str, Any] | None = None,
    ) -> Snapshot:
        """Publish the same rows in other files, and end the transaction. The run stays as it is.

        Snapshots published before stay readable in the old files. Old versions that no snapshot has are removed.

        Args:
            change: is given each table with its name, and returns it with the same rows.
            forget_earlier: the earlier snapshots can no longer be opened, and their files are removed at once.
            checkpoint: source -> cursor; None keeps the one that is published.

        Raises:
            FencedError, CommitConflict, CommitStateUnknown: as for publish.
        """
        self.rewrite(change)
        history = () if forget_earlier else self._pointer.history
        if self._changes_nothing() and not forget_earlier:
            kept = self._pointer.retention.select(history, datetime.now(UTC))
            self._swing(staged=None, history=kept)
            self._is_open = False
            snapshot = self._open_snapshot(kept[-1])
        else:
            changes = {} if checkpoint is None else {"checkpoint": checkpoint}
            snapshot = self._publish(datetime.now(UTC), history, **changes)
        self._clean_up(max_unread=0, min_age=timedelta(0) if forget_earlier else RETAINED_AGE)
        steps.reach("publish.trimmed")
        return snapshot

    def _publish(self, now: datetime, history: Sequence[SnapshotRecord], **changes: Any) -> Snapshot:
        record = replace(self._prepare_snapshot(now), checkpoint=changes.get("checkpoint", self._pointer.checkpoint))
        return self._swing_to(record, history, now, **changes)

    def publish_earlier(self, sequence: int, *, run: dict[str, Any]) -> Snapshot:
        """Publish an earlier snapshot anew, with the checkpoint that it had and ``run``, and end the transaction.

        What sources say is compared with that state by the next refresh. Staged work is given up.

        Raises:
            NotFoundError: this snapshot is not kept.
            StoreCorrupt: one of its tables is gone.
            LeaseLost, FencedError, CommitConflict, CommitStateUnknown: as for publish.
        """
        self._require_open()
        earlier = self._pointer.find_snapshot(sequence)
        self._tables = self._open_versions(earlier.tables)
        now = datetime.now(UTC)
        record = replace(earlier, sequence=self._pointer.sequence + 1, run_id=self._identity.run_id, published_at=now)
        return self._swing_to(record, self._pointer.history, now, checkpoint=earlier.checkpoint, run=run)

    def _swing_to(
        self, record: SnapshotRecord, history: Sequence[SnapshotRecord], now: datetime, **changes: Any
    ) -> Snapshot:
        self._swing(
            sequence=record.sequence,
            tables=record.tables,
            feature_version=record.feature_version,
            recipe=record.recipe,
            run_id=record.run_id,
            published_at=now,
            staged=None,
            history=self._pointer.retention.select((*history, record), now),
            **changes,
        )
        self._is_open = False
        steps.reach("publish.swung")
        return self._open_snapshot(record)

    def abandon(self) -> None:
        """Drop everything staged and end the transaction; what is published stays. (A kill keeps the staged chunks.)"""
        self._require_open()
        self._swing(staged=None)
        self._is_open = False

    def _open_staged(self, staged: StagedWork | None) -> dict[str, Table] | None:
        if staged is None or staged.feature_version != self._identity.feature_version:
            return None
        try:
            return self._open_versions(staged.tables)
        except StoreError as error:
            _LOG.warning("the staged work of run %s cannot be read and is done again: %s", staged.run_id, error)
            return None

    def _open_versions(self, versions: dict[str, int]) -> dict[str, Table]:
        return open_tables(self._location, self._pointer.dim, versions)

    def _open_snapshot(self, record: SnapshotRecord) -> Snapshot:
        return Snapshot(self._location, self._pointer.dim, record, self._tables)

    def _versions(self) -> dict[str, int]:
        return {name: table.version for name, table in self._tables.items()}

    def _changes_nothing(self) -> bool:
        pointer = self._pointer
        return (
            pointer.sequence > 0
            and self._versions() == pointer.tables
            and pointer.feature_version == self._identity.feature_version
        )

    def _describe_staged(self) -> StagedWork:
        return StagedWork(
            **asdict(self._identity), tables=self._versions(), num_chunks=self._num_chunks, staged_at=datetime.now(UTC)
        )

    def _prepare_snapshot(self, now: datetime) -> SnapshotRecord:
        sequence = self._pointer.sequence + 1
        for name, table in self._tables.items():
            if table.version != self._pointer.tables[name]:
                self._tables[name] = self._commit(partial(table.tidy, TABLES[name].indexed))
        self._sync()
        steps.reach("publish.synced")
        return SnapshotRecord(
            sequence=sequence,
            tables=self._versions(),
            feature_version=self._identity.feature_version,
            recipe=self._identity.recipe,
            run_id=self._identity.run_id,
            published_at=now,
        )

    def _sync(self) -> None:
        for name, known in self._known.items():
            self._known[name] = sync_new_files(self._tables[name].path, known)

    def _commit(self, change: Callable[[], Table]) -> Table:
        """Change a table, unless a newer writer has begun; when an older one interferes, change it again.

        A writer that slept looks before it touches anything: its commits would be undone by the newer one, but at the
        price of that one's time.
        """
        self._require_newest()
        for _ in range(_MAX_ATTEMPTS):
            try:
                return change()
            except CommitConflict as error:
                conflict = error
                self._require_newest()
            except StoreError:
                self._require_newest()  # a newer writer may have removed what this one slept on
                raise
        raise conflict

    def _require_newest(self) -> None:
        self._lease.require()
        found = self._register.read()
        if found is not None and found[0]["epoch"] > self._pointer.epoch:
            raise self._fenced(found[0]["epoch"])

    def _swing(self, **changes: Any) -> None:
        record = self._pointer.follow(**changes)
        try:
            self._version = self._register.cas(self._version, record.to_json())
        except CommitConflict as error:
            raise self._name_rival(error) from error
        except CommitStateUnknown:
            found = self._register.read()
            if found is None or found[0]["nonce"] != record.nonce:
                raise
            self._version = found[1]
        self._pointer = record

    def _name_rival(self, conflict: CommitConflict) -> StoreError:
        found = self._register.read()
        rival_epoch = found[0]["epoch"] if found else 0
        if rival_epoch < self._lease.epoch or (rival_epoch == self._lease.epoch and not self._has_claimed):
            return conflict
        return self._fenced(rival_epoch)

    def _clean_up(self, *, max_unread: int, min_age: timedelta) -> None:
        try:
            remove_unread(self._tables, self._register, epoch=self.epoch, max_unread=max_unread, min_age=min_age)
        except StoreError as error:  # published already: the next run cleans up
            _LOG.warning("old versions could not be removed: %s", error)

    def _fenced(self, rival_epoch: int) -> FencedError:
        return _fenced(self._location, rival_epoch, self._lease)

    def _require_open(self) -> None:
        if not self._is_open:
            raise ValueError("the transaction has ended: begin another one")
        self._lease.require()


def require_claim(pointer: PointerRecord, lease: Lease, location: Location) -> None:
    """Refuse to write for a lease that a later one has followed in the pointer.

    Raises:
        LeaseLost: the lease is not held any more.
        FencedError: the pointer has a greater epoch, or the same one of another tenure.
    """
    lease.require()
    is_mine = pointer.epoch == lease.epoch and pointer.writer == lease.token
    if pointer.epoch >= lease.epoch and not is_mine:
        raise _fenced(location, pointer.epoch, lease)


def _fenced(location: Location, rival_epoch: int, lease: Lease) -> FencedError:
    return FencedError(
        f"another run began to write to {location} (epoch {rival_epoch}, this one has {lease.epoch})",
        "let the other run end; it continues from what this one had staged",
    )
