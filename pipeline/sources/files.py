"""A folder of text files as a source: a complete listing, then one read per file.

A file may have changed if size, mtime, ctime or inode differ in any way from those it was read with: a copy that kept
an older time is a change. A file that was written within two seconds before it was read is stored without its time, so
that the next run reads it once more: a second write within the clock's grain would otherwise never show.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pathspec

from lodestream.errors import DocumentError, SourceContract
from lodestream.pipeline.config.sources import FilesSource
from lodestream.pipeline.sources.folder import show_path, walk_folder
from lodestream.pipeline.sources.formats import (
    AUTO,
    describe_failure,
    extract_bytes,
    format_of,
    hash_body,
    reading_version,
)
from lodestream.pipeline.sources.protocol import (
    NO_HASH,
    Candidate,
    Cursor,
    KnownStates,
    Observations,
    ReadBody,
    SourceChanges,
    SourceCheck,
    SourceState,
)

RACY_NS: Final = 2_000_000_000
MAX_READS: Final = 3
"""Reads of a file that changes while it is read; the last one counts, and the next run reads the file again."""


class FilesFolder:
    """The files of a folder that its patterns choose. Listing costs one ``stat`` a file; reads nothing."""

    def __init__(self, name: str, config: FilesSource, folder: Path, *, prefix_ids: bool) -> None:
        """Args:
        name: the source's name in the configuration.
        config: its settings; a relative path starts from ``folder``.
        folder: the configuration file's folder.
        prefix_ids: True where there are several sources: doc_ids then begin with ``name/``.
        """
        self.name = name
        self._config = config
        self._root = (folder / Path(config.path).expanduser()).resolve()
        self._prefix = f"{name}/" if prefix_ids else ""
        self._include = pathspec.PathSpec.from_lines("gitignore", config.include)
        self._exclude = pathspec.PathSpec.from_lines("gitignore", config.exclude)
        self._patterns = hashlib.sha256(repr((config.include, config.exclude)).encode()).hexdigest()[:16]
        self._readings: dict[str, str] = {}

    def incarnation(self) -> str:
        """The folder itself: another folder under the same name has another inode."""
        self._require_folder()
        return f"folder:{self._root}:{self._root.stat().st_ino}"

    def changes(self, since: Cursor | None, known: KnownStates, *, retry: Collection[str] = ()) -> SourceChanges:
        """See ``Source.changes``. Every listing is complete; the cursor says by which patterns files were chosen, so
        that known files need not be matched again.

        Raises:
            SourceContract: the path does not exist or is no folder.
            SourceUnavailable: a folder below it cannot be listed; nothing is taken for deleted.
        """
        states = {} if since is None else known.load()
        began = datetime.now(UTC)
        latest_ns = time.time_ns() + RACY_NS
        warnings: list[str] = []
        listed = set()
        upserts = []
        num_future = 0
        chosen = states if since is not None and since.get("patterns") == self._patterns else {}
        for path, doc_id, info in self._list(warnings, chosen=chosen):
            listed.add(doc_id)
            state = read_state(info, reading=self._reading_of(doc_id))
            num_future += info.st_mtime_ns > latest_ns
            before = states.get(doc_id)
            if before is None or before.state != state or doc_id in retry:
                upserts.append(self._make_candidate(path, doc_id, info))
        return SourceChanges(
            upserts=sorted(upserts, key=lambda candidate: candidate.doc_id),
            num_seen=len(listed),
            listed=frozenset(listed),
            cursor={"patterns": self._patterns},
            observations=Observations(watermark=began, num_future=num_future, warnings=tuple(warnings)),
        )

    def reader(self) -> FileReader:
        """What reads the files."""
        return FileReader(source=self.name, max_bytes=self._config.max_document_bytes, encoding=self._config.encoding)

    def check(self) -> SourceCheck:
        """Lists the folder; warns where nothing is chosen or something is passed over."""
        warnings: list[str] = []
        sizes = [info.st_size for _, _, info in self._list(warnings)]
        detail = f"{len(sizes)} documents, {sum(sizes) / 2**20:.1f} MiB in {self._root}"
        if not sizes:
            return SourceCheck(level="warn", detail=detail, fix=f"check sources.{self.name}.path and include")
        if warnings:
            detail += f"; {len(warnings)} links or files passed over, the first: {warnings[0]}"
            return SourceCheck(level="warn", detail=detail, fix="mend or exclude them", size_bytes=sum(sizes))
        return SourceCheck(level="pass", detail=detail, size_bytes=sum(sizes))

    def _list(
        self, warnings: list[str], *, chosen: Collection[str] = ()
    ) -> Iterator[tuple[bytes, str, os.stat_result]]:
        """Path, doc_id and status of the files that the patterns choose; ``chosen`` are known to be such."""
        self._require_folder()
        root = os.path.join(os.fsencode(self._root), b"")
        walk = walk_folder(root, follow_symlinks=self._config.follow_symlinks, warnings=warnings)
        for path, info in walk:
            relative = path[len(root) :]
            doc_id = self._prefix + _name_document(relative)
            if doc_id in chosen or self._is_chosen(show_path(relative)):
                yield path, doc_id, info

    def _is_chosen(self, name: str) -> bool:
        return self._include.match_file(name) and not self._exclude.match_file(name)

    def _make_candidate(self, path: bytes, doc_id: str, info: os.stat_result) -> Candidate:
        return Candidate(
            doc_id=doc_id,
            source=self.name,
            uri=show_path(path),
            state=read_state(info, reading=self._reading_of(doc_id)),
            size_bytes=info.st_size,
            locator=path,
        )

    def _reading_of(self, doc_id: str) -> str:
        suffix = os.path.splitext(doc_id)[1]
        if suffix not in self._readings:
            self._readings[suffix] = reading_version(format_of(doc_id), self._config.encoding)
        return self._readings[suffix]

    def _require_folder(self) -> None:
        if not self._root.is_dir():
            what = "is not a folder" if self._root.exists() else "does not exist"
            raise SourceContract(
                f"sources.{self.name}.path: {self._root} {what}",
                f"set sources.{self.name}.path in lodestream.toml to a folder",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReader:
    """Reads and decodes files; ``text[i]`` is the i-th character of the decoded file, without a byte order mark."""

    source: str
    max_bytes: int
    encoding: str = AUTO

    def read(self, candidates: Sequence[Candidate]) -> Iterator[ReadBody]:
        """See ``BodyReader.read``."""
        for candidate in candidates:
            yield self._read(candidate)

    def _read(self, candidate: Candidate) -> ReadBody:
        document_format = format_of(candidate.doc_id)
        reading = reading_version(document_format, self.encoding)
        try:
            if candidate.size_bytes > self.max_bytes:
                raise self._refuse_size(f"{candidate.size_bytes} bytes, more than")
            body, state = self._read_bytes(
                candidate.locator, reading_version(format_of(candidate.doc_id), self.encoding)
            )
        except DocumentError as error:
            # The bytes are not known; the version stands for them, so that the same failure is known for the same.
            content_hash = hashlib.sha256(f"{error.message} {candidate.state.version}".encode()).digest()
            return _fail(candidate.state, describe_failure(error), content_hash)
        except FileNotFoundError:
            return ReadBody(state=candidate.state, is_gone=True)
        except OSError as error:
            return _fail(candidate.state, f"cannot be read: {error.strerror}", NO_HASH)
        content_hash = hash_body(body, reading)
        setting = f"sources.{self.source}.encoding"
        try:
            found = extract_bytes(body, document_format, encoding=self.encoding, setting=setting)
        except DocumentError as error:
            return _fail(state, describe_failure(error), content_hash)
        return ReadBody(state=_settle(state), content_hash=content_hash, text=found.text, text_format=found.text_format)

    def _read_bytes(self, path: bytes, reading: str) -> tuple[bytes, SourceState]:
        """The bytes, and the state that they were read in: the same before and after, or one without times."""
        for _ in range(MAX_READS):
            with open(path, "rb") as file:
                before = read_state(os.fstat(file.fileno()), reading=reading)
                body = file.read(self.max_bytes + 1)
                after = read_state(os.fstat(file.fileno()), reading=reading)
            if len(body) > self.max_bytes:
                raise self._refuse_size("grew while it was read past")
            if before == after and len(body) == after.size_bytes:
                return body, after
        return body, replace(after, mtime_ns=None)

    def _refuse_size(self, what: str) -> DocumentError:
        return DocumentError(
            f"{what} max_document_bytes = {self.max_bytes}",
            f"raise sources.{self.source}.max_document_bytes or split the file",
        )


def read_state(info: os.stat_result, *, reading: str = "") -> SourceState:
    """What a file is compared by: its status, and the ``reading_version`` of its text."""
    version = f"{info.st_mtime_ns:x}-{info.st_size:x}"
    return SourceState(
        version=f"{version} {reading}" if reading else version,
        size_bytes=info.st_size,
        mtime_ns=info.st_mtime_ns,
        ctime_ns=info.st_ctime_ns,
        object_id=str(info.st_ino),
    )


def _settle(state: SourceState) -> SourceState:
    """The state as it is kept: without its time if the file was written just now."""
    is_fresh = state.mtime_ns is not None and abs(time.time_ns() - state.mtime_ns) < RACY_NS
    return replace(state, mtime_ns=None) if is_fresh else state


def _fail(state: SourceState, reason: str, content_hash: bytes) -> ReadBody:
    return ReadBody(state=_settle(state), content_hash=content_hash, failure=reason)


def _name_document(relative: bytes) -> str:
    """The relative path; a name that is not UTF-8 gets escapes and a short hash, so that no two names become one."""
    try:
        return relative.decode("utf-8")
    except UnicodeDecodeError:
        digest = hashlib.blake2b(relative, digest_size=4).hexdigest()
        return f"{relative.decode('utf-8', 'backslashreplace')}#{digest}"
