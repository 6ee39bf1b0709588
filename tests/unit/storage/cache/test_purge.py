"""A purge takes a document's pages out of a folder that endpoints use, and they forget what they hold in memory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from lodestream.storage.cache import layered, purge
from lodestream.storage.cache.layered import CacheOptions, LayeredCache
from lodestream.storage.cache.page import SUFFIX
from lodestream.storage.cache.purge import purge_pages
from tests.support.cache_entries import fill, make_entry, make_key, open_disk
from tests.support.served import wait_until
from tests.support.store_rows import DIM


def names_in(folder: Path, doc_id: str) -> bool:
    return any(doc_id.encode() in path.read_bytes() for path in folder.iterdir())


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_pages_of_the_document_go_and_others_stay(tmp_path: Path, codec: str) -> None:
    tier = open_disk(tmp_path, codec=codec)  # type: ignore[arg-type]
    fill(tier, ["kept"])
    fill(tier, ["secret", "beside it"])
    done = purge_pages(tmp_path, ["secret", "unknown"])
    assert (done.num_removed, done.failures) == (1, ())
    assert not names_in(tmp_path, "secret")
    # The process that has the pages open finds a miss, and so does the next one.
    for each in (tier, open_disk(tmp_path, codec=codec)):  # type: ignore[arg-type]
        assert [each.get(make_key(name)) is None for name in ("kept", "secret", "beside it")] == [False, True, True]


def test_what_cannot_be_read_might_hold_it_and_goes(tmp_path: Path) -> None:
    fill(open_disk(tmp_path), ["secret"])
    (page,) = tmp_path.glob(f"*{SUFFIX}")
    page.write_bytes(page.read_bytes()[:-1])
    (tmp_path / ".1-2-3.tmp").write_bytes(b"half of a page")
    (tmp_path / "notes.txt").write_text("not ours")
    assert purge_pages(tmp_path, ["other"]).num_removed == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".purged", "notes.txt"]


def test_what_waits_in_memory_is_not_written_after_the_purge(tmp_path: Path) -> None:
    tier = open_disk(tmp_path)
    tier.put("sentence", make_key("secret"), make_entry("secret"))
    purge_pages(tmp_path, ["secret"])
    tier.put("sentence", make_key("later"), make_entry("later"))
    tier.flush()
    fill(tier, ["last"])
    assert tier.get(make_key("secret")) is None
    assert tier.get(make_key("last")) is not None
    assert not names_in(tmp_path, "secret")


def test_a_running_endpoint_forgets_what_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layered, "_LOOK_EVERY_S", 0.01)
    options = CacheOptions(
        memory_bytes={"sentence": 1 << 20}, folder=tmp_path, disk_bytes=1 << 20, codec="int8", max_age_s=1e6
    )
    told: list[str] = []
    cache = LayeredCache(options, dim=DIM, on_purge=lambda: told.append("purged"))
    cache.put("sentence", make_key("secret"), make_entry("secret"))
    assert cache.get("sentence", make_key("secret")) is not None
    purge_pages(tmp_path, ["secret"])
    wait_until(lambda: cache.count()["memory"]["sentence"]["entries"] == 0)
    assert cache.count()["memory"]["sentence"]["held_bytes"] == 0
    wait_until(lambda: told == ["purged"])
    assert cache.get("sentence", make_key("secret")) is None
    cache.put("sentence", make_key("later"), make_entry("later"))
    cache.close()
    assert not names_in(tmp_path, "secret")
    assert open_disk(tmp_path).get(make_key("later")) is not None


def test_a_stopped_writer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "_PATIENCE_S", 0.1)
    fill(open_disk(tmp_path), ["secret"])
    with (tmp_path / ".lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert purge_pages(tmp_path, ["secret"]).num_removed == 1
    assert not names_in(tmp_path, "secret")


def test_without_a_folder_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert purge_pages(tmp_path / "none", ["a"]).num_removed == 0
    assert not (tmp_path / "none").exists()


def test_what_is_left_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(open_disk(tmp_path), ["secret"])

    def refuse(path: Path, *, missing_ok: bool) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "unlink", refuse)
    done = purge_pages(tmp_path, ["secret"])
    assert done.num_removed == 0
    assert "Permission denied" in done.failures[0]
