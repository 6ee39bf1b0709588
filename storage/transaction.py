"""Writing: chunks are committed to the tables one by one, and all of them become visible in one swing of the pointer.

Between the two the tables' new versions are *staged*: the pointer names them, nobody reads them, and a run that is
killed is continued from them. Order of a chunk: commit to the tables, flush, name the versions as staged. Order of
publishing: tidy the tables, flush, swing the pointer, clean up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from lodestream.errors import StoreError
from lodestream.schema import TABLES
from lodestream.storage import steps
from lodestream.storage.lease import Lease
from lodestream.storage.location import Location
from lodestream.storage.reader import Snapshot, defer_tables, open_tables
from lodestream.storage.registers.protocol import CasRegister, Version
from lodestream.storage.snapshot import PointerRecord, Retention, SnapshotRecord, StagedWork
from lodestream.storage.table import Table
from lodestream.storage.writer import MAX_UNREAD_VERSIONS, RETAINED_AGE, Writer

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """What a run says of itself: its name, its kind, the feature version it writes, what that is made of, and where its
    model was found (None: where it was before)."""

    run_id: str
    kind: str
    feature_version: str
    recipe: dict[str, Any]
    model: str | None = None


class Transaction(Writer):
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
        super().__init__(location, register, found, lease=lease, written=tuple(TABLES), slot=found[0].slot)
        self._identity = identity
        staged = self._pointer.staged
        resumed = self._open_staged(staged)
        self.resumed = resumed is not None
        self._num_chunks = staged.num_chunks if staged and self.resumed else 0
        pointer = self._pointer
        self._claim(
            # A run that finds nothing to do never opens them.
            resumed or defer_tables(location, pointer.dim, pointer.tables, slot=pointer.slot),
            staged=staged if self.resumed else None,
            retention=retention or pointer.retention,
        )

    @property
    def base(self) -> Snapshot:
        """The working state: what is published and all chunks staged so far; each call pins the state of its moment."""
        return self._open_snapshot(self._describe_snapshot(self._pointer.sequence, None))

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
        self._tables = open_tables(self._location, earlier.dim, earlier.tables, slot=earlier.slot)
        now = datetime.now(UTC)
        record = replace(earlier, sequence=self._pointer.sequence + 1, run_id=self._identity.run_id, published_at=now)
        return self._swing_to(record, self._pointer.history, now, checkpoint=earlier.checkpoint, run=run)

    def abandon(self) -> None:
        """Drop everything staged and end the transaction; what is published stays. (A kill keeps the staged chunks.)"""
        self._require_open()
        self._swing(staged=None)
        self._is_open = False

    def _open_staged(self, staged: StagedWork | None) -> dict[str, Table] | None:
        if staged is None or staged.feature_version != self._identity.feature_version:
            return None
        try:
            pointer = self._pointer
            return open_tables(self._location, pointer.dim, staged.tables, slot=pointer.slot)
        except StoreError as error:
            _LOG.warning("the staged work of run %s cannot be read and is done again: %s", staged.run_id, error)
            return None

    def _changes_nothing(self) -> bool:
        pointer = self._pointer
        return (
            pointer.sequence > 0
            and self._versions() == pointer.tables
            and pointer.feature_version == self._identity.feature_version
        )

    def _describe_chunks(self) -> dict[str, Any]:
        identity = self._identity
        staged = StagedWork(
            run_id=identity.run_id,
            kind=identity.kind,
            tables=self._versions(),
            feature_version=identity.feature_version,
            recipe=identity.recipe,
            num_chunks=self._num_chunks,
            staged_at=datetime.now(UTC),
        )
        return {"staged": staged}

    def _prepare_snapshot(self, now: datetime) -> SnapshotRecord:
        sequence = self._pointer.sequence + 1
        before = self._pointer.tables
        self._tidy([name for name, table in self._tables.items() if table.version != before[name]])
        return self._describe_snapshot(sequence, now)

    def _describe_snapshot(self, sequence: int, published_at: datetime | None) -> SnapshotRecord:
        pointer, identity = self._pointer, self._identity
        return SnapshotRecord(
            sequence=sequence,
            tables=self._versions(),
            feature_version=identity.feature_version,
            recipe=identity.recipe,
            run_id=identity.run_id,
            published_at=published_at,
            dim=pointer.dim,
            version=pointer.version,
            slot=pointer.slot,
            model=pointer.model if identity.model is None else identity.model,
        )
