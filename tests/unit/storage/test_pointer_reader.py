"""Looking at the pointer again and again."""

from __future__ import annotations

from pathlib import Path

import pytest

from lodestream.errors import StoreNotFound, StoreUnreachable
from lodestream.storage import pointer_reader
from lodestream.storage.location import Place
from lodestream.storage.pointer_reader import PointerReader
from tests.support.memory_register import MemoryRegister
from tests.unit.storage.test_snapshot import make_pointer


class Registers:
    """Opens one register and counts how often."""

    def __init__(self, register: MemoryRegister) -> None:
        self.register = register
        self.opened = 0

    def __call__(self, place: Place) -> MemoryRegister:
        self.opened += 1
        return self.register


@pytest.fixture
def registers(monkeypatch: pytest.MonkeyPatch) -> Registers:
    opened = Registers(MemoryRegister())
    monkeypatch.setattr(pointer_reader, "open_register", opened)
    return opened


def test_an_unchanged_record_is_neither_parsed_nor_the_register_opened_again(registers: Registers) -> None:
    register = registers.register
    version = register.cas(None, make_pointer(nonce="a", sequence=1).to_json())
    reader = PointerReader("store")
    first = reader.read()
    assert reader.read() is first
    register.cas(version, make_pointer(nonce="b", sequence=2).to_json())
    assert [reader.read().sequence, reader.read().sequence] == [2, 2]
    assert registers.opened == 1


def test_is_opened_again_after_an_error_and_after_a_while(
    registers: Registers, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = registers.register
    register.cas(None, make_pointer(nonce="a").to_json())
    reader = PointerReader("store")
    first = reader.read()
    register.is_down = True
    with pytest.raises(StoreUnreachable):
        reader.read()
    register.is_down = False
    assert reader.read() is first and registers.opened == 2
    monkeypatch.setattr(PointerReader, "REOPEN_AFTER_S", 0.0)
    assert reader.read() is first and registers.opened == 3


def test_no_store_says_so_until_there_is_one(registers: Registers, tmp_path: Path) -> None:
    reader = PointerReader(str(tmp_path / "store"))
    with pytest.raises(StoreNotFound, match="nothing has been written"):
        reader.read()
    registers.register.cas(None, make_pointer(nonce="a", sequence=3).to_json())
    assert reader.read().sequence == 3
