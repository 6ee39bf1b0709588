"""Going back to an earlier snapshot: a publish like any other, so that readers and writers notice nothing else."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.quarantine import recount
from lodestream.storage.store import FeatureStore, Snapshot


def roll_back(loaded: LoadedConfig, sequence: int) -> Snapshot:
    """Publishes the snapshot ``sequence`` anew, with what its sources had said and their cursors.

    The next refresh compares the sources with that state, and computes the difference again. Work that an unfinished
    run has staged is given up.

    Raises:
        NotFoundError: the snapshot is not kept.
        LeaseHeld: a run is under way.
    """
    store = FeatureStore.open(loaded.store_location)
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}-rollback"
    with store.open_lease(f"rollback to {sequence}", ttl_s=loaded.config.lease.ttl_s) as lease:
        pointer = store.pointer()
        earlier = pointer.find_snapshot(sequence)
        transaction = store.begin(
            lease=lease,
            run_id=run_id,
            kind="rollback",
            feature_version=earlier.feature_version,
            recipe=earlier.recipe,
        )
        # What is in quarantine comes back with the snapshot, and runs look for it only where it is counted.
        return transaction.publish_earlier(sequence, run=recount(dict(pointer.run), store.open_snapshot(sequence)))
