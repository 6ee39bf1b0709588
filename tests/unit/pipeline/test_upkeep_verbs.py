from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lodestream.errors import ConfigError, StoreCorrupt
from lodestream.pipeline import quarantine
from lodestream.pipeline.cli.app import app
from lodestream.pipeline.config.settings import load_config, write_initial_config
from lodestream.pipeline.report import RunReport
from lodestream.pipeline.upkeep import finish_run
from lodestream.storage.store import FeatureStore
from tests.support.cache_entries import fill, make_key, open_disk
from tests.support.store_rows import DIM, leave_unfinished, publish, read_contents, take_lease


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    (tmp_path / "docs").mkdir()
    write_initial_config(tmp_path, source_path="docs")
    monkeypatch.chdir(tmp_path)
    return FeatureStore.open_or_create(tmp_path / ".lodestream", dim=DIM)


def invoke(*arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=answer)


def invoke_json(*arguments: str) -> Any:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_gc_merges_and_says_so(store: FeatureStore) -> None:
    for number in range(3):
        publish(store, {f"d{number}": ["a"]})
    done = invoke_json("gc")
    assert done["compacted"] == ["features", "documents", "source_state"]
    assert done["sequence"] == 4
    assert done["bytes_before"] - done["bytes_after"] == done["freed_bytes"]
    assert done["bytes_after"] == sum(path.stat().st_size for path in store.root.glob("*.lance/**/*") if path.is_file())
    assert "no files to merge" in invoke("gc").stdout


def test_gc_beside_an_unfinished_run(store: FeatureStore) -> None:
    publish(store, {"d": ["a"]})
    leave_unfinished(store, {"e": ["b"]}, run_id="killed")
    result = invoke("gc")
    assert result.exit_code == 0
    assert "killed is unfinished" in result.stderr


def test_purge_asks_first(store: FeatureStore) -> None:
    publish(store, {"d": ["a"], "e": ["b"]})
    refused = invoke("gc", "--purge", "d", answer="n\n")
    assert refused.exit_code == 1
    assert "the snapshots 1 can no longer be opened" in refused.stderr
    assert "d" in read_contents(store.open_snapshot())
    assert invoke("gc", "--purge", "d", answer="y\n").exit_code == 0
    assert read_contents(store.open_snapshot()) == {"e": ["b"]}


def test_purge_in_a_script_wants_yes(store: FeatureStore) -> None:
    publish(store, {"d": ["a"], "e": ["b"]})
    result = invoke("gc", "--purge", "d", "--json")
    assert isinstance(result.exception, ConfigError)
    assert invoke_json("gc", "--purge", "d", "--yes")["plan"]["lost_sequences"] == [1]
    assert read_contents(store.open_snapshot()) == {"e": ["b"]}


def test_giving_up_what_failed_asks_apart_from_the_answer(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    given_up: list[str] = []

    def give_up(_: object, doc_ids: list[str]) -> int:
        given_up.extend(doc_ids)
        return 2

    monkeypatch.setattr(quarantine, "choose_quarantined", lambda _, doc_ids: doc_ids)
    monkeypatch.setattr(quarantine, "drop_quarantined", give_up)
    in_script = invoke("quarantine", "drop", "d", "--json")
    assert isinstance(in_script.exception, ConfigError) and "--yes" in in_script.exception.hint
    refused = invoke("quarantine", "drop", "d", answer="n\n")
    assert refused.exit_code == 1 and "give up" not in refused.stdout
    assert "give up the failed versions of 1 documents?" in refused.stderr
    assert given_up == []
    assert invoke_json("quarantine", "drop", "d", "--yes") == {"dropped": ["d"], "snapshot": 2}
    assert "dropped 1 documents" in invoke("quarantine", "drop", "e", answer="y\n").stdout
    assert given_up == ["d", "e"]


def test_purge_reaches_the_cache_of_the_endpoint(store: FeatureStore) -> None:
    publish(store, {"d": ["a"], "e": ["b"]})
    folder = store.root.parent / ".lodestream-cache"
    fill(open_disk(folder), ["d"])
    fill(open_disk(folder), ["e"])
    result = invoke("gc", "--purge", "d", "--yes")
    assert f"1 pages of the endpoint's cache removed from {folder}" in result.stderr
    assert "not reached: the cache of endpoints on other machines" in result.stderr
    assert open_disk(folder).get(make_key("e")) is not None
    assert open_disk(folder).get(make_key("d")) is None
    assert invoke_json("gc", "--purge", "e", "--yes")["cache"]["num_removed"] == 1


def test_a_run_ends_with_the_upkeep_that_is_due(store: FeatureStore) -> None:
    for number in range(3):
        publish(store, {f"d{number}": ["a"]})
    report = RunReport(run_id="run", kind="refresh")
    finish_run(load_config(start=store.root.parent, environ={}), store, report, take_lease(store))
    assert report.upkeep is None
    loaded = load_config(start=store.root.parent, overrides=["upkeep.max_small_files=2"], environ={})
    finish_run(loaded, store, report, take_lease(store))
    assert report.upkeep is not None
    assert report.upkeep["sequence"] == store.pointer().sequence == 4
    assert store.pointer().run_id == "run-upkeep"


def test_failed_upkeep_fails_no_run(store: FeatureStore) -> None:
    for number in range(3):
        publish(store, {f"d{number}": ["a"]})
    for path in (store.root / "features.lance" / "data").iterdir():
        path.unlink()
    loaded = load_config(start=store.root.parent, overrides=["upkeep.max_small_files=2"], environ={})
    report = RunReport(run_id="run", kind="refresh")
    finish_run(loaded, store, report, take_lease(store))
    assert report.upkeep is None
    assert "upkeep failed" in report.warnings[0]


def test_verify_and_repair(store: FeatureStore) -> None:
    publish(store, {"d": ["alpha", "beta"], "e": ["gamma"]})
    assert "sound: snapshot 1" in invoke("verify", "--deep").stdout
    path = next((store.root / "documents.lance" / "data").iterdir())
    body = path.read_bytes()
    path.write_bytes(body.replace(b"alpha", b"aleph"))
    found = invoke("verify", "--deep")
    assert found.exit_code == 3
    assert "fail  text-altered" in found.stdout
    assert "next: lodestream verify --deep --repair" in found.stderr
    mended = invoke("verify", "--deep", "--repair", "--json")
    assert mended.exit_code == 0
    values = json.loads(mended.stdout)
    assert values["ok"]
    assert values["findings"][0]["doc_ids"] == values["repair"]["to_compute"] == ["d"]
    assert read_contents(store.open_snapshot()) == {"e": ["gamma"]}


def test_verify_of_a_torn_pointer(store: FeatureStore) -> None:
    publish(store, {"d": ["a"]})
    newest = sorted((store.root / "pointer").glob("*.json"))[-1]
    newest.write_bytes(b"{")
    result = invoke("verify")
    assert result.exit_code == 3
    assert newest.name in result.stdout
    assert isinstance(invoke("verify", "--repair").exception, StoreCorrupt)
