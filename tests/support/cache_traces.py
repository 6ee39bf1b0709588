"""Sequences of look-ups for the cache's policy, made of fixed seeds: (name, size in bytes) each.

The recorded one replays a stream of real edits: whoever follows the changes reads each document as it is edited,
others read documents by popularity and what changed of late, and now and then somebody reads all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

Trace = list[tuple[bytes, int]]

ROW_BYTES = 450
CHARS_A_ROW = 150


def name(*parts: object) -> bytes:
    return "/".join(map(str, parts)).encode()


def zipf_trace(*, num_names: int = 10_000, length: int = 60_000, exponent: float = 0.9, seed: int = 1) -> Trace:
    """Independent uses by popularity."""
    weights = 1 / np.arange(1, num_names + 1) ** exponent
    picked = np.random.default_rng(seed).choice(num_names, size=length, p=weights / weights.sum())
    return [(name("z", number), 1) for number in picked.tolist()]


def scan_trace(*, every: int = 10_000, scan: int = 5000, seed: int = 2, **zipf: Any) -> Trace:
    """The same, with a scan of names that nobody asks for again after so many uses."""
    trace: Trace = []
    base = zipf_trace(seed=seed, **zipf)
    for start in range(0, len(base), every):
        trace += base[start : start + every]
        trace += [(name("scan", start, number), 1) for number in range(scan)]
    return trace


def shifting_trace(*, phases: int = 6, num_names: int = 10_000, length: int = 60_000, seed: int = 3) -> Trace:
    """Uses by popularity, where other names are popular in each phase."""
    rng = np.random.default_rng(seed)
    trace: Trace = []
    for _ in range(phases):
        order = rng.permutation(num_names)
        picked = zipf_trace(num_names=num_names, length=length // phases, exponent=1.0, seed=int(rng.integers(1 << 30)))
        trace += [(name("s", order[int(key.partition(b"/")[2])]), 1) for key, _ in picked]
    return trace


def edits_trace(stream: Path, *, reads_a_commit: int, scan_every: int = 200, seed: int = 4) -> Trace:
    """The uses around a stream of real edits (columns commit, op, id, text). A name holds the document's version, as
    the cache's keys do: what was read before an edit is never asked for again.
    """
    replay = _Replay(reads_a_commit, np.random.default_rng(seed))
    commit: str | None = None
    commits = 0
    for row in pq.read_table(stream, columns=["commit", "op", "id", "text"]).to_pylist():
        if row["op"] == "BASE":
            replay.write(row["id"], row["text"])
            continue
        if commit is not None and row["commit"] != commit:
            commits += 1
            replay.read_by_popularity()
            if commits % scan_every == 0:
                replay.read_all()
        commit = row["commit"]
        if row["op"] == "D":
            replay.versions.pop(row["id"], None)
        else:
            replay.write(row["id"], row["text"])
            replay.recent.append(row["id"])
            replay.read(row["id"])
    replay.read_by_popularity()
    return replay.trace


class _Replay:
    def __init__(self, reads_a_commit: int, rng: np.random.Generator) -> None:
        self.trace: Trace = []
        self.versions: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        self.recent: list[str] = []
        self._order: list[str] = []
        self._reads = reads_a_commit
        self._rng = rng

    def write(self, doc_id: str, text: str) -> None:
        self.versions[doc_id] = self.versions.get(doc_id, -1) + 1
        self.sizes[doc_id] = max(1, len(text) // CHARS_A_ROW) * ROW_BYTES

    def read(self, doc_id: str) -> None:
        if doc_id in self.versions:
            self.trace.append((name(doc_id, self.versions[doc_id]), self.sizes[doc_id]))

    def read_by_popularity(self) -> None:
        if not self._order:
            self._order = sorted(self.versions)
            self._rng.shuffle(self._order)
        ranks = self._rng.pareto(0.9, self._reads).astype(np.int64) % len(self._order)
        for rank in ranks.tolist():
            is_news = self.recent and self._rng.random() < 0.3
            self.read(
                self.recent[-1 - int(self._rng.integers(min(20, len(self.recent))))] if is_news else self._order[rank]
            )

    def read_all(self) -> None:
        for doc_id in list(self.versions):
            self.read(doc_id)
