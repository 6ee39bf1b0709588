from __future__ import annotations

import pickle
import threading
import time
from typing import Any

import pytest

from lodestream.errors import (
    CommitConflict,
    ConfigError,
    LeaseHeld,
    LeaseLost,
    LodestreamError,
    NotFoundError,
    StoreCorrupt,
    StoreUnreachable,
)
from lodestream.storage.lease import Lease, LeaseRecord, break_lease, name_holder, read_lease
from tests.support.memory_register import FakeClock, MemoryRegister

TTL_S = 12.0


@pytest.fixture
def register() -> MemoryRegister:
    return MemoryRegister()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def make_lease(register: MemoryRegister, clock: FakeClock, holder: str = "me", **options: Any) -> Lease:
    return Lease(
        register, holder=holder, place="the store", clock=clock, sleep=clock.sleep, **({"ttl_s": TTL_S} | options)
    )


def read(register: MemoryRegister) -> LeaseRecord:
    found = read_lease(register)
    assert found is not None
    return found[0]


def test_a_free_lease_is_had_at_once(register: MemoryRegister, clock: FakeClock) -> None:
    lease = make_lease(register, clock)
    assert lease.acquire() == lease.epoch == 1
    record = read(register)
    assert (record.holder, record.beat, record.released, record.ttl_s) == ("me", 0, False, TTL_S)
    lease.require()
    lease.release()
    assert read(register).released and read(register).epoch == 1
    assert make_lease(register, clock, "other").acquire() == 2
    assert clock.slept == []


def test_not_held(register: MemoryRegister, clock: FakeClock) -> None:
    lease = make_lease(register, clock)
    with pytest.raises(ValueError, match="not held"):
        _ = lease.epoch
    with pytest.raises(LeaseLost, match="not held"):
        lease.require()
    lease.renew()
    lease.release()
    assert register.record is None


def test_a_live_holder_is_left_alone(register: MemoryRegister, clock: FakeClock) -> None:
    holder = make_lease(register, clock, "holder")
    holder.acquire()
    for _ in range(7):
        holder.renew()
    clock.on_sleep = holder.renew
    with pytest.raises(LeaseHeld, match="holder is writing to the store") as caught:
        make_lease(register, clock).acquire()
    error = caught.value
    assert (error.holder, error.epoch, error.held_s, error.retry_after_s) == ("holder", 1, 32.0, TTL_S)
    assert "unlock --epoch 1" in error.hint and error.exit_code == 4
    assert len(clock.slept) == 1 and read(register).holder == "holder"


def test_a_dead_holder_is_followed_after_one_ttl(register: MemoryRegister, clock: FakeClock) -> None:
    make_lease(register, clock, "dead").acquire()
    began = clock.now
    assert make_lease(register, clock).acquire() == 2
    assert TTL_S * 0.9 <= clock.now - began <= TTL_S
    assert read(register).holder == "me"


@pytest.mark.parametrize("mine_s", [1.0, 60.0])
def test_the_longer_patience_counts(register: MemoryRegister, clock: FakeClock, mine_s: float) -> None:
    """A contender with a short TTL must not follow a holder that beats in the rhythm of a long one."""
    make_lease(register, clock, "dead").acquire()
    began = clock.now
    make_lease(register, clock, ttl_s=mine_s).acquire()
    assert clock.now - began >= 0.9 * max(mine_s, TTL_S)


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_clock_that_jumps_takes_nothing_over(register: MemoryRegister, clock: FakeClock, jump_s: float) -> None:
    """The contender's clock jumps, or it was stopped for an hour; the holder had no hour to beat in."""
    holder = make_lease(register, FakeClock(), "holder")
    holder.acquire()
    looks = 0

    def jump() -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            clock.now += jump_s
        if looks == 4:  # its next beat
            holder.renew()

    clock.on_sleep = jump
    with pytest.raises(LeaseHeld):
        make_lease(register, clock).acquire()
    assert looks == 4


def test_jumps_do_not_keep_a_dead_holder_alive(register: MemoryRegister, clock: FakeClock) -> None:
    make_lease(register, clock, "dead").acquire()
    jumps = iter([5000.0, -5000.0, 300.0] * 10)
    clock.on_sleep = lambda: setattr(clock, "now", clock.now + next(jumps))
    assert make_lease(register, clock).acquire() == 2
    assert sum(clock.slept) <= 2 * TTL_S


def test_a_lease_that_is_given_back_meanwhile(register: MemoryRegister, clock: FakeClock) -> None:
    holder = make_lease(register, clock, "holder")
    holder.acquire()
    clock.on_sleep = holder.release
    assert make_lease(register, clock).acquire() == 2
    assert len(clock.slept) == 1


def test_two_contenders_watch_the_same_dead_holder(register: MemoryRegister, clock: FakeClock) -> None:
    """Both have seen enough, and the rival is faster."""
    make_lease(register, clock, "dead").acquire()
    look = register.read

    def look_and_let_the_rival_go() -> Any:
        found = look()
        if len(clock.slept) == 12:
            register.read = look  # type: ignore[method-assign]
            make_lease(register, FakeClock(), "rival").acquire()
        return found

    register.read = look_and_let_the_rival_go  # type: ignore[method-assign]
    with pytest.raises(LeaseHeld, match="rival is writing"):
        make_lease(register, clock).acquire()
    assert read(register).epoch == 2


def test_beating(register: MemoryRegister, clock: FakeClock) -> None:
    lease = make_lease(register, clock)
    lease.acquire()
    nonces = {read(register).nonce}
    for beat in (1, 2, 3):
        lease.renew()
        assert (read(register).beat, read(register).epoch) == (beat, 1)
        nonces.add(read(register).nonce)
    assert len(nonces) == 4 and not lease.lost.is_set()


def test_a_stopped_holder_that_was_followed_has_lost(register: MemoryRegister, clock: FakeClock) -> None:
    lease = make_lease(register, clock)
    lease.acquire()
    make_lease(register, FakeClock(), "next").acquire()
    clock.now += 3600
    with pytest.raises(LeaseLost, match="another writer"):
        lease.require()
    assert lease.lost.is_set()
    before = register.number
    lease.renew()
    lease.release()
    assert register.number == before and read(register).holder == "next"


def test_a_stopped_holder_that_nobody_followed_goes_on(register: MemoryRegister, clock: FakeClock) -> None:
    lease = make_lease(register, clock)
    lease.acquire()
    clock.now += 3600
    lease.require()
    assert read(register).beat == 1 and not lease.lost.is_set()


def test_a_wiped_register_stops_the_holder(register: MemoryRegister, clock: FakeClock) -> None:
    """The heartbeat does not write it anew; the next holder's epoch is above the pointer's."""
    lease = make_lease(register, clock)
    lease.acquire()
    register.wipe()
    lease.renew()
    assert lease.lost.is_set() and register.record is None
    assert make_lease(register, clock, floor=lambda: 41).acquire() == 42


def test_a_register_that_is_wiped_while_watched(register: MemoryRegister, clock: FakeClock) -> None:
    make_lease(register, clock, "holder").acquire()
    clock.on_sleep = register.wipe
    assert make_lease(register, clock, floor=lambda: 1).acquire() == 2


def test_no_answer_for_less_than_a_ttl_loses_nothing(register: MemoryRegister, clock: FakeClock) -> None:
    lease = make_lease(register, clock)
    lease.acquire()
    register.is_down = True
    clock.now += TTL_S * 0.9
    lease.renew()
    assert not lease.lost.is_set()
    lease.require()
    clock.now += TTL_S * 0.2
    with pytest.raises(LeaseLost, match="no answer"):
        lease.require()
    register.is_down = False
    before = register.number
    lease.renew()
    assert lease.lost.is_set() and register.number == before


@pytest.mark.parametrize("failure", [OSError(5, "Input/output error"), ConfigError("Input/output: no such bucket")])
def test_a_disk_that_fails_is_no_answer_either(
    register: MemoryRegister, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(expected: str | None, record: dict[str, Any]) -> str:
        raise failure

    other = make_lease(MemoryRegister(), clock)
    other.acquire()
    monkeypatch.setattr(other._register, "cas", fail)
    other.release()  # it runs out by itself
    with pytest.raises(LeaseLost):
        other.require()
    lease = make_lease(register, clock)
    lease.acquire()
    monkeypatch.setattr(register, "cas", fail)
    lease.renew()
    assert not lease.lost.is_set()
    clock.now += TTL_S
    with pytest.raises(LeaseLost, match="Input/output"):
        lease.require()


def test_lost_replies_are_settled_by_the_nonce(register: MemoryRegister, clock: FakeClock) -> None:
    register.lose_replies = 1
    lease = make_lease(register, clock)
    assert lease.acquire() == 1
    register.lose_replies = 1
    lease.renew()
    lease.renew()
    assert read(register).beat == 2 and not lease.lost.is_set()


def test_a_reply_that_is_lost_with_the_connection(register: MemoryRegister, clock: FakeClock) -> None:
    """Accepted, but neither the reply nor the look afterwards came through: the next beat finds its own record."""
    lease = make_lease(register, clock)
    lease.acquire()
    swap = register.cas

    def accept_and_break(expected: str | None, record: dict[str, Any]) -> str:
        swap(expected, record)
        register.cas = swap  # type: ignore[method-assign]
        raise StoreUnreachable("no answer")

    register.cas = accept_and_break  # type: ignore[method-assign]
    lease.renew()
    assert read(register).beat == 1
    lease.renew()
    lease.renew()
    assert not lease.lost.is_set() and read(register).beat == 2


def test_no_answer_at_all(register: MemoryRegister, clock: FakeClock) -> None:
    register.is_down = True
    with pytest.raises(StoreUnreachable):
        make_lease(register, clock).acquire()


def test_giving_back_without_an_answer_is_no_error(register: MemoryRegister, clock: FakeClock) -> None:
    lease = make_lease(register, clock)
    lease.acquire()
    register.is_down = True
    lease.release()


def test_the_heartbeat_keeps_it_and_ends_with_it(register: MemoryRegister) -> None:
    with Lease(register, holder="me", place="here", ttl_s=0.15) as lease:
        with pytest.raises(LeaseHeld):
            Lease(register, holder="other", place="here", ttl_s=0.15).acquire()
        give_up_at = time.monotonic() + 30
        while read(register).beat < 4 and time.monotonic() < give_up_at:
            time.sleep(0.01)
        assert read(register).beat >= 4 and not lease.lost.is_set()
    assert read(register).released
    assert not any(thread.name == "lodestream-lease" for thread in threading.enumerate())


def test_the_heartbeat_reports_a_lost_lease(register: MemoryRegister) -> None:
    with Lease(register, holder="me", place="here", ttl_s=0.15) as lease:
        break_lease_surely(register, lease.epoch)
        assert lease.lost.wait(30)
        with pytest.raises(LeaseLost):
            lease.require()
        assert Lease(register, holder="other", place="here").acquire() == 2
    assert read(register).holder == "other" and not read(register).released


def break_lease_surely(register: MemoryRegister, epoch: int) -> None:
    while True:
        try:
            break_lease(register, epoch)
            return
        except CommitConflict:  # a beat came in between
            continue


def test_an_error_gives_it_back(register: MemoryRegister) -> None:
    with pytest.raises(RuntimeError, match="oops"), Lease(register, holder="me", place="here"):
        raise RuntimeError("oops")
    assert read(register).released


def test_breaking(register: MemoryRegister, clock: FakeClock) -> None:
    with pytest.raises(NotFoundError, match="nobody"):
        break_lease(register, 1)
    lease = make_lease(register, clock)
    lease.acquire()
    with pytest.raises(NotFoundError, match="epoch 1 .me., not 7"):
        break_lease(register, 7)
    assert break_lease(register, 1).holder == "me"
    assert make_lease(register, clock, "next").acquire() == 2 and clock.slept == []
    lease.renew()
    assert lease.lost.is_set()
    break_lease(register, 2)
    with pytest.raises(NotFoundError, match="nobody"):
        break_lease(register, 2)


def test_unreadable_record(register: MemoryRegister, clock: FakeClock) -> None:
    register.cas(None, {"nonce": "n", "holder": "who"})
    with pytest.raises(StoreCorrupt, match="epoch"):
        make_lease(register, clock).acquire()


def test_errors_survive_pickling() -> None:
    error = LeaseHeld("m", "h", holder="me", epoch=3, held_s=1.5, retry_after_s=15.0)
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, LodestreamError)
    assert copy.as_dict() == error.as_dict() and copy.as_dict()["holder"] == "me"


def test_holders_are_told_apart() -> None:
    assert "refresh on " in name_holder("refresh") and "process " in name_holder("refresh")
