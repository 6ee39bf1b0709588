"""The upkeep of the configured store: what is due at the end of a run, and what the verb ``gc`` does on demand."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from lodestream.errors import LodestreamError
from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.quarantine import recount
from lodestream.pipeline.report import RunReport
from lodestream.storage.findings import Verification
from lodestream.storage.lease import Lease
from lodestream.storage.maintenance import Upkeep, collect_garbage, keep_up
from lodestream.storage.purge import Purge, PurgePlan, plan_purge, purge_documents
from lodestream.storage.repair import Repair, repair_store, require_opened
from lodestream.storage.store import FeatureStore
from lodestream.storage.verify import verify_store

if TYPE_CHECKING:
    from lodestream.storage.cache.purge import PagePurge


def finish_run(loaded: LoadedConfig, store: FeatureStore, report: RunReport, lease: Lease) -> None:
    """Does the upkeep that is due after a run has published, and notes it in the report.

    The features are published whatever becomes of it, so a failure here is a warning; the next run tries again.
    """
    try:
        done = keep_up(store, loaded.config.upkeep.options(), lease=lease, run_id=f"{report.run_id}-upkeep")
    except LodestreamError as error:
        report.warnings.append(f"the store's upkeep failed and is left to the next run: {error.message}")
        return
    if done is not None:
        report.upkeep = done.as_dict()


def collect(loaded: LoadedConfig) -> Upkeep:
    """Merges, removes and sweeps whatever can be; see storage.maintenance.collect_garbage."""
    store = FeatureStore.open(loaded.store_location)
    with store.open_lease("gc", ttl_s=loaded.config.lease.ttl_s) as lease:
        options = replace(loaded.config.upkeep.options(), retention=loaded.config.store.retention())
        return collect_garbage(store, options, lease=lease, run_id=_name_upkeep("gc"))


def plan(loaded: LoadedConfig, doc_ids: Sequence[str]) -> PurgePlan:
    """What a purge of these documents would do."""
    return plan_purge(FeatureStore.open(loaded.store_location), doc_ids)


def purge(loaded: LoadedConfig, planned: PurgePlan) -> tuple[Purge, PagePurge]:
    """Takes the documents out of every snapshot and file, and out of the endpoint's cache on this machine; see
    storage.purge and storage.cache.purge."""
    store = FeatureStore.open(loaded.store_location)
    folder = loaded.resolve(loaded.config.cache.folder)
    # A refresh needs nothing of the cache.
    from lodestream.storage.cache.purge import purge_pages

    # Before as well, since a purge that is killed behind its publish finds the documents in no snapshot any more.
    before = purge_pages(folder, planned.doc_ids)
    with store.open_lease("gc --purge", ttl_s=loaded.config.lease.ttl_s) as lease:
        done = purge_documents(store, planned, lease=lease, run_id=_name_upkeep("purge"))
        _recount(store, lease)
    after = purge_pages(folder, planned.doc_ids)
    return done, replace(after, num_removed=before.num_removed + after.num_removed)


def verify(loaded: LoadedConfig, *, deep: bool) -> Verification:
    """What is wrong with the store; see storage.verify."""
    sweep_after = loaded.config.upkeep.options().sweep_after
    return verify_store(loaded.store_location, deep=deep, sweep_after=sweep_after)


def repair(loaded: LoadedConfig, found: Verification) -> Repair:
    """Takes out what was found; see storage.repair.

    Raises:
        StoreCorrupt: the pointer or the published snapshot cannot be opened, so nothing can be mended.
    """
    require_opened(found)
    store = FeatureStore.open(loaded.store_location)
    sweep_after = loaded.config.upkeep.options().sweep_after
    with store.open_lease("verify --repair", ttl_s=loaded.config.lease.ttl_s) as lease:
        done = repair_store(store, found, lease=lease, run_id=_name_upkeep("repair"), sweep_after=sweep_after)
        _recount(store, lease)
    return done


def _recount(store: FeatureStore, lease: Lease) -> None:
    """Documents in quarantine may be among those that went: ``status`` and the next run go by their number."""
    snapshot = store.open_snapshot()
    store.note_run(partial(recount, base=snapshot), lease=lease)


def _name_upkeep(verb: str) -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}-{verb}"
