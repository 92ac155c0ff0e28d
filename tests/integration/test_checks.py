"""CHECK constraints: the same statements on PostgreSQL and on shardb."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.support.cluster import Cluster
from tests.support.postgres import Postgres
from tests.support.server import Server

SCRIPTS: dict[str, list[str]] = {
    "by key": [
        "CREATE TABLE t (id int PRIMARY KEY, a int CHECK (a > 0), b text, "
        "CONSTRAINT short CHECK (length(b) < 5), CHECK (a < 100 OR b IS NULL))",
        "INSERT INTO t VALUES (1, 1, 'one'), (2, NULL, NULL), (3, 300, NULL)",
        "INSERT INTO t VALUES (4, 1, 'x'), (5, 0, 'x')",
        "INSERT INTO t VALUES (4, 0, 'too long')",
        "INSERT INTO t VALUES (4, 200, 'abcd')",
        "INSERT INTO t VALUES (1, 0, 'x') ON CONFLICT DO NOTHING",
        "INSERT INTO t VALUES (1, 5, 'x') ON CONFLICT (id) DO UPDATE SET a = t.a - 1",
        "INSERT INTO t VALUES (1, 5, 'x') ON CONFLICT (id) DO UPDATE SET a = excluded.a",
        "UPDATE t SET a = a - 5 WHERE id = 1",
        "UPDATE t SET a = a - 4 WHERE id = 1",
        "UPDATE t SET b = 'none' WHERE id = 3",
        "UPDATE t SET id = 9, a = -1 WHERE id = 1",
        "DELETE FROM t WHERE id = 3",
        "SELECT * FROM t ORDER BY id",
    ],
    "by query": [
        "CREATE TABLE t (a int, b numeric(6,2), CHECK (b >= a), CONSTRAINT u CHECK (a <> 7))",
        "INSERT INTO t SELECT i, i + 1 FROM generate_series(1, 6) AS s(i)",
        "INSERT INTO t SELECT i, i + 1 FROM generate_series(1, 10) AS s(i)",
        "INSERT INTO t SELECT i, 9999 FROM generate_series(10, 9999) AS s(i)",
        "INSERT INTO t SELECT i, 9998 FROM generate_series(10, 9999) AS s(i)",
        "UPDATE t SET a = 7 WHERE a = (SELECT max(a) FROM t)",
        "UPDATE t SET b = b - 1 WHERE a <= 6",
        "UPDATE t SET b = b - (SELECT 1) WHERE a = 1",
        "SELECT count(*), sum(a), sum(b) FROM t",
    ],
    "names": [
        "CREATE TABLE t (id int PRIMARY KEY, a int CHECK (a > 0) CHECK (a < 9), "
        "CHECK (a <> 5), CHECK (true), CHECK (a <> id))",
        "SELECT conname, contype FROM pg_constraint WHERE conrelid = 't'::regclass ORDER BY 1",
        "INSERT INTO t VALUES (1, 1)",
        "INSERT INTO t VALUES (1, 5)",
        "CREATE TABLE u (a int, CONSTRAINT c CHECK (a > 0), CONSTRAINT c CHECK (a > 1))",
        "CREATE TABLE u (a int CHECK (b > 0))",
        "CREATE TABLE u (a int CHECK (a))",
        "CREATE TABLE u (a int CHECK (sum(a) > 0))",
        "ALTER TABLE t DROP COLUMN a",
        "INSERT INTO t VALUES (2)",
        "SELECT conname FROM pg_constraint WHERE conrelid = 't'::regclass AND contype = 'c'",
    ],
}


def outcome(connection: psycopg.Connection[Any], statement: str) -> Any:
    """What a statement gives: its rows or tag, or its error."""
    try:
        cursor = connection.execute(statement)
        return statement, cursor.fetchall() if cursor.description else cursor.statusmessage
    except psycopg.Error as error:
        diag = error.diag
        detail = (diag.message_primary, diag.message_detail, diag.constraint_name)
        return statement, error.sqlstate, *detail


@pytest.mark.parametrize("name", SCRIPTS)
def test_checks_are_as_in_postgres(cluster: Cluster, postgres: Postgres, name: str) -> None:
    found: list[list[Any]] = []
    for server in (cluster, postgres):
        with server.connect() as connection:
            connection.execute("DROP TABLE IF EXISTS t")
            found.append([outcome(connection, statement) for statement in SCRIPTS[name]])
            connection.execute("DROP TABLE t")
    for one, other in zip(*found, strict=True):
        assert one == other


def test_copy_is_checked(server: Server) -> None:
    with server.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS t")
        connection.execute("CREATE TABLE t (a int PRIMARY KEY, b int CHECK (b < 1000))")
        for last, rows in ((999, 1000), (1000, 1000)):
            try:
                with connection.cursor().copy("COPY t FROM STDIN") as copy:
                    for number in range(last + 1):
                        copy.write_row((number + last * 10_000, number))
            except psycopg.errors.CheckViolation as error:
                assert last == 1000
                assert error.diag.constraint_name == "t_b_check"
            assert connection.execute("SELECT count(*) FROM t").fetchall() == [(rows,)]
        connection.execute("DROP TABLE t")
