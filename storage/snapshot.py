"""The published pointer: which versions of the tables are the store's content, and what they were made with.

Reading it needs the standard library only (no Arrow, no Lance), so that a status takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final

from lodestream.errors import NotFoundError, StoreCorrupt, StoreNotFound, StoreSchemaMismatch
from lodestream.storage.coordination import open_pointer, require_no_marker
from lodestream.storage.location import Location, Place
from lodestream.storage.pointer_format import pack, unpack
from lodestream.storage.registers.protocol import CasRegister, Record, Version, make_nonce
from lodestream.storage.version import FIRST_VERSION, VERSIONED_TABLES, DroppedSlot, KeptVersion

RECORD_FORMAT: Final = 2
"""Version of the pointer record itself; the tables have lodestream.schema.SCHEMA_VERSION. Format 1, of stores with one
feature version, is read as well, and written as this one by the next change."""

MAX_SNAPSHOTS: Final = 1000
"""More snapshots than this are never kept: the pointer, which every publish writes anew, lists them all."""

OLDEST_SCHEMA_VERSION: Final = 1
"""Tables of this schema version and later ones can be migrated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRecord:
    """One published state of the store.

    ``tables`` names the version of each table, ``recipe`` describes the feature version (model, precision, ...).
    ``checkpoint`` is what was published with it. ``version, slot, dim, model`` are those of ``KeptVersion``.
    The working state of a transaction has the sequence it started from and no ``published_at``.
    """

    sequence: int
    tables: dict[str, int]
    feature_version: str
    recipe: dict[str, Any]
    run_id: str
    published_at: datetime | None
    dim: int
    checkpoint: dict[str, Any] = field(default_factory=dict)
    version: str = FIRST_VERSION
    slot: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long snapshots can be opened: the last ``keep_snapshots`` always, and whatever was the latest one at some
    moment of the last ``keep_for_s`` seconds."""

    keep_snapshots: int = 10
    keep_for_s: float = 0.0

    def select(self, history: Sequence[SnapshotRecord], now: datetime) -> tuple[SnapshotRecord, ...]:
        """Return those of ``history`` (oldest first) that are kept; never more than MAX_SNAPSHOTS."""
        horizon = now - timedelta(seconds=self.keep_for_s)
        always = max(0, len(history) - self.keep_snapshots)
        # A snapshot was the latest one until its successor was published.
        young = [
            record
            for record, successor in pairwise(history[: always + 1])
            if successor.published_at is not None and successor.published_at > horizon
        ]
        return (*young, *history[always:])[-MAX_SNAPSHOTS:]

    def falls_short(self, history: Sequence[SnapshotRecord], now: datetime) -> bool:
        """Whether MAX_SNAPSHOTS is reached before ``keep_for_s`` is."""
        if len(history) < MAX_SNAPSHOTS or not self.keep_for_s or history[0].published_at is None:
            return False
        return history[0].published_at > now - timedelta(seconds=self.keep_for_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedWork:
    """Table versions that an unfinished run has committed and nobody reads yet."""

    run_id: str
    kind: str
    tables: dict[str, int]
    feature_version: str
    recipe: dict[str, Any]
    num_chunks: int
    staged_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PointerRecord:
    """The record in the register.

    ``sequence``     number of the published snapshot; 0 while nothing is published
    ``epoch, writer``  of the lease under which was written last; a writer with a smaller epoch is fenced off, and so is
                     one with the same epoch and another token
    ``nonce, previous``  random, and that of the record before
    ``version, slot, dim, model``  of the feature version that is served, as in ``KeptVersion``
    ``tables``       published version of each table
    ``staged``       work of a run that has not published yet, or None
    ``checkpoint``   source -> cursor, committed together with the data
    ``feature_version, recipe, run_id, published_at``  of the published snapshot ("" and None while there is none)
    ``checked_at``   when a run last ended here, also one that found nothing to do
    ``run``          summary of that run
    ``retention``    which published snapshots are kept
    ``history``      the published snapshots that can still be opened, oldest first, the current one last
    ``versions``     the feature versions beside the one that is served
    ``former``       the one of them that a rollback serves again; "" where there is none
    ``dropped``      tables of versions that were dropped, and are not removed yet
    """

    sequence: int
    epoch: int
    nonce: str
    schema_version: int
    dim: int
    tables: dict[str, int]
    writer: str = ""
    staged: StagedWork | None = None
    checkpoint: dict[str, Any] = field(default_factory=dict)
    feature_version: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    run_id: str = ""
    published_at: datetime | None = None
    checked_at: datetime | None = None
    previous: str | None = None
    run: dict[str, Any] = field(default_factory=dict)
    retention: Retention = Retention()
    history: tuple[SnapshotRecord, ...] = ()
    version: str = FIRST_VERSION
    slot: str = ""
    model: str = ""
    versions: tuple[KeptVersion, ...] = ()
    former: str = ""
    dropped: tuple[DroppedSlot, ...] = ()

    def follow(self, **changes: Any) -> PointerRecord:
        """Return the record that comes after this one: ``changes`` applied, a fresh nonce, this nonce as previous."""
        return replace(self, nonce=make_nonce(), previous=self.nonce, **changes)

    def find_snapshot(self, sequence: int) -> SnapshotRecord:
        """Return the snapshot of this number.

        Raises:
            NotFoundError: it is not published, or no longer kept.
        """
        for record in self.history:
            if record.sequence == sequence:
                return record
        raise NotFoundError(f"there is no snapshot {sequence}", self._say_kept())

    def find_latest(self, moment: datetime) -> SnapshotRecord:
        """Return the snapshot that was the latest one at ``moment``.

        Raises:
            NotFoundError: nothing was published by then, or it is no longer kept.
        """
        found = [record for record in self.history if record.published_at and record.published_at <= moment]
        if found:
            return found[-1]
        raise NotFoundError(f"no snapshot that is kept was published by {moment.isoformat()}", self._say_kept())

    def _say_kept(self) -> str:
        if not self.history:
            return "lodestream run"
        first, last = self.history[0].sequence, self.history[-1].sequence
        return f"the store keeps the snapshots {first} to {last}"

    def find_version(self, name: str) -> KeptVersion:
        """Return the version of this name beside the one that is served.

        Raises:
            NotFoundError: there is none.
        """
        for kept in self.versions:
            if kept.name == name:
                return kept
        names = ", ".join([self.version, *(kept.name for kept in self.versions)])
        raise NotFoundError(f"there is no feature version {name!r} beside {self.version}", f"the store has: {names}")

    def serve(self, record: SnapshotRecord, now: datetime) -> dict[str, Any]:
        """Return what changes when ``record`` becomes the published snapshot; staged work is given up by it.

        The feature version that was served is kept beside the other, where it is another one.
        """
        changes: dict[str, Any] = {
            name: getattr(record, name)
            for name in ("sequence", "tables", "feature_version", "recipe", "run_id", "dim", "version", "slot", "model")
        }
        if record.slot != self.slot:
            others = tuple(kept for kept in self.versions if kept.slot != record.slot)
            changes |= {"versions": (*others, self.keep_served(now)), "former": self.version}
        return changes | {"published_at": now, "staged": None}

    def keep_served(self, now: datetime) -> KeptVersion:
        """Return the version that is served as one that is kept beside another."""
        return KeptVersion(
            name=self.version,
            slot=self.slot,
            dim=self.dim,
            tables={name: self.tables[name] for name in VERSIONED_TABLES},
            feature_version=self.feature_version,
            recipe=self.recipe,
            created_at=self._first_served() or now,
            model=self.model,
            level=self.sequence,
            served_until=now,
        )

    def _first_served(self) -> datetime | None:
        times = (record.published_at for record in self.history if record.slot == self.slot)
        return next(times, None)

    def named_versions(self, table: str, slot: str) -> set[int]:
        """Return the versions of a table that must be kept: published ones, those of an unfinished run, and those of
        feature versions beside the one that is served.

        Args:
            table: its name.
            slot: of the feature version whose table it is.
        """
        records = [(self.slot, self.tables), *((record.slot, record.tables) for record in self.history)]
        records += [(kept.slot, kept.tables) for kept in self.versions]
        if self.staged is not None:
            records.append((self.slot, self.staged.tables))
        return {
            tables[table]
            for owner, tables in records
            if table in tables and (owner == slot or table not in VERSIONED_TABLES)
        }

    def named_slots(self) -> set[str]:
        """Return the slots whose tables are not to be taken for leavings, those of dropped versions among them."""
        return {self.slot, *(kept.slot for kept in self.versions), *(item.slot for item in self.dropped)}

    def to_json(self) -> Record:
        """Return the record as JSON values; times as ISO 8601 in UTC."""
        values: Record = _encode(asdict(self))
        return {"format": RECORD_FORMAT, **pack(values)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PointerRecord:
        """Read what ``to_json`` wrote.

        Raises:
            StoreSchemaMismatch: a later version of lodestream wrote it.
            StoreCorrupt: a field is missing or of another type.
        """
        if values.get("format") not in (1, RECORD_FORMAT):
            raise StoreSchemaMismatch(
                f"the store's pointer has format {values.get('format')}, this lodestream reads format {RECORD_FORMAT}",
                "pip install --upgrade lodestream",
            )
        try:
            return cls._parse(_read_first_format(values) if values["format"] == 1 else unpack(values))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreCorrupt(
                f"the store's pointer cannot be read: {error!r}", "restore the store's folder `pointer` from a backup"
            ) from error

    @classmethod
    def _parse(cls, values: Mapping[str, Any]) -> PointerRecord:
        known = {item.name for item in fields(cls)}
        given = {name: value for name, value in values.items() if name in known}
        staged = given["staged"]
        parsed = {
            "staged": None if staged is None else StagedWork(**_parse_times(staged, "staged_at")),
            "retention": Retention(**given.get("retention", {})),
            "history": tuple(SnapshotRecord(**_parse_times(item, "published_at")) for item in given["history"]),
            "versions": tuple(
                KeptVersion(**_parse_times(item, "created_at", "served_until")) for item in given["versions"]
            ),
            "dropped": tuple(DroppedSlot(**_parse_times(item, "dropped_at")) for item in given["dropped"]),
        }
        return cls(**_parse_times(given, "published_at", "checked_at") | parsed)


def _read_first_format(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of format 1, which knew a single feature version, as one of this format, unpacked."""
    history = [{**record, "dim": values["dim"]} for record in values["history"]]
    return {**values, "history": history, "versions": [], "dropped": []}


def read_pointer(place: Place) -> tuple[PointerRecord, Version]:
    """Read the pointer of the store at ``place``.

    Returns:
        The record, and the register's version of it for a later compare-and-swap.

    Raises:
        StoreNotFound: there is no store.
        StoreCorrupt, StoreSchemaMismatch: see PointerRecord.from_json.
        StoreUnreachable: its object store gives no answer.
    """
    location = Location.parse(place)
    found = open_register(location).read()
    if found is None:
        raise explain_missing(location)
    return PointerRecord.from_json(found[0]), found[1]


def explain_missing(location: Location) -> StoreNotFound:
    """Return the error for a place that has no pointer.

    Raises:
        ConfigError: the store is there, and its pointer in a server that is not named.
    """
    require_no_marker(location)
    is_file = location.is_local and location.path.is_file()
    reason = "it is a file" if is_file else "nothing has been written there yet"
    return StoreNotFound(f"there is no store at {location}: {reason}", "lodestream run")


def open_register(place: Place, *, create: bool = False) -> CasRegister:
    """Return the register that holds the pointer of the store at ``place``. See coordination.open_pointer."""
    return open_pointer(Location.parse(place), create=create)


def _encode(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, Mapping):
        return {name: _encode(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    return value


def _parse_times(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    times = {name: None if values[name] is None else datetime.fromisoformat(values[name]) for name in names}
    return {**values, **times}
