"""Random histories of a corpus, and after each refresh the question whether the store equals a full rebuild.

Files are written, edited, moved, copied, deleted, spoiled and mended, with times that are old, new or of the future;
other feature versions are built and promoted, and rolled back; runs, builds and promotions crash at named steps, and
lose their lease to another run.
What the store must then hold is computed from the files alone, document by document, with nothing to reuse.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition

from lodestream.actors import featurizer
from lodestream.actors.segment import text_format_of
from lodestream.errors import FencedError, LeaseHeld, LeaseLost
from lodestream.kernels import encoder
from lodestream.kernels.weights import ModelFolder, check_weights, read_model_folder
from lodestream.pipeline.session import read_options
from lodestream.storage import steps
from lodestream.storage.coordination import open_lease
from lodestream.storage.lease import break_lease, read_lease
from tests.fault.history_parts import Rows, rows_by_document, rule, sort_rows
from tests.fault.version_steps import CRASH_STEPS, Crash, VersionSteps
from tests.support.toy_encoder import load_toy_encoder
from tests.support.workspace import WRITTEN_NS, Workspace, assert_equal_stores

NAMES = ("a.md", "b.md", "c.md", "part/d.rst", "ü e.txt")
PARAGRAPHS = (
    "# Tides",
    "The tide rises twice a day. It falls twice a day as well, and nobody has to ask it to.",
    "Whoever sails by night reads the lamps. A red lamp stays to port, a green one to starboard.",
    "- one rope\n- two anchors\n- a lamp of brass",
    "Section\n=======",
    "潮は一日に二度満ちる。灯台は動かない。",
    "Charts are drawn anew every spring, for the sand moves in winter.",
    "🌊 🌊 🌊",
    "v1.0 2021-01-01 fixed\nv1.1 2021-02-01 fixed\nv1.2 2021-03-01 fixed",
    "A harbour master keeps the book of arrivals; the book of departures keeps itself.",
)
WORDS = ("harbour", "lamp", "sixteen", "never", "海")
SPOILT = "\0"  # stands for the text of a document that has none; no document's text is that
SPOILED = (b"\0\1\2 binary", b"caf\xe9 in Latin-1, \x81 in nothing")
SETTINGS = ("run.max_quarantined_share=1", "run.chunk_documents=1", "encoder.num_threads=1")

TEXTS = st.lists(st.sampled_from(PARAGRAPHS), min_size=0, max_size=4).map("\n\n".join)
TIMES = st.sampled_from(["old", "now", "future"])
NAME = st.sampled_from(NAMES)


@cache
def read_hashed(folder: Path, *, expected_sha256: str | None) -> ModelFolder:
    return check_weights(read_model_folder(folder, expected_sha256=expected_sha256))


READ_TOKENIZER = cache(featurizer.Tokenizer.from_folder)


class Histories(VersionSteps, RuleBasedStateMachine):
    """A workspace, and what is known of it: ``files`` on the disk, ``kept`` texts that a spoiled document may have."""

    uses_toy_encoder = True
    finds_deletions = True
    # The same little texts come in one history after the other.
    expected_rows: ClassVar[dict[tuple[Any, ...], list[dict[str, Any]]]] = {}
    done: ClassVar[Counter[str]] = Counter()
    """How often each step was taken, each interruption came about and the store was compared, in all histories."""

    @initialize()
    def create(self) -> None:
        self.begin()
        self.write("a.md", PARAGRAPHS[1].encode(), "old")
        self.run()

    def begin(self) -> None:
        """An empty workspace, without a source's documents."""
        self.folder = Path(tempfile.mkdtemp(prefix="history"))
        self.workspace = Workspace.create(self.folder, {}, *SETTINGS)
        self.settings: tuple[str, ...] = ()
        self.settings_of: dict[str, tuple[str, ...]] = {"v1": ()}
        self.files: dict[str, bytes] = {}
        self.kept: dict[str, set[str]] = {}
        self.published: dict[str, list[dict[str, Any]]] = {}
        self.patches = pytest.MonkeyPatch()
        # Hashing the weights and parsing the vocabulary anew for every run would be most of the time.
        self.patches.setattr(featurizer, "read_model_folder", read_hashed)
        self.patches.setattr(featurizer.Tokenizer, "from_folder", READ_TOKENIZER)
        if self.uses_toy_encoder:
            self.patches.setattr(encoder, "load_encoder", load_toy_encoder)

    # ---- what happens to the files ---------------------------------------------------------------------------------

    @rule(name=NAME, text=TEXTS, when=TIMES)
    def insert_or_rewrite(self, name: str, text: str, when: str) -> None:
        self.write(name, text.encode(), when)

    @rule(name=NAME, word=st.sampled_from(WORDS), place=st.integers(0, 200), when=TIMES)
    def edit_word(self, name: str, word: str, place: int, when: str) -> None:
        if text := self.mended(name):
            words = text.split(" ")
            words[place % len(words)] = word
            self.write(name, " ".join(words).encode(), when)

    @rule(name=NAME, paragraph=st.sampled_from(PARAGRAPHS), when=TIMES)
    def insert_at_top(self, name: str, paragraph: str, when: str) -> None:
        if text := self.mended(name):
            self.write(name, f"{paragraph}\n\n{text}".encode(), when)

    @rule(name=NAME, text=TEXTS)
    def restore_with_old_time(self, name: str, text: str) -> None:
        """Other content under a time that lies before the one that the store knows."""
        self.write(name, text.encode(), "older")

    @rule(name=NAME)
    def swap_letters_under_the_same_time_and_size(self, name: str) -> None:
        if text := self.mended(name):
            self.write(name, text.swapcase().encode(), "same")

    @rule(name=NAME, when=TIMES)
    def touch(self, name: str, when: str) -> None:
        if name in self.files:
            self.set_time(name, when)

    @precondition(lambda self: self.finds_deletions)
    @rule(name=NAME)
    def delete(self, name: str) -> None:
        self.drop(name)

    @precondition(lambda self: self.finds_deletions)
    @rule(old=NAME, new=NAME)
    def rename(self, old: str, new: str) -> None:
        if old != new and self.text_of(old) is not None and self.text_of(new) != SPOILT:
            self.move(old, new)
            self.note(new, self.files.pop(old))
            self.kept.setdefault(old, set()).add("")

    @rule(old=NAME, new=NAME)
    def copy(self, old: str, new: str) -> None:
        if old != new and self.text_of(old) is not None:
            self.duplicate(old, new)
            self.note(new, self.files[old])

    @rule(name=NAME, content=st.sampled_from(SPOILED), when=TIMES)
    def spoil(self, name: str, content: bytes, when: str) -> None:
        self.write(name, content, when)

    # ---- what happens to the runs ----------------------------------------------------------------------------------

    @rule()
    def refresh(self) -> None:
        self.run()

    @precondition(lambda self: self.files)
    @rule(step=st.sampled_from(CRASH_STEPS), occurrence=st.integers(1, 3))
    def crash(self, step: str, occurrence: int) -> None:
        if self.interrupt(step, occurrence, self.die):
            self.check_after_crash()
        else:
            self.check()

    @precondition(lambda self: self.files)
    @rule(step=st.sampled_from(CRASH_STEPS), occurrence=st.integers(1, 2))
    def lose_the_lease(self, step: str, occurrence: int) -> None:
        """Somebody breaks the lease and another run does all of the work; the one that slept must not undo it."""
        self.interrupt(step, occurrence, self.overtake)
        self.run()

    def interrupt(
        self, step: str, occurrence: int, act: Callable[[], None], work: Callable[[], None] | None = None
    ) -> bool:
        """Runs, or does other ``work``; ``act`` comes at the n-th pass of ``step``. True if it ended by it."""
        left = occurrence
        reach = steps.reach

        def reach_or_act(passed: str) -> None:
            nonlocal left
            if threading.current_thread() is not threading.main_thread():
                return  # the heart of the lease beats on: a process that dies takes it along
            left -= passed == step
            if passed == step and left == 0:
                steps.reach = reach
                self.done[f"{act.__name__} at {step}"] += 1
                act()

        steps.reach = reach_or_act
        try:
            if work is None:
                self.workspace.run(*self.settings, allow_mass_delete=True)
            else:
                work()
        except (Crash, FencedError, LeaseHeld, LeaseLost):
            return True
        finally:
            steps.reach = reach
        return False

    def die(self) -> None:
        raise Crash

    def overtake(self) -> None:
        register = open_lease(self.workspace.load().store_location, ttl_s=15)
        found = read_lease(register)
        if found is not None and not found[0].released:
            break_lease(register, found[0].epoch)
        self.note_served()
        self.workspace.run(*self.settings, allow_mass_delete=True)

    def run(self) -> None:
        self.workspace.run(*self.settings, allow_mass_delete=True)
        self.check()

    # ---- what must hold --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """The store equals a full rebuild."""
        self.done["check"] += 1
        snapshot = self.workspace.open_snapshot()
        stored = rows_by_document(snapshot)
        states = {row["doc_id"]: row for row in snapshot.document_states().to_pylist()}
        assert states.keys() == self.files.keys()
        assert stored.keys() <= self.files.keys()
        for name in self.files:
            text = self.text_of(name)
            is_spoiled = text == SPOILT
            assert bool(states[name]["quarantine_reason"]) == is_spoiled, name
            if is_spoiled:
                assert stored.get(name, []) in [self.rows_of(name, kept) for kept in self.kept.get(name, {""})], name
            else:
                assert stored.get(name, []) == self.rows_of(name, str(text)), name
                assert snapshot.get_document(name)["text"] == text  # type: ignore[index]
        self.published = stored
        self.forget(states.keys(), stored)

    def check_after_crash(self) -> None:
        """What is published is what was, or what the run was about to publish."""
        snapshot = self.workspace.open_snapshot()
        if rows_by_document(snapshot) != self.published:
            self.check()

    def forget(self, names: Any, stored: Rows) -> None:
        """What the store has now is all that a document that is spoiled later can keep."""
        for name in NAMES:
            texts = self.kept.get(name, {""}) | {self.text_of(name) or ""}
            self.kept[name] = {t for t in texts - {SPOILT} if self.rows_of(name, t) == stored.get(name, [])} or {""}

    def rows_of(self, name: str, text: str) -> list[dict[str, Any]]:
        """The feature rows of one document, computed from its text alone."""
        key = (type(self), name, text, self.settings)
        if key not in self.expected_rows:
            self.expected_rows[key] = self.featurize(name, text)
        return self.expected_rows[key]

    def featurize(self, name: str, text: str) -> list[dict[str, Any]]:
        loaded = self.workspace.load(*self.settings)
        maker = featurizer.Featurizer(read_options(loaded))
        (source,) = loaded.config.sources
        document = {
            "doc_id": [name],
            "source": [source],
            "uri": [name],
            "content_hash": pa.array([hashlib.sha256(text.encode()).digest()], pa.binary(32)),
            "source_version": [""],
            "text": pa.array([text], pa.large_string()),
            "text_format": [self.format_of(name)],
        }
        features = maker.encode(maker.prepare(pa.table(document)), {}, run_id="").features
        return sort_rows(features.to_pylist())

    def teardown(self) -> None:
        """A full rebuild into an empty store has the same rows; spoiled documents keep nothing there."""
        if not hasattr(self, "folder"):
            return
        try:
            if not any(self.text_of(name) == SPOILT for name in self.files) and self.published:
                self.run()
                if self.published:
                    self.workspace.run(*self.settings, "store.uri=rebuilt")
                    names = ("source_version",)
                    assert_equal_stores(
                        self.workspace.open_snapshot(), self.workspace.open_store("rebuilt"), without=names
                    )
        finally:
            self.clean_up()

    def clean_up(self) -> None:
        self.patches.undo()
        shutil.rmtree(self.folder)

    # ---- where the documents are -----------------------------------------------------------------------------------

    def write(self, name: str, content: bytes, when: str) -> None:
        self.put(name, content, when)
        self.note(name, content)

    def drop(self, name: str) -> None:
        if name in self.files:
            self.remove(name)
            del self.files[name]
            self.kept.setdefault(name, set()).add("")

    def put(self, name: str, content: bytes, when: str) -> None:
        path = self.path_of(name)
        before = path.stat().st_mtime_ns if when == "same" else None
        path.write_bytes(content)
        set_time(path, when, before)

    def set_time(self, name: str, when: str) -> None:
        set_time(self.path_of(name), when)

    def remove(self, name: str) -> None:
        self.path_of(name).unlink()

    def move(self, old: str, new: str) -> None:
        os.replace(self.path_of(old), self.path_of(new))

    def duplicate(self, old: str, new: str) -> None:
        shutil.copy2(self.path_of(old), self.path_of(new))

    def path_of(self, name: str) -> Path:
        path = self.workspace.docs / name
        path.parent.mkdir(exist_ok=True)
        return path

    def format_of(self, name: str) -> str:
        return text_format_of(name)

    # ---- small things ----------------------------------------------------------------------------------------------

    def note(self, name: str, content: bytes) -> None:
        self.files[name] = content
        text = self.text_of(name)
        if text is not None and text != SPOILT:
            self.kept.setdefault(name, {""}).add(text)

    def mended(self, name: str) -> str | None:
        """What an edit starts from: the text, or another one where the document was spoiled."""
        text = self.text_of(name)
        return "mended" if text == SPOILT else text

    def text_of(self, name: str) -> str | None:
        """The document's text; SPOILT where it cannot be read, None where there is none."""
        content = self.files.get(name)
        if content is None:
            return None
        return SPOILT if content in SPOILED else content.decode()


class RealHistories(Histories):
    """The same with the encoder that is shipped."""

    uses_toy_encoder = False


def set_time(path: Path, when: str, before: int | None = None) -> None:
    """Gives a file a time in the past, of now, or in the future; or the one ``before``."""
    times = {"old": WRITTEN_NS, "older": WRITTEN_NS - 10**12, "now": time.time_ns(), "same": before}
    stamp = times.get(when) or time.time_ns() + 3600 * 10**9
    os.utime(path, ns=(stamp, stamp))
