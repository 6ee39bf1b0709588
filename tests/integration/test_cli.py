"""The command line as a user types it: every verb, its JSON, its exit codes, what it prints where; and the library."""

from __future__ import annotations

import json
import os
import pty
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import lodestream
from lodestream.schema import GRANULARITIES
from tests.support.workspace import Workspace, command_environ, last_json, run_command, short_topics

DOCUMENTS = short_topics(6)
NAMES = list(DOCUMENTS)
ANSWER = "The lighthouse keeper wrote down the height of every tide, first in pencil and later in ink."
QUESTION = "who recorded the tides?"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Initialised and run by the commands themselves; tests of this module only read it."""
    root = tmp_path_factory.mktemp("cli")
    made = Workspace(root=root)
    made.write("tides.md", f"# Tides\n\n{ANSWER}\n\nThe ferry was late.\n")
    made.write("deep/latin.md", b"caf\xe9")
    for name, text in DOCUMENTS.items():
        made.write(name, text)
    initialised = run_command(root, "init", "docs", "--json")
    assert initialised.returncode == 0
    assert json.loads(initialised.stdout) == {
        "written": str(root / "lodestream.toml"),
        "next": ["lodestream check", "lodestream run"],
    }
    done = run_command(root, "run", "--json")
    assert done.returncode == 0, done.stderr
    (root / "run.json").write_text(done.stdout)
    return made


def ask(workspace: Workspace, *arguments: str, code: int = 0) -> Any:
    """What a verb prints with ``--json``."""
    done = workspace.command(*arguments, "--json")
    assert done.returncode == code, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    return json.loads(done.stdout)


def test_init_writes_one_file_and_leaves_it_alone(tmp_path: Path) -> None:
    (tmp_path / "my docs").mkdir()
    done = run_command(tmp_path, "init", "my docs")
    assert done.returncode == 0 and "lodestream run" in done.stdout
    assert set(os.listdir(tmp_path)) == {"my docs", "lodestream.toml"}
    written = (tmp_path / "lodestream.toml").read_text()
    again = run_command(tmp_path, "init", "my docs")
    assert again.returncode == 2 and "  next: " in again.stderr
    assert (tmp_path / "lodestream.toml").read_text() == written
    missing = run_command(tmp_path, "init", "nowhere")
    assert missing.returncode == 2 and "nowhere does not exist" in missing.stderr


def test_run_ends_with_one_object(workspace: Workspace) -> None:
    report = json.loads((workspace.root / "run.json").read_text())
    assert report["kind"] == "backfill" and report["executor"] == "local"
    assert report["backend"].startswith("torch-cpu/") and report["seconds"] > 0
    wanted = {"seen": 8, "new": 7, "changed": 0, "same": 0, "deleted": 0, "quarantined": 1}
    assert wanted.items() <= report["documents"].items()
    assert report["snapshot"] == {"before": None, "after": 1}
    snapshot = workspace.open_snapshot()
    documents = [snapshot.get_document(name) or {} for name in (*NAMES, "tides.md")]
    segments, tokens = report["segments"], report["tokens"]
    assert segments["total"] == sum(document["num_segments"] for document in documents)
    assert segments["encoded"] + segments["reused"] == segments["total"]
    # Without the special tokens, two a segment, which are the overhead.
    assert tokens["total"] == sum(document["num_tokens"] for document in documents)
    assert 0 < tokens["encoded"] <= tokens["total"]
    assert tokens["overhead"] == 2 * segments["encoded"]


def test_refresh_counts_the_tokens_of_what_changed(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "work", {"a.rst": DOCUMENTS[NAMES[0]], "b.rst": DOCUMENTS[NAMES[1]]})
    first = ask(workspace, "refresh")  # without a snapshot it is the backfill
    assert (first["kind"], first["documents"]["new"], first["snapshot"]["after"]) == ("backfill", 2, 1)
    workspace.write("a.rst", DOCUMENTS[NAMES[0]] + f"\n\n{ANSWER}\n")
    second = ask(workspace, "refresh")
    assert (second["kind"], second["documents"]["changed"], second["documents"]["same"]) == ("refresh", 1, 1)
    assert second["snapshot"] == {"before": 1, "after": 2}
    changed = workspace.open_snapshot().get_document("a.rst") or {}
    assert second["tokens"]["total"] == changed["num_tokens"]
    assert 0 < second["tokens"]["encoded"] < 0.5 * changed["num_tokens"]
    third = workspace.command("refresh")
    assert third.returncode == 0
    assert third.stdout.count("\n") == 1 and "0 changed" in third.stdout and "snapshot 2 -> 2" in third.stdout


def test_search_and_get(workspace: Workspace) -> None:
    found = ask(workspace, "search", QUESTION, "--limit", "2")
    assert (found["query"], found["snapshot"], len(found["hits"])) == (QUESTION, 1, 2)
    best = found["hits"][0]
    assert (best["doc_id"], best["text"], best["title"]) == ("tides.md", ANSWER, "Tides")
    assert best["score"] > found["hits"][1]["score"]
    dense = ask(workspace, "search", QUESTION, "--min-density", "0.9")["hits"]
    assert dense and all(hit["density"] >= 0.9 for hit in dense)
    shown = workspace.command("search", QUESTION, "--granularity", "sentence")
    assert "tides.md" in shown.stdout.splitlines()[0] and "lighthouse" in shown.stdout.splitlines()[1]

    rows = ask(workspace, "get", "tides.md")["rows"]
    assert {row["granularity"] for row in rows} == set(GRANULARITIES)
    assert "vector" not in rows[0]
    with_vectors = ask(workspace, "get", "tides.md", "--granularity", "paragraph", "--vectors")["rows"]
    assert [row["ordinal"] for row in with_vectors] == [0, 1, 2]
    assert np.allclose(np.linalg.norm([row["vector"] for row in with_vectors], axis=1), 1, atol=1e-2)
    text = (workspace.docs / "tides.md").read_text()
    assert text[with_vectors[1]["char_start"] : with_vectors[1]["char_end"]] == ANSWER
    refused = ask(workspace, "get", "nowhere.md", code=1)
    assert refused["error"] == "NotFoundError" and "nowhere.md" in refused["message"] and refused["hint"]


def test_export(workspace: Workspace) -> None:
    path = workspace.root / "out.parquet"
    written = ask(workspace, "export", "out.parquet")
    assert (written["path"], written["snapshot"]) == ("out.parquet", 1)
    table = pq.read_table(path)
    assert table.num_rows == written["rows"] == sum(workspace.open_snapshot().count_features().values())
    vectors = np.stack(table.column("vector").to_numpy())
    assert vectors.dtype == np.float32 and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-2)
    assert {"doc_id", "granularity", "char_start", "char_end", "density"} <= set(table.column_names)
    refused = workspace.command("export", "out.parquet")
    assert refused.returncode == 2 and "--yes" in refused.stderr
    assert workspace.command("export", "out.parquet", "--yes").returncode == 0


def test_status_and_check(workspace: Workspace, tmp_path: Path) -> None:
    status = ask(workspace, "status", code=3)
    assert (status["health"], status["snapshot"]["sequence"]) == ("degraded", 1)
    assert status["last_run"]["documents"]["new"] == 7
    shown = workspace.command("status").stdout
    assert shown.startswith("degraded: 1 document is in quarantine")
    assert "8 seen, 7 new, 1 quarantined" in shown
    check = ask(workspace, "check")
    assert check["ok"] and {"config", "source docs", "store", "disk", "model", "executor"} <= {
        item["name"] for item in check["checks"]
    }
    fresh = Workspace.create(tmp_path / "fresh", {"a.md": ANSWER})
    assert ask(fresh, "status", code=3)["health"] == "empty"


def test_every_verb_finds_the_file_from_below(workspace: Workspace) -> None:
    below = workspace.docs / "deep"
    settings = json.loads(run_command(below, "config", "show", "--json").stdout)
    assert {"sources.docs.path", "store.uri"} <= {setting["name"] for setting in settings}
    assert json.loads(run_command(below, "status", "--json").stdout)["store"] == str(workspace.store)
    found = run_command(below, "search", QUESTION, "--json")
    assert json.loads(found.stdout)["hits"][0]["doc_id"] == "tides.md"
    report = run_command(below, "run", "--json")
    assert report.returncode == 0 and last_json(report)["documents"]["same"] == 7
    assert not (below / ".lodestream").exists()


def test_config_names_origins(workspace: Workspace) -> None:
    shown = run_command(
        workspace.root,
        "config",
        "show",
        "--json",
        "--set",
        "run.chunk_documents=7",
        environ={"LODESTREAM__SEGMENT__TARGET_TOKENS": "40"},
    )
    settings = {item["name"]: (item["value"], item["origin"]) for item in json.loads(shown.stdout)}
    assert settings["run.chunk_documents"] == (7, "--set")
    assert settings["segment.target_tokens"] == (40, "LODESTREAM__SEGMENT__TARGET_TOKENS")
    assert settings["sources.docs.path"][1].startswith("lodestream.toml:")
    assert settings["encoder.batch_tokens"] == (2048, "default")
    assert "sources" in json.loads(run_command(workspace.root, "config", "schema").stdout)["properties"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "--no-such-option"], 2, "--no-such-option"),
        (["frobnicate"], 2, "frobnicate"),
        (["run", "--set", "run.chunk_documnets=3"], 2, "did you mean run.chunk_documents"),
        (["run", "--set", "run.chunk_documents=few"], 2, "whole number"),
        (["search", ""], 1, "next: "),
        (["search", "tides", "--granularity", "chapter"], 2, "chapter"),
        (["export", "no/such/folder/out.parquet"], 2, "mkdir -p no/such/folder"),
    ],
)
def test_mistakes_have_a_code_and_a_message(workspace: Workspace, arguments: list[str], code: int, words: str) -> None:
    done = workspace.command(*arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr and not done.stdout


def test_no_file_no_store_and_the_guard(tmp_path: Path) -> None:
    nothing = run_command(tmp_path, "run", "--json")
    assert nothing.returncode == 2
    assert last_json(nothing)["error"] == "ConfigError" and "lodestream init PATH" in last_json(nothing)["hint"]
    workspace = Workspace.create(tmp_path / "work", {"a.md": ANSWER, "b.md": "The ferry was late."})
    early = workspace.command("search", "ferry")
    assert early.returncode == 1 and "next: lodestream run" in early.stderr
    workspace.run()
    for path in workspace.docs.iterdir():
        path.unlink()
    guarded = workspace.command("run")
    assert guarded.returncode == 5 and "--allow-mass-delete" in guarded.stderr
    assert workspace.command("run", "--allow-mass-delete").returncode == 0


def test_reader_that_goes_away_ends_it_in_silence(workspace: Workspace) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lodestream", "get", NAMES[0], "--json", "--vectors"],
        cwd=workspace.root,
        env=command_environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), said) == (1, b"")


@pytest.mark.parametrize("arguments", [["--help"], ["status"], ["frobnicate"]])
def test_no_colour_on_a_terminal_that_wants_none(workspace: Workspace, arguments: list[str]) -> None:
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "lodestream", *arguments],
        cwd=workspace.root,
        env={**command_environ(), "NO_COLOR": "1", "TERM": "xterm-256color"},
        stdout=its_end,
        stderr=its_end,
    )
    os.close(its_end)
    said = b""
    while True:
        try:
            said += os.read(terminal, 65536)
        except OSError:  # the process is gone
            break
    os.close(terminal)
    process.wait()
    assert said and b"\x1b" not in said


@pytest.mark.parametrize("arguments", [["--help"], ["status"]])
def test_answers_at_once(workspace: Workspace, arguments: list[str]) -> None:
    """The best of several, in processor time: on a busy machine the clock on the wall says nothing about the code."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        workspace.command(*arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(seconds) < 0.5


def test_library(workspace: Workspace) -> None:
    for place in (workspace.root, workspace.root / "lodestream.toml", workspace.store):
        hits = lodestream.open(place).search(QUESTION, limit=1)
        assert [(hit.doc_id, hit.text) for hit in hits] == [("tides.md", ANSWER)]
    rows = lodestream.Featurizer().featurize(f"{ANSWER} The ferry was late.")
    assert rows.column("granularity").to_pylist().count("sentence") == 2
    stored = lodestream.open(workspace.root).get("tides.md", granularity="sentence").to_pylist()
    alone = lodestream.Featurizer().featurize(f"# Tides\n\n{ANSWER}\n\nThe ferry was late.\n", text_format="markdown")
    mine = [row["codes"] for row in alone.to_pylist() if row["granularity"] == "sentence"]
    assert [row["codes"] for row in stored] == mine
