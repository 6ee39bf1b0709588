"""What every writer of a store does: changes of tables under a lease, and swings of the pointer that fence others off.

Order of a chunk: commit to the tables, flush, name the versions in the pointer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
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
from lodestream.storage.reader import Snapshot
from lodestream.storage.registers.protocol import CasRegister, Version
from lodestream.storage.snapshot import PointerRecord, SnapshotRecord
from lodestream.storage.table import Table

RETAINED_AGE: Final = timedelta(hours=1)
MAX_UNREAD_VERSIONS: Final = 16

_MAX_ATTEMPTS: Final = 3
_LOG = logging.getLogger(__name__)


class Writer:
    """One writer's tables and its hold on the pointer. One thread only.

    Guarantees: a killed writer loses the chunk it was writing and no more; after a newer writer has begun, this one can
    neither stage nor publish (LeaseLost, FencedError).
    """

    def __init__(
        self,
        location: Location,
        register: CasRegister,
        found: tuple[PointerRecord, Version],
        *,
        lease: Lease,
        written: Sequence[str],
        slot: str,
    ) -> None:
        """Look at the pointer; nothing is written before ``_claim``.

        Args:
            location, register: the store and its pointer's register.
            found: what the register holds.
            lease: the store's lease, held.
            written: the tables that it changes.
            slot: of the feature version that it writes.
        """
        self._location = location
        self._register = register
        self._pointer, self._version = found
        self._lease = lease
        self._written = tuple(written)
        self._slot = slot
        self._num_chunks = 0
        self._is_open = True
        self._has_claimed = False
        require_claim(self._pointer, lease, location)

    def _claim(self, tables: dict[str, Table], **changes: Any) -> None:
        """Raise the pointer's epoch, before anything is written: from here on an older writer can do no harm."""
        self._tables = tables
        self._swing(epoch=self._lease.epoch, writer=self._lease.token, **changes)
        self._has_claimed = True
        steps.reach("begin.claimed")
        is_local = self._location.is_local  # an object store keeps what it has accepted
        self._known = {name: list_files(tables[name].path) for name in self._written} if is_local else {}

    @property
    def epoch(self) -> int:
        """This writer's epoch."""
        return self._lease.epoch

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
        for name in self._written:
            change = partial(self._tables[name].replace_documents, removed[name], rows[name])
            self._tables[name] = self._commit(change)
            steps.reach(f"chunk.{name}_committed")
        if self._versions() == before:
            return
        self._sync()
        steps.reach("chunk.synced")
        self._num_chunks += 1
        self._swing(**self._describe_chunks())
        steps.reach("chunk.staged")

    def remove_documents(self, doc_ids: Sequence[str]) -> None:
        """Stage that documents vanish from all tables. Raises what ``write_chunk`` raises."""
        nothing = self._tables["features"].schema.empty_table()
        self.write_chunk(features=nothing, documents=DOCUMENTS_SCHEMA.empty_table(), deleted_doc_ids=doc_ids)

    def rewrite(self, change: Callable[[str, Table], Table]) -> None:
        """Change the tables past the chunks: ``change`` is given each with its name. Not staged: a kill undoes it."""
        self._require_open()
        for name in self._written:
            self._tables[name] = self._commit(partial(change, name, self._tables[name]))

    def _describe_chunks(self) -> dict[str, Any]:
        """What the pointer says of the chunks that are committed and not published."""
        raise NotImplementedError

    def _versions(self) -> dict[str, int]:
        return {name: table.version for name, table in self._tables.items()}

    def _tidy(self, names: Iterable[str]) -> None:
        """Bring the indexes of some tables up to date, and flush."""
        for name in names:
            self._tables[name] = self._commit(partial(self._tables[name].tidy, TABLES[name].indexed))
        self._sync()
        steps.reach("publish.synced")

    def _open_snapshot(self, record: SnapshotRecord) -> Snapshot:
        return Snapshot(self._location, record, self._tables)

    def _swing_to(
        self, record: SnapshotRecord, history: Sequence[SnapshotRecord], now: datetime, **changes: Any
    ) -> Snapshot:
        """Publish ``record`` after ``history``, and end the work."""
        kept = self._pointer.retention.select((*history, record), now)
        self._swing(**self._pointer.serve(record, now), history=kept, **changes)
        self._is_open = False
        steps.reach("publish.swung")
        return self._open_snapshot(record)

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
        tables = {name: self._tables[name] for name in self._written}
        remove = partial(remove_unread, tables, self._register, slot=self._slot, epoch=self.epoch)
        try:
            remove(max_unread=max_unread, min_age=min_age)
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
