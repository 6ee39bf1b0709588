"""One suite for all registers: whatever keeps the record, it promises the same."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lodestream.errors import CommitConflict, CommitStateUnknown, StoreError, StoreUnreachable
from lodestream.storage.registers.protocol import CasRegister
from lodestream.storage.registers.remote import RemoteRegister
from tests.support.fault_proxy import FaultProxy
from tests.support.registers import KINDS, REMOTE_KINDS, WRITE_MARKS, RegisterPlace, find_server, make_place

NUM_PROCESSES, NUM_INCREMENTS = 4, 12

_meeting: dict[str, Any] = {}


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> RegisterPlace:
    return make_place(request.param, str(tmp_path), lambda name: find_server(request, name))


@pytest.fixture
def register(place: RegisterPlace) -> Iterator[CasRegister]:
    yield from opened(place)


@pytest.fixture(params=REMOTE_KINDS)
def remote_place(request: pytest.FixtureRequest, tmp_path: Path) -> RegisterPlace:
    return make_place(request.param, str(tmp_path), lambda name: find_server(request, name))


@pytest.fixture
def proxy(remote_place: RegisterPlace) -> Iterator[FaultProxy]:
    address = remote_place.storage.get("aws_endpoint", remote_place.url)
    line = FaultProxy(int(address.rpartition(":")[2].partition("/")[0]))
    yield line
    line.close()


@pytest.fixture
def broken(remote_place: RegisterPlace, proxy: FaultProxy) -> Iterator[CasRegister]:
    """The register behind a line that can fail."""
    yield from opened(remote_place.through(proxy.port), timeout_s=0.4, give_up_after_s=1.5)


def opened(place: RegisterPlace, **patience: float) -> Iterator[CasRegister]:
    register = place.open(**patience)
    yield register
    if isinstance(register, RemoteRegister):
        register.close()


def read(register: CasRegister) -> dict[str, object]:
    found = register.read()
    assert found is not None
    return found[0]


def test_begins_empty(register: CasRegister) -> None:
    assert register.read() is None


def test_returns_what_was_written(register: CasRegister) -> None:
    record = {"nonce": "a", "text": "é\n\"'\x00%s", "deep": {"list": [1, None, 2.5]}}
    version = register.cas(None, record)
    assert register.read() == (record, version)
    following = {"nonce": "b", "text": ""}
    version = register.cas(version, following)
    assert register.read() == (following, version)


def test_is_created_once(register: CasRegister) -> None:
    register.cas(None, {"nonce": "a"})
    with pytest.raises(CommitConflict, match="run the same command again"):
        register.cas(None, {"nonce": "b"})
    assert read(register) == {"nonce": "a"}


def test_refuses_a_stale_version(register: CasRegister) -> None:
    first = register.cas(None, {"nonce": "a"})
    second = register.cas(first, {"nonce": "b"})
    with pytest.raises(CommitConflict):
        register.cas(first, {"nonce": "c"})
    assert register.read() == ({"nonce": "b"}, second)


def test_an_equal_record_is_another_version(register: CasRegister) -> None:
    """A -> B -> A' : who saw A must not replace A', though they differ in the nonce alone."""
    first = register.cas(None, {"nonce": "a", "value": 1})
    second = register.cas(first, {"nonce": "b", "value": 2})
    register.cas(second, {"nonce": "c", "value": 1})
    with pytest.raises(CommitConflict):
        register.cas(first, {"nonce": "d", "value": 3})


@pytest.mark.parametrize("record", [{"value": 1}, {"nonce": ""}])
def test_needs_a_nonce(register: CasRegister, record: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="nonce"):
        register.cas(None, record)
    assert register.read() is None


def test_names_do_not_touch(register: CasRegister, place: RegisterPlace) -> None:
    register.cas(None, {"nonce": "a"})
    for other in opened(RegisterPlace(kind=place.kind, url=place.url, name=place.name + "-2", storage=place.storage)):
        assert other.read() is None
        other.cas(None, {"nonce": "b"})
    assert read(register) == {"nonce": "a"}


def test_large_record(register: CasRegister) -> None:
    record = {"nonce": "a", "history": [uuid.uuid4().hex for _ in range(20_000)]}
    assert len(json.dumps(record)) > 700_000
    version = register.cas(None, record)
    assert register.read() == (record, version)
    register.cas(version, {"nonce": "b"})


def meet_at(barrier: Any) -> None:
    """In a worker: remembers where all wait for each other."""
    _meeting["barrier"] = barrier


def count(place: RegisterPlace, worker: int) -> int:
    """Adds 1 to the worker's own number and to the common one until it was accepted often enough; counts refusals."""
    register, refused, done = place.open(), 0, 0
    _meeting["barrier"].wait(60)
    while done < NUM_INCREMENTS:
        found = register.read()
        assert found is not None
        record, version = found
        time.sleep(0.003)
        record["counts"][worker] += 1
        record |= {"total": record["total"] + 1, "nonce": uuid.uuid4().hex}
        try:
            register.cas(version, record)
        except CommitConflict:
            refused += 1
            continue
        done += 1
    return refused


def test_processes_lose_no_update(register: CasRegister, place: RegisterPlace) -> None:
    register.cas(None, {"nonce": "start", "counts": [0] * NUM_PROCESSES, "total": 0})
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(NUM_PROCESSES)
    with ProcessPoolExecutor(NUM_PROCESSES, context, initializer=meet_at, initargs=(barrier,)) as pool:
        refused = sum(pool.map(count, [place] * NUM_PROCESSES, range(NUM_PROCESSES)))
    found = read(register)
    assert found["counts"] == [NUM_INCREMENTS] * NUM_PROCESSES
    assert found["total"] == NUM_PROCESSES * NUM_INCREMENTS
    assert refused > 0, "they never met: this showed nothing"


def test_one_of_many_creates(register: CasRegister) -> None:
    """Also for PostgreSQL, where the table is made by whoever comes first."""
    outcomes: list[str] = []
    barrier = threading.Barrier(4)

    def create(name: str) -> None:
        barrier.wait()
        try:
            register.cas(None, {"nonce": name})
            outcomes.append(name)
        except CommitConflict:
            outcomes.append("refused")

    threads = [threading.Thread(target=create, args=(f"n{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes)[1:] == ["refused"] * 3
    assert read(register)["nonce"] == sorted(outcomes)[0]


@pytest.mark.parametrize("num_lost", [1, 2])
def test_lost_reply_is_settled(
    broken: CasRegister, proxy: FaultProxy, remote_place: RegisterPlace, num_lost: int
) -> None:
    """The swap was carried out and its answer lost: the nonce says that it is ours, and it counts once."""
    version = broken.cas(None, {"nonce": "a", "value": 1})
    proxy.lose_replies(num_lost, mark=WRITE_MARKS[remote_place.kind])
    version = broken.cas(version, {"nonce": "b", "value": 2})
    assert proxy.num_lost >= 1, "no answer was lost: this showed nothing"
    assert broken.read() == ({"nonce": "b", "value": 2}, version)
    for direct in opened(remote_place):
        assert direct.read() == broken.read()


def test_lost_reply_of_a_replaced_record(
    broken: CasRegister, proxy: FaultProxy, remote_place: RegisterPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the lost answer can be looked up somebody else has followed: nobody can tell, and nobody guesses."""
    version = broken.cas(None, {"nonce": "a"})
    proxy.lose_replies(1, mark=WRITE_MARKS[remote_place.kind])

    def follow(seconds: float) -> None:
        monkeypatch.undo()
        other = remote_place.open()
        found = other.read()
        assert found is not None and found[0]["nonce"] == "b"
        other.cas(found[1], {"nonce": "c"})

    monkeypatch.setattr("lodestream.storage.registers.remote.time.sleep", follow)
    with pytest.raises(CommitStateUnknown, match="lodestream status"):
        broken.cas(version, {"nonce": "b"})
    assert read(broken) == {"nonce": "c"}


def test_swap_stays_in_doubt_while_the_server_is_gone(
    broken: CasRegister, proxy: FaultProxy, remote_place: RegisterPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = broken.cas(None, {"nonce": "a"})
    proxy.lose_replies(1, mark=WRITE_MARKS[remote_place.kind])
    sleep = time.sleep

    def vanish(seconds: float) -> None:
        proxy.refuse()
        sleep(seconds)

    monkeypatch.setattr("lodestream.storage.registers.remote.time.sleep", vanish)
    with pytest.raises(CommitStateUnknown):
        broken.cas(version, {"nonce": "b"})
    monkeypatch.undo()
    proxy.restore()
    assert read(broken) == {"nonce": "b"}


@pytest.mark.parametrize("fault", ["hang", "refuse"])
def test_unreachable(broken: CasRegister, proxy: FaultProxy, fault: str) -> None:
    version = broken.cas(None, {"nonce": "a"})
    getattr(proxy, fault)()
    began = time.monotonic()
    with pytest.raises(StoreUnreachable, match="cannot be reached") as caught:
        broken.read()
    assert caught.value.exit_code == 75 and "look whether the server runs" in caught.value.hint
    with pytest.raises(StoreError):
        broken.cas(version, {"nonce": "b"})
    assert time.monotonic() - began < 15
    proxy.restore()
    found = broken.read()
    assert found is not None and found[0]["nonce"] in ("a", "b")


def test_short_outage_is_waited_for(broken: CasRegister, proxy: FaultProxy) -> None:
    version = broken.cas(None, {"nonce": "a"})
    proxy.refuse()
    threading.Timer(0.4, proxy.restore).start()
    broken.cas(version, {"nonce": "b"})
    assert read(broken) == {"nonce": "b"}


def test_damaged_record(remote_place: RegisterPlace) -> None:
    """The local register's own tests damage its files."""
    for register in opened(remote_place):
        assert isinstance(register, RemoteRegister)
        version = register.cas(None, {"nonce": "a"})
        register._backend.replace(version, b'{"checksum": "x", "body": "{}"}')
        with pytest.raises(StoreError, match="torn or altered"):
            register.read()
