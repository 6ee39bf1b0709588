"""Writing a feature version beside the one that is served: chunk by chunk, and at last in one swing in its place.

Its tables are named by a record of their own in the pointer, which every chunk moves on. So a writer that is killed
loses one chunk, and a refresh of the version that is served in between leaves it as it is.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from lodestream.errors import GuardRefused
from lodestream.storage import steps
from lodestream.storage.lease import Lease
from lodestream.storage.location import Location
from lodestream.storage.reader import Snapshot, open_tables
from lodestream.storage.registers.protocol import CasRegister, Version
from lodestream.storage.snapshot import PointerRecord, SnapshotRecord
from lodestream.storage.table import Table
from lodestream.storage.version import VERSIONED_TABLES, KeptVersion
from lodestream.storage.writer import MAX_UNREAD_VERSIONS, RETAINED_AGE, Writer


class VersionWriter(Writer):
    """One writer's work on a version that is not served. ``source_state`` is read, and never written.

    Guarantees: those of ``Writer``; what is served and what an unfinished run has staged for it stay as they are until
    ``promote``.
    """

    def __init__(
        self,
        location: Location,
        register: CasRegister,
        found: tuple[PointerRecord, Version],
        name: str,
        *,
        lease: Lease,
        run_id: str,
    ) -> None:
        kept = found[0].find_version(name)
        super().__init__(location, register, found, lease=lease, written=VERSIONED_TABLES, slot=kept.slot)
        self._name = name
        self._run_id = run_id
        tables = describe_kept(self._pointer, kept).tables
        self._claim(open_tables(location, kept.dim, tables, slot=kept.slot))

    @property
    def base(self) -> Snapshot:
        """All chunks so far; each call pins the state of its moment."""
        record = replace(describe_kept(self._pointer, self._kept), tables=self._versions())
        return self._open_snapshot(record)

    @property
    def is_level(self) -> bool:
        """Whether the version was brought level with the snapshot that is published."""
        return self._kept.level == self._pointer.sequence

    def own_tables(self) -> list[Table]:
        """Return the version's own tables as they are now."""
        return [self._tables[name] for name in self._written]

    def finish(
        self, *, is_level: bool, max_unread: int = MAX_UNREAD_VERSIONS, min_age: timedelta = RETAINED_AGE
    ) -> None:
        """Bring the indexes up to date and remove old versions of the tables.

        Args:
            is_level: whether the version has exactly the documents that are published now.
            max_unread: so many versions of a table that nobody needs may stay.
            min_age: versions of a table that were the newest ones until less than so long ago stay in any case.

        Raises:
            FencedError, CommitConflict: another writer took over.
        """
        self._require_open()
        kept = self._kept
        if self._own_versions() != kept.tables or not self._is_indexed():
            self._tidy(self._written)
        level = self._pointer.sequence if is_level else kept.level
        self._swing(**self._describe_chunks(level=level))
        steps.reach("version.finished")
        self._clean_up(max_unread=max_unread, min_age=min_age)

    def promote(self, *, run: dict[str, Any]) -> Snapshot:
        """Serve this version from now on, in one swing of the pointer, and end the work. The one before is kept.

        The sources' cursors stay as they are, for the documents are the same. Staged work of an unfinished run, which
        was for the version before, is given up.

        Args:
            run: summary of the last run, JSON values.

        Raises:
            GuardRefused: the version does not have the documents that are published.
            FencedError, CommitConflict, CommitStateUnknown: as for Transaction.publish.
        """
        self._require_open()
        kept, pointer = self._kept, self._pointer
        if not self.is_level:
            raise GuardRefused(
                f"the feature version {kept.name} is level with snapshot {kept.level}, and {pointer.sequence} is "
                "published",
                f"lodestream versions promote {kept.name}",
            )
        now = datetime.now(UTC)
        record = replace(
            describe_kept(pointer, kept),
            sequence=pointer.sequence + 1,
            run_id=self._run_id,
            published_at=now,
            checkpoint=pointer.checkpoint,
        )
        return self._swing_to(record, pointer.history, now, run=run)

    @property
    def _kept(self) -> KeptVersion:
        return self._pointer.find_version(self._name)

    def _own_versions(self) -> dict[str, int]:
        return {name: self._tables[name].version for name in self._written}

    def _is_indexed(self) -> bool:
        return all(self._tables[name].dataset.describe_indices() for name in self._written)

    def _describe_chunks(self, **changes: Any) -> dict[str, Any]:
        moved = replace(self._kept, tables=self._own_versions(), **changes)
        return {"versions": tuple(moved if kept.name == self._name else kept for kept in self._pointer.versions)}


def describe_kept(pointer: PointerRecord, kept: KeptVersion) -> SnapshotRecord:
    """Return the record of what there is of a version beside the one that is served: not published, and numbered by
    the snapshot that it is level with."""
    return SnapshotRecord(
        sequence=kept.level,
        tables={**pointer.tables, **kept.tables},
        feature_version=kept.feature_version,
        recipe=kept.recipe,
        run_id="",
        published_at=None,
        dim=kept.dim,
        version=kept.name,
        slot=kept.slot,
        model=kept.model,
    )
