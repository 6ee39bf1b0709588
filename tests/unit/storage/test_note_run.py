"""A run that failed leaves a word in the pointer, and never at the expense of the writer that has overtaken it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lodestream.errors import FencedError
from lodestream.storage.store import FeatureStore
from tests.support.store_rows import DIM, begin, publish, read_contents, take_lease, write


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    made = FeatureStore.open_or_create(str(tmp_path / "store"), dim=DIM)
    publish(made, {"a": ["1"]})
    return made


def test_failure_before_and_after_the_epoch_is_raised(store: FeatureStore) -> None:
    lease = take_lease(store)
    store.note_run(lambda run: {**run, "failure": "planning"}, lease=lease)
    assert store.pointer().run == {"documents": {"seen": 1}, "failure": "planning"}
    write(begin(store, lease=lease), {"b": ["2"]})
    store.note_run(lambda run: {**run, "failure": "encoding"}, lease=lease)
    pointer = store.pointer()
    assert pointer.run == {"documents": {"seen": 1}, "failure": "encoding"} and pointer.staged is not None


def test_overtaken_run_leaves_the_pointer_to_the_next_writer(store: FeatureStore) -> None:
    overtaken = take_lease(store)  # whose heart has not beaten since: it does not know yet
    transaction = begin(store, lease=take_lease(store))
    write(transaction, {"b": ["2"]})
    with pytest.raises(FencedError):
        store.note_run(lambda run: {**run, "failure": "overtaken"}, lease=overtaken)
    # A changed pointer would have refused this one's swap.
    transaction.publish(checkpoint={}, run={"documents": {"seen": 2}})
    assert store.pointer().run == {"documents": {"seen": 2}}
    assert read_contents(store.open_snapshot()) == {"a": ["1"], "b": ["2"]}
