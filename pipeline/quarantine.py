"""Documents that cannot be used: which and why, and what a person can do about them.

They lie in ``source_state`` beside the others, published with the data. A refresh tries each again after five minutes,
then after twice as long each time, up to a day, or at once when the document changes at its source.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa

from lodestream.errors import GuardRefused, NotFoundError
from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.report import name_run
from lodestream.pipeline.states import read_quarantine
from lodestream.schema import DOCUMENTS_SCHEMA, SOURCE_STATE_SCHEMA, features_schema
from lodestream.storage.store import FeatureStore, Snapshot, Transaction


def list_quarantine(loaded: LoadedConfig) -> list[dict[str, Any]]:
    """Rows of ``source_state`` of the documents in quarantine, by doc_id.

    Raises:
        StoreNotFound: nothing is published.
    """
    return read_quarantine(FeatureStore.open(loaded.store_location).open_snapshot())


def choose_quarantined(loaded: LoadedConfig, doc_ids: Collection[str]) -> list[str]:
    """``doc_ids``, or all documents in quarantine where none is given.

    Raises:
        NotFoundError: one of them is not in quarantine.
    """
    found = [row["doc_id"] for row in list_quarantine(loaded)]
    unknown = sorted(set(doc_ids) - set(found))
    if unknown:
        raise NotFoundError(f"{unknown[0]!r} is not in quarantine", "lodestream quarantine list")
    return sorted(doc_ids) if doc_ids else found


def drop_quarantined(loaded: LoadedConfig, doc_ids: Collection[str]) -> int:
    """Gives up the versions that failed: they are neither tried again nor counted. Features of earlier versions stay.

    A document that never worked leaves the store; whatever its source has next is looked at as usual.

    Returns:
        The published snapshot's number.

    Raises:
        NotFoundError: one of them is not in quarantine.
        LeaseHeld: a run is under way.
        GuardRefused: a run was interrupted and is to be continued first.
    """
    dropped = choose_quarantined(loaded, doc_ids)
    store = FeatureStore.open(loaded.store_location)
    run_id = name_run()
    with store.open_lease(f"quarantine drop {run_id}", ttl_s=loaded.config.lease.ttl_s) as lease:
        # Read under the lease: a run that has just ended has moved the cursors and counted anew.
        pointer = store.pointer()
        if pointer.staged is not None:
            # A transaction takes over what is staged: this one would publish half a run.
            raise GuardRefused(f"the run {pointer.staged.run_id} is unfinished", "lodestream run, then the same again")
        transaction = store.begin(
            lease=lease,
            run_id=run_id,
            kind="refresh",
            feature_version=pointer.feature_version,
            recipe=pointer.recipe,
        )
        rows = {row["doc_id"]: row for row in read_quarantine(transaction.base)}
        _write_dropped(transaction, [rows[doc_id] for doc_id in dropped if doc_id in rows], run_id)
        snapshot = transaction.publish(checkpoint=pointer.checkpoint, run=recount(dict(pointer.run), transaction.base))
    return snapshot.sequence


def _write_dropped(transaction: Transaction, rows: Sequence[dict[str, Any]], run_id: str) -> None:
    base = transaction.base
    empty = features_schema(base.dim).empty_table()
    stored = {row["doc_id"]: base.get_document(row["doc_id"]) for row in rows}
    worked = {doc_id: row for doc_id, row in stored.items() if row is not None and row["num_tokens"]}
    kept = [row | {"quarantine_reason": None, "run_id": run_id} for row in worked.values()]
    states = [
        row
        | {"quarantine_reason": None, "quarantine_attempts": 0, "first_failed_at": None, "retry_at": None}
        | {"run_id": run_id}
        for row in rows
    ]
    never = sorted(stored.keys() - worked.keys())
    if never:
        transaction.remove_documents(never)
    transaction.write_chunk(
        features=empty,
        documents=pa.Table.from_pylist(kept, schema=DOCUMENTS_SCHEMA),
        deleted_doc_ids=(),
        keep_features_of=sorted(worked),
        source_state=pa.Table.from_pylist(states, schema=SOURCE_STATE_SCHEMA),
    )


def recount(run: dict[str, Any], base: Snapshot) -> dict[str, Any]:
    """The last run's summary with the number of documents that are in quarantine in ``base``."""
    return run | {"documents": {**run.get("documents", {}), "quarantined": len(read_quarantine(base))}}
