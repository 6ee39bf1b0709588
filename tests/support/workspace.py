"""A folder with documents, a lodestream.toml and a store: what an end-to-end test runs in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np

from lodestream.pipeline import refresh
from lodestream.pipeline.config.settings import LoadedConfig, load_config, write_initial_config
from lodestream.pipeline.report import RunReport
from lodestream.schema import DOCUMENTS_SCHEMA, features_schema
from lodestream.storage.store import FeatureStore, Snapshot

REPOSITORY = Path(__file__).resolve().parents[2]

VOLATILE_COLUMNS = frozenset({"computed_at", "updated_at", "run_id"})
"""What may differ between two stores of the same documents: when a row was made, and by which run."""

MAX_TOPIC_CHARS = 3000
WRITTEN_NS = 1_700_000_000 * 10**9


def short_topics(number: int) -> dict[str, str]:
    """Real prose: the first ``number`` short pages of Python's language reference, by file name."""
    short = [name for name in sorted(topics) if 300 < len(topics[name]) < MAX_TOPIC_CHARS]
    return {f"{name}.rst": topics[name] for name in short[:number]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """``root`` holds lodestream.toml and the store; documents lie in ``root/docs``."""

    root: Path
    settings: tuple[str, ...] = ()

    @classmethod
    def create(cls, root: Path, documents: Mapping[str, str] | None = None, *settings: str) -> Workspace:
        """A new workspace; ``settings`` are given to every run as ``--set``."""
        workspace = cls(root=root, settings=("run.executor=local", *settings))
        workspace.docs.mkdir(parents=True)
        write_initial_config(root, source_path="docs")
        for name, text in (documents or {}).items():
            workspace.write(name, text)
        return workspace

    @property
    def docs(self) -> Path:
        return self.root / "docs"

    @property
    def store(self) -> Path:
        return self.root / ".lodestream"

    def write(self, name: str, content: str | bytes) -> Path:
        """Writes one document."""
        path = self.docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        # As if written some time ago: what was written just now is read once more by the next run.
        os.utime(path, ns=(WRITTEN_NS, WRITTEN_NS))
        return path

    def load(self, *settings: str) -> LoadedConfig:
        """The configuration with further settings."""
        return load_config(start=self.root, overrides=(*self.settings, *settings), environ={})

    def run(self, *settings: str, **options: Any) -> RunReport:
        """Runs in this process; ``options`` are those of ``refresh.run``."""
        return refresh.run(self.load(*settings), **options)

    def open_snapshot(self) -> Snapshot:
        """The published snapshot."""
        return FeatureStore.open(str(self.store)).open_snapshot()

    def python(self, code: str) -> subprocess.CompletedProcess[str]:
        """Runs Python code in another process, in the workspace's folder."""
        return run_python(self.root, code)

    def open_store(self, name: str) -> Snapshot:
        """What the store in the folder ``name`` has published."""
        return FeatureStore.open(str(self.root / name)).open_snapshot()

    def command(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs the command line in another process, in the workspace's folder."""
        return run_command(self.root, *arguments, **options)


def run_python(folder: Path, code: str, *, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Python ``code`` in another process, in ``folder``."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=command_environ(),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout_s,
    )


def run_command(
    folder: Path, *arguments: str, environ: Mapping[str, str] | None = None, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """``lodestream ARGUMENTS`` in ``folder``, as a user would type it."""
    return subprocess.run(
        [sys.executable, "-m", "lodestream", *arguments],
        cwd=folder,
        env={**command_environ(), **(environ or {})},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout_s,
    )


def run_killed(folder: Path, step: str, number: int, *arguments: str) -> None:
    """``lodestream ARGUMENTS`` in ``folder``, in a process that dies at its ``number``-th pass of ``step``."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.kill_at_step", step, str(number), *arguments],
        cwd=folder,
        env=command_environ(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, f"{step} was not reached {number} times: {done.stderr}"


def command_environ() -> dict[str, str]:
    """The environment of a child process that imports this checkout."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON object on the last line of standard output."""
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


def read_features(snapshot: Snapshot, *, without: Sequence[str] = ()) -> list[dict[str, Any]]:
    """All feature rows by key, without the volatile columns; vectors as bytes of their codes."""
    names = [n for n in features_schema(snapshot.dim).names if n not in VOLATILE_COLUMNS and n not in without]
    rows = [row for batch in snapshot.scan_features(names) for row in batch.to_pylist()]
    keys = [row["key"] for row in rows]
    assert len(keys) == len(set(keys)), "a key comes twice"
    for row in rows:
        row["codes"] = np.array(row["codes"], np.int8).tobytes()
    return sorted(rows, key=lambda row: row["key"])


def read_documents(snapshot: Snapshot, *, without: Sequence[str] = ()) -> list[dict[str, Any]]:
    """All document rows by doc_id, without the volatile columns."""
    names = [n for n in DOCUMENTS_SCHEMA.names if n not in VOLATILE_COLUMNS and n not in without]
    doc_ids = sorted(snapshot.document_states().column("doc_id").to_pylist())
    assert len(doc_ids) == len(set(doc_ids)), "a document comes twice"
    rows = [snapshot.get_document(doc_id) for doc_id in doc_ids]
    return [{name: row[name] for name in names} for row in rows if row is not None]


def read_store(snapshot: Snapshot) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Everything a snapshot holds, in an order and a form that can be compared."""
    return read_features(snapshot), read_documents(snapshot)


def assert_equal_stores(found: Snapshot, wanted: Snapshot, *, without: Sequence[str] = ()) -> None:
    """Fails unless both hold the same rows, row by row; names the first that differs."""
    for name, read in (("documents", read_documents), ("features", read_features)):
        mine, theirs = read(found, without=without), read(wanted, without=without)
        assert mine, f"no {name} to compare"
        for row, other in zip(mine, theirs, strict=False):
            different = [column for column in row if row[column] != other[column]]
            assert not different, f"{name} differ in {different}: {_name(row)} and {_name(other)}"
        assert len(mine) == len(theirs), f"{len(mine)} and {len(theirs)} {name}"


def _name(row: Mapping[str, Any]) -> str:
    return ", ".join(str(row[name]) for name in ("doc_id", "granularity", "ordinal") if name in row)
