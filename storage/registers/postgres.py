"""A register as a row of a PostgreSQL table, replaced by an update on condition.

The table is made on first use; many stores share it, one row each. A server that answers "committed" before the row is
on its disk would lose what a writer relies on, so the session asks for the disk whatever the server's default is. A
failover to an asynchronous replica can lose it all the same: use a synchronous one.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any, Final, LiteralString

import psycopg
from psycopg import errors

from lodestream.errors import ConfigError, LodestreamError, StoreUnwritable
from lodestream.storage.registers.address import hide_password
from lodestream.storage.registers.options import RegisterOptions
from lodestream.storage.registers.protocol import Version
from lodestream.storage.registers.remote import Unreachable

TABLE: Final = "lodestream_registers"

# Versions come from one sequence and are never used twice, not even by a row that was deleted and made again.
_CREATE: Final[LiteralString] = """
create table if not exists lodestream_registers (
    name text primary key,
    version bigint generated always as identity,
    body text not null,
    changed_at timestamptz not null default now()
)"""
_FETCH: Final[LiteralString] = "select body, version from lodestream_registers where name = %s"
_INSERT: Final[LiteralString] = """
insert into lodestream_registers (name, body) values (%s, %s)
on conflict (name) do nothing returning version"""
_UPDATE: Final[LiteralString] = """
update lodestream_registers set body = %s, version = default, changed_at = now()
where name = %s and version = %s returning version"""
_DELETE: Final[LiteralString] = "delete from lodestream_registers where name = %s"

_WRONG_ADDRESS: Final = ("does not exist", "Servname not supported", "invalid", "missing")
_NO_ACCESS: Final = ("authentication failed", "no password supplied", "no pg_hba.conf entry", "permission denied")


class PostgresBackend:
    """The body is the row ``name`` of the table ``lodestream_registers``."""

    def __init__(self, url: str, name: str, options: RegisterOptions) -> None:
        self.place = f"{hide_password(url)} (row {name} of {TABLE})"
        self._url = url
        self._name = name
        self._timeout_s = options.timeout_s
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[Any] | None = None

    def fetch(self) -> tuple[bytes, Version] | None:
        """See Backend."""
        try:
            row = self._execute(_FETCH, (self._name,))
        except errors.UndefinedTable:
            return None
        except psycopg.Error as error:
            raise self._explain(error) from error
        return None if row is None else (row[0].encode(), str(row[1]))

    def replace(self, expected_version: Version | None, body: bytes) -> Version | None:
        """See Backend."""
        text = body.decode()
        try:
            if expected_version is None:
                row = self._insert(text)
            else:
                row = self._execute(_UPDATE, (text, self._name, int(expected_version)))
        except errors.UndefinedTable:
            return None  # the row that it should replace is gone, and the table too
        except psycopg.Error as error:
            raise self._explain(error) from error
        return None if row is None else str(row[0])

    def remove(self) -> None:
        """See Backend."""
        try:
            self._execute(_DELETE, (self._name,))
        except psycopg.Error as error:
            raise self._explain(error) from error

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def __del__(self) -> None:
        if getattr(self, "_connection", None) is not None:
            self._drop()

    def _insert(self, text: str) -> Any:
        try:
            return self._execute(_INSERT, (self._name, text))
        except errors.UndefinedTable:
            # Two who make it at once collide in the catalogue; then it is there.
            with contextlib.suppress(errors.UniqueViolation, errors.DuplicateTable, errors.DuplicateObject):
                self._execute(_CREATE)
            return self._execute(_INSERT, (self._name, text))

    def _execute(self, statement: LiteralString, values: tuple[Any, ...] = ()) -> Any:
        with self._lock:
            if self._connection is None or self._connection.closed:
                self._connection = self._connect()
            try:
                with _deadline(self._connection, self._timeout_s):
                    cursor = self._connection.execute(statement, values)
                    return cursor.fetchone() if cursor.description else None
            except psycopg.OperationalError:
                self._drop()
                raise

    def _connect(self) -> psycopg.Connection[Any]:
        limit_ms = math.ceil(self._timeout_s * 1000)
        try:
            return psycopg.connect(
                self._url,
                autocommit=True,
                connect_timeout=max(2, math.ceil(self._timeout_s)),
                tcp_user_timeout=limit_ms,
                application_name="lodestream",
                prepare_threshold=None,  # poolers hand a session from one client to the next
                options=f"-c statement_timeout={limit_ms} -c synchronous_commit=on",
            )
        except psycopg.OperationalError as error:
            raise self._explain_connect(str(error)) from error
        except psycopg.ProgrammingError as error:
            raise self._wrong_address(str(error)) from error

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _explain_connect(self, reason: str) -> LodestreamError | Unreachable:
        if any(mark in reason for mark in _NO_ACCESS):
            return self._no_access(reason)
        if any(mark in reason for mark in _WRONG_ADDRESS):
            return self._wrong_address(reason)
        return Unreachable(_shorten(reason), was_sent=False)

    def _explain(self, error: psycopg.Error) -> LodestreamError | Unreachable:
        reason = _shorten(str(error))
        if isinstance(error, errors.InsufficientPrivilege | errors.InvalidSchemaName):
            return self._no_access(reason)
        if isinstance(error, errors.ReadOnlySqlTransaction):  # a standby, until it is promoted
            return Unreachable(reason, was_sent=False)
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            return Unreachable(reason)
        return StoreUnwritable(f"{self.place} refuses: {reason}", "look at the server's log")

    def _no_access(self, reason: str) -> StoreUnwritable:
        return StoreUnwritable(
            f"{self.place} refuses access: {_shorten(reason)}",
            f"look at user and password in lease.url; the user needs a table {TABLE} with all rights",
        )

    def _wrong_address(self, reason: str) -> ConfigError:
        return ConfigError(
            f"{self.place} cannot be used: {_shorten(reason)}",
            "set lease.url to something like postgresql://user@host:5432/database",
        )


@contextlib.contextmanager
def _deadline(connection: psycopg.Connection[Any], limit_s: float) -> Iterator[None]:
    """Cut the connection if the statement takes longer: a server that has vanished never answers, and libpq waits."""

    def cut() -> None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(limit_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _shorten(reason: str) -> str:
    return " ".join(reason.split())
