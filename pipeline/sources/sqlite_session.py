"""One read-only connection to a SQLite file through ADBC, and what its errors mean for a source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote

import pyarrow as pa

from lodestream.errors import ConfigError, SourceContract, SourceError, SourceUnavailable

if TYPE_CHECKING:
    from lodestream.pipeline.sources.adbc import Parameter

BUSY_MS: Final = 10_000
_TRANSIENT: Final = ("locked", "busy", "disk I/O", "interrupted", "out of memory")


class SqliteSession:
    """A connection that can change nothing, closed at the end of a ``with``. Not for several threads.

    The driver takes a column's type from its first rows: queries cast every column, and replace NULL.
    """

    def __init__(self, source: str, path: Path) -> None:
        """Opens the file.

        Args:
            source: the source's name in the configuration.
            path: an existing file.

        Raises:
            SourceContract: it does not exist or is no database.
            SourceUnavailable: it cannot be opened at present.
            ConfigError: the driver is not installed.
        """
        self._source = source
        self._path = path
        if not path.is_file():
            what = "is not a file" if path.exists() else "does not exist"
            raise SourceContract(
                f"sources.{source}.path: {path} {what}", f"correct sources.{source}.path; its features are kept"
            )
        try:
            import adbc_driver_sqlite as driver
            from adbc_driver_manager import Error

            from lodestream.pipeline.sources.adbc import AdbcLink
        except ImportError:
            raise ConfigError(
                f"sources.{source}: the driver for SQLite is not installed", "pip install 'lodestream[sqlite]'"
            ) from None
        self._errors = Error
        with self._explaining():
            self._link = AdbcLink(driver.connect(f"file:{quote(str(path))}?mode=ro"))
        try:
            self.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        except BaseException:
            self._link.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.close()

    def execute(self, sql: str) -> None:
        """Carries out a statement without a result."""
        with self._explaining():
            self._link.execute(sql)

    def query(self, sql: str, *parameters: Parameter) -> list[dict[str, Any]]:
        """The whole result of a query; ``?`` stands for the parameters."""
        return [row for batch in self.stream(sql, *parameters) for row in batch.to_pylist()]

    def stream(self, sql: str, *parameters: Parameter) -> Iterator[pa.RecordBatch]:
        """The result of a query batch by batch."""
        with self._explaining(), self._link.open(sql, parameters) as reader:
            yield from reader

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything inside sees the database as it was at the first query inside."""
        self.execute("BEGIN")
        yield
        self.execute("COMMIT")

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except (self._errors, OSError, pa.ArrowException) as error:
            raise self._explain(str(error)) from None

    def _explain(self, message: str) -> SourceError:
        reason = message.splitlines()[0].rpartition("] ")[2]
        if any(word in message for word in _TRANSIENT):
            return SourceUnavailable(
                f"sources.{self._source}: {self._path}: {reason}", "the next run tries again; nothing was deleted"
            )
        return SourceContract(
            f"sources.{self._source}: {self._path}: {reason}", f"correct sources.{self._source}; its features are kept"
        )
