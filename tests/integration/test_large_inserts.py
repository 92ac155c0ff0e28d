"""COPY and INSERT ... SELECT of many batches, on PostgreSQL and shardb alike: all or nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.support.server import Server

Connection = psycopg.Connection[tuple[Any, ...]]

ROWS = 120_000  # with PADDING enough for several batches to each of the two ranges
PADDING = "x" * 80
COPY = "COPY large FROM STDIN (FORMAT csv)"
SELECT = f"INSERT INTO large SELECT i, '{PADDING}' FROM generate_series(1, {ROWS}) AS s(i)"
ALL = (ROWS, ROWS * (ROWS + 1) // 2, ROWS * len(PADDING))


@pytest.fixture
def connection(server: Server) -> Iterator[Connection]:
    options = "" if server.name == "postgresql" else f"WITH (split_at = '{ROWS // 3}')"
    with server.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS large")
        connection.execute(f"CREATE TABLE large (id int PRIMARY KEY, padding text) {options}")
        yield connection
    with server.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS large")


def lines(first: int, last: int) -> str:
    return "".join(f"{number},{PADDING}\n" for number in range(first, last + 1))


def contents(connection: Connection) -> tuple[Any, ...] | None:
    query = "SELECT count(*), coalesce(sum(id), 0), coalesce(sum(length(padding)), 0) FROM large"
    return connection.execute(query).fetchone()


def copy(connection: Connection, *texts: str) -> int:
    with connection.cursor() as cursor:
        with cursor.copy(COPY) as writer:
            for text in texts:
                writer.write(text)
        return cursor.rowcount


def test_copy(connection: Connection) -> None:
    assert copy(connection, lines(1, 70_000), lines(70_001, ROWS)) == ROWS
    assert contents(connection) == ALL


def test_insert_from_a_query(connection: Connection) -> None:
    assert connection.execute(SELECT).rowcount == ROWS
    assert contents(connection) == ALL


def test_savepoints_take_back_all_batches(connection: Connection) -> None:
    connection.execute("BEGIN")
    copy(connection, lines(-10, 0))
    connection.execute("SAVEPOINT s")
    connection.execute(SELECT)
    connection.execute("ROLLBACK TO s")
    assert contents(connection) == (11, -55, 11 * len(PADDING))
    copy(connection, lines(1, ROWS))
    connection.execute("DELETE FROM large WHERE id <= 0")
    connection.execute("COMMIT")
    assert contents(connection) == ALL


def test_a_duplicate_in_a_late_batch_leaves_nothing(connection: Connection) -> None:
    connection.execute(f"INSERT INTO large VALUES ({ROWS}, '')")
    with pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute(SELECT)
    with pytest.raises(psycopg.errors.UniqueViolation):
        copy(connection, lines(1, ROWS))
    assert contents(connection) == (1, ROWS, 0)


def test_a_bad_line_in_a_late_batch_is_named(connection: Connection) -> None:
    with pytest.raises(psycopg.errors.InvalidTextRepresentation) as caught:
        copy(connection, lines(1, ROWS), "one,a\n")
    assert caught.value.diag.context == f'COPY large, line {ROWS + 1}, column id: "one"'
    assert contents(connection) == (0, 0, 0)


def test_a_client_that_goes_away_leaves_nothing(server: Server, connection: Connection) -> None:
    gone = server.connect()
    manager = gone.cursor().copy(COPY)
    manager.__enter__().write(lines(1, ROWS))
    gone.pgconn.finish()
    copy(connection, lines(1, ROWS))  # waits for the end of the other one, if it meets its rows
    assert contents(connection) == ALL


def test_a_cancelled_copy_leaves_nothing(connection: Connection) -> None:
    with (
        pytest.raises(psycopg.errors.QueryCanceled),
        connection.cursor() as cursor,
        cursor.copy(COPY) as writer,
    ):
        writer.write(lines(1, ROWS))
        connection.cancel()
        for first in range(ROWS + 1, ROWS + 100_000, 1000):
            writer.write(lines(first, first + 999))
            time.sleep(0.01)
    assert contents(connection) == (0, 0, 0)
    copy(connection, lines(1, ROWS))
    assert contents(connection) == ALL
