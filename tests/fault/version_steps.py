"""What happens to feature versions in a random history: they are built, promoted, rolled back and dropped, and whoever
does it crashes or is overtaken at a named step."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from lodestream.pipeline import versions
from lodestream.storage import steps
from lodestream.storage.snapshot import PointerRecord, read_pointer
from tests.fault.history_parts import rule
from tests.support.workspace import Workspace

# What each of them changes: where segments end, which paragraphs are base, what the encoder sees.
VERSIONS = ((), ("segment.target_tokens=8",), ("density.base_below=0.6",), ("segment.heading_prefix=true",))
CRASH_STEPS = tuple(step for step in steps.STEPS if step not in ("publish.compacted", "publish.trimmed"))
BUILD_STEPS = (*CRASH_STEPS, "version.created", "version.added", "version.finished")


class Crash(BaseException):
    """The process ends here: nothing in between may catch it."""


class VersionSteps:
    """The steps; the other half of ``Histories`` has the files and the runs."""

    workspace: Workspace
    files: dict[str, bytes]
    settings: tuple[str, ...]
    settings_of: dict[str, tuple[str, ...]]
    run: Callable[[], None]
    check: Callable[[], None]
    die: Callable[[], None]
    overtake: Callable[[], None]
    interrupt: Callable[..., bool]

    @rule(settings=st.sampled_from(VERSIONS))
    def bump(self, settings: tuple[str, ...]) -> None:
        """Another model, as far as the store can tell: built beside the served one, and promoted."""
        self.run()
        self.change_over(settings)
        self.check()

    @rule()
    def roll_back(self) -> None:
        """Serves the version before again, whatever has happened to the documents since."""
        self.run()
        if former := self.pointer().former:
            versions.promote(self.workspace.load(*self.settings), former)
            self.note_served()
            self.check()

    @rule()
    def drop_the_others(self) -> None:
        for kept in self.pointer().versions:
            versions.drop(self.workspace.load(*self.settings), kept.name)

    @precondition(lambda self: self.files)
    @rule(settings=st.sampled_from(VERSIONS), step=st.sampled_from(BUILD_STEPS), occurrence=st.integers(1, 4))
    def crash_in_a_bump(self, settings: tuple[str, ...], step: str, occurrence: int) -> None:
        self.run()
        self.interrupt(step, occurrence, self.die, lambda: self.change_over(settings))
        self.note_served()
        self.check()

    @precondition(lambda self: self.files)
    @rule(settings=st.sampled_from(VERSIONS), step=st.sampled_from(BUILD_STEPS), occurrence=st.integers(1, 2))
    def overtake_a_bump(self, settings: tuple[str, ...], step: str, occurrence: int) -> None:
        """A build or a promotion sleeps while a refresh comes in between, and must undo nothing of it."""
        self.run()
        self.interrupt(step, occurrence, self.overtake, lambda: self.change_over(settings))
        self.note_served()
        self.run()

    def change_over(self, settings: tuple[str, ...]) -> None:
        """Builds and promotes the version of these settings; one that was built before is brought level."""
        names = [name for name, made in self.settings_of.items() if made == settings and name in self.names_beside()]
        if settings == self.settings:
            return
        name = names[0] if names else f"version-{len(self.settings_of)}"
        self.settings_of[name] = settings
        loaded = self.workspace.load(*settings)
        versions.add(loaded, name)
        versions.promote(loaded, name)
        self.note_served()

    def note_served(self) -> None:
        self.settings = self.settings_of[self.pointer().version]

    def names_beside(self) -> set[str]:
        return {kept.name for kept in self.pointer().versions}

    def pointer(self) -> PointerRecord:
        return read_pointer(self.workspace.load().store_location)[0]
