"""One writer of a chaos run: adds 1 to a counter, again and again, in a transaction each, until it is killed.

It dies or stops by itself when it passes the step it was told, for some windows are too short to be hit from outside.
"""

from __future__ import annotations

import os
import random
import signal
import time

from lodestream.errors import (
    CommitConflict,
    CommitStateUnknown,
    FencedError,
    LeaseError,
    StoreNotFound,
    StoreUnreachable,
)
from lodestream.storage import steps
from lodestream.storage.lease import Lease
from lodestream.storage.maintenance import UpkeepOptions, keep_up
from lodestream.storage.store import FeatureStore
from tests.fault.chaos.process import prepare_process
from tests.fault.chaos.setup import COUNTER, SHARED, ChaosSetup, EventLog, find_faults, name_tally
from tests.support.store_rows import DIM, read_contents, write

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
REFUSALS = (FencedError, LeaseError, CommitConflict, CommitStateUnknown, StoreUnreachable, StoreNotFound)
MOST_TRANSACTIONS = 3
REARMED_AFTER = 10
UPKEEP_SHARE = 0.3
# Due after a few increments, so that merging and removing are part of every run.
UPKEEP = UpkeepOptions(max_small_files=3, min_deleted_rows=5)


def arm(step: str, passage: int, action: str, log: EventLog) -> None:
    """At the given passage of ``step``, and at every tenth after it, the process sends itself a signal."""
    left = passage

    def reach(passed: str) -> None:
        nonlocal left
        if passed == step:
            left -= 1
            if left == 0:
                left = REARMED_AFTER
                log.write(action, step=step)
                os.kill(os.getpid(), SIGNALS[action])

    steps.reach = reach


def increment(store: FeatureStore, lease: Lease, slot: int, run_id: str, setup: ChaosSetup, log: EventLog) -> None:
    """Reads the counter, thinks, and publishes the counter + 1."""
    recipe = {"model": "toy"}
    transaction = store.begin(lease=lease, run_id=run_id, kind="refresh", feature_version="f1", recipe=recipe)
    contents = read_contents(transaction.base)
    if faults := list(find_faults(contents)):
        log.write("fault", seen_by="writer", faults=faults)
    value = int(contents.get(COUNTER, ["0"])[0]) + 1
    own = int(contents.get(name_tally(slot), ["0"])[0]) + 1
    time.sleep(random.uniform(0, setup.think_s))
    shared = random.sample(SHARED, 2)
    write(
        transaction,
        {COUNTER: [str(value)], name_tally(slot): [str(own)]}
        | {name: [f"{value}:{number}" for number in range(random.randint(1, 4))] for name in shared},
        deleted=[name for name in SHARED if name not in shared][: random.randint(0, 1)],
        run_id=run_id,
    )
    snapshot = transaction.publish(checkpoint={"files": value}, run={"documents": 4})
    log.write("published", sequence=snapshot.sequence, epoch=transaction.epoch, value=value, own=own)


def work(setup: ChaosSetup, slot: int, life: int, window: tuple[str, int, str] | None) -> None:
    """Works until it is killed; ``window`` is a step, its passage, and ``kill`` or ``stop``."""
    log = EventLog(setup.log, slot=slot, life=life)
    random.seed(f"{slot}-{life}")
    prepare_process(setup)
    if window is not None:
        arm(*window, log)
    number = 0
    while True:
        try:
            store = FeatureStore.open_or_create(setup.location, dim=DIM)
            with store.open_lease(f"worker {slot}", ttl_s=setup.ttl_s) as lease:
                for _ in range(random.randint(1, MOST_TRANSACTIONS)):
                    number += 1
                    increment(store, lease, slot, f"{slot}-{life}-{number}", setup, log)
                if random.random() < UPKEEP_SHARE and keep_up(store, UPKEEP, lease=lease, run_id="upkeep") is not None:
                    log.write("upkeep")
        except REFUSALS as error:
            log.write("refused", error=type(error).__name__)
        except Exception as error:
            log.write("fault", seen_by="writer", faults=[f"{type(error).__name__}: {error}"])
        time.sleep(random.uniform(0, 0.1))
