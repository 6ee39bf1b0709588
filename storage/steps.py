"""The named points of a write, where a process may be killed and the store must still be right.

Fault tests replace ``reach`` in a child process by a function that kills it. In production it does nothing.
"""

from __future__ import annotations

from typing import Final

STEPS: Final = (
    "begin.claimed",
    "chunk.restored",
    "chunk.files_written",
    "chunk.features_committed",
    "chunk.documents_committed",
    "chunk.source_state_committed",
    "chunk.synced",
    "chunk.staged",
    "publish.compacted",
    "publish.indexed",
    "publish.synced",
    "publish.swung",
    "publish.trimmed",
    "register.written",
    "register.linked",
)
"""All points of a run, in the order in which a write that restores, merges and compacts passes them; the two of the
register come within every change of the pointer."""

VERSION_STEPS: Final = (
    "version.created",
    "version.added",
    "version.finished",
    "version.dropped",
    "version.removed",
)
"""Further points, where a feature version is added, brought level, and dropped."""


def reach(step: str) -> None:
    """Pass the point ``step`` (one of STEPS or VERSION_STEPS)."""
