"""One reader of a chaos run: opens the published snapshot, again and again, and checks that it is all of one state."""

from __future__ import annotations

import time

from lodestream.errors import LodestreamError, StoreNotFound
from lodestream.storage.snapshot import PointerRecord
from lodestream.storage.store import FeatureStore, Snapshot
from tests.fault.chaos.process import prepare_process
from tests.fault.chaos.setup import ChaosSetup, EventLog, find_faults
from tests.support.store_rows import read_contents

PINNED_S = 1.5


class Reader:
    """Remembers what it saw, so that going backward is noticed."""

    def __init__(self, setup: ChaosSetup) -> None:
        self._setup = setup
        self._log = EventLog(setup.log, slot=-1, life=0)
        self._sequence, self._epoch = 0, 0
        self._pinned: tuple[Snapshot, dict[str, list[str]], float] | None = None

    def poll(self) -> None:
        """Looks once."""
        store = FeatureStore.open(self._setup.location)
        pointer = store.pointer()
        self._require_forward(pointer)
        sequence = pointer.sequence
        try:
            snapshot = store.open_snapshot()
            contents = read_contents(snapshot)
        except (LodestreamError, AssertionError) as error:
            if isinstance(error, StoreNotFound) or self._is_forgotten(store, sequence):
                return
            self._report(f"snapshot {sequence}: {error!r}")
            return
        for fault in find_faults(contents):
            self._report(f"snapshot {snapshot.sequence}: {fault}")
        self._log.write("read", sequence=snapshot.sequence, epoch=pointer.epoch)
        self._look_at_pinned(store, snapshot, contents)

    def _require_forward(self, pointer: PointerRecord) -> None:
        if pointer.sequence < self._sequence or pointer.epoch < self._epoch:
            self._report(
                f"from sequence {self._sequence} of epoch {self._epoch} back to {pointer.sequence} of {pointer.epoch}"
            )
        self._sequence, self._epoch = pointer.sequence, pointer.epoch

    def _look_at_pinned(self, store: FeatureStore, snapshot: Snapshot, contents: dict[str, list[str]]) -> None:
        """A snapshot that was opened some time ago reads the same, as long as the store says that it keeps it."""
        if self._pinned is None:
            self._pinned = (snapshot, contents, time.monotonic())
            return
        pinned, wanted, since = self._pinned
        if time.monotonic() - since < PINNED_S:
            return
        self._pinned = None
        try:
            if read_contents(pinned) != wanted:
                self._report(f"the pinned snapshot {pinned.sequence} has changed")
            self._log.write("pinned", sequence=pinned.sequence)
        except (LodestreamError, AssertionError) as error:
            if not self._is_forgotten(store, pinned.sequence):
                self._report(f"the pinned snapshot {pinned.sequence} cannot be read any more: {error!r}")

    def _is_forgotten(self, store: FeatureStore, sequence: int) -> bool:
        return all(record.sequence != sequence for record in store.pointer().history)

    def _report(self, fault: str) -> None:
        self._log.write("fault", seen_by="reader", faults=[fault])


def watch(setup: ChaosSetup) -> None:
    """Reads until it is killed."""
    prepare_process(setup)
    reader = Reader(setup)
    while True:
        try:
            reader.poll()
        except StoreNotFound:
            pass
        except LodestreamError as error:
            reader._report(f"{error!r}")
        time.sleep(0.02)
