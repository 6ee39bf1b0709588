"""What a source of documents is: changes since a cursor in one call, bodies in another.

How to add a source. Give it a section in ``pipeline/config/sources.py`` (a frozen model with
``kind: Literal["..."]``, listed in ``SourceConfig``), a module here with two classes, and a line in
``catalog.py``. The first class satisfies
``Source`` and lives in the process that runs; it may hold connections. ``changes`` asks for names, versions, sizes
and, where the server can compute it, hashes: never for bodies. What equals ``known`` is counted in ``num_seen`` and
left out; every difference (``!=``, not ``>``) is a ``Candidate``. With ``since=None`` it names everything there is,
whatever ``known`` says, and returns a complete listing. A ``cursor`` is JSON, lossless, of the source's own clock,
and only moves to what is proven complete; it is published in the same step as the data, so that a source keeps
nothing itself. Deletes are evidence: a complete error-free listing, or tombstones; an error raises
(``SourceUnavailable``, ``SourceContract``) and never looks like an empty source. The second class satisfies
``BodyReader``: small, picklable, built of plain values (connect inside ``read``), since it runs in the dataflow's
read stage, perhaps in another process; it gets a micro-batch of candidates, answers each in order, and a document
that cannot be used is a ``ReadBody`` with a ``failure``, not an exception. ``content_hash`` is the sha256 of the
body's bytes (``text.encode()`` where the source hands out text) and has to be the same from ``changes`` and from
``read``. Tests: ``tests/unit/pipeline/sources/test_<module>.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, Protocol

Cursor = Mapping[str, Any]
"""A position in one source, JSON values; only the source that made it understands it."""

NO_HASH: Final = bytes(32)
"""Content hash of a document whose bytes could not be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceState:
    """What a source knows of a document without reading it. Any difference means that it may have changed.

    ``version``    the source's own: a transaction number, a time in full precision, a log's sequence; what feature
                   rows say of their document's version
    ``object_id``  inode of a file, e-tag of an object
    None where the source has no such thing.
    """

    version: str
    size_bytes: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    object_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownDocument:
    """What the store holds of a document: the state it was last read in, and the hash of what was read then."""

    state: SourceState
    content_hash: bytes


class KnownStates(Protocol):
    """The documents of one source that the store knows. Asking for a few must not cost reading all."""

    def load(self) -> Mapping[str, KnownDocument]:
        """All of them, by doc_id."""
        ...

    def find(self, doc_ids: Collection[str]) -> Mapping[str, KnownDocument]:
        """Those of ``doc_ids`` that are known."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A document that is new or may have changed.

    ``doc_id``          unique in the store: prefixed by the source's name where there are several
    ``source``          the source's name in the configuration
    ``uri``             where it is, for people
    ``state``           compared with ``KnownDocument.state`` the next time, once this version is stored
    ``size_bytes``      of the body, for cutting work into chunks; an estimate will do
    ``locator``         what the source's ``BodyReader`` finds it by; picklable
    ``content_hash``    where the source knows it without reading; a body of the known hash is not read at all
    """

    doc_id: str
    source: str
    uri: str
    state: SourceState
    size_bytes: int
    locator: Any
    content_hash: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """What a source noticed on the way, for reports and ``status``.

    ``mode``         how changes are found: "listing", "xid", "holdback", "lookback", "scan", "feed", ...
    ``watermark``    the source's time up to which it is proven complete (for a listing: when it began); None where it
                     has no such time
    ``held_back_s``  how far the watermark lies behind the source's present, because of open transactions
    ``num_future``   rows stamped in the source's future: taken, but the cursor does not move by them
    ``num_swept``    rows that only a full sweep found: what the cursor has lost before
    ``warnings``     sentences
    """

    mode: str = "listing"
    watermark: datetime | None = None
    held_back_s: float = 0.0
    num_future: int = 0
    num_swept: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceChanges:
    """The answer to ``changes``.

    ``upserts``     documents that differ from what is known, by doc_id, each once
    ``num_seen``    documents that were looked at, the unchanged ones included
    ``listed``      doc_ids of all documents there are: evidence for deleting the others; None without such a listing
    ``tombstones``  doc_ids that the source says were deleted; one that is in ``upserts`` as well has come back
    ``cursor``      where the next call goes on
    """

    upserts: Sequence[Candidate]
    num_seen: int
    listed: frozenset[str] | None = None
    tombstones: frozenset[str] = frozenset()
    cursor: Cursor = field(default_factory=dict)
    observations: Observations = field(default_factory=Observations)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBody:
    """One document as it was read.

    ``text``            None where it failed or is gone
    ``content_hash``    sha256 of the bytes, NO_HASH where they could not be had
    ``state``           as found around the read; differs from the candidate's where the document changed meanwhile
    ``failure``         why it goes to quarantine, or None
    ``is_gone``         it vanished after it was listed: nothing is done now, the next run sees
    """

    state: SourceState
    content_hash: bytes = NO_HASH
    text: str | None = None
    text_format: str | None = None
    failure: str | None = None
    is_gone: bool = False


class BodyReader(Protocol):
    """Reads bodies; small and picklable."""

    def read(self, candidates: Sequence[Candidate]) -> Iterator[ReadBody]:
        """One answer per candidate, in order.

        Raises:
            SourceError: the source as a whole cannot be read; the run ends and nothing is taken for deleted.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCheck:
    """What ``lodestream check`` says of a source: reachable, which mode and why, what mends it."""

    level: Literal["pass", "warn", "fail"]
    detail: str
    fix: str = ""
    size_bytes: int = 0


class Source(Protocol):
    """A source of documents; see the top of this file."""

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        ...

    def incarnation(self) -> str:
        """What the source is, beyond its name: another value, and neither cursor nor states are trusted.

        Raises:
            SourceError: it cannot be reached, or is not what its configuration promises.
        """
        ...

    def changes(self, since: Cursor | None, known: KnownStates, *, retry: Collection[str] = ()) -> SourceChanges:
        """What may have changed.

        Args:
            since: the cursor of the last call whose changes were published; None to name everything.
            known: what the store holds of this source.
            retry: doc_ids to name again as long as they exist, whether they have changed or not.

        Raises:
            SourceError: it cannot be reached or listed in full.
        """
        ...

    def reader(self) -> BodyReader:
        """What reads the bodies of this source's candidates."""
        ...

    def check(self) -> SourceCheck:
        """Looks without changing anything.

        Raises:
            SourceError: it cannot be used at all.
        """
        ...
