"""A refresh: asks the sources what changed, computes it, publishes it in one step. The first one is the backfill.

Work is staged chunk by chunk, so that a killed run is continued by the next; readers see the published snapshot until
the last step, which publishes the data and the sources' cursors together. A run that finds nothing to do loads neither
torch nor Ray and writes no table.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from lodestream.errors import CommitConflict, LodestreamError, QuarantineShareExceeded
from lodestream.pipeline.attention_report import read_setting
from lodestream.pipeline.changes import PlannedRead, guard_deletions, plan_reads
from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.feature_version import place_of
from lodestream.pipeline.plan import RunPlan, make_plan
from lodestream.pipeline.report import RunReport, name_run
from lodestream.pipeline.run_log import append_entry
from lodestream.pipeline.session import read_published
from lodestream.pipeline.settled import SettledStates
from lodestream.pipeline.stages import Reading
from lodestream.pipeline.states import StoredStates, find_contents, find_documents
from lodestream.pipeline.upkeep import finish_run
from lodestream.pipeline.work import ChunkWriter, ShowProgress, Work
from lodestream.storage.lease import Lease
from lodestream.storage.store import FeatureStore, Snapshot, Transaction

_LOG: Final = logging.getLogger(__name__)


def run(
    loaded: LoadedConfig,
    *,
    allow_mass_delete: bool = False,
    retry: Collection[str] | None = None,
    show_progress: ShowProgress | None = None,
    show_note: Callable[[str], None] | None = None,
) -> RunReport:
    """Brings the store up to date with its sources and publishes the result.

    Args:
        loaded: the configuration.
        allow_mass_delete: carry out deletions that the guard would refuse.
        retry: documents in quarantine that are tried again now; None takes those whose time has come.
        show_progress: called after every micro-batch.
        show_note: called with sentences worth knowing while it runs (executor and why, work taken over).

    Raises:
        LodestreamError: see lodestream.errors; nothing is published then, and finished chunks are kept for the next
            run.
    """
    started = time.perf_counter()
    run_id = name_run()
    note = show_note or (lambda _: None)
    location = loaded.store_location
    with ExitStack() as held:
        # The plan rests on what is published: nobody may publish between it and its end.
        is_there = read_published(location) is not None
        lease = _take_lease(held, FeatureStore.open(location), loaded, run_id, note) if is_there else None
        if lease is not None:
            held.enter_context(_note_failure(FeatureStore.open(location), lease, run_id))
        plan = make_plan(loaded, retry=retry, writes=True)
        # Refuse before the transaction begins: a guard must not cost a killed run its staged chunks.
        if not allow_mass_delete:
            guard_deletions(plan.surveys, plan.count_moved, plan.published, unconfigured=plan.unconfigured)
        store = FeatureStore.open_or_create(location, dim=plan.featurizer.model.dim)
        if lease is None:
            lease = _take_lease(held, store, loaded, run_id, note)
            _require_unpublished(store)
            held.enter_context(_note_failure(store, lease, run_id))
        report = _begin_report(plan, run_id)
        settled = SettledStates(
            plan.pointer.checkpoint if plan.pointer else {}, touched=_names_of(plan).union(plan.deleted)
        )
        transaction = _carry_out(
            loaded, plan, store, lease, report, settled=settled, show_progress=show_progress, note=note
        )
        _guard_quarantine(report, transaction, max_share=loaded.config.run.max_quarantined_share)
        _publish(plan, transaction, report, settled, started)
        if report.snapshot_after != report.snapshot_before:
            finish_run(loaded, store, report, lease)
    return report


@contextmanager
def _note_failure(store: FeatureStore, lease: Lease, run_id: str) -> Iterator[None]:
    """Leaves a word in the pointer where the run fails, for ``status``: the lease is still held then."""
    try:
        yield
    except LodestreamError as error:
        failure = {"run_id": run_id, "ended_at": datetime.now(UTC).isoformat(), **error.as_dict()}

        def add_failure(run: dict[str, Any]) -> dict[str, Any]:
            return {**run, "failure": failure | {"in_a_row": run.get("failure", {}).get("in_a_row", 0) + 1}}

        try:
            store.note_run(add_failure, lease=lease)
        except LodestreamError as other:
            _LOG.warning("the failure of run %s could not be noted: %s", run_id, other.message)
        raise


def _take_lease(
    held: ExitStack, store: FeatureStore, loaded: LoadedConfig, run_id: str, note: Callable[[str], None]
) -> Lease:
    lease = store.open_lease(f"run {run_id}", ttl_s=loaded.config.lease.ttl_s, show_wait=note)
    return held.enter_context(lease)


def _require_unpublished(store: FeatureStore) -> None:
    """A first run has nowhere to keep a lease while it plans: another first run may have been faster."""
    if store.pointer().sequence:
        raise CommitConflict(f"another run published to {store.location} at this moment", "run the same command again")


def _carry_out(
    loaded: LoadedConfig,
    plan: RunPlan,
    store: FeatureStore,
    lease: Lease,
    report: RunReport,
    *,
    settled: SettledStates,
    show_progress: ShowProgress | None,
    note: Callable[[str], None],
) -> Transaction:
    """Stages every chunk; the caller publishes."""
    for sentence in plan.notes():
        note(sentence)
    featurizer = plan.featurizer
    begin = partial(
        store.begin,
        lease=lease,
        run_id=report.run_id,
        kind=report.kind,
        feature_version=featurizer.feature_version,
        recipe=featurizer.recipe,
        retention=loaded.config.store.retention(),
        model=place_of(featurizer),
    )
    transaction = begin()
    if transaction.resumed and _has_strayed(plan, transaction.base):
        note("what an interrupted run had changed has been taken back since: its work is done again")
        transaction.abandon()
        transaction = begin()
    writer = ChunkWriter(
        loaded.config,
        featurizer=featurizer,
        transaction=transaction,
        reading=Reading(
            readers={name: source.reader() for name, source in plan.sources.items()}, vanished=plan.vanished
        ),
        report=report,
        published=plan.published,
        settled=settled,
        show_progress=show_progress,
        note=note,
    )
    writer.carry_out(_plan_work(plan, transaction, report, note))
    return transaction


def _begin_report(plan: RunPlan, run_id: str) -> RunReport:
    report = RunReport(
        run_id=run_id,
        kind="refresh" if plan.published else "backfill",
        backend=f"torch-cpu/{plan.featurizer.precision}",
        attention=read_setting(plan.featurizer),
        snapshot_before=plan.pointer.sequence if plan.pointer else None,
        in_quarantine=set(plan.quarantined.difference(plan.deleted)),
        deleted=len(plan.deleted),
    )
    for survey in plan.surveys:
        report.add_survey(survey)
    return report


def _plan_work(plan: RunPlan, transaction: Transaction, report: RunReport, note: Callable[[str], None]) -> Work:
    """What is left to do: what the plan says, less what a killed run has staged already."""
    if not transaction.resumed:
        return Work(reads=plan.reads(), deleted=plan.deleted)
    base = transaction.base
    reads = _skip_staged(plan, base)
    report.resumed = len(plan.reads()) - len(reads)
    if report.resumed:
        note(f"continuing a run that was interrupted: {report.resumed} documents are done already")
    extra = find_contents(base).keys() - find_contents(plan.published).keys() - _names_of(plan)
    return Work(reads=reads, deleted=sorted(extra.union(plan.deleted)))


def _has_strayed(plan: RunPlan, base: Snapshot) -> bool:
    """Whether a killed run has changed or deleted documents that are as they were published, by what their sources say
    now (a source that was left out of the configuration by mistake, a file that was put back). Nobody names them again.
    """
    staged, touched = find_contents(base), _names_of(plan).union(plan.deleted)
    published = find_contents(plan.published)
    return any(staged.get(doc_id) != content for doc_id, content in published.items() if doc_id not in touched)


def _names_of(plan: RunPlan) -> set[str]:
    """The documents that differ from what is published, by what the sources say now."""
    return {candidate.doc_id for survey in plan.surveys for candidate in survey.changes.upserts}


def _skip_staged(plan: RunPlan, base: Snapshot) -> list[PlannedRead]:
    """The reads without those whose document a killed run has staged as the source has it now, by all that is known
    without reading it: a table may have no versions, and a file keep its time.

    What was read too soon after it was written keeps no time in ``source_state``: the next run looks again.
    """
    staged = find_documents(base, [read.candidate.doc_id for read in plan.reads()])
    candidates = []
    for survey in plan.surveys:
        known = StoredStates(base, survey.name).find([candidate.doc_id for candidate in survey.changes.upserts])
        for candidate in survey.changes.upserts:
            state, before = staged.get(candidate.doc_id), known.get(candidate.doc_id)
            is_staged = state is not None and state != plan.states.get(candidate.doc_id)
            is_done = (
                is_staged
                and before is not None
                and before.state == candidate.state
                and candidate.content_hash in (None, before.content_hash)
                and state is not None
                and state.feature_version == plan.featurizer.feature_version
                and state.quarantine_reason is None
            )
            if not is_done:
                candidates.append(candidate)
    candidates.sort(key=lambda candidate: candidate.doc_id)
    reads = plan_reads(candidates, staged, feature_version=plan.featurizer.feature_version)
    return [replace(read, is_new=read.candidate.doc_id not in plan.states) for read in reads]


def _guard_quarantine(report: RunReport, transaction: Transaction, *, max_share: float) -> None:
    if not report.quarantined:
        return
    num_documents = max(report.seen, transaction.base.count_documents())
    if report.num_quarantined > max_share * num_documents:
        first = report.quarantined[0]
        raise QuarantineShareExceeded(
            f"{report.num_quarantined} of {num_documents} documents failed, more than run.max_quarantined_share = "
            f"{max_share:g}; the first: {first['doc_id']}: {first['reason']}",
            "mend or exclude them, or raise run.max_quarantined_share; nothing was published",
        )


def _publish(
    plan: RunPlan, transaction: Transaction, report: RunReport, settled: SettledStates, started: float
) -> None:
    now = datetime.now(UTC)
    report.end(now)
    report.seconds = time.perf_counter() - started
    summary = report.summarise() | {"ended_at": now.isoformat()}
    before = plan.pointer.run if plan.pointer else {}
    snapshot = transaction.publish(
        checkpoint={survey.name: survey.checkpoint() | settled.checkpoint(survey.name) for survey in plan.surveys},
        run=summary | {"recent": append_entry(before, summary)},
    )
    report.snapshot_after = snapshot.sequence
    report.seconds = time.perf_counter() - started
