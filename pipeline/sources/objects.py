"""The objects below a prefix of an object store as a source: a complete listing, then one request per object.

An object may have changed if its e-tag or its size differs. It is read under the condition that its e-tag is still the
listed one; where it is not, the newer object is read, and its own e-tag is what is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import pathspec

from lodestream.errors import ConfigError, DocumentError, SourceContract, SourceError, SourceUnavailable
from lodestream.pipeline.config.sources import ObjectsSource
from lodestream.pipeline.sources.formats import (
    describe_failure,
    extract_bytes,
    format_of,
    hash_body,
    reading_version,
)
from lodestream.pipeline.sources.protocol import (
    Candidate,
    Cursor,
    KnownStates,
    ReadBody,
    SourceChanges,
    SourceCheck,
    SourceState,
)
from lodestream.pipeline.sources.row_texts import RowTexts, gone_body
from lodestream.storage.location import Location

NUM_REQUESTS: Final = 16
"""Requests at once: an object store answers each in tens of milliseconds, however many there are."""
_LISTED_AT_ONCE: Final = 1000


class ObjectsPrefix:
    """The objects below a prefix that the patterns choose. Not for several threads."""

    def __init__(self, name: str, config: ObjectsSource, *, prefix_ids: bool) -> None:
        """Args:
        name: the source's name in the configuration.
        config: its settings.
        prefix_ids: True where there are several sources: doc_ids then begin with ``name/``.
        """
        self.name = name
        self._config = config
        self._location = parse_location(name, config)
        self._prefix = f"{name}/" if prefix_ids else ""
        self._include = pathspec.PathSpec.from_lines("gitignore", config.include)
        self._exclude = pathspec.PathSpec.from_lines("gitignore", config.exclude)

    def incarnation(self) -> str:
        """The place itself: an object store tells nothing more."""
        return f"objects:{self._location.uri}"

    def changes(self, since: Cursor | None, known: KnownStates, *, retry: Collection[str] = ()) -> SourceChanges:
        """See ``Source.changes``. The cursor says nothing: every listing is complete.

        Raises:
            SourceUnavailable: the store cannot be reached or listed in full; nothing is taken for deleted.
            SourceContract: it refuses, or there is no such bucket.
        """
        states = {} if since is None else known.load()
        listed = set()
        upserts = []
        for found in self._list():
            candidate = self._make_candidate(found)
            listed.add(candidate.doc_id)
            before = states.get(candidate.doc_id)
            if before is None or before.state != candidate.state or candidate.doc_id in retry:
                upserts.append(candidate)
        upserts.sort(key=lambda candidate: candidate.doc_id)
        return SourceChanges(upserts=upserts, num_seen=len(listed), listed=frozenset(listed))

    def reader(self) -> ObjectReader:
        """What reads the objects."""
        return ObjectReader(source=self.name, config=self._config)

    def check(self) -> SourceCheck:
        """Lists the prefix; warns where nothing is chosen."""
        sizes = [found["size"] for found in self._list()]
        detail = f"{len(sizes)} documents, {sum(sizes) / 2**20:.1f} MiB in {self._location.uri}"
        if not sizes:
            return SourceCheck(level="warn", detail=detail, fix=f"check sources.{self.name}.uri and include")
        return SourceCheck(level="pass", detail=detail, size_bytes=sum(sizes))

    def _list(self) -> Iterator[dict[str, Any]]:
        obstore = import_obstore(self.name)
        try:
            for batch in obstore.list(self._location.open_objects(), chunk_size=_LISTED_AT_ONCE):
                for found in batch:
                    path = found["path"]
                    if self._include.match_file(path) and not self._exclude.match_file(path):
                        yield found
        except (obstore.exceptions.BaseError, OSError) as error:
            raise explain_error(self.name, self._location.uri, error) from None

    def _make_candidate(self, found: dict[str, Any]) -> Candidate:
        path = found["path"]
        return Candidate(
            doc_id=self._prefix + path,
            source=self.name,
            uri=f"{self._location.uri}/{path}",
            state=make_state(found, reading_version(format_of(path), self._config.encoding)),
            size_bytes=found["size"],
            locator=path,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectReader:
    """Reads objects, several at once."""

    source: str
    config: ObjectsSource

    def read(self, candidates: Sequence[Candidate]) -> Iterator[ReadBody]:
        """See ``BodyReader.read``."""
        location = parse_location(self.source, self.config)
        store = location.open_objects()
        with ThreadPoolExecutor(NUM_REQUESTS) as pool:
            yield from pool.map(lambda candidate: self._read(store, location, candidate), candidates)

    def _read(self, store: Any, location: Location, candidate: Candidate) -> ReadBody:
        texts = RowTexts(source=self.source, text_format="text", max_bytes=self.config.max_document_bytes)
        if texts.is_too_large(candidate):
            return texts.refuse(candidate)
        obstore = import_obstore(self.source)
        try:
            found = _get(store, candidate)
        except (obstore.exceptions.NotFoundError, FileNotFoundError):
            return gone_body(candidate)
        except (obstore.exceptions.BaseError, OSError) as error:
            raise explain_error(self.source, location.uri, error) from None
        document_format = format_of(candidate.locator)
        reading = reading_version(document_format, self.config.encoding)
        state = make_state(found.meta, reading)
        if found.meta["size"] > self.config.max_document_bytes:
            return texts.refuse(replace(candidate, state=state, size_bytes=found.meta["size"]))
        body = bytes(found.bytes())
        content_hash = hash_body(body, reading)
        try:
            setting = f"sources.{self.source}.encoding"
            text = extract_bytes(body, document_format, encoding=self.config.encoding, setting=setting)
        except DocumentError as error:
            return ReadBody(state=state, content_hash=content_hash, failure=describe_failure(error))
        return ReadBody(state=state, content_hash=content_hash, text=text.text, text_format=text.text_format)


def make_state(found: Any, reading: str) -> SourceState:
    """What an object is compared by: e-tag and size, and the ``reading_version`` of its text."""
    version = found["e_tag"] or found["last_modified"].isoformat()
    return SourceState(
        version=f"{version} {reading}" if reading else version, size_bytes=found["size"], object_id=found["e_tag"]
    )


def parse_location(source: str, config: ObjectsSource) -> Location:
    """The place that a source names.

    Raises:
        ConfigError: it is no prefix of an object store.
    """
    if "://" not in config.uri:
        raise ConfigError(
            f"sources.{source}.uri cannot be {config.uri}", 'write "s3://bucket/folder"; for a folder, kind = "files"'
        )
    try:
        return Location.parse(config.uri, config.options)
    except ConfigError as error:
        raise ConfigError(
            error.message.replace("store.uri", f"sources.{source}.uri"),
            error.hint.replace("store.uri", f"sources.{source}.uri"),
        ) from None


def import_obstore(source: str) -> Any:
    """The library for object stores.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import obstore
        import obstore.exceptions
    except ImportError:
        raise ConfigError(f"sources.{source}: obstore is not installed", "pip install 'lodestream[object]'") from None
    return obstore


def explain_error(source: str, uri: str, error: Exception) -> SourceError:
    """What an error of the store means: whether to come back, and what mends it."""
    reason = str(error).partition("\n")[0]
    kind = type(error).__name__
    if kind in ("PermissionDeniedError", "UnauthenticatedError"):
        return SourceContract(
            f"sources.{source}: {uri}: {reason}",
            "give the role the right to list the bucket and to read its objects (s3:ListBucket, s3:GetObject)",
        )
    if kind in ("NotFoundError", "FileNotFoundError", "UnknownConfigurationKeyError") or "NoSuchBucket" in str(error):
        return SourceContract(f"sources.{source}: {uri}: {reason}", f"correct sources.{source}.uri or options")
    return SourceUnavailable(f"sources.{source}: {uri}: {reason}", "the next run tries again; nothing was deleted")


def _get(store: Any, candidate: Candidate) -> Any:
    """The object as it was listed, or as it is now where it has changed since."""
    import obstore
    from obstore.exceptions import PreconditionError

    e_tag = candidate.state.object_id
    if e_tag is None:
        return obstore.get(store, candidate.locator)
    try:
        return obstore.get(store, candidate.locator, options={"if_match": e_tag})
    except PreconditionError:
        return obstore.get(store, candidate.locator)
