"""Is everything in place for a run? Each check passes, warns or fails, and says what mends it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from lodestream.errors import LodestreamError
from lodestream.pipeline.checks.lease import check_lease, try_server
from lodestream.pipeline.checks.result import CheckResult
from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.dataflow import choose_executor
from lodestream.pipeline.feature_version import choose_featurizer
from lodestream.pipeline.session import read_published
from lodestream.pipeline.sources.catalog import open_source, open_sources
from lodestream.pipeline.status import describe_short

if TYPE_CHECKING:
    from lodestream.kernels.weights import ModelFolder

LOW_DISK_BYTES: Final = 2 * 2**30
OBJECT_STORE_PATIENCE_S: Final = 10.0


def check_all(loaded: LoadedConfig) -> Iterator[CheckResult]:
    """All checks, one after the other; none writes anything that stays."""
    yield CheckResult(name="config", level="pass", detail=str(loaded.file or "from the command line and environment"))
    for name in loaded.config.sources:
        yield _attempt(f"source {name}", lambda name=name: _check_source(loaded, name))  # type: ignore[misc]
    yield _attempt("store", lambda: _check_store(loaded))
    yield _attempt("lease", lambda: check_lease(loaded, _nearest_folder))
    yield _attempt("disk", lambda: _check_disk(loaded))
    yield _attempt("model", lambda: _check_model(loaded))
    yield _attempt("executor", lambda: _check_executor(loaded))


def _attempt(name: str, check: Callable[[], CheckResult]) -> CheckResult:
    try:
        return check()
    except LodestreamError as error:
        return CheckResult(name=name, level="fail", detail=error.message, fix=error.hint)


def _check_source(loaded: LoadedConfig, name: str) -> CheckResult:
    found = open_source(loaded, name).check()
    return CheckResult(name=f"source {name}", level=found.level, detail=found.detail, fix=found.fix)


def _check_store(loaded: LoadedConfig) -> CheckResult:
    location = loaded.store_location
    pointer = read_published(location)
    state = "none yet" if pointer is None else f"snapshot {pointer.sequence}, schema version {pointer.schema_version}"
    if not location.is_local:
        try_server(location.uri, location, patience_s=OBJECT_STORE_PATIENCE_S)
        return CheckResult(name="store", level="pass", detail=f"{location}: {state}; writable, conditional writes work")
    if pointer is not None and (short := describe_short(pointer)):
        fix = "lower store.keep_for, or refresh less often; the next gc takes it over"
        return CheckResult(name="store", level="warn", detail=f"{location}: {state}; {short}", fix=fix)
    place = _nearest_folder(location.path)
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".lodestream-check-") as probe:
            link = f"{probe.name}.link"
            os.link(probe.name, link)
            os.unlink(link)
    except OSError as error:
        return CheckResult(
            name="store",
            level="fail",
            detail=f"{place} cannot be written: {error.strerror}",
            fix="mend its rights, or set store.uri to a folder on a disk with hard links",
        )
    return CheckResult(name="store", level="pass", detail=f"{location}: {state}; writable, hard links work")


def _check_disk(loaded: LoadedConfig) -> CheckResult:
    if not loaded.store_location.is_local:
        return CheckResult(name="disk", level="pass", detail="nothing is kept on this machine")
    place = _nearest_folder(loaded.store_location.path)
    free_bytes = shutil.disk_usage(place).free
    level: Literal["pass", "warn"] = "pass" if free_bytes >= LOW_DISK_BYTES else "warn"
    fix = "" if level == "pass" else "free some room, or set store.uri to another disk"
    return CheckResult(name="disk", level=level, detail=f"{free_bytes / 2**30:.1f} GiB free at {place}", fix=fix)


def _check_model(loaded: LoadedConfig) -> CheckResult:
    pointer = read_published(loaded.store_location)
    featurizer, note = choose_featurizer(loaded, pointer if pointer is not None and pointer.sequence else None)
    featurizer.check_model()
    model = featurizer.model
    detail = (
        f"{featurizer.recipe['model']}: {model.architecture}, {model.dim} wide, {model.pooling} pooling, segments of "
        f"{featurizer.segment_options.max_tokens} tokens at most, {featurizer.precision}, "
        f"weights sha256 {model.weights_sha256[:16]}{_describe_prompts(model)}"
    )
    detail = f"{detail}; feature version {featurizer.feature_version}"
    if pointer is not None and pointer.sequence:
        detail = f"{detail} ({pointer.version}, which is served)"
    if note:
        return CheckResult(name="model", level="warn", detail=f"{detail}; {note}", fix="lodestream versions list")
    return CheckResult(name="model", level="pass", detail=detail)


def _describe_prompts(model: ModelFolder) -> str:
    """What goes before a text; nothing where the model wants nothing. Quoted, since a prompt often ends in a space."""
    prompts = {"documents": model.document_prompt, "queries": model.query_prompt}
    return "".join(f", before {kind} {json.dumps(prompt)}" for kind, prompt in prompts.items() if prompt)


def _check_executor(loaded: LoadedConfig) -> CheckResult:
    total_bytes = sum(source.check().size_bytes for source in open_sources(loaded).values())
    num_cores = os.cpu_count() or 1
    kind, why = choose_executor(loaded.config.run, total_bytes=total_bytes, num_cores=num_cores)
    return CheckResult(name="executor", level="pass", detail=f"{kind} for a first run: {why}; {num_cores} cores")


def _nearest_folder(path: Path) -> Path:
    """``path`` or the nearest folder above it that exists."""
    while not path.is_dir():
        path = path.parent
    return path
