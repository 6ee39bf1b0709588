"""Feature versions: another model or recipe beside the one that is served, its promotion, and the way back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from lodestream.actors.featurizer import Featurizer
from lodestream.errors import (
    ConfigError,
    FeatureVersionMismatch,
    LeaseHeld,
    LodestreamError,
    QuarantineShareExceeded,
    StoreNotFound,
)
from lodestream.pipeline import refresh
from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.feature_version import Recipe, describe_differences, featurizer_of, find_asked, place_of
from lodestream.pipeline.gap import find_gap
from lodestream.pipeline.level import Leveller, Progress
from lodestream.pipeline.report import name_run
from lodestream.pipeline.session import fix_gate, make_featurizer
from lodestream.pipeline.work import ShowProgress
from lodestream.storage.lease import Lease
from lodestream.storage.snapshot import PointerRecord
from lodestream.storage.store import FeatureStore, Snapshot
from lodestream.storage.version import KeptVersion, check_name
from lodestream.storage.version_keeper import find_former, require_other

TURN_S: Final = 240.0
"""After so long a build gives the lease back, and the version that is served is refreshed before it goes on."""
PATIENCE_S: Final = 1800.0
"""For so long it then waits for the lease, if a refresh of somebody else has it."""

_LOOK_AGAIN_S: Final = 1.0

ShowNote = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of a version: what was computed for it, and which snapshot is published before and after."""

    name: str
    done: Progress
    seconds: float
    snapshot_before: int
    snapshot_after: int
    served: str

    def as_dict(self) -> dict[str, Any]:
        """The change as JSON values."""
        counts = self.done.counts
        return {
            "version": self.name,
            "served": self.served,
            "documents": {
                "computed": self.done.computed,
                "removed": self.done.removed,
                "failed": self.done.failed,
            },
            "segments": {"total": counts.segments_total, "encoded": counts.segments_encoded},
            "tokens": {"total": counts.tokens_total, "encoded": counts.tokens_encoded},
            "seconds": round(self.seconds, 3),
            "snapshot": {"before": self.snapshot_before, "after": self.snapshot_after},
        }


def list_versions(loaded: LoadedConfig) -> list[dict[str, Any]]:
    """All versions, the served one first, with how many documents the others lie behind it by.

    Raises:
        StoreNotFound: there is no store, or nothing is published.
    """
    store, pointer = _open(loaded)
    served = store.open_snapshot()
    versions = [_describe(pointer, pointer.keep_served(datetime.now(UTC)), behind=0)]
    for kept in pointer.versions:
        gap = find_gap(served, store.open_snapshot(version=kept.name))
        versions.append(_describe(pointer, kept, behind=gap.num_documents))
    return versions


def add(
    loaded: LoadedConfig,
    name: str,
    *,
    show_progress: ShowProgress | None = None,
    show_note: ShowNote = lambda _: None,
    turn_s: float = TURN_S,
) -> Change:
    """Makes a version of the features that the configuration asks for, or goes on with one, until it is level.

    A long build gives the lease back every few minutes and refreshes the version that is served, so that this one
    stays fresh meanwhile.

    Args:
        loaded: the configuration.
        name: of the version.
        show_progress, show_note: as for refresh.run.
        turn_s: how long it holds the lease at a time.

    Raises:
        StoreNotFound: nothing is published.
        ConfigError: the store has such a version already, or there is one of that name with other features.
        LodestreamError: what stops a run; finished chunks are kept, and the same command goes on from them.
    """
    started = time.perf_counter()
    store, pointer = _open(loaded)
    check_name(name)
    featurizer = _choose_new(loaded, pointer, name)
    featurizer.check_model()
    total, turns = Progress(), 0
    while True:
        with _take_lease(store, loaded, f"versions add {name}", show_note, waits=turns > 0) as lease:
            if not turns:
                _add_missing(store, lease, name, featurizer)
            leveller = _make_leveller(loaded, store, lease, name, show_progress=show_progress, note=show_note)
            turn = time.monotonic() + turn_s
            total.add(leveller.bring_level(featurizer, is_over=partial(_has_passed, turn)))
        if total.is_level:
            break
        turns += 1
        _refresh_served(loaded, show_note)
    return _conclude(store, pointer, name, total, started)


def promote(
    loaded: LoadedConfig,
    name: str,
    *,
    show_progress: ShowProgress | None = None,
    show_note: ShowNote = lambda _: None,
) -> Change:
    """Brings a version level with what is published, and serves it from now on. The one before is kept.

    Both under one hold of the lease, so that nothing can be published in between that it would not have.

    Raises:
        NotFoundError: there is no such version.
        ConfigError: it is the one that is served.
        LodestreamError: what stops a run; the one before is served on.
    """
    started = time.perf_counter()
    store, before = _open(loaded)
    require_other(before, name)
    with _take_lease(store, loaded, f"versions promote {name}", show_note) as lease:
        pointer = store.pointer()
        kept = require_other(pointer, name)
        leveller = _make_leveller(loaded, store, lease, name, show_progress=show_progress, note=show_note)
        done = _catch_up(loaded, leveller, kept, show_note)
        _guard_failed(loaded, store.open_snapshot(), leveller.writer.base)
        if pointer.staged is not None:
            run_id = pointer.staged.run_id
            show_note(f"what the unfinished run {run_id} has staged is given up; the next run sees it anew")
        leveller.writer.promote(run=_forget_refusal(pointer.run))
    return _conclude(store, before, name, done, started)


def read_served(loaded: LoadedConfig) -> str:
    """The name of the version that is served."""
    return _open(loaded)[1].version


def advise_settings(loaded: LoadedConfig) -> str:
    """What to write into the configuration, so that it asks for the features that are served; "" where it does."""
    pointer = _open(loaded)[1]
    configured = make_featurizer(loaded, pointer.recipe)
    if configured.feature_version == pointer.feature_version:
        return ""
    differences = describe_differences(configured.recipe, pointer.recipe)
    return f"change in lodestream.toml what asks for other features than those that are served: {differences}"


def name_former(loaded: LoadedConfig) -> str:
    """The version that ``versions rollback`` serves again.

    Raises:
        NotFoundError: no other was served before, or it was dropped.
    """
    return find_former(_open(loaded)[1]).name


def drop(loaded: LoadedConfig, name: str) -> list[int]:
    """Gives a version up; its files go with the first upkeep an hour later.

    Returns:
        The snapshots that can no longer be opened by it.

    Raises:
        NotFoundError: there is no such version.
        ConfigError: it is the one that is served.
    """
    store, pointer = _open(loaded)
    require_other(pointer, name)
    with _take_lease(store, loaded, f"versions drop {name}", lambda _: None) as lease:
        keeper = store.open_keeper(lease)
        lost = list_served(keeper.pointer, require_other(keeper.pointer, name))
        keeper.drop(name)
    return lost


def list_served(pointer: PointerRecord, kept: KeptVersion) -> list[int]:
    """The snapshots that were served by a version, and can still be opened."""
    return [record.sequence for record in pointer.history if record.slot == kept.slot]


def _open(loaded: LoadedConfig) -> tuple[FeatureStore, PointerRecord]:
    store = FeatureStore.open(loaded.store_location)
    pointer = store.pointer()
    if not pointer.sequence:
        raise StoreNotFound(f"nothing is published at {store.location} yet", "lodestream run")
    return store, pointer


@contextmanager
def _take_lease(
    store: FeatureStore, loaded: LoadedConfig, purpose: str, note: ShowNote, *, waits: bool = False
) -> Iterator[Lease]:
    """The lease; a build that has given it back waits until the refresh of somebody else has ended."""
    gives_up = time.monotonic() + (PATIENCE_S if waits else 0.0)
    while True:
        lease = store.open_lease(purpose, ttl_s=loaded.config.lease.ttl_s, show_wait=note)
        try:
            lease.acquire()
            break
        except LeaseHeld:
            if _has_passed(gives_up):
                raise
            time.sleep(_LOOK_AGAIN_S)
    try:
        yield lease
    finally:
        lease.release()


def _choose_new(loaded: LoadedConfig, pointer: PointerRecord, name: str) -> Featurizer:
    """The featurizer of a version that is to be made, or gone on with."""
    if name == pointer.version:
        raise ConfigError(f"the feature version {name} is the one that is served", "give the new one another name")
    for kept in pointer.versions:
        if kept.name == name:
            configured = make_featurizer(loaded, kept.recipe)
            if configured.feature_version not in (kept.feature_version, pointer.feature_version):
                differences = describe_differences(kept.recipe, configured.recipe)
                raise ConfigError(
                    f"there is a feature version {name} of other features: {differences}",
                    "give the new one another name",
                )
            return featurizer_of(loaded, Recipe.of_kept(kept))
    asked = find_asked(loaded, [Recipe.of_served(pointer), *map(Recipe.of_kept, pointer.versions)])
    if asked is not None:
        raise ConfigError(
            f"the features that the configuration asks for are those of version {asked.name}",
            "change it, for instance with --set encoder.model=PATH or --set encoder.precision=fp32",
        )
    return fix_gate(make_featurizer(loaded, None), [], num_threads=loaded.config.encoder.num_threads)


def _add_missing(store: FeatureStore, lease: Lease, name: str, featurizer: Featurizer) -> None:
    for kept in store.pointer().versions:
        if kept.name == name and kept.feature_version == featurizer.feature_version:
            return
    store.open_keeper(lease).add(
        name,
        dim=featurizer.model.dim,
        feature_version=featurizer.feature_version,
        recipe=featurizer.recipe,
        model=place_of(featurizer),
    )


def _make_leveller(
    loaded: LoadedConfig,
    store: FeatureStore,
    lease: Lease,
    name: str,
    *,
    show_progress: ShowProgress | None,
    note: ShowNote,
) -> Leveller:
    run_id = name_run()
    writer = store.begin_version(name, lease=lease, run_id=run_id)
    served = store.open_snapshot()
    return Leveller(loaded, writer, served, run_id=run_id, show_progress=show_progress, note=note)


def _catch_up(loaded: LoadedConfig, leveller: Leveller, kept: KeptVersion, note: ShowNote) -> Progress:
    if not leveller.gap:  # its model may be gone, too
        leveller.writer.finish(is_level=True)
        return Progress(is_level=True)
    note(f"version {kept.name} lies {leveller.gap.num_documents} documents behind, which are computed first")
    featurizer = featurizer_of(loaded, Recipe.of_kept(kept))
    featurizer.check_model()
    return leveller.bring_level(featurizer)


def _guard_failed(loaded: LoadedConfig, served: Snapshot, beside: Snapshot) -> None:
    """Refuses to serve a version that cannot use many of the documents which the served one can."""
    num_failed, num_documents = find_gap(served, beside).num_failed, served.count_documents()
    max_share = loaded.config.run.max_quarantined_share
    if num_failed > max_share * num_documents:
        raise QuarantineShareExceeded(
            f"version {beside.version} cannot use {num_failed} of {num_documents} documents, more than "
            f"run.max_quarantined_share = {max_share:g}",
            "look at the reasons that versions add gave, or raise run.max_quarantined_share",
        )


def _forget_refusal(run: Mapping[str, Any]) -> dict[str, Any]:
    """The last run's summary without a failure that the promotion is the answer to."""
    refused = run.get("failure", {}).get("error") == FeatureVersionMismatch.__name__
    return {name: value for name, value in run.items() if name != "failure" or not refused}


def _has_passed(moment: float) -> bool:
    return time.monotonic() >= moment


def _refresh_served(loaded: LoadedConfig, note: ShowNote) -> None:
    """Between two turns of a build. What stops a refresh does not stop the build, which needs no source."""
    try:
        report = refresh.run(loaded, show_note=lambda _: None)
    except LodestreamError as error:
        note(f"the version that is served could not be refreshed meanwhile: {error.message}")
        return
    if report.snapshot_after != report.snapshot_before:
        note(f"the version that is served was refreshed meanwhile: snapshot {report.snapshot_after}")


def _conclude(store: FeatureStore, before: PointerRecord, name: str, done: Progress, started: float) -> Change:
    after = store.pointer()
    return Change(
        name=name,
        done=done,
        seconds=time.perf_counter() - started,
        snapshot_before=before.sequence,
        snapshot_after=after.sequence,
        served=after.version,
    )


def _describe(pointer: PointerRecord, kept: KeptVersion, *, behind: int) -> dict[str, Any]:
    is_served = kept.name == pointer.version
    state = "beside" if kept.level else "unfinished"
    if kept.served_until is not None:
        state = "former"
    return {
        "name": kept.name,
        "state": "served" if is_served else state,
        "is_rollback_target": kept.name == pointer.former,
        "feature_version": kept.feature_version,
        "recipe": kept.recipe,
        "differences": describe_differences(pointer.recipe, kept.recipe),
        "dim": kept.dim,
        "created_at": kept.created_at.isoformat(),
        "level_with": kept.level,
        "documents_behind": behind,
        "served_until": None if is_served or kept.served_until is None else kept.served_until.isoformat(),
        "snapshots": list_served(pointer, kept),
    }
