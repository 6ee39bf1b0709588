"""One connection of an ADBC driver, by the driver manager's own interface.

Its DB-API module is not used: that imports ``pyarrow.dataset`` and builds parameters from Python lists, and each of the
two imports pandas where it is installed, which takes longer than all else in a refresh that finds nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pyarrow as pa
from adbc_driver_manager import AdbcConnection, AdbcDatabase, AdbcStatement, Error

Parameter = str | float | list[str]


class AdbcLink:
    """A connection in autocommit. An interrupt (SIGINT, or SIGTERM where that raises) cancels the statement that the
    server is at, where the driver can do that. Errors are those of ``adbc_driver_manager``; while rows are fetched also
    OSError and ArrowException. Not for several threads."""

    def __init__(self, database: AdbcDatabase) -> None:
        """Connects; the database is the link's from now on."""
        self._database = database
        try:
            self._connection = AdbcConnection(database)
        except BaseException:
            database.close()
            raise
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="adbc")
        self._results: set[ExitStack] = set()

    def close(self) -> None:
        """Ends the connection, and what is open of it: a generator that an error has left is not at its end."""
        for opened in list(self._results):
            opened.close()
        self._worker.shutdown()
        self._connection.close()
        self._database.close()

    def execute(self, sql: str) -> None:
        """Carries out statements without a result."""
        with AdbcStatement(self._connection) as statement:
            statement.set_sql_query(sql)
            self._wait(statement, statement.execute_update)

    @contextmanager
    def open(self, sql: str, parameters: tuple[Parameter, ...]) -> Iterator[pa.RecordBatchReader]:
        """The result of a query, while the context lasts."""
        with ExitStack() as opened:
            statement = opened.enter_context(AdbcStatement(self._connection))
            self._results.add(opened)
            opened.callback(self._results.discard, opened)
            statement.set_sql_query(sql)
            if parameters:
                self._wait(statement, statement.prepare)
                statement.bind(_bind(parameters))
            stream, _ = self._wait(statement, statement.execute_query)
            yield opened.enter_context(pa.RecordBatchReader.from_stream(stream))

    def _wait(self, statement: AdbcStatement, call: Callable[[], Any]) -> Any:
        """Makes the call in a thread: this one would not hear of a signal before the server answers."""
        done = self._worker.submit(call)
        try:
            return done.result()
        except KeyboardInterrupt:
            with suppress(Error):
                statement.cancel()
            wait([done])  # the statement must not be closed under it
            raise


def _bind(parameters: tuple[Parameter, ...]) -> pa.RecordBatch:
    columns = [pa.array([value]) if isinstance(value, list) else _one(value) for value in parameters]
    return pa.RecordBatch.from_arrays(columns, names=[str(place) for place in range(len(columns))])


def _one(value: str | float) -> pa.Array:
    """``pa.array([value])`` without pandas."""
    if isinstance(value, str):
        data = value.encode()
        return pa.StringArray.from_buffers(1, pa.py_buffer(struct.pack("=2i", 0, len(data))), pa.py_buffer(data))
    kind, code = (pa.int64(), "=q") if isinstance(value, int) else (pa.float64(), "=d")
    return pa.Array.from_buffers(kind, 1, [None, pa.py_buffer(struct.pack(code, value))])
