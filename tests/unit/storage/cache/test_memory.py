"""The tier in memory: what comes back is what was put, budgets hold, age counts."""

from __future__ import annotations

import threading
import tracemalloc

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodestream.schema import features_schema
from lodestream.storage.cache.entry import Entry, name_rows
from lodestream.storage.cache.memory import MemoryTier
from tests.support.store_rows import DIM, make_features

SCHEMA = features_schema(DIM)


def make_entry(num_rows: int, name: str = "a.md") -> Entry:
    rows = make_features({name: [f"sentence {number}" for number in range(num_rows)]})
    return Entry(rows=rows.slice(0, num_rows).combine_chunks().to_batches()[0], source="files")


def make_tier(budgets: dict[str, int], *, max_age_s: float = 1e9, now: list[float] | None = None) -> MemoryTier:
    moment = now if now is not None else [0.0]
    return MemoryTier(SCHEMA, budgets, max_age_s=max_age_s, clock=lambda: moment[0])


def test_what_is_put_comes_back() -> None:
    tier = make_tier({"sentence": 1 << 20})
    entry = Entry(rows=make_entry(3).rows, source="files", num_tokens=7, is_lossy=True)
    assert tier.get("sentence", b"k") is None
    tier.put("sentence", b"k", entry)
    found = tier.get("sentence", b"k")
    assert found is not None
    assert found.rows.equals(entry.rows)
    assert (found.source, found.num_tokens, found.is_lossy) == ("files", 7, True)
    counts = tier.count()["sentence"]
    assert (counts.hits, counts.misses, counts.entries) == (1, 1, 1)


def test_a_class_without_budget_holds_nothing() -> None:
    tier = make_tier({"sentence": 0})
    for kind in ("sentence", "topic"):
        tier.put(kind, b"k", make_entry(1))
        assert tier.get(kind, b"k") is None


def test_an_entry_goes_at_its_age() -> None:
    now = [0.0]
    tier = make_tier({"sentence": 1 << 20}, max_age_s=10, now=now)
    tier.put("sentence", b"k", make_entry(1))
    now[0] = 10.0
    assert tier.get("sentence", b"k") is not None
    now[0] = 10.1
    assert tier.get("sentence", b"k") is None
    counts = tier.count()["sentence"]
    assert (counts.entries, counts.held_bytes, counts.evictions) == (0, 0, 1)


@settings(max_examples=40)
@given(
    budget=st.integers(1000, 12_000),
    puts=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), max_size=40),
)
def test_budgets_hold_and_no_key_gives_anothers_rows(budget: int, puts: list[tuple[int, int]]) -> None:
    tier = make_tier({"sentence": budget})
    first: dict[bytes, pa.RecordBatch] = {}
    for number, num_rows in puts:
        key = name_rows(b"%d" % number, "sentence")
        entry = make_entry(num_rows, f"{number}.md")
        if tier.get("sentence", key) is None:
            first[key] = entry.rows
            tier.put("sentence", key, entry)
        assert tier.count()["sentence"].held_bytes <= budget
        found = tier.get("sentence", key)
        assert found is None or found.rows.equals(first[key])


def test_the_counted_bytes_cover_what_the_process_takes() -> None:
    entries = [(name_rows(b"%d" % number, "sentence"), make_entry(4, f"{number}.md")) for number in range(500)]
    arrow_before = pa.total_allocated_bytes()
    tracemalloc.start()
    tier = make_tier({"sentence": 1 << 30})
    for key, entry in entries:
        tier.put("sentence", key, entry)
    used = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - arrow_before
    tracemalloc.stop()
    assert used <= tier.count()["sentence"].held_bytes


@pytest.mark.parametrize("budget", [20_000, 1 << 20])
def test_many_threads(budget: int) -> None:
    tier = make_tier({"sentence": budget})
    entries = {name_rows(b"%d" % number, "sentence"): make_entry(2, f"{number}.md") for number in range(20)}
    wrong: list[bytes] = []

    def work() -> None:
        for key, entry in list(entries.items()) * 20:
            found = tier.get("sentence", key)
            if found is None:
                tier.put("sentence", key, entry)
            elif not found.rows.equals(entry.rows):
                wrong.append(key)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert tier.count()["sentence"].held_bytes <= budget


def test_many_at_once_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    tier = make_tier({"sentence": 1 << 20}, max_age_s=10, now=now)
    entries = {b"%d" % number: make_entry(number + 1, f"{number}.md") for number in range(4)}
    for key, entry in entries.items():
        tier.put("sentence", key, entry)
    found = tier.get_all("sentence", list(entries))
    assert found is not None and [one.rows for one in found] == [one.rows for one in entries.values()]
    assert tier.holds("sentence", entries)
    assert not tier.holds("sentence", [b"0", b"unknown"])
    assert tier.get_all("sentence", [b"0", b"unknown"]) is None
    assert tier.get_all("topic", [b"0"]) is None
    now[0] = 10.1
    assert tier.get_all("sentence", [b"0"]) is None, "too old"
    counts = tier.count()["sentence"]
    assert (counts.hits, counts.misses) == (4, 0)
