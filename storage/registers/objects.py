"""A register as one object of an object store (S3, GCS, Azure), replaced by a conditional PUT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)
from obstore.store import ObjectStore, from_url

from lodestream.errors import ConfigError, LodestreamError, StoreUnwritable
from lodestream.storage.registers.options import RegisterOptions
from lodestream.storage.registers.protocol import Version
from lodestream.storage.registers.remote import Unreachable

# Lance takes these among all others, obstore in a place of their own.
_CLIENT_OPTIONS: Final = frozenset(
    {"allow_http", "allow_invalid_certificates", "proxy_url", "proxy_ca_certificate", "user_agent"}
)
_MISSING: Final = (NotFoundError, FileNotFoundError)  # obstore raises either
_NO_BUCKET: Final = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")


class ObjectBackend:
    """The body is the object ``path`` of ``store``, which must be able to update on condition (LocalStore is not)."""

    def __init__(self, store: ObjectStore, path: str, place: str) -> None:
        self.place = place
        self._store = store
        self._path = path

    def fetch(self) -> tuple[bytes, Version] | None:
        """See Backend."""
        try:
            found = obstore.get(self._store, self._path)
            return bytes(found.bytes()), _name_version(found.meta)
        except _MISSING as error:
            if _names(error, _NO_BUCKET):
                raise self._explain(error) from error
            return None
        except BaseError as error:
            raise self._explain(error) from error

    def replace(self, expected_version: Version | None, body: bytes) -> Version | None:
        """See Backend."""
        mode: Any = "create" if expected_version is None else json.loads(expected_version)
        try:
            return _name_version(obstore.put(self._store, self._path, body, mode=mode, use_multipart=False))
        except (AlreadyExistsError, PreconditionError):
            return None  # 412; or 409, two conditional writes at once
        except _MISSING as error:
            if expected_version is None or _names(error, _NO_BUCKET):
                raise self._explain(error) from error
            return None  # the object that it should replace is gone
        except BaseError as error:
            raise self._explain(error) from error

    def remove(self) -> None:
        """See Backend."""
        try:
            obstore.delete(self._store, self._path)
        except _MISSING as error:
            if _names(error, _NO_BUCKET):
                raise self._explain(error) from error
        except BaseError as error:
            raise self._explain(error) from error

    def close(self) -> None:
        """Connections are pooled by obstore."""

    def _explain(self, error: Exception) -> LodestreamError | Unreachable:
        reason = str(error).split("\n\nDebug source:")[0]
        if isinstance(error, PermissionDeniedError | UnauthenticatedError):
            return StoreUnwritable(
                f"{self.place} refuses access: {reason}",
                "look at the credentials (AWS_ACCESS_KEY_ID and the like) and at the rights they have: read and write",
            )
        if isinstance(error, _MISSING):
            return ConfigError(
                f"the bucket of {self.place} does not exist", "make the bucket, or set store.uri to one that exists"
            )
        if isinstance(error, GenericError):
            return Unreachable(reason, was_sent="kind: Connect" not in str(error))
        return ConfigError(f"{self.place} cannot be used: {reason}", "look at store.uri and the store's credentials")


def connect_object(url: str, name: str, options: RegisterOptions) -> ObjectBackend:
    """Return the back-end for the object ``name`` below ``url`` (``s3://bucket/prefix`` and the like).

    Raises:
        ConfigError: the address or an option is not known to obstore.
    """
    wait = f"{max(1, round(options.timeout_s * 1000))}ms"
    settings: Any = {
        "config": {key: value for key, value in options.storage.items() if key not in _CLIENT_OPTIONS},
        "client_options": {"timeout": wait, "connect_timeout": wait, **_select_client_options(options.storage)},
        "retry_config": {"max_retries": 0},  # a lost answer must be seen: RemoteRegister settles it
    }
    try:
        store = from_url(url, **settings)
    except (BaseError, UnknownConfigurationKeyError, ValueError) as error:
        reason = str(error).split("\n\nDebug source:")[0]
        raise ConfigError(
            f"{url} is no object store that can be used: {reason}",
            "set store.uri to something like s3://bucket/folder, gs://bucket/folder or az://container/folder",
        ) from error
    return ObjectBackend(store, f"{name}.json", f"{url.rstrip('/')}/{name}.json")


def _select_client_options(storage: Mapping[str, str]) -> dict[str, str]:
    chosen = {key: value for key, value in storage.items() if key in _CLIENT_OPTIONS}
    endpoints = [value for key, value in storage.items() if key.endswith("endpoint")]
    if any(endpoint.startswith("http://") for endpoint in endpoints):
        chosen.setdefault("allow_http", "true")
    return chosen


def _name_version(meta: Mapping[str, Any]) -> Version:
    return json.dumps({key: meta[key] for key in ("e_tag", "version") if meta.get(key) is not None}, sort_keys=True)


def _names(error: Exception, marks: tuple[str, ...]) -> bool:
    return any(mark in str(error) for mark in marks)
