"""The disk tier: kept over restarts, within its budget, shared by processes, and never a reason to fail."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodestream.storage.cache import disk
from lodestream.storage.cache.page import SUFFIX
from tests.support.cache_entries import fill, folder_bytes, make_entry, make_key, open_disk

NAMES = [f"doc {number}" for number in range(40)]


def found_names(tier: disk.DiskTier, names: list[str] = NAMES) -> list[str]:
    """The names that are found; what is found must be right."""
    found = []
    for name in names:
        item = tier.get(make_key(name))
        if item is not None:
            assert item[1].rows.equals(make_entry(name).rows)
            found.append(name)
    return found


def test_entries_are_found_while_they_wait_on_the_disk_and_after_a_restart(tmp_path: Path) -> None:
    tier = open_disk(tmp_path)
    for name in NAMES:
        tier.put("sentence", make_key(name), make_entry(name))
    assert found_names(tier) == NAMES
    tier.flush()
    assert found_names(tier) == NAMES
    again = open_disk(tmp_path)
    assert found_names(again) == NAMES
    assert again.get(make_key("unknown")) is None
    counts = again.count()
    assert (counts.hits, counts.misses, counts.entries) == (40, 1, 40)
    assert counts.held_bytes == sum(path.stat().st_size for path in tmp_path.glob(f"*{SUFFIX}"))


def test_only_what_will_be_kept_is_looked_at_closely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []
    can_shrink = disk.can_shrink
    monkeypatch.setattr(disk, "can_shrink", lambda entry: looked_at.append(entry.source) or can_shrink(entry))
    tier = open_disk(tmp_path)
    lossy = replace(make_entry("lossy"), is_lossy=True)
    for _ in range(3):
        fill(tier, NAMES[:2])
        tier.put("sentence", make_key("lossy"), lossy)
    assert len(looked_at) == 2
    strange = replace(make_entry("strange"), source="another than its keys are made of")
    tier.put("sentence", make_key("strange"), strange)
    assert tier.get(make_key("strange")) is None


@pytest.mark.parametrize("damage", ["cut", "altered", "empty", "gone"])
def test_a_damaged_page_is_a_miss_and_goes(tmp_path: Path, damage: str) -> None:
    tier = open_disk(tmp_path)
    fill(tier, NAMES)
    (page,) = tmp_path.glob(f"*{SUFFIX}")
    data = page.read_bytes()
    if damage == "gone":
        page.unlink()
    else:
        middle = len(data) // 2
        page.write_bytes(
            {"cut": data[:middle], "altered": data[:middle] + bytes(64) + data[middle + 64 :], "empty": b""}[damage]
        )
    still = found_names(tier)
    restarted = found_names(open_disk(tmp_path))
    assert len(still) < len(NAMES)
    assert set(restarted) <= set(still)
    fill(tier, NAMES)
    assert found_names(tier) == NAMES


def test_an_entry_goes_at_its_age_also_after_it_was_written_again(tmp_path: Path) -> None:
    now = [1e9]
    tier = open_disk(tmp_path, max_age_s=100, now=now, budget_bytes=12_000)
    fill(tier, NAMES[:2])
    for step in range(40):
        now[0] += 5
        alive = now[0] - 1e9 <= 100
        assert (len(found_names(tier, NAMES[:2])) == 0) >= (not alive)
        name = f"later {step}"
        for _ in range(2):
            tier.put("sentence", make_key(name), make_entry(name))
        tier.flush()


@settings(max_examples=15, deadline=None)
@given(
    budget=st.integers(4000, 60_000),
    steps=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=15),
)
def test_the_folder_keeps_to_its_budget(
    budget: int, steps: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    tier = open_disk(folder, budget_bytes=budget)
    for start, count in steps:
        names = [f"doc {number}" for number in range(start, start + count)]
        found_names(tier, names)
        fill(tier, names)
        assert folder_bytes(folder) <= budget
    found_names(tier)
    assert folder_bytes(folder) == tier.count().held_bytes


def test_what_is_used_outlives_what_is_not(tmp_path: Path) -> None:
    tier = open_disk(tmp_path, budget_bytes=60_000)
    hot, cold = NAMES[:4], NAMES[4:]
    fill(tier, NAMES)
    for step in range(60):
        found_names(tier, hot)
        name = f"new {step}"
        fill(tier, [name])
        fill(tier, [name])
    assert found_names(tier, hot) == hot
    assert len(found_names(tier, cold)) < len(cold) / 4


def test_a_full_disk_pauses_writing_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1e9]
    tier = open_disk(tmp_path, now=now)
    fill(tier, NAMES[:10])

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(disk, "write_page", refuse)
        fill(tier, NAMES[10:20])
        assert found_names(tier, NAMES[:10]) == NAMES[:10]
    assert "No space left" in caplog.text
    fill(tier, NAMES[20:30])
    assert len(list(tmp_path.glob(f"*{SUFFIX}"))) == 1
    now[0] += disk.PAUSE_S + 1
    fill(tier, NAMES)
    assert found_names(tier) == NAMES
    assert tier.count().failures == 1


def test_a_folder_that_cannot_be_made_is_a_cache_that_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    tier = open_disk(tmp_path / "file" / "cache")
    fill(tier, NAMES)
    assert tier.count().written == 0
    assert tier.count().failures >= 1


def test_two_tiers_share_a_folder(tmp_path: Path) -> None:
    now = [1e9]
    first, second = open_disk(tmp_path, now=now), open_disk(tmp_path, now=now)
    fill(first, NAMES[:20])
    fill(second, NAMES[20:])
    now[0] += 10
    assert found_names(first) == NAMES
    assert found_names(second) == NAMES
    for page in tmp_path.glob(f"*{SUFFIX}"):
        page.unlink()
    assert found_names(first) == found_names(second) == []


WRITER = """
import sys
from pathlib import Path
from tests.support.cache_entries import fill, open_disk
tier = open_disk(Path(sys.argv[1]), budget_bytes=300_000)
for step in range(10**6):
    fill(tier, [f"{sys.argv[2]} {step % 20 * 50 + number}" for number in range(50)] * 2)
    print("written", flush=True)
"""


def test_killed_writers_leave_nothing_that_is_wrong(tmp_path: Path, repository: Path) -> None:
    reader = open_disk(tmp_path, budget_bytes=300_000)
    for round_number in range(3):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(tmp_path), f"w{round_number}{number}"],
                cwd=repository,
                stdout=subprocess.PIPE,
            )
            for number in range(2)
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"written\n"
        time.sleep(0.2 + 0.1 * round_number)
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()
        names = [f"w{round_number}{number} {step}" for number in range(2) for step in range(1000)]
        assert found_names(open_disk(tmp_path, budget_bytes=300_000), names)
        found_names(reader, names)
        assert reader.count().damaged == 0
        assert folder_bytes(tmp_path) <= 300_000
