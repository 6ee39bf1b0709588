"""``lodestream explain DOC``: why a document was computed or left alone, and what the next refresh would do with it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from lodestream.errors import NotFoundError
from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.feature_version import choose_featurizer
from lodestream.pipeline.report import read_run_start
from lodestream.pipeline.session import read_published
from lodestream.pipeline.settled import KEY, settle_row
from lodestream.pipeline.sources.catalog import open_sources
from lodestream.pipeline.sources.protocol import Candidate, Source, SourceState
from lodestream.pipeline.states import StoredStates, find_rows
from lodestream.schema import SOURCE_STATE_SCHEMA
from lodestream.storage.store import FeatureStore, Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A document in the store and at its source.

    ``version``   the feature version that is served
    ``document``  its row of ``documents`` without the text, or None
    ``state``     its row of ``source_state``, or None
    ``segments``  each segment with its fingerprint, place, tokens, and whether the run that wrote the document encoded
                  it or took it over from an earlier one
    ``next_step`` what the next refresh would do with it
    ``reasons``   why, one sentence each
    """

    doc_id: str
    snapshot: int | None
    version: str | None
    document: dict[str, Any] | None
    state: dict[str, Any] | None
    segments: list[dict[str, Any]]
    next_step: str
    reasons: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The explanation as JSON values."""
        return {
            "doc_id": self.doc_id,
            "snapshot": self.snapshot,
            "version": self.version,
            "document": _as_json(self.document),
            "source_state": _as_json(self.state),
            "segments": [_as_json(segment) for segment in self.segments],
            "next_refresh": self.next_step,
            "reasons": self.reasons,
        }


def explain_document(loaded: LoadedConfig, doc_id: str) -> Explanation:
    """Looks a document up in the store and at its source.

    Raises:
        NotFoundError: neither knows it.
        SourceError: its source cannot be asked.
    """
    pointer = read_published(loaded.store_location)
    pointer = pointer if pointer is not None and pointer.sequence else None
    snapshot = FeatureStore.open(loaded.store_location).open_snapshot() if pointer else None
    document = _read_document(snapshot, doc_id)
    checkpoint = pointer.checkpoint if pointer else {}
    state = _read_state(snapshot, checkpoint, doc_id)
    sources = _choose_sources(open_sources(loaded), state, doc_id)
    candidate = _ask_sources(sources, snapshot, checkpoint, doc_id)
    if document is None and state is None and candidate is None:
        raise NotFoundError(
            f"neither the store nor a source has a document {doc_id!r}",
            "doc_ids are paths below the source's folder, as search prints them",
        )
    version = choose_featurizer(loaded, pointer)[0].feature_version
    next_step, reasons = _judge(document, state, candidate, version)
    return Explanation(
        doc_id=doc_id,
        snapshot=pointer.sequence if pointer else None,
        version=pointer.version if pointer else None,
        document=document,
        state=state,
        segments=_list_segments(snapshot, document),
        next_step=next_step,
        reasons=reasons,
    )


def _read_document(snapshot: Snapshot | None, doc_id: str) -> dict[str, Any] | None:
    row = snapshot.get_document(doc_id) if snapshot else None
    return None if row is None else {name: value for name, value in row.items() if name != "text"}


def _read_state(snapshot: Snapshot | None, checkpoint: dict[str, Any], doc_id: str) -> dict[str, Any] | None:
    if snapshot is None:
        return None
    rows: list[dict[str, Any]] = find_rows(snapshot, "source_state", [doc_id], SOURCE_STATE_SCHEMA.names).to_pylist()
    return settle_row(rows[0], checkpoint) if rows else None


def _choose_sources(sources: dict[str, Source], state: dict[str, Any] | None, doc_id: str) -> dict[str, Source]:
    """Whose the document is, or may be: where there are several sources, names begin with theirs."""
    if state is not None:
        return {name: source for name, source in sources.items() if name == state["source"]}
    if len(sources) > 1:
        return {name: source for name, source in sources.items() if doc_id.startswith(f"{name}/")}
    return sources


def _ask_sources(
    sources: dict[str, Source], snapshot: Snapshot | None, checkpoint: dict[str, Any], doc_id: str
) -> Candidate | None:
    """The document as its source has it now."""
    for name, source in sources.items():
        seen = checkpoint.get(name, {})
        known, since = StoredStates(snapshot, name, settled=seen.get(KEY)), seen.get("cursor")
        for candidate in source.changes(since, known, retry=[doc_id]).upserts:
            if candidate.doc_id == doc_id:
                return candidate
    return None


def _judge(
    document: dict[str, Any] | None, state: dict[str, Any] | None, candidate: Candidate | None, feature_version: str
) -> tuple[str, list[str]]:
    if candidate is None:
        return "delete it", ["its source does not name it any more (a complete listing or a tombstone decides)"]
    if state is None:
        return "read and compute it", ["the store has not seen it yet"]
    reasons = _list_differences(state, candidate.state)
    if document is not None and document["feature_version"] != feature_version:
        reasons.append(f"its features are of version {document['feature_version']}, wanted are {feature_version}")
        return "read and compute it", reasons
    if state["quarantine_reason"] is not None:
        due = state["retry_at"] <= datetime.now(UTC)
        reasons.append(
            f"it is in quarantine after {state['quarantine_attempts']} attempts ({state['quarantine_reason']}), to be "
            f"tried again {'now' if due else 'at ' + state['retry_at'].isoformat(timespec='seconds')}"
        )
        return ("read it", reasons) if due or len(reasons) > 1 else ("leave it alone", reasons)
    if reasons:
        return "read it, and compute it if its content hash is another one", reasons
    return "leave it alone", ["its source says what it said when it was last read"]


def _list_differences(stored: dict[str, Any], now: SourceState) -> list[str]:
    before = {"version": stored["source_version"], **{name: stored[name] for name in _STATE_FIELDS}}
    reasons = []
    for name, value in before.items():
        if value == getattr(now, name):
            continue
        if name == "mtime_ns" and value is None:
            reasons.append("it was written just before it was last read, so it is read once more")
        else:
            reasons.append(f"{name} was {value}, is {getattr(now, name)}")
    return reasons


_STATE_FIELDS = tuple(field.name for field in fields(SourceState) if field.name != "version")


def _list_segments(snapshot: Snapshot | None, document: dict[str, Any] | None) -> list[dict[str, Any]]:
    """One entry a segment, in the order of the text."""
    if snapshot is None or document is None:
        return []
    rows = snapshot.get_features(document["doc_id"], "paragraph")
    began = read_run_start(document["run_id"])
    segments: dict[bytes, dict[str, Any]] = {}
    for row in _sort_rows(rows):
        segment = segments.setdefault(
            row["fingerprint"],
            {
                "fingerprint": row["fingerprint"],
                "char_start": row["char_start"],
                "char_end": row["char_end"],
                "tokens": 0,
                "computed_at": row["computed_at"],
                "encoded": began is None or row["computed_at"] >= began,
            },
        )
        segment["char_end"] = max(segment["char_end"], row["char_end"])
        segment["tokens"] += row["token_count"]
    return list(segments.values())


def _sort_rows(rows: pa.Table) -> list[dict[str, Any]]:
    names = ["fingerprint", "char_start", "char_end", "token_count", "computed_at"]
    found: list[dict[str, Any]] = rows.select(names).sort_by("char_start").to_pylist()
    return found


def _as_json(row: dict[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {
        name: value.hex() if isinstance(value, bytes) else value.isoformat() if isinstance(value, datetime) else value
        for name, value in row.items()
    }
