from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from lodestream.errors import CommitConflict, CommitStateUnknown, StoreCorrupt, StoreUnwritable
from lodestream.storage.registers import local as register_module
from lodestream.storage.registers.local import KEPT_RECORDS, LocalRegister


@pytest.fixture
def register(tmp_path: Path) -> LocalRegister:
    return LocalRegister(tmp_path / "pointer")


def advance(register: LocalRegister, times: int, start: int = 0) -> str | None:
    found = register.read()
    version = found[1] if found else None
    for number in range(start, start + times):
        version = register.cas(version, {"nonce": f"n{number}", "value": number})
    return version


def test_empty(register: LocalRegister) -> None:
    assert register.read() is None


def test_returns_what_was_written(register: LocalRegister) -> None:
    record = {"nonce": "a", "text": "é\n\"'", "deep": {"list": [1, None, 2.5]}}
    version = register.cas(None, record)
    assert register.read() == (record, version)


def test_refuses_a_stale_version(register: LocalRegister) -> None:
    first = register.cas(None, {"nonce": "a"})
    register.cas(first, {"nonce": "b"})
    with pytest.raises(CommitConflict, match="run the same command again"):
        register.cas(first, {"nonce": "c"})
    with pytest.raises(CommitConflict):
        register.cas(None, {"nonce": "c"})
    found = register.read()
    assert found is not None and found[0] == {"nonce": "b"}


def test_refuses_a_version_of_an_empty_register(register: LocalRegister) -> None:
    with pytest.raises(CommitConflict):
        register.cas("3", {"nonce": "a"})


def test_needs_a_nonce(register: LocalRegister) -> None:
    with pytest.raises(ValueError, match="nonce"):
        register.cas(None, {"value": 1})


def test_threads_lose_no_update(register: LocalRegister) -> None:
    """Six threads count to 20 each: every count is there, once."""
    register.cas(None, {"nonce": "start", "counts": [0] * 6})

    def count(worker: int) -> None:
        done = 0
        while done < 20:
            found = register.read()
            assert found is not None
            counts = list(found[0]["counts"])
            counts[worker] += 1
            try:
                register.cas(found[1], {"nonce": f"{worker}-{done}", "counts": counts})
            except CommitConflict:
                continue
            done += 1

    threads = [threading.Thread(target=count, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = register.read()
    assert found is not None and found[0]["counts"] == [20] * 6 and found[1].startswith("121:")


def test_trims_old_records(register: LocalRegister) -> None:
    advance(register, KEPT_RECORDS + 20)
    assert len(os.listdir(register.folder)) == KEPT_RECORDS


def test_ignores_foreign_files(register: LocalRegister) -> None:
    version = register.cas(None, {"nonce": "a"})
    for name in ("99.json", "00000000000000000099.json.bak", "notes.txt", ".abc.tmp", "x00000000000000000099.json"):
        (register.folder / name).write_text("garbage")
    assert register.read() == ({"nonce": "a"}, version)


def test_sweeps_leavings_by_age(register: LocalRegister) -> None:
    version = register.cas(None, {"nonce": "a"})
    old, young = register.folder / ".old.tmp", register.folder / ".young.tmp"
    for path in (old, young):
        path.write_text("{")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    register.cas(version, {"nonce": "b"})
    assert (old.exists(), young.exists()) == (False, True)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"checksum": "x", "body": 3}', b"\xff\xfe"])
def test_torn_record(register: LocalRegister, damage: bytes) -> None:
    advance(register, 2)
    newest = register.folder / f"{2:020d}.json"
    newest.write_bytes(damage)
    with pytest.raises(StoreCorrupt, match="move .*00002.json away"):
        register.read()
    newest.unlink()  # what the hint says
    found = register.read()
    assert found is not None and found[0]["value"] == 0


def test_every_flipped_bit_is_noticed(register: LocalRegister) -> None:
    record = {"nonce": "a", "value": 7}
    register.cas(None, record)
    path = register.folder / f"{1:020d}.json"
    content = path.read_bytes()
    for position in range(len(content) * 8):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(StoreCorrupt):
            register.read()


def sleep_before_linking(register: LocalRegister, monkeypatch: pytest.MonkeyPatch, meanwhile: int) -> LocalRegister:
    """A writer that stops between reading and linking while others write ``meanwhile`` records."""

    def wait(step: str) -> None:
        if step == "register.written":
            monkeypatch.setattr(register_module.steps, "reach", lambda step: None)
            advance(LocalRegister(register.folder), meanwhile, start=100)

    monkeypatch.setattr(register_module.steps, "reach", wait)
    return register


def test_overtaken_between_read_and_link(register: LocalRegister, monkeypatch: pytest.MonkeyPatch) -> None:
    version = advance(register, 1)
    with pytest.raises(CommitConflict):
        sleep_before_linking(register, monkeypatch, meanwhile=1).cas(version, {"nonce": "late"})
    found = register.read()
    assert found is not None and found[0]["nonce"] == "n100"


@pytest.mark.parametrize(("num_trimmed", "error"), [(1, CommitConflict), (2, CommitStateUnknown)])
def test_number_reused_after_trimming(
    register: LocalRegister, monkeypatch: pytest.MonkeyPatch, num_trimmed: int, error: type[Exception]
) -> None:
    """The sleeper's number was used and trimmed away, so its link succeeds: it must still not count."""
    version = advance(register, 1)
    meanwhile = KEPT_RECORDS + num_trimmed
    with pytest.raises(error):
        sleep_before_linking(register, monkeypatch, meanwhile).cas(version, {"nonce": "late"})
    found = register.read()
    assert found is not None and found[0]["nonce"] == f"n{100 + meanwhile - 1}"


def test_followed_at_once_is_still_accepted(register: LocalRegister, monkeypatch: pytest.MonkeyPatch) -> None:
    version = advance(register, 1)

    def follow(step: str) -> None:
        if step == "register.linked":
            monkeypatch.setattr(register_module.steps, "reach", lambda step: None)
            advance(LocalRegister(register.folder), 3, start=100)

    monkeypatch.setattr(register_module.steps, "reach", follow)
    assert register.cas(version, {"nonce": "mine"}) == "2:mine"


def test_no_hard_links(register: LocalRegister, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoreUnwritable, match="no hard links"):
        register.cas(None, {"nonce": "a"})
    assert os.listdir(register.folder) == []


def test_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "pointer").write_text("not a folder")
    register = LocalRegister(tmp_path / "pointer")
    assert register.read() is None
    with pytest.raises(StoreUnwritable, match="a file stands in the way"):
        register.cas(None, {"nonce": "a"})


def test_a_number_that_comes_again_is_another_version(tmp_path: Path) -> None:
    """Somebody moved the last record away, and a newer writer made one of the same number."""
    register = LocalRegister(tmp_path)
    first = register.cas(None, {"nonce": "a"})
    second = register.cas(first, {"nonce": "b"})
    (tmp_path / f"{2:020d}.json").unlink()
    register.cas(first, {"nonce": "c"})
    with pytest.raises(CommitConflict):
        register.cas(second, {"nonce": "d"})
    assert (register.read() or ({}, ""))[0] == {"nonce": "c"}


def test_no_rights_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register = LocalRegister(tmp_path)
    register.cas(None, {"nonce": "a"})

    def refuse(folder: Path) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(StoreUnwritable, match="no rights"):
        register.read()
