"""A stream of real edits, replayed by real refreshes: as files of a folder, or as rows of a table of PostgreSQL."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lodestream.actors.paragraphs import text_format_of
from lodestream.kernels import encoder
from lodestream.pipeline import refresh
from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.report import RunReport
from lodestream.schema import DOCUMENTS_SCHEMA, features_schema
from lodestream.storage.store import Snapshot
from tests.support.postgres import TABLE, connect
from tests.support.toy_encoder import load_lookup_encoder
from tests.support.workspace import VOLATILE_COLUMNS, Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """What became of the corpus at one moment, in seconds since 1970: texts by id, and ids that are gone."""

    at_s: int
    texts: dict[str, str]
    deleted: frozenset[str]

    def restrict(self, ids: Collection[str]) -> Tick:
        """The same of these documents alone."""
        texts = {name: text for name, text in self.texts.items() if name in ids}
        return Tick(at_s=self.at_s, texts=texts, deleted=self.deleted & frozenset(ids))


def read_stream(path: Path) -> tuple[Tick, list[Tick]]:
    """The corpus that a stream begins with, and what happened to it since, one tick a moment with changes."""
    rows = pq.read_table(path, columns=["ts", "op", "id", "text"]).to_pylist()
    rows.sort(key=lambda row: row["ts"])  # stable: rows of one moment keep their order
    base = [row for row in rows if row["op"] == "BASE"]
    changes = itertools.groupby((row for row in rows if row["op"] != "BASE"), key=lambda row: row["ts"])
    return _make_tick(base[0]["ts"], base), [_make_tick(at_s, list(group)) for at_s, group in changes]


def _make_tick(at_s: int, rows: Sequence[dict[str, Any]]) -> Tick:
    last = {row["id"]: row for row in rows}
    return Tick(
        at_s=at_s,
        texts={name: row["text"] for name, row in last.items() if row["op"] != "D"},
        deleted=frozenset(name for name, row in last.items() if row["op"] == "D"),
    )


class Replayed(Protocol):
    """Where a stream is replayed."""

    workspace: Workspace

    def apply(self, tick: Tick) -> None:
        """Brings the source to what it was at that moment."""
        ...

    def load(self, *settings: str) -> LoadedConfig:
        """The configuration of a run."""
        ...


class Files:
    """Files of a folder, with the times of their edits."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def apply(self, tick: Tick) -> None:
        """See ``Replayed.apply``."""
        for name, text in tick.texts.items():
            path = self.workspace.write(name, text)
            os.utime(path, (tick.at_s, tick.at_s))
        for name in tick.deleted:
            (self.workspace.docs / name).unlink()

    def load(self, *settings: str) -> LoadedConfig:
        """See ``Replayed.load``."""
        return self.workspace.load(*settings)


class TableRows:
    """Rows of a table, in mode ``xid``; each tick is a transaction."""

    def __init__(self, workspace: Workspace, url: str, text_format: str) -> None:
        self.workspace = workspace
        self._url = url
        columns = {"id_column": "id", "text_column": "body", "xid_column": "change_xid", "tombstone_table": "gone"}
        values = {"kind": "postgres", "url": url, "table": "docs", "mode": "xid", "text_format": text_format, **columns}
        lines = ["[sources.table]", *(f'{name} = "{value}"' for name, value in values.items())]
        (workspace.root / "lodestream.toml").write_text("\n".join(lines))
        with connect(url) as connection:
            connection.execute(TABLE.encode())
            connection.execute(
                b"ALTER TABLE docs ALTER COLUMN id TYPE text; ALTER TABLE gone ALTER COLUMN id TYPE text"
            )

    def apply(self, tick: Tick) -> None:
        """See ``Replayed.apply``."""
        with connect(self._url) as connection, connection.transaction(), connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO docs (id, body) VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                list(tick.texts.items()),
            )
            cursor.execute("DELETE FROM docs WHERE id = ANY(%s)", (sorted(tick.deleted),))

    def load(self, *settings: str) -> LoadedConfig:
        """See ``Replayed.load``."""
        return self.workspace.load(*settings)


def format_of(texts: Collection[str]) -> str:
    """The one format of documents with these names."""
    (text_format,) = {text_format_of(name) for name in texts}
    return text_format


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed:
    """What one refresh did: documents, and tokens of those that were new or changed, and of what was encoded;
    seconds of processor time."""

    at_s: int
    changed: int
    moved: int
    deleted: int
    tokens: int
    tokens_encoded: int
    cpu_s: float


def run_refresh(replayed: Replayed, at_s: int) -> Refreshed:
    """One refresh in this process, counted and timed."""
    began = time.process_time()
    report = refresh.run(replayed.load())
    return _count(report, at_s, time.process_time() - began)


def _count(report: RunReport, at_s: int, cpu_s: float) -> Refreshed:
    documents = report.as_dict()["documents"]
    return Refreshed(
        at_s=at_s,
        changed=documents["new"] + documents["changed"],
        moved=documents["moved"],
        deleted=documents["deleted"],
        tokens=report.counts.tokens_total,
        tokens_encoded=report.counts.tokens_encoded,
        cpu_s=cpu_s,
    )


@contextlib.contextmanager
def counting_encoder() -> Iterator[None]:
    """Within it runs load the encoder of the tests: it counts as the real one does and costs next to nothing."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(encoder, "load_encoder", load_lookup_encoder)
        yield


def assert_rebuilt(replayed: Replayed, *, max_step: int = 0) -> int:
    """A full rebuild of the source as it is now has the rows that the store has.

    Args:
        replayed: after its last refresh.
        max_step: by how much codes may differ; scales and norms then by a thousandth.

    Returns:
        The number of feature rows.
    """
    refresh.run(replayed.load("store.uri=rebuilt"))
    found, wanted = replayed.workspace.open_snapshot(), replayed.workspace.open_store("rebuilt")
    for read in (_read_documents, _read_features):
        mine, theirs = read(found), read(wanted)
        assert mine.num_rows == theirs.num_rows > 0
        for name in mine.column_names:
            close = _is_close(name, max_step)
            assert close(mine.column(name), theirs.column(name)), f"{name} differs from that of a rebuild"
    return theirs.num_rows


def _is_close(name: str, max_step: int) -> Callable[[pa.ChunkedArray, pa.ChunkedArray], bool]:
    if max_step and name == "codes":
        return lambda a, b: bool(np.abs(_flatten(a) - _flatten(b)).max() <= max_step)
    if max_step and name == "features_checksum":  # of the codes, which may differ
        return lambda _a, _b: True
    if max_step and name in ("scale", "norm"):
        return lambda a, b: bool(np.allclose(a.to_numpy(), b.to_numpy(), rtol=2e-3))
    return lambda a, b: bool(a.equals(b))


def _flatten(codes: pa.ChunkedArray) -> Any:
    return np.concatenate([chunk.flatten().to_numpy() for chunk in codes.chunks]).astype(np.int16)


def _read_features(snapshot: Snapshot) -> pa.Table:
    names = [name for name in features_schema(snapshot.dim).names if name not in VOLATILE_COLUMNS]
    return pa.Table.from_batches(snapshot.scan_features(names)).sort_by("key")


def _read_documents(snapshot: Snapshot) -> pa.Table:
    names = [name for name in DOCUMENTS_SCHEMA.names if name not in VOLATILE_COLUMNS]
    return snapshot.open_table("documents").read(names).sort_by("doc_id")
