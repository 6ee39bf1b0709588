"""One connection to PostgreSQL through ADBC, and what its errors mean for a source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import pyarrow as pa

from lodestream.errors import ConfigError, SourceContract, SourceError, SourceUnavailable

CONNECT_LIMIT_S: Final = 10
LOCK_LIMIT_S: Final = 60
"""How long a server may be silent, and how long a table may be locked, before a refresh gives up until the next."""

_TRANSIENT: Final = ("08", "40", "53", "55", "57", "58", "XX")
"""SQLSTATE classes that another attempt may get past: connection, conflict, resources, locks, shutdown, system."""
_REFUSED: Final = ("authentication failed", "does not exist", "pg_hba.conf", "password", "not permitted to log in")


class PostgresSession:
    """A connection in autocommit, closed at the end of a ``with``. Times are in UTC and texts in UTF-8, whatever the
    server's defaults. Not for several threads."""

    def __init__(self, source: str, url: str) -> None:
        """Connects.

        Args:
            source: the source's name in the configuration.
            url: as libpq reads it.

        Raises:
            SourceUnavailable: the server cannot be reached.
            SourceContract: it refuses the user, or has no such database.
            ConfigError: the driver is not installed.
        """
        self._source = source
        try:
            import adbc_driver_postgresql as driver
            from adbc_driver_manager import Error

            from lodestream.pipeline.sources.adbc import AdbcLink
        except ImportError:
            raise ConfigError(
                f"sources.{source}: the driver for PostgreSQL is not installed", "pip install 'lodestream[postgres]'"
            ) from None
        self._errors = Error
        try:
            self._link = AdbcLink(driver.connect(_limit_connecting(url)))
        except Error as error:
            raise self._explain_refusal(url, _first_line(str(error))) from None
        self.execute("SET client_encoding TO 'UTF8'; SET TIME ZONE 'UTC'; SET DateStyle TO 'ISO'")
        self.execute(f"SET lock_timeout TO '{LOCK_LIMIT_S}s'")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._link.close()

    def execute(self, sql: str) -> None:
        """Carries out statements without a result."""
        with self._explaining():
            self._link.execute(sql)

    def query(self, sql: str, *parameters: str | list[str]) -> list[dict[str, Any]]:
        """All rows of a query; ``$1``, ``$2`` and so on stand for the parameters."""
        return [row for batch in self.stream(sql, *parameters) for row in batch.to_pylist()]

    def stream(self, sql: str, *parameters: str | list[str]) -> Iterator[pa.RecordBatch]:
        """The result of a query batch by batch."""
        with self._explaining(), self._link.open(sql, parameters) as reader:
            yield from reader

    def query_value(self, sql: str, *parameters: str | list[str]) -> Any:
        """The first column of the first row."""
        return next(iter(self.query(sql, *parameters)[0].values()))

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything inside sees the table as it was at the first query inside, and can change nothing."""
        self.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield
        self.execute("COMMIT")

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise explain_error(self._source, error.sqlstate, _first_line(str(error))) from None
        except (OSError, pa.ArrowException) as error:  # the connection or the query broke off between two batches
            raise explain_error(self._source, None, _first_line(str(error))) from None

    def _explain_refusal(self, url: str, message: str) -> SourceError:
        name = f"sources.{self._source}"
        if any(word in message for word in _REFUSED):
            return SourceContract(f"{name}: {message}", f"correct {name}.url ({show_url(url)})")
        return SourceUnavailable(
            f"{name}: {message}", f"start the server or correct {name}.url ({show_url(url)}); nothing was deleted"
        )


def explain_error(source: str, sqlstate: str | None, message: str) -> SourceError:
    """What an error of the server means: whether to come back, and what mends it."""
    name = f"sources.{source}"
    state = sqlstate or ""
    if state == "42P01":
        return SourceContract(f"{name}: {message}", f"correct {name}.table; its features are kept until then")
    if state == "42703":
        return SourceContract(f"{name}: {message}", f"correct the columns of {name}; its features are kept until then")
    if state == "42501":
        return SourceContract(f"{name}: {message}", "grant the right (`lodestream check` prints the command)")
    if not state or state.startswith(_TRANSIENT):
        return SourceUnavailable(f"{name}: {message}", "the next run tries again; nothing was deleted")
    return SourceContract(f"{name}: {message} (SQLSTATE {state})", "lodestream check")


def show_url(url: str) -> str:
    """The URL without its password and its query; "" for another form of connection string, which may hold both."""
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres"):
        return ""
    user = f"{parts.username}@" if parts.username else ""
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"postgresql://{user}{host}{port}{parts.path}"


def _limit_connecting(url: str) -> str:
    """The URL or connection string with a limit for connecting, where it has none."""
    if "connect_timeout" in url:
        return url
    if "://" not in url:
        return f"{url} connect_timeout={CONNECT_LIMIT_S}"
    return f"{url}{'&' if '?' in url else '?'}connect_timeout={CONNECT_LIMIT_S}"


def _first_line(message: str) -> str:
    """The server's own words: drivers put theirs before and the query behind."""
    line = message.splitlines()[0] if message else "no message"
    for mark in ("FATAL:", "ERROR:", "[libpq]"):
        if mark in line:
            return line.partition(mark)[2].strip()
    return line
