"""What clients ask on their own: psql's descriptions, drivers' lists, EXPLAIN ANALYZE.

psql must show of shardb what it shows of PostgreSQL, but for the names of the owners.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.support.cluster import Cluster
from tests.support.postgres import Postgres
from tests.support.server import Server

TABLES = """
CREATE TABLE client_item (
    id int4, part text NOT NULL, code char(3) DEFAULT 'ab', price numeric(10, 2) DEFAULT 0,
    name varchar(20) DEFAULT 'none', sold timestamptz DEFAULT now(), note text,
    PRIMARY KEY (id, part)
);
CREATE TABLE client_plain (x float8);
"""
COMMANDS = (
    r"\d client_item",
    r"\d+ client_item",
    r"\d client_item_pkey",
    r"\d client_plain",
    r"\d public.client_*",
    r"\d nosuch",
    r"\dt client_*",
    r"\di client_*",
    r"\dp client_*",
    r"\dn",
    r"\du",
    r"\dT",
    r"\df",
    r"\dv",
    r"\ds",
    r"\db+ nosuch",
    r"\do",
    r"\dd",
    r"\dRp",
)


@pytest.fixture(scope="module")
def both(cluster: Cluster, postgres: Postgres) -> Iterator[tuple[Server, Server]]:
    for running in (cluster, postgres):
        with psycopg.connect(running.url, autocommit=True) as connection:
            for statement in TABLES.split(";")[:-1]:
                connection.execute(statement.encode())
    yield cluster, postgres
    for running in (cluster, postgres):
        with psycopg.connect(running.url, autocommit=True) as connection:
            connection.execute("DROP TABLE client_item")
            connection.execute("DROP TABLE client_plain")


def _shown(server: Server, command: str) -> str:
    found = server.psql("-P", "format=unaligned", "-c", command)
    return re.sub(r"\b(postgres|shardb|pg_database_owner)\b", "OWNER", found.stdout + found.stderr)


@pytest.mark.parametrize("command", COMMANDS)
def test_psql_describes_as_postgres(both: tuple[Server, Server], command: str) -> None:
    ours, theirs = both
    assert _shown(ours, command) == _shown(theirs, command)


def test_psql_lists_the_database(cluster: Cluster) -> None:
    assert "\nOWNER|OWNER|UTF8|" in _shown(cluster, r"\l")


@pytest.fixture
def connection(server: Server) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    with psycopg.connect(server.url, autocommit=True) as opened:
        opened.execute("CREATE TABLE client_list (id int PRIMARY KEY, s text, n numeric(8, 2))")
        opened.execute(
            "INSERT INTO client_list VALUES (1, 'a', 1.5), (2, 'b \"q\"', 2), (3, NULL, 3)"
        )
        yield opened
        opened.execute("DROP TABLE client_list")


@pytest.mark.parametrize("mark", ["%s", "%b", "%t"])
@pytest.mark.parametrize(
    "condition,items,expected",
    [
        ("id = ANY({})", [1, 3, 9], [1, 3]),
        ("id = ANY({})", [], []),
        ("id <> ALL({})", [1, 9], [2, 3]),
        ("s = ANY({})", ["a", 'b "q"', "x,y"], [1, 2]),
        ("id = ANY({}::int8[])", [2, None], [2]),
    ],
)
def test_lists_as_parameters(
    connection: psycopg.Connection[tuple[Any, ...]],
    mark: str,
    condition: str,
    items: list[Any],
    expected: list[int],
) -> None:
    query = f"SELECT id FROM client_list WHERE {condition.format(mark)} ORDER BY id"
    found = connection.execute(query.encode(), [items]).fetchall()
    assert [row[0] for row in found] == expected


def test_change_by_list(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    connection.execute("UPDATE client_list SET n = 0 WHERE id = ANY(%s)", [[1, 2]])
    gone = connection.execute("DELETE FROM client_list WHERE id = ANY(%s)", [[2, 7]])
    assert gone.rowcount == 1
    left = connection.execute("SELECT id, n FROM client_list ORDER BY id").fetchall()
    assert [(row[0], float(row[1])) for row in left] == [(1, 0.0), (3, 3.0)]


def test_explain_analyze_runs_the_statement(
    connection: psycopg.Connection[tuple[Any, ...]],
) -> None:
    query = "EXPLAIN ANALYZE DELETE FROM client_list WHERE id = %s"
    lines = [row[0] for row in connection.execute(query, [1]).fetchall()]
    assert lines[-1].startswith("Execution Time: ")
    found = connection.execute("SELECT count(*) FROM client_list").fetchone()
    assert found == (2,)


def test_settings_by_function(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    found = connection.execute("SELECT set_config('application_name', 'x', false)").fetchone()
    assert found == ("x",)
    assert connection.execute("SHOW application_name").fetchone() == ("x",)
    found = connection.execute("SELECT pg_catalog.current_setting('application_name')").fetchone()
    assert found == ("x",)
