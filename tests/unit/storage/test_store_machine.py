from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lodestream.storage.store import FeatureStore
from lodestream.storage.transaction import Transaction
from tests.support.store_rows import DIM, begin, read_contents, read_rows, write

IDS = st.sampled_from(["a", "b'", "c\nd", "é\U0001f600", '"; --', ""])
CHUNKS = st.dictionaries(IDS, st.lists(st.sampled_from(["x", "y", "z"]), max_size=3), max_size=4)


class StoreMachine(RuleBasedStateMachine):
    """A store against dictionaries: whatever is written, killed, resumed, dropped or published, in any order."""

    @initialize(folder=st.just(None))
    def create(self, folder: None) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.store = FeatureStore.open_or_create(self.folder.name, dim=DIM)
        self.published: dict[str, list[str]] | None = None
        self.working: dict[str, list[str]] = {}
        self.transaction: Transaction | None = None
        self.pinned: list[tuple[Any, dict[str, list[str]]]] = []
        self.feature_version = "f1"

    @rule(feature_version=st.sampled_from(["f1", "f1", "f2"]))
    def begin(self, feature_version: str) -> None:
        """Also when one is open: that one is as good as killed."""
        staged = self.store.pointer().staged
        self.transaction = begin(self.store, feature_version=feature_version)
        assert self.transaction.resumed == (staged is not None and staged.feature_version == feature_version)
        if not self.transaction.resumed:
            self.working = dict(self.published or {})

    @rule(chunk=CHUNKS, deleted=st.sets(IDS, max_size=2))
    def write(self, chunk: dict[str, list[str]], deleted: set[str]) -> None:
        if self.transaction is None:
            return
        write(self.transaction, chunk, deleted=sorted(deleted - chunk.keys()))
        for doc_id in deleted:
            self.working.pop(doc_id, None)
        self.working |= chunk
        assert read_contents(self.transaction.base) == self.working

    @rule()
    def publish(self) -> None:
        if self.transaction is None:
            return
        snapshot = self.transaction.publish(checkpoint={}, run={})
        self.published, self.transaction = dict(self.working), None
        self.pinned = [*self.pinned[-2:], (snapshot, self.published)]

    @rule()
    def abandon(self) -> None:
        if self.transaction is not None:
            self.transaction.abandon()
            self.transaction, self.working = None, dict(self.published or {})

    @invariant()
    def readers_see_what_was_published(self) -> None:
        if not hasattr(self, "store"):
            return
        if self.published is not None:
            assert read_contents(self.store.open_snapshot()) == self.published
        for snapshot, contents in self.pinned:
            assert read_contents(snapshot) == contents
            for doc_id, texts in contents.items():
                assert snapshot.get_features(doc_id, "sentence").num_rows == len(texts)
            assert len(read_rows(snapshot, "documents")) == snapshot.count_documents()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)
