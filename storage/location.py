"""Where a store is: a folder of a local disk, or a prefix in a bucket of an object store.

What differs between the two is here: how a place is written, which options Lance and obstore want, and how the objects
below it are listed and removed. Nothing is imported for a local store, so that reading its pointer stays cheap.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import unquote, urlsplit

from lodestream.errors import ConfigError

REMOTE_SCHEMES: Final = ("s3", "gs", "az")

_EXAMPLES: Final = "a path, file:///path, s3://bucket/folder, gs://bucket/folder or az://container/folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """One file below a location: its name relative to it, with ``/``, its size, and when it was last written."""

    name: str
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """An absolute place.

    ``uri``      an absolute path, or ``scheme://bucket/prefix`` without a slash at its end
    ``options``  endpoint, region and credentials of an object store, under the names of Lance and obstore
                 (``aws_endpoint``, ``aws_region``, ...); what is not given is taken from the environment by them
    ``server``   address of the server in which writers agree on who writes; None: they agree where the data is

    >>> Location.parse("s3://bucket/features/").child("pointer").uri
    's3://bucket/features/pointer'
    """

    uri: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    server: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, place: Place, options: Mapping[str, str] | None = None, *, server: str | None = None) -> Location:
        """Read a path or URI; a Location stays as it is.

        Raises:
            ConfigError: it is neither, or has characters that the table format or the URI cannot keep.
        """
        if isinstance(place, Location):
            return place
        text = str(place)
        scheme, mark, rest = text.partition("://")
        kept = dict(options or {})
        if isinstance(place, Path) or not mark:
            uri = _require_plain(str(Path(text).expanduser().resolve()))
            return cls(uri=uri, options=kept, server=server)
        if scheme.lower() == "file":
            uri = _require_plain(str(Path(unquote(urlsplit(text).path)).resolve()))
            return cls(uri=uri, options=kept, server=server)
        bucket, _, prefix = rest.partition("/")
        if scheme.lower() not in REMOTE_SCHEMES or not bucket:
            raise ConfigError(f"store.uri cannot be {text}", f"set store.uri to {_EXAMPLES}")
        _require_plain(text, also="?#")
        parts = [f"{scheme.lower()}://{bucket}", *filter(None, prefix.split("/"))]
        return cls(uri="/".join(parts), options=kept, server=server)

    def __str__(self) -> str:
        return self.uri

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return "://" not in self.uri

    @property
    def path(self) -> Path:
        """The folder; a ValueError where it is none."""
        if not self.is_local:
            raise ValueError(f"{self.uri} is no folder of this machine")
        return Path(self.uri)

    @property
    def keeps_pointer_elsewhere(self) -> bool:
        """Whether ``server`` holds the pointer as well. Redis may forget, so that it holds the lease alone."""
        return self.server is not None and not self.server.lower().startswith(("redis://", "rediss://"))

    @property
    def lance_options(self) -> dict[str, str] | None:
        """What Lance calls storage options."""
        if self.is_local:
            return None
        return {**self.options, **({"allow_http": "true"} if self._is_plain_http else {})}

    def child(self, name: str) -> Location:
        """Return the place ``name`` below this one."""
        return Location(uri=f"{self.uri.rstrip('/')}/{name}", options=self.options)

    def is_empty(self) -> bool:
        """Whether there is nothing at all below it."""
        return next(self.list_objects(), None) is None

    def list_objects(self) -> Iterator[StoredObject]:
        """Yield every file below it, in no promised order. What vanishes meanwhile is left out.

        Raises:
            obstore.exceptions.BaseError, OSError: it cannot be listed.
        """
        yield from self._walk() if self.is_local else self._list_remote()

    def list_folders(self) -> list[str]:
        """Return the names of the folders in it.

        Raises:
            obstore.exceptions.BaseError, OSError: it cannot be listed.
        """
        if self.is_local:
            return sorted(entry.name for entry in os.scandir(self.uri) if entry.is_dir())
        import obstore

        found = obstore.list_with_delimiter(self.open_objects())["common_prefixes"]
        return sorted(str(prefix).rstrip("/").rpartition("/")[2] for prefix in found)

    def delete_objects(self, names: Iterable[str]) -> None:
        """Remove files by their names relative to this place; one that is gone is no error."""
        if self.is_local:
            for name in names:
                (self.path / name).unlink(missing_ok=True)
            return
        import obstore

        store = self.open_objects()
        for name in names:
            obstore.delete(store, name)

    def open_objects(self) -> Any:
        """Open an object store's client whose root is this place."""
        from obstore.store import from_url

        config: Any = {name: value for name, value in self.options.items() if name not in ("allow_http",)}
        return from_url(self.uri, config=config, client_options={"allow_http": True} if self._is_plain_http else {})

    @property
    def _is_plain_http(self) -> bool:
        endpoints = (value for name, value in self.options.items() if "endpoint" in name)
        return any(value.startswith("http://") for value in endpoints)

    def _walk(self) -> Iterator[StoredObject]:
        for folder, _, names in os.walk(self.uri):
            for name in names:
                path = os.path.join(folder, name)
                try:
                    info = os.lstat(path)
                except FileNotFoundError:
                    continue
                yield StoredObject(
                    name=os.path.relpath(path, self.uri),
                    size_bytes=info.st_size,
                    modified_at=datetime.fromtimestamp(info.st_mtime, UTC),
                )

    def _list_remote(self) -> Iterator[StoredObject]:
        import obstore

        for batch in obstore.list(self.open_objects()):
            for meta in batch:
                yield StoredObject(name=meta["path"], size_bytes=meta["size"], modified_at=meta["last_modified"])


Place: TypeAlias = str | Path | Location
"""Whatever names a place; ``Location.parse`` reads it."""


def _require_plain(text: str, *, also: str = "") -> str:
    """Refuse characters that Lance cannot keep in a path, or a URI cannot keep unescaped."""
    odd = sorted({char for char in text if unicodedata.category(char) in ("Cc", "Cs") or char in also})
    if odd:
        raise ConfigError(
            f"the store's place {text!r} has characters that cannot stand there: {''.join(odd)!r}",
            "set store.uri to a place without them",
        )
    return text
