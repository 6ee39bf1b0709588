"""A register in Redis, replaced by a script that compares and sets.

For leases only, and there for efficiency: a Redis that was wiped, or that failed over to a replica which lagged behind,
hands out the lease a second time. What is published stays right, for that is decided by the store's own pointer.
"""

from __future__ import annotations

import uuid
from typing import Final, cast

import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from lodestream.errors import ConfigError, LodestreamError, StoreUnwritable
from lodestream.storage.registers.address import hide_password
from lodestream.storage.registers.options import RegisterOptions
from lodestream.storage.registers.protocol import Version
from lodestream.storage.registers.remote import Unreachable

KEY_PREFIX: Final = "lodestream:"

# Versions are random names rather than numbers: numbers would begin again in a wiped server, and a writer from before
# could mistake the new record for the one it knows.
_REPLACE: Final = """
local seen = redis.call('HGET', KEYS[1], 'version') or ''
if seen ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'body', ARGV[3])
return 1
"""

_NO_ACCESS: Final = (exceptions.AuthenticationError, exceptions.NoPermissionError)
_NO_ANSWER: Final = (exceptions.ConnectionError, exceptions.TimeoutError)  # also while it loads its data
_NOT_NOW: Final = (exceptions.ReadOnlyError, exceptions.TryAgainError, exceptions.ClusterDownError)


class RedisBackend:
    """The body is a field of the hash ``lodestream:<name>``."""

    def __init__(self, url: str, name: str, options: RegisterOptions) -> None:
        self.place = f"{hide_password(url)} (key {KEY_PREFIX}{name})"
        self._key = KEY_PREFIX + name
        try:
            self._client = redis.Redis.from_url(
                url,
                socket_timeout=options.timeout_s,
                socket_connect_timeout=options.timeout_s,
                retry=Retry(NoBackoff(), 0),  # a lost answer must be seen: RemoteRegister settles it
            )
        except ValueError as error:
            raise ConfigError(
                f"{hide_password(url)} is no address of a Redis server: {error}",
                "set lease.url to something like redis://host:6379/0",
            ) from error

    def fetch(self) -> tuple[bytes, Version] | None:
        """See Backend."""
        try:
            body, version = cast(tuple[bytes | None, bytes | None], self._client.hmget(self._key, ["body", "version"]))
        except exceptions.RedisError as error:
            raise self._explain(error) from error
        return None if body is None or version is None else (body, version.decode())

    def replace(self, expected_version: Version | None, body: bytes) -> Version | None:
        """See Backend."""
        version = uuid.uuid4().hex
        try:
            done = self._client.eval(_REPLACE, 1, self._key, expected_version or "", version, body)
        except exceptions.RedisError as error:
            raise self._explain(error) from error
        return version if done == 1 else None

    def remove(self) -> None:
        """See Backend."""
        try:
            self._client.delete(self._key)
        except exceptions.RedisError as error:
            raise self._explain(error) from error

    def close(self) -> None:
        """Close the pooled connections."""
        self._client.close()

    def _explain(self, error: exceptions.RedisError) -> LodestreamError | Unreachable:
        reason = str(error)
        if isinstance(error, _NO_ACCESS) or reason.startswith("NOAUTH"):
            return StoreUnwritable(f"{self.place} refuses access: {reason}", "look at user and password in lease.url")
        if isinstance(error, _NO_ANSWER):
            return Unreachable(reason, was_sent=not reason.startswith(("Error 111 ", "Error -")))
        if isinstance(error, _NOT_NOW):
            return Unreachable(reason, was_sent=False)
        return StoreUnwritable(f"{self.place} refuses: {reason}", "look at the server's log")
