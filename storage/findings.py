"""What a verification found: each finding says what is wrong, where, and what would mend it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Mend = Literal["none", "recompute", "drop", "drop file", "rebuild indexes", "sweep", "seal"]
"""What ``repair`` does about a finding.

``recompute``  the document is removed, and the next run computes it again
``drop``       the rows, which no document owns, are removed
``drop file``  the file is left out; the documents that lose rows by it are computed again
``seal``       the checksum that is missing is made from what is stored
"""

SHOWN: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be.

    ``kind``      a word for it, the same in every release
    ``what``      a sentence
    ``place``     the table, or the file in the store
    ``doc_ids``   the documents concerned
    ``is_note``   nothing is wrong with what readers see
    ``version``   the feature version concerned, where it is not the one that is served
    """

    kind: str
    what: str
    place: str
    mend: Mend
    doc_ids: tuple[str, ...] = ()
    is_note: bool = False
    version: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was looked at, and what was found. ``sequence`` is the snapshot, 0 where none could be opened."""

    sequence: int
    is_deep: bool
    num_rows: dict[str, int]
    num_files: int
    findings: tuple[Finding, ...]

    @property
    def drift(self) -> tuple[Finding, ...]:
        """The findings that are more than a note."""
        return tuple(finding for finding in self.findings if not finding.is_note)

    def as_dict(self) -> dict[str, Any]:
        """The values as JSON."""
        return {"ok": not self.drift, **asdict(self)}


def list_some(names: list[str]) -> str:
    """Return the first few of many names."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
