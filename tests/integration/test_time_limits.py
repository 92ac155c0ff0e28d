"""Statements that wait for a lock or work for long end when they are told to, as in PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.support.server import Server

Connection = psycopg.Connection[tuple[Any, ...]]

UPDATE = "UPDATE waited SET n = n + 1 WHERE id = 1"
LOCKING = "SELECT * FROM waited WHERE id = 1 FOR UPDATE"
BY_QUERY = "UPDATE waited SET n = w.n + 1 FROM waited w WHERE waited.id = w.id"
LONG = (
    "SELECT count(*) FROM generate_series(1, 100000) a(i), generate_series(1, 100000) b(j) "
    "WHERE (i * j) % 7 = 3"
)


@pytest.fixture
def pair(server: Server) -> Iterator[tuple[Connection, Connection]]:
    """A connection whose open transaction holds row 1, and another."""
    with server.connect() as holder, server.connect() as other:
        holder.execute("DROP TABLE IF EXISTS waited")
        holder.execute("CREATE TABLE waited (id int4 PRIMARY KEY, n int4)")
        holder.execute("INSERT INTO waited VALUES (1, 0), (2, 0)")
        holder.execute("BEGIN")
        holder.execute("UPDATE waited SET n = 10 WHERE id = 1")
        yield holder, other
        holder.execute("ROLLBACK")
        other.execute("ROLLBACK")
        holder.execute("DROP TABLE waited")


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize(
    ("setting", "sqlstate", "message"),
    [
        ("statement_timeout", "57014", "canceling statement due to statement timeout"),
        ("lock_timeout", "55P03", "canceling statement due to lock timeout"),
    ],
)
def test_a_wait_for_a_row_ends(
    pair: tuple[Connection, Connection], prepared: bool, setting: str, sqlstate: str, message: str
) -> None:
    holder, other = pair
    other.execute(f"SET {setting} = '100ms'")
    begun = time.monotonic()
    with pytest.raises(psycopg.Error) as caught:
        other.execute(UPDATE, prepare=prepared)
    assert (caught.value.sqlstate, caught.value.diag.message_primary) == (sqlstate, message)
    assert 0.09 < time.monotonic() - begun < 5
    holder.execute("COMMIT")
    other.execute(UPDATE, prepare=prepared)
    assert other.execute("SELECT n FROM waited WHERE id = 1").fetchone() == (11,)


@pytest.mark.parametrize("statement", [LOCKING, BY_QUERY])
def test_lock_timeout_holds_for_other_statements_too(
    pair: tuple[Connection, Connection], statement: str
) -> None:
    _, other = pair
    other.execute("SET lock_timeout = '50ms'")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        other.execute(statement)
    other.execute("UPDATE waited SET n = n + 1 WHERE id = 2")


def test_lock_timeout_holds_for_copy(pair: tuple[Connection, Connection]) -> None:
    holder, other = pair
    holder.execute("INSERT INTO waited VALUES (3, 0)")
    other.execute("SET lock_timeout = '50ms'")
    with (
        pytest.raises(psycopg.errors.LockNotAvailable),
        other.cursor() as cursor,
        cursor.copy("COPY waited FROM STDIN") as copy,
    ):
        copy.write("3\t3\n4\t4\n")
    assert other.execute("SELECT count(*) FROM waited").fetchone() == (2,)


def test_a_lock_timeout_leaves_what_a_savepoint_kept(pair: tuple[Connection, Connection]) -> None:
    holder, other = pair
    other.execute("SET lock_timeout = '50ms'")
    other.execute("BEGIN")
    other.execute("UPDATE waited SET n = 5 WHERE id = 2")
    other.execute("SAVEPOINT s")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        other.execute(UPDATE)
    other.execute("ROLLBACK TO s")
    holder.execute("COMMIT")
    other.execute(UPDATE)
    other.execute("COMMIT")
    assert other.execute("SELECT id, n FROM waited ORDER BY id").fetchall() == [(1, 11), (2, 5)]


@pytest.mark.parametrize("in_block", [False, True])
@pytest.mark.parametrize("statement", [UPDATE, LOCKING, BY_QUERY, LONG])
def test_a_cancel_request_ends_a_statement(
    pair: tuple[Connection, Connection], statement: str, in_block: bool
) -> None:
    _, other = pair
    if in_block:
        other.execute("BEGIN")
    timer = threading.Timer(0.2, other.cancel)
    timer.start()
    begun = time.monotonic()
    with pytest.raises(psycopg.errors.QueryCanceled) as caught:
        other.execute(statement)
    timer.join()
    assert caught.value.diag.message_primary == "canceling statement due to user request"
    assert time.monotonic() - begun < 5
    other.execute("ROLLBACK")
    assert other.execute("SELECT 1").fetchone() == (1,)


def test_statement_timeout_ends_a_long_query(server: Server) -> None:
    with server.connect() as connection:
        connection.execute("SET statement_timeout = '100ms'")
        begun = time.monotonic()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute(LONG)
        assert time.monotonic() - begun < 5
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_an_idle_transaction_is_ended(pair: tuple[Connection, Connection], server: Server) -> None:
    with server.connect() as idle:
        idle.execute("SET idle_in_transaction_session_timeout = '100ms'")
        idle.execute("SELECT 1")
        time.sleep(0.3)
        idle.execute("BEGIN")
        idle.execute("UPDATE waited SET n = 7 WHERE id = 2")
        time.sleep(0.4)
        with pytest.raises(psycopg.Error) as caught:
            idle.execute("SELECT 1")
        assert caught.value.sqlstate == "25P03"
    _, other = pair
    other.execute("SET lock_timeout = '2s'")
    other.execute("UPDATE waited SET n = n + 1 WHERE id = 2")
    assert other.execute("SELECT n FROM waited WHERE id = 2").fetchone() == (1,)
