"""How a store is, from its pointer alone: no torch, no Arrow, no Lance, so that asking costs milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from lodestream.errors import StoreNotFound
from lodestream.pipeline.config import LoadedConfig
from lodestream.storage.coordination import open_lease
from lodestream.storage.lease import LeaseRecord, read_lease
from lodestream.storage.snapshot import PointerRecord, read_pointer

Health = Literal["healthy", "degraded", "empty"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One word, the reason for it, and what the pointer says."""

    health: Health
    reason: str
    store: str
    pointer: PointerRecord | None
    lease: LeaseRecord | None = None

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
            "feature_version": pointer.feature_version,
            "recipe": pointer.recipe,
            "schema_version": pointer.schema_version,
            "epoch": pointer.epoch,
            "lease": _describe_lease(self.lease),
            "staged": None
            if staged is None
            else {"run_id": staged.run_id, "num_chunks": staged.num_chunks, "staged_at": staged.staged_at.isoformat()},
            "last_run": pointer.run or None,
        }


def read_status(loaded: LoadedConfig) -> Status:
    """The status of the configured store.

    Raises:
        StoreSchemaMismatch, StoreCorrupt: the pointer cannot be read.
    """
    store = loaded.store_uri
    try:
        pointer, _ = read_pointer(loaded.store_location)
    except StoreNotFound:
        return Status(health="empty", reason="nothing was run yet; next: lodestream run", store=store, pointer=None)
    health, reason = _judge(pointer)
    lease = read_lease(open_lease(loaded.store_location, ttl_s=loaded.config.lease.ttl_s))
    return Status(health=health, reason=reason, store=store, pointer=pointer, lease=lease[0] if lease else None)


def _describe_lease(lease: LeaseRecord | None) -> dict[str, Any] | None:
    """Who has or had the right to write. One look cannot tell a holder that is dead from one that is not."""
    if lease is None:
        return None
    held_s = round(lease.held_s, 1)
    return {"holder": lease.holder, "epoch": lease.epoch, "held": not lease.released, "held_seconds": held_s}


def _judge(pointer: PointerRecord) -> tuple[Health, str]:
    staged = pointer.staged
    unfinished = f"a run (begun by {staged.run_id}) is under way or was interrupted" if staged else ""
    if not pointer.sequence:
        return "empty", f"nothing is published yet{'; ' + unfinished if unfinished else ''}; next: lodestream run"
    quarantined = int(pointer.run.get("documents", {}).get("quarantined", 0))
    if quarantined:
        are = "document is" if quarantined == 1 else "documents are"
        return "degraded", f"{quarantined} {are} in quarantine; next: lodestream run prints the reasons"
    if unfinished:
        return "degraded", f"{unfinished}; next: lodestream run continues it"
    return "healthy", "the last run published or found nothing to do"


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
    }
