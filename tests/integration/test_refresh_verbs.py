"""The verbs around a refresh, as a person types them: plan, refresh, status, explain, quarantine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lodestream.errors import NotFoundError
from lodestream.pipeline.explain import explain_document
from lodestream.pipeline.preview import preview_refresh
from lodestream.pipeline.quarantine import choose_quarantined, drop_quarantined, list_quarantine
from lodestream.pipeline.rollback import roll_back
from lodestream.pipeline.status import read_status
from lodestream.storage.store import FeatureStore
from tests.support.workspace import Workspace, command_environ, last_json, read_store, short_topics

DOCUMENTS = short_topics(6)
NAMES = list(DOCUMENTS)
END_LINE = re.compile(
    r"refresh \S+ done in [\d.]+s: 6 seen, 1 changed, 0 new, 1 moved, 0 deleted, 4 same, 0 quarantined \| "
    r"\d+ of \d+ segments encoded \([\d.]+% of tokens, [\d.]+% base, [\d.]+% sparse\) \| "
    r"snapshot 1 -> 2 \| lag \d+s \| cursor docs \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.create(tmp_path / "work", DOCUMENTS)
    made.run()
    return made


def edit(workspace: Workspace) -> None:
    """One document gets a sentence, one another name."""
    workspace.write(NAMES[0], f"{DOCUMENTS[NAMES[0]]}\n\nOne more paragraph about the tides.\n")
    (workspace.docs / NAMES[1]).rename(workspace.docs / "moved.rst")


def pointer_of(workspace: Workspace) -> Any:
    return FeatureStore.open(str(workspace.store)).pointer()


def test_plan_tells_what_the_refresh_then_does(workspace: Workspace) -> None:
    edit(workspace)
    before = pointer_of(workspace)
    planned = preview_refresh(workspace.load()).as_dict()
    assert pointer_of(workspace) == before
    report = workspace.run()
    done = report.as_dict()
    assert planned["documents"] == {
        name: done["documents"][name] for name in ("seen", "new", "changed", "moved", "quarantined", "same", "deleted")
    }
    assert planned["doc_ids"] == {"changed": [NAMES[0]], "moved": ["moved.rst"]}
    assert planned["tokens"] == {
        "total": done["tokens"]["total"], "to_encode": done["tokens"]["encoded"], "exact": True,
    }  # fmt: skip
    assert planned["minutes"] is not None


def test_plan_of_a_first_run_estimates_from_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lodestream.pipeline.preview.MAX_SAMPLE", 4)
    workspace = Workspace.create(tmp_path / "work", short_topics(12))
    planned = preview_refresh(workspace.load())
    assert not workspace.store.exists()
    assert (planned.seen, planned.num_by_status["new"], planned.is_exact, planned.minutes) == (12, 12, False, None)
    total = workspace.run().counts.tokens_total
    assert abs(planned.tokens_total - total) < 0.3 * total


def test_commands_from_plan_to_status(workspace: Workspace) -> None:
    edit(workspace)
    planned = workspace.command("plan")
    assert planned.returncode == 0, planned.stderr
    assert "changed      " + NAMES[0] in planned.stdout and "tokens to encode | about" in planned.stdout
    done = workspace.command("refresh")
    assert done.returncode == 0, done.stderr
    assert END_LINE.fullmatch(done.stdout.splitlines()[-1]), done.stdout
    status = workspace.command("status", "--json")
    values = json.loads(status.stdout)
    assert status.returncode == 0, status.stdout
    assert [source["name"] for source in values["sources"]] == ["docs"]
    assert 0 < values["freshness"]["lag_seconds"] < 120 and values["freshness"]["target_seconds"] is None
    assert [entry["documents"] for entry in values["recent_runs"]] == [
        {"seen": 6, "new": 6}, {"seen": 6, "changed": 1, "moved": 1, "same": 4},
    ]  # fmt: skip
    late = workspace.command("status", "--set", "refresh.freshness_target=1ms")
    assert late.returncode == 3 and late.stdout.startswith("degraded: docs lags by")
    explained = workspace.command("explain", "moved.rst")
    assert explained.returncode == 0, explained.stderr
    assert "next refresh  would leave it alone" in explained.stdout and "reused" in explained.stdout


def test_status_needs_neither_arrow_nor_lance(workspace: Workspace) -> None:
    done = workspace.python(
        "import sys; from lodestream.pipeline.cli.app import main; sys.argv = ['lodestream', 'status']\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "print('loaded:', *sorted({'torch', 'pyarrow', 'lance', 'numpy', 'ray'} & set(sys.modules)))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "loaded:"


def test_explain_names_what_differs_and_what_was_reused(workspace: Workspace) -> None:
    workspace.write(NAMES[0], f"{DOCUMENTS[NAMES[0]]}\n\nOne more paragraph about the tides of the coast.\n")
    time.sleep(1.1)  # a run's name has whole seconds
    workspace.run()
    explained = explain_document(workspace.load(), NAMES[0])
    made = [segment["encoded"] for segment in explained.segments]
    assert made[-1] is True and made.count(True) <= 2 < len(made)
    assert explained.next_step == "leave it alone"
    os.utime(workspace.docs / NAMES[0], ns=(5, 5))
    after = explain_document(workspace.load(), NAMES[0])
    assert after.next_step.startswith("read it") and any("mtime_ns was" in reason for reason in after.reasons)
    (workspace.docs / NAMES[0]).unlink()
    assert explain_document(workspace.load(), NAMES[0]).next_step == "delete it"
    workspace.write("new.md", "New here.\n")
    assert explain_document(workspace.load(), "new.md").next_step == "read and compute it"
    with pytest.raises(NotFoundError, match="neither the store nor a source"):
        explain_document(workspace.load(), "nowhere.md")


def test_quarantine_is_listed_retried_and_dropped(workspace: Workspace) -> None:
    before = read_store(workspace.open_snapshot())[0]
    workspace.write(NAMES[0], b"broken \xff\xff\x00")
    workspace.write("never.md", b"\x00\x01")
    workspace.run()
    loaded = workspace.load()
    assert [row["doc_id"] for row in list_quarantine(loaded)] == sorted([NAMES[0], "never.md"])
    assert read_status(loaded).health == "degraded"
    assert "it is in quarantine after 1 attempts" in " ".join(explain_document(loaded, NAMES[0]).reasons)
    with pytest.raises(NotFoundError, match="'x' is not in quarantine"):
        choose_quarantined(loaded, ["x"])
    listed = workspace.command("quarantine", "list")
    assert "never.md: binary" in listed.stdout, listed.stderr
    again = workspace.command("quarantine", "retry", "never.md", "--json")
    assert last_json(again)["documents"]["quarantined"] == 2, again.stderr
    assert {row["doc_id"]: row["quarantine_attempts"] for row in list_quarantine(loaded)} == {
        NAMES[0]: 1, "never.md": 2,
    }  # fmt: skip
    drop_quarantined(loaded, [NAMES[0], "never.md"])
    assert list_quarantine(loaded) == []
    assert read_status(loaded).health == "healthy"
    snapshot = workspace.open_snapshot()
    assert snapshot.get_document("never.md") is None
    assert (snapshot.get_document(NAMES[0]) or {})["quarantine_reason"] is None
    assert read_store(snapshot)[0] == before
    assert workspace.run().as_dict()["documents"]["same"] == 7
    workspace.write("never.md", "Mended at last.\n")
    assert workspace.run().num_by_status == {"new": 1}


def test_drop_keeps_what_a_run_has_published_while_it_waited(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.write("never.md", b"\x00\x01")
    workspace.run()
    open_lease = FeatureStore.open_lease
    published: list[Any] = []

    def wait_for_lease(store: FeatureStore, purpose: str, **options: Any) -> Any:
        if not published:
            published.append(None)
            workspace.write("new.md", "A page that came meanwhile.\n")
            workspace.run()
            published[:] = [pointer_of(workspace)]
        return open_lease(store, purpose, **options)

    monkeypatch.setattr(FeatureStore, "open_lease", wait_for_lease)
    drop_quarantined(workspace.load(), ["never.md"])
    pointer = pointer_of(workspace)
    assert pointer.checkpoint == published[0].checkpoint
    assert pointer.run["run_id"] == published[0].run["run_id"]
    assert pointer.run["documents"]["quarantined"] == 0


def test_rollback_brings_the_quarantine_back(workspace: Workspace) -> None:
    workspace.write("never.md", b"\x00\x01")
    assert workspace.run().snapshot_after == 2
    drop_quarantined(workspace.load(), ["never.md"])
    roll_back(workspace.load(), 2)
    assert "quarantine" in read_status(workspace.load()).reason
    assert workspace.run(retry=["never.md"]).num_by_status == {"still quarantined": 1}
    assert [row["quarantine_attempts"] for row in list_quarantine(workspace.load())] == [2]


def test_refresh_every_goes_on_until_it_is_told_to_end(workspace: Workspace) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lodestream", "refresh", "--every", "1s"],
        cwd=workspace.root,
        env=command_environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline(), process.stdout.readline()]
    process.send_signal(signal.SIGTERM)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert all(" done in " in line for line in [*lines, *rest.splitlines()])


def test_refresh_every_stops_loudly(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.docs.rename(workspace.root / "away")
    done = workspace.command("refresh", "--every", "1s")
    assert done.returncode == 1
    assert done.stderr.count("refresh failed (") == 5
    assert "error: 5 refreshes in a row failed, the last one:" in done.stderr and "does not exist" in done.stderr


def test_two_refreshes_started_together(workspace: Workspace) -> None:
    for number in range(40):
        workspace.write(f"burst/{number:02}.md", DOCUMENTS[NAMES[number % 6]] + f"\n\nNote {number}.\n")
    command = [sys.executable, "-m", "lodestream", "refresh"]
    options: Any = {
        "cwd": workspace.root, "env": command_environ(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
        "text": True,
    }  # fmt: skip
    both = [subprocess.Popen(command, **options) for _ in range(2)]
    ends = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert sum("snapshot 1 -> 2" in out for out, _ in ends) == 1, ends
    # The other one leaves the work to it, or was let in after it had ended and finds nothing to do.
    assert sum("refresh skipped" in out or "snapshot 2 -> 2" in out for out, _ in ends) == 1, ends
    assert pointer_of(workspace).sequence == 2


def test_refresh_is_left_to_whoever_is_at_work(workspace: Workspace) -> None:
    with FeatureStore.open(str(workspace.store)).open_lease("a long run"):
        done = workspace.command("refresh")
        assert (done.returncode, done.stdout.startswith("refresh skipped: ")) == (0, True), done.stderr
        assert workspace.command("run").returncode == 4
