"""How a store is, from its pointer alone: no torch, no Arrow, no Lance, so that asking costs milliseconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from lodestream.errors import StoreNotFound, StoreUnreachable
from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.durations import format_duration
from lodestream.storage.coordination import open_lease
from lodestream.storage.lease import LeaseRecord, read_lease
from lodestream.storage.location import Location
from lodestream.storage.snapshot import MAX_SNAPSHOTS, PointerRecord, read_pointer
from lodestream.storage.version import KeptVersion, name_folder

_APART: Final = ("recent", "failure")

Health = Literal["healthy", "degraded", "empty"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLag:
    """How far what is published lies behind one source.

    ``lag_s``  since the time up to which the source was proven complete; where it has no such time, since the last run
    """

    name: str
    mode: str
    cursor: dict[str, Any]
    watermark: str | None
    held_back_s: float
    num_future: int
    num_swept: int
    lag_s: float

    def as_dict(self) -> dict[str, Any]:
        """The lag as JSON values."""
        return {
            "name": self.name,
            "mode": self.mode,
            "cursor": self.cursor,
            "watermark": self.watermark,
            "lag_seconds": self.lag_s,
            "held_back_seconds": self.held_back_s,
            "rows_in_the_future": self.num_future,
            "rows_the_sweep_found": self.num_swept,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One word, the reason for it, and what the pointer says."""

    health: Health
    reason: str
    store: str
    pointer: PointerRecord | None
    lease: LeaseRecord | None = None
    sources: tuple[SourceLag, ...] = ()
    freshness_target_s: float = 0.0

    @property
    def exit_code(self) -> int:
        return 0 if self.health == "healthy" else 3

    def as_dict(self) -> dict[str, Any]:
        """The status as JSON values."""
        pointer = self.pointer
        values: dict[str, Any] = {"health": self.health, "reason": self.reason, "store": self.store}
        if pointer is None:
            return values | {"snapshot": None}
        staged = pointer.staged
        return values | {
            "snapshot": _describe_snapshot(pointer),
            "checked_at": pointer.checked_at.isoformat() if pointer.checked_at else None,
            "version": pointer.version,
            "versions": [_describe_kept(kept) for kept in pointer.versions],
            "feature_version": pointer.feature_version,
            "recipe": pointer.recipe,
            "schema_version": pointer.schema_version,
            "epoch": pointer.epoch,
            "lease": _describe_lease(self.lease),
            "staged": None
            if staged is None
            else {"run_id": staged.run_id, "num_chunks": staged.num_chunks, "staged_at": staged.staged_at.isoformat()},
            "sources": [source.as_dict() for source in self.sources],
            "freshness": {
                "target_seconds": self.freshness_target_s or None,
                "lag_seconds": max((source.lag_s for source in self.sources), default=None),
            },
            "quarantined": _count_quarantined(pointer),
            "last_run": {name: value for name, value in pointer.run.items() if name not in _APART} or None,
            "failure": pointer.run.get("failure"),
            "recent_runs": pointer.run.get("recent", []),
        }


def read_status(loaded: LoadedConfig) -> Status:
    """The status of the configured store.

    Raises:
        StoreSchemaMismatch, StoreCorrupt: the pointer cannot be read.
    """
    try:
        pointer, _ = read_pointer(loaded.store_location)
    except StoreNotFound:
        reason = "nothing was run yet; next: lodestream run"
        return Status(health="empty", reason=reason, store=loaded.store_uri, pointer=None)
    return describe_pointer(loaded, pointer)


def describe_pointer(loaded: LoadedConfig, pointer: PointerRecord, *, trouble: str = "") -> Status:
    """The status that follows from a pointer that was read already.

    Args:
        trouble: why it could not be read anew; what is asked of servers is then left out.
    """
    store = loaded.store_uri
    sources = tuple(_measure_lag(pointer, datetime.now(UTC)))
    target_s = loaded.config.refresh.freshness_target
    gone = _find_gone(loaded.store_location, pointer)
    health, reason = _judge_gone(gone) if gone else _judge(pointer, sources, target_s)
    if trouble:
        health, reason = "degraded", trouble
    try:
        lease = read_lease(open_lease(loaded.store_location, ttl_s=loaded.config.lease.ttl_s)) if not trouble else None
    except StoreUnreachable as error:  # readers need no lease, but the next run does
        lease = None
        health, reason = "degraded", f"nothing can be written: {error.message}"
    return Status(
        health=health,
        reason=reason,
        store=store,
        pointer=pointer,
        lease=lease[0] if lease else None,
        sources=sources,
        freshness_target_s=target_s,
    )


def _measure_lag(pointer: PointerRecord, now: datetime) -> Iterator[SourceLag]:
    for name, seen in pointer.checkpoint.items():
        since = datetime.fromisoformat(seen["watermark"]) if seen["watermark"] else pointer.checked_at or now
        yield SourceLag(
            name=name,
            mode=seen["mode"],
            cursor=seen["cursor"],
            watermark=seen["watermark"],
            held_back_s=seen["held_back_s"],
            num_future=seen["num_future"],
            num_swept=seen["num_swept"],
            lag_s=round((now - since).total_seconds(), 1),
        )


def _describe_lease(lease: LeaseRecord | None) -> dict[str, Any] | None:
    """Who has or had the right to write. One look cannot tell a holder that is dead from one that is not."""
    if lease is None:
        return None
    held_s = round(lease.held_s, 1)
    return {"holder": lease.holder, "epoch": lease.epoch, "held": not lease.released, "held_seconds": held_s}


def _find_gone(location: Location, pointer: PointerRecord) -> list[str]:
    """Tables that the pointer names and whose folder is not there; of an object store nothing is asked."""
    return [
        n for n in pointer.tables if location.is_local and not (location.path / name_folder(n, pointer.slot)).is_dir()
    ]


def _judge_gone(tables: Sequence[str]) -> tuple[Health, str]:
    next_step = "restore the store from a backup, or move it away and run: lodestream run"
    return "degraded", f"of the store's tables {', '.join(tables)} is gone; next: {next_step}"


def _judge(pointer: PointerRecord, sources: Sequence[SourceLag], target_s: float) -> tuple[Health, str]:
    staged = pointer.staged
    unfinished = f"a run (begun by {staged.run_id}) is under way or was interrupted" if staged else ""
    if not pointer.sequence:
        return "empty", f"nothing is published yet{'; ' + unfinished if unfinished else ''}; next: lodestream run"
    failure = pointer.run.get("failure")
    if failure:
        times = "the last run" if failure["in_a_row"] == 1 else f"the last {failure['in_a_row']} runs"
        return "degraded", f"{times} failed: {failure['message']}; next: {failure['hint'] or 'lodestream check'}"
    slowest = max(sources, key=lambda source: source.lag_s, default=None)
    if target_s and slowest is not None and slowest.lag_s > target_s:
        return "degraded", (
            f"{slowest.name} lags by {slowest.lag_s:.0f}s, more than refresh.freshness_target = "
            f"{format_duration(target_s)}; next: lodestream refresh, and see that its schedule runs"
        )
    quarantined = _count_quarantined(pointer)
    if quarantined:
        are = "document is" if quarantined == 1 else "documents are"
        return "degraded", f"{quarantined} {are} in quarantine; next: lodestream quarantine list"
    if unfinished:
        return "degraded", f"{unfinished}; next: lodestream run continues it"
    return "healthy", "the last run published or found nothing to do"


def describe_short(pointer: PointerRecord) -> str | None:
    """A sentence where fewer snapshots are kept than ``store.keep_for`` asks for; else None."""
    if not pointer.retention.falls_short(pointer.history, datetime.now(UTC)):
        return None
    since = pointer.history[0].published_at
    return (
        f"snapshots are kept for less than store.keep_for = {format_duration(pointer.retention.keep_for_s)}: the "
        f"{MAX_SNAPSHOTS} that are kept at most reach back to {since:%Y-%m-%d %H:%M} UTC"
    )


def _count_quarantined(pointer: PointerRecord) -> int:
    return int(pointer.run.get("documents", {}).get("quarantined", 0))


def _describe_kept(kept: KeptVersion) -> dict[str, Any]:
    """A feature version beside the one that is served."""
    return {
        "name": kept.name,
        "feature_version": kept.feature_version,
        "recipe": kept.recipe,
        "level_with": kept.level,
        "served_until": kept.served_until.isoformat() if kept.served_until else None,
    }


def _describe_snapshot(pointer: PointerRecord) -> dict[str, Any] | None:
    if not pointer.sequence or pointer.published_at is None:
        return None
    age_s = (datetime.now(UTC) - pointer.published_at).total_seconds()
    return {
        "sequence": pointer.sequence,
        "published_at": pointer.published_at.isoformat(),
        "age_seconds": round(age_s, 1),
        "run_id": pointer.run_id,
        "kept": [record.sequence for record in pointer.history],
        "kept_too_short": describe_short(pointer),
    }
