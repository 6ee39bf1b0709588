"""Repair of what a verification found: damage is taken out, so that the next run computes it again from the sources.

Nothing is guessed. Files that cannot be read are left out, documents that are not what was written are removed, with
what their sources said of them, and the sources' cursors are given up, so that the next run lists everything. All of it
is published in one step, like any other change.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from lodestream.errors import StoreCorrupt
from lodestream.schema import DOCUMENTS_SCHEMA
from lodestream.storage.checksum import seal_documents, sum_features
from lodestream.storage.debris import sweep_debris
from lodestream.storage.findings import Finding, Verification
from lodestream.storage.lease import Lease
from lodestream.storage.maintenance import begin_upkeep
from lodestream.storage.store import FeatureStore
from lodestream.storage.table import Table
from lodestream.storage.transaction import Transaction
from lodestream.storage.verify import BACKUP, verify_store
from lodestream.storage.verify_content import check_content
from lodestream.storage.version_upkeep import mend_files, repair_versions

_SEALED_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What a repair did.

    ``to_compute``     documents that were removed and that the next run computes again
    ``dropped``        names under which rows without a document were removed
    ``files``          files that were left out
    ``rebuilt``        whether the indexes were made anew
    ``num_sealed``     documents that got a checksum
    ``num_swept``      files of killed runs that were removed
    ``lost_run``       the unfinished run whose staged work was given up
    ``left``           what could not be mended
    ``sequence``       the snapshot that is published now
    ``versions``       feature versions beside the served one that lost what was damaged; it is computed again when they
                       are brought level
    """

    to_compute: tuple[str, ...]
    dropped: tuple[str, ...]
    files: tuple[str, ...]
    rebuilt: bool
    num_sealed: int
    num_swept: int
    lost_run: str | None
    left: tuple[Finding, ...]
    sequence: int
    versions: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The values as JSON."""
        return asdict(self)


def repair_store(
    store: FeatureStore, found: Verification, *, lease: Lease, run_id: str, sweep_after: timedelta
) -> Repair:
    """Mend what can be mended of ``found``. Call it with the lease held.

    Raises:
        StoreCorrupt: the published snapshot cannot be opened at all.
        FencedError, CommitConflict: another writer took over; what is published stays as it was.
    """
    require_opened(found)
    pointer = store.pointer()
    if pointer.staged is not None:
        begin_upkeep(store, pointer, run_id, lease).abandon()
    transaction = begin_upkeep(store, store.pointer(), run_id, lease)
    own = tuple(finding for finding in found.findings if finding.version is None)
    rebuilt = mend_files(transaction, own)
    # Looked at again: what was in a file that is left out is missing only now.
    mended = check_content(_tables_of(transaction), deep=found.is_deep)
    to_compute = _name_documents(mended, "recompute")
    dropped = _name_documents(mended, "drop") - to_compute
    if to_compute | dropped:
        transaction.remove_documents(sorted(to_compute | dropped))
    unsealed = sorted(_name_documents(mended, "seal") - to_compute)
    _seal(transaction, unsealed)
    # Where rows are gone, a cursor would pass over them: everything is listed again, to find what has no trace left.
    is_short = bool(to_compute | dropped) or any(finding.mend == "drop file" for finding in own)
    snapshot = transaction.publish_rewritten(lambda name, table: table, checkpoint={} if is_short else None)
    versions = repair_versions(store, found.findings, deep=found.is_deep, lease=lease, run_id=run_id)
    num_swept = sum(len(sweep_debris(table, min_age=sweep_after)) for table in store.open_tables().values())
    after = verify_store(store.location, deep=found.is_deep, sweep_after=sweep_after)
    return Repair(
        to_compute=tuple(sorted(to_compute)),
        dropped=tuple(sorted(dropped)),
        files=tuple(finding.place for finding in found.findings if finding.mend == "drop file"),
        rebuilt=rebuilt,
        num_sealed=len(unsealed),
        num_swept=num_swept,
        lost_run=pointer.staged.run_id if pointer.staged else None,
        left=after.drift,
        sequence=snapshot.sequence,
        versions=tuple(versions),
    )


def require_opened(found: Verification) -> None:
    """Refuse to mend a store whose published snapshot could not be opened.

    Raises:
        StoreCorrupt: it could not.
    """
    if not found.num_rows:
        raise StoreCorrupt("; ".join(finding.what for finding in found.drift), BACKUP)


def _tables_of(transaction: Transaction) -> dict[str, Table]:
    base = transaction.base
    return {name: base.open_table(name) for name in base.tables}


def _name_documents(findings: list[Finding], mend: str) -> set[str]:
    return {doc_id for finding in findings if finding.mend == mend for doc_id in finding.doc_ids}


def _seal(transaction: Transaction, doc_ids: list[str]) -> None:
    """Give documents their checksums, from what is stored of them."""
    for start in range(0, len(doc_ids), _SEALED_AT_ONCE):
        chosen = pa.array(doc_ids[start : start + _SEALED_AT_ONCE], pa.string())
        where = pc.field("doc_id").isin(chosen)
        tables = _tables_of(transaction)
        features = tables["features"].read(tables["features"].schema.names, where=where)
        documents = tables["documents"].read(DOCUMENTS_SCHEMA.names, where=where)
        transaction.rewrite(partial(_replace_documents, seal_documents(documents, sum_features(features), {})))


def _replace_documents(rows: pa.Table, name: str, table: Table) -> Table:
    return table.replace_documents(rows["doc_id"].combine_chunks(), rows) if name == "documents" else table
