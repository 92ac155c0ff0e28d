"""Fragments: SQL over Arrow tables in, Arrow batches out, in a fenced DuckDB.

The engine runs only SQL that our printer made. All the same it is fenced: no files, no network, no
extensions, no look into Python's variables, and a locked configuration. Connections are pooled;
one runs one fragment at a time, in whatever thread calls. Nothing is kept between fragments.
"""

from __future__ import annotations

import re
import tempfile
import threading
import uuid
from collections.abc import Mapping, Sequence
from typing import Final

import duckdb
import pyarrow as pa

from shardb.engine.errors import translate
from shardb.engine.macros import MACROS
from shardb.errors import SqlError
from shardb.limits import GIB, MIB

MEMORY_LIMIT_BYTES: Final = 4 * GIB
RUNNING_MAX: Final = 4  # fragments at once; more wait
IDLE_CONNECTIONS_MAX: Final = 4
_PARAMETER: Final = re.compile(r"'(?:[^']|'')*'|\$(\d+)")
_FENCE: Final = (
    "SET enable_external_access = false",
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET integer_division = true",
    "SET ieee_floating_point_ops = false",
    "SET default_null_order = 'nulls_last_on_asc_first_on_desc'",
    "SET scalar_subquery_error_on_multiple_rows = true",
    "SET TimeZone = 'UTC'",
    "SET enable_progress_bar = false",
)


class Cancellation:
    """Lets another thread stop a running fragment; it then fails with 57014."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: duckdb.DuckDBPyConnection | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Stops the fragment now, or before it starts."""
        with self._lock:
            self.cancelled = True
            if self._connection is not None:
                self._connection.interrupt()

    def attach(self, connection: duckdb.DuckDBPyConnection | None) -> None:
        """Names the connection to interrupt, None when the fragment is over."""
        with self._lock:
            self._connection = connection


class FragmentEngine:
    """Runs fragments. Thread-safe.

    `memory_limit` bytes are for all that run at once, RUNNING_MAX at most, in equal parts: what
    needs more than its part spills to `temp_dir`. `threads` hold for each.
    """

    def __init__(
        self,
        memory_limit: int = MEMORY_LIMIT_BYTES,
        temp_dir: str | None = None,
        threads: int = 2,
    ) -> None:
        self._memory_limit = memory_limit // RUNNING_MAX
        self._running = threading.BoundedSemaphore(RUNNING_MAX)
        self._temp_dir = temp_dir or tempfile.gettempdir()
        self._threads = threads
        self._lock = threading.Lock()
        self._idle: list[duckdb.DuckDBPyConnection] = []
        self._closed = False

    def cancellation(self) -> Cancellation:
        """What may stop one run."""
        return Cancellation()

    def run(
        self,
        sql: str,
        tables: Mapping[str, pa.Table | pa.RecordBatchReader],
        params: Sequence[object] = (),
        cancellation: Cancellation | None = None,
    ) -> pa.RecordBatchReader:
        """The batches of `sql` over `tables`; `$n` is `params[n - 1]`. Raises SqlError.

        Readers are consumed. Parameters are Python values as `RowLayout.decode` gives them.
        """
        with self._running:
            return self._run(sql, tables, params, cancellation)

    def _run(
        self,
        sql: str,
        tables: Mapping[str, pa.Table | pa.RecordBatchReader],
        params: Sequence[object],
        cancellation: Cancellation | None,
    ) -> pa.RecordBatchReader:
        connection = self._take()
        healthy = False
        try:
            if cancellation is not None:
                cancellation.attach(connection)
                if cancellation.cancelled:
                    healthy = True
                    raise SqlError("57014", "canceling statement due to user request")
            for name, table in tables.items():
                connection.register(name, table)
            bound = _used_params(sql, params)
            relation = connection.sql(sql, params=bound) if bound else connection.sql(sql)
            result = relation.to_arrow_table()
            healthy = True
            return result.to_reader()
        except (duckdb.Error, pa.ArrowException, RuntimeError) as error:
            healthy = not isinstance(error, (duckdb.FatalException, duckdb.InternalException))
            raise translate(error, cancellation is not None and cancellation.cancelled) from None
        finally:
            if cancellation is not None:
                cancellation.attach(None)
            self._give_back(connection, list(tables), healthy)

    def close(self) -> None:
        """Closes idle connections; running fragments close theirs when they end."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> duckdb.DuckDBPyConnection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._open()

    def _give_back(
        self, connection: duckdb.DuckDBPyConnection, names: list[str], healthy: bool
    ) -> None:
        if healthy:
            for name in names:
                connection.unregister(name)
            with self._lock:
                if not self._closed and len(self._idle) < IDLE_CONNECTIONS_MAX:
                    self._idle.append(connection)
                    return
        connection.close()

    def _open(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(
            ":memory:",
            config={
                "temp_directory": self._temp_dir,
                "memory_limit": f"{self._memory_limit // MIB}MiB",
                "threads": str(self._threads),
            },
        )
        for macro in MACROS:
            connection.execute(macro)
        for statement in _FENCE:
            connection.execute(statement)
        connection.execute("SET lock_configuration = true")
        return connection


def _used_params(sql: str, params: Sequence[object]) -> dict[str, object]:
    """The parameters that `sql` uses: the engine refuses any other."""
    if not params:
        return {}
    numbers = {match.group(1) for match in _PARAMETER.finditer(sql) if match.group(1)}
    return {number: _value(params[int(number) - 1]) for number in numbers}


def _value(value: object) -> object:
    if isinstance(value, uuid.UUID):
        return value.bytes
    if isinstance(value, tuple) and len(value) == 3:
        months, days, micros = value
        return f"{months} months {days} days {micros} microseconds"
    return value
