"""The tiers together: what one gives reaches the nearer one, and writing never holds up a reader."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lodestream.storage.cache import layered
from lodestream.storage.cache.disk import DiskTier
from lodestream.storage.cache.layered import CacheOptions, LayeredCache
from tests.support.cache_entries import make_entry, make_key
from tests.support.store_rows import DIM


def open_cache(folder: Path | None, *, memory_bytes: int = 1 << 20) -> LayeredCache:
    options = CacheOptions(
        memory_bytes={"sentence": memory_bytes}, folder=folder, disk_bytes=1 << 20, codec="int8", max_age_s=1e6
    )
    return LayeredCache(options, dim=DIM)


def tier_of(cache: LayeredCache, name: str) -> str | None:
    found = cache.get("sentence", make_key(name))
    if found is None:
        return None
    assert found[0].rows.equals(make_entry(name).rows)
    return found[1]


def test_memory_then_disk_then_memory_again(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    assert tier_of(cache, "a") is None
    cache.put("sentence", make_key("a"), make_entry("a"))
    assert tier_of(cache, "a") == "memory"
    cache.close()
    again = open_cache(tmp_path)
    assert [tier_of(again, "a") for _ in range(2)] == ["disk", "memory"]
    counts = again.count()
    assert counts["memory"]["sentence"]["hits"] == counts["disk"]["hits"] == 1
    again.close()


def test_without_a_folder_there_is_memory_only() -> None:
    cache = open_cache(None)
    cache.put("sentence", make_key("a"), make_entry("a"))
    assert tier_of(cache, "a") == "memory"
    assert cache.count()["disk"] == {}
    cache.close()


def test_a_disk_that_does_not_keep_up_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(layered, "_MAX_WAITING", 3)
    monkeypatch.setattr(DiskTier, "put", lambda *_: goes_on.wait())
    cache = open_cache(tmp_path)
    names = [f"doc {number}" for number in range(20)]
    for name in names:
        cache.put("sentence", make_key(name), make_entry(name))
    assert [tier_of(cache, name) for name in names] == ["memory"] * 20
    assert cache.count()["disk"]["dropped"] >= 20 - 3 - 1
    goes_on.set()
    cache.close()
