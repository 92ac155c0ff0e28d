"""ALTER TABLE ... ADD and DROP COLUMN: the same statements on PostgreSQL and on shardb.

Each script is run on both, and every statement must give the same rows, notices or error. The rows
of a table are written before, between and after the changes, so that several row layouts are read.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.cluster import Cluster
from tests.support.postgres import Postgres
from tests.support.server import Server

COLUMNS = (
    "SELECT column_name, ordinal_position, column_default, is_nullable, data_type "
    "FROM information_schema.columns WHERE table_name = 'a' ORDER BY ordinal_position"
)
ATTRIBUTES = (
    "SELECT attname, attnum, atttypmod, attnotnull, atthasdef, atthasmissing "
    "FROM pg_attribute WHERE attrelid = 'a'::regclass AND attnum > 0 AND NOT attisdropped "
    "ORDER BY attnum"
)

SCRIPTS: dict[str, list[str]] = {
    "columns come and go": [
        "CREATE TABLE a (id int PRIMARY KEY, x text, y int)",
        "INSERT INTO a SELECT i, 'x' || i, i * 10 FROM generate_series(1, 20) AS s(i)",
        "ALTER TABLE a ADD COLUMN z int DEFAULT 7",
        "SELECT * FROM a WHERE id <= 3 ORDER BY id",
        "INSERT INTO a VALUES (21, 'new', 210, 1), (22, 'new', 220, NULL)",
        "INSERT INTO a (id) VALUES (23)",
        "SELECT * FROM a WHERE id >= 19 ORDER BY id",
        "UPDATE a SET z = z + 1 WHERE id IN (1, 21)",
        "SELECT z, count(*) FROM a GROUP BY z ORDER BY z",
        "ALTER TABLE a DROP COLUMN x",
        "SELECT * FROM a WHERE id IN (1, 2, 21, 23) ORDER BY id",
        "SELECT x FROM a",
        "INSERT INTO a VALUES (24, 240, 9)",
        "ALTER TABLE a ADD x date, ADD w varchar(5) NOT NULL DEFAULT 'abc', DROP y",
        "SELECT * FROM a ORDER BY id",
        "SELECT w, x FROM a WHERE id = 1",
        "UPDATE a SET x = '2020-02-29', w = 'zz' WHERE id < 3",
        "DELETE FROM a WHERE z = 7 AND id > 10",
        "SELECT * FROM a ORDER BY id",
        "SELECT count(*), min(z), max(w) FROM a WHERE x IS NULL",
        COLUMNS,
        ATTRIBUTES,
        "ALTER TABLE a DROP z, DROP x, DROP w",
        "SELECT * FROM a ORDER BY id LIMIT 3",
        "TRUNCATE a",
        "ALTER TABLE a ADD n numeric(6,2) NOT NULL",
        "INSERT INTO a VALUES (1, 12.345)",
        "SELECT * FROM a",
        COLUMNS,
        "DROP TABLE a",
    ],
    "without a key": [
        "CREATE TABLE a (x int, y text)",
        "INSERT INTO a VALUES (1, 'one'), (2, 'two')",
        "ALTER TABLE a ADD COLUMN z float8 DEFAULT 0.5, ADD COLUMN b bool",
        "INSERT INTO a VALUES (3, 'three', 1.5, true)",
        "SELECT * FROM a ORDER BY x",
        "ALTER TABLE a DROP COLUMN x",
        "INSERT INTO a SELECT y || '!', z, NOT b FROM a",
        "SELECT * FROM a ORDER BY y",
        "UPDATE a SET b = false WHERE b IS NULL",
        "SELECT y, b FROM a ORDER BY y",
        COLUMNS,
        "DELETE FROM a WHERE y LIKE '%!'",
        "ALTER TABLE a ADD PRIMARY KEY (y)",
        "SELECT * FROM a WHERE y = 'two'",
        "ALTER TABLE a ADD x int DEFAULT 5",
        "SELECT * FROM a ORDER BY y",
        "DROP TABLE a",
    ],
    "defaults": [
        "CREATE TABLE a (id int PRIMARY KEY)",
        "INSERT INTO a VALUES (1)",
        "ALTER TABLE a ADD i2 int2 DEFAULT 1 + 2, ADD i8 int8 DEFAULT -9223372036854775808",
        "ALTER TABLE a ADD n numeric(8,3) DEFAULT 10 / 4.0, ADD f float4 DEFAULT 1e10",
        "ALTER TABLE a ADD c char(4) DEFAULT 'ab', ADD v varchar DEFAULT upper('q') || 'r'",
        "ALTER TABLE a ADD d date DEFAULT '2024-02-29', ADD t timestamp DEFAULT '2024-01-01 12:30'",
        "ALTER TABLE a ADD tz timestamptz DEFAULT '2024-01-01 12:30+02'",
        "ALTER TABLE a ADD tm time DEFAULT '1:02'",
        "ALTER TABLE a ADD u uuid DEFAULT '00000000-0000-0000-0000-0000000000ff'",
        "ALTER TABLE a ADD y bytea DEFAULT '\\x00ff', ADD j jsonb DEFAULT '{\"b\": 1, \"a\": [2]}'",
        "ALTER TABLE a ADD iv interval DEFAULT '1 month 2 days', ADD q text DEFAULT 'it''s'",
        "ALTER TABLE a ADD nothing int DEFAULT NULL, ADD b bool DEFAULT 1 < 2",
        "SELECT * FROM a",
        "INSERT INTO a (id) VALUES (2)",
        "SELECT * FROM a WHERE id = 2",
        "SELECT count(DISTINCT i2), count(DISTINCT c), count(DISTINCT u) FROM a",
        "ALTER TABLE a ADD stamp timestamptz NOT NULL DEFAULT now()",
        "SELECT count(DISTINCT stamp), count(*) FROM a",
        "INSERT INTO a (id) VALUES (3)",
        "SELECT count(DISTINCT stamp), count(*) FROM a",
        "DROP TABLE a",
    ],
    "refusals": [
        "CREATE TABLE a (id int PRIMARY KEY, x text)",
        "INSERT INTO a VALUES (1, 'one')",
        "ALTER TABLE nope ADD z int",
        "ALTER TABLE IF EXISTS nope ADD z int",
        "ALTER TABLE IF EXISTS nope DROP z",
        "ALTER TABLE a ADD COLUMN x int",
        "ALTER TABLE a ADD COLUMN IF NOT EXISTS x int",
        "ALTER TABLE a DROP COLUMN z",
        "ALTER TABLE a DROP COLUMN IF EXISTS z",
        "ALTER TABLE a ADD z int NOT NULL",
        "ALTER TABLE a ADD z int NOT NULL DEFAULT NULL",
        "ALTER TABLE a ADD z int NULL NOT NULL",
        "ALTER TABLE a ADD z nosuchtype",
        "ALTER TABLE a ADD z int DEFAULT 'abc'",
        "ALTER TABLE a ADD z int DEFAULT nosuch()",
        "ALTER TABLE a ADD z varchar(3) DEFAULT 'abcd'",
        "ALTER TABLE a ADD z int2 DEFAULT 100000",
        "ALTER TABLE a ADD z int, ADD z text",
        "ALTER TABLE a DROP x, DROP x",
        "ALTER TABLE a ADD w int, DROP w",
        "ALTER TABLE a ADD",
        "ALTER TABLE a DROP x,",
        "ALTER TABLE a NONSENSE",
        "SELECT * FROM a",
        "ALTER TABLE a DROP x, ADD x int DEFAULT 4",
        "SELECT * FROM a",
        COLUMNS,
        "DROP TABLE a",
    ],
    "more than a row group": [
        "CREATE TABLE a (id int PRIMARY KEY, x int, y text)",
        "INSERT INTO a SELECT i, i % 100, 'y' || i FROM generate_series(1, 5000) AS s(i)",
        "ALTER TABLE a ADD z int NOT NULL DEFAULT 3",
        "INSERT INTO a SELECT i, i % 100, 'y' || i, 4 FROM generate_series(5001, 10000) AS s(i)",
        "ALTER TABLE a DROP y",
        "SELECT z, count(*), sum(x) FROM a GROUP BY z ORDER BY z",
        "UPDATE a SET z = x WHERE x BETWEEN 10 AND 19",
        "SELECT z, count(*) FROM a WHERE z > 3 AND z < 15 GROUP BY z ORDER BY z",
        "DELETE FROM a WHERE z = 3",
        "SELECT count(*), min(id), max(id) FROM a",
        "DROP TABLE a",
    ],
}


def outcome(connection: psycopg.Connection[Any], notices: list[str], statement: str) -> Any:
    """What a statement gives: its rows or tag, its error, and its notices."""
    notices.clear()
    result: Any
    try:
        cursor = connection.execute(statement)
        result = cursor.fetchall() if cursor.description else cursor.statusmessage
    except psycopg.Error as error:
        result = error.sqlstate, error.diag.message_primary
    return statement, result, list(notices)


def transcript(server: Server, script: list[str]) -> list[Any]:
    """The outcomes of a script's statements."""
    notices: list[str] = []
    with server.connect() as connection:
        connection.add_notice_handler(
            lambda notice: notices.append(f"{notice.severity} {notice.message_primary}")
        )
        connection.execute("DROP TABLE IF EXISTS a")
        return [outcome(connection, notices, statement) for statement in script]


@pytest.mark.parametrize("name", SCRIPTS)
def test_alter_table_is_as_in_postgres(cluster: Cluster, postgres: Postgres, name: str) -> None:
    ours, theirs = (transcript(server, SCRIPTS[name]) for server in (cluster, postgres))
    for one, other in zip(ours, theirs, strict=True):
        assert one == other


@pytest.mark.parametrize(
    "statement", ["SELECT * FROM a ORDER BY id", "SELECT * FROM a WHERE x > 0"]
)
def test_psql_shows_the_columns(cluster: Cluster, postgres: Postgres, statement: str) -> None:
    shown = []
    for server in (cluster, postgres):
        transcript(
            server,
            [
                "CREATE TABLE a (id int PRIMARY KEY, x int, y text)",
                "INSERT INTO a VALUES (1, 2, 'three')",
                "ALTER TABLE a ADD z varchar(8) DEFAULT 'q', DROP y",
            ],
        )
        shown.append(server.psql("-c", r"\d a", "-c", statement).stdout)
    assert shown[0] == shown[1]


def test_prepared_statements_meet_changed_columns(server: Server) -> None:
    with server.connect(prepare_threshold=0) as connection:
        connection.execute("DROP TABLE IF EXISTS a")
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, x int, y int)")
        connection.execute("INSERT INTO a VALUES (1, 10, 100), (2, 20, 200)")
        one = "SELECT y FROM a WHERE id = %s"
        many = "SELECT * FROM a WHERE x >= %s"
        assert connection.execute(one, (1,)).fetchall() == [(100,)]
        assert connection.execute(many, (15,)).fetchall() == [(2, 20, 200)]
        with server.connect() as other:
            other.execute("ALTER TABLE a DROP x, ADD x int DEFAULT 30")
        assert connection.execute(one, (2,)).fetchall() == [(200,)]
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            connection.execute("SELECT * FROM a WHERE x >= %s", (15,))
        connection.execute("DEALLOCATE ALL")
        assert len(connection.execute("SELECT id, y, x FROM a WHERE x >= 15").fetchall()) == 2
        connection.execute("DROP TABLE a")


def test_changes_wait_for_writers_and_writers_for_them(cluster: Cluster) -> None:
    with cluster.connect() as one, cluster.connect() as other:
        one.execute("DROP TABLE IF EXISTS a")
        one.execute("CREATE TABLE a (id int PRIMARY KEY, x int)")
        one.execute("BEGIN")
        one.execute("INSERT INTO a VALUES (1, 1)")
        other.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute("ALTER TABLE a ADD y int NOT NULL")
        with pytest.raises(psycopg.errors.ObjectInUse):
            one.execute("ALTER TABLE a ADD y int")
        one.execute("ROLLBACK")
        other.execute("ALTER TABLE a ADD y int NOT NULL")
        with pytest.raises(psycopg.errors.NotNullViolation):
            one.execute("INSERT INTO a VALUES (1, 1)")
        one.execute("DROP TABLE a")


class Worker(threading.Thread):
    """Runs a function over and over until told to stop; keeps the first error."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        super().__init__()
        self.cluster = cluster
        self.number = number
        self.stop = threading.Event()
        self.rounds = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with self.cluster.connect() as connection:
                while not self.stop.is_set():
                    self.rounds += 1
                    self.round(connection)
        except BaseException as error:
            self.error = error

    def round(self, connection: psycopg.Connection[Any]) -> None:
        key = self.number * 1_000_000 + self.rounds
        connection.execute(f"INSERT INTO a (id, x) VALUES ({key}, {self.rounds})")
        connection.execute(f"UPDATE a SET x = x + 1 WHERE id = {key}")


class Reader(Worker):
    def round(self, connection: psycopg.Connection[Any]) -> None:
        (count, total) = connection.execute("SELECT count(x), sum(x) FROM a WHERE x < 0").fetchone()  # type: ignore[misc]
        assert (count, total) == (100, -5050)
        key = self.rounds % 100 + 1
        assert connection.execute(f"SELECT x FROM a WHERE id = {key}").fetchall() == [(-key,)]


def test_readers_and_writers_go_on_beside_changes(cluster: Cluster) -> None:
    with cluster.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS a")
        connection.execute(
            "CREATE TABLE a (id int PRIMARY KEY, gone text, x int) WITH (split_at = '50, 1500000')"
        )
        connection.execute("INSERT INTO a SELECT i, 'g', -i FROM generate_series(1, 100) AS s(i)")
        workers = [Worker(cluster, 1), Worker(cluster, 2), Reader(cluster, 3), Reader(cluster, 4)]
        for worker in workers:
            worker.start()
        try:
            for number in range(10):
                connection.execute(f"ALTER TABLE a ADD c{number} int DEFAULT {number}")
                if number % 2:
                    connection.execute(f"ALTER TABLE a DROP c{number - 1}")
            connection.execute("ALTER TABLE a DROP gone")
        finally:
            for worker in workers:
                worker.stop.set()
            for worker in workers:
                worker.join(30)
        for worker in workers:
            if worker.error is not None:
                raise worker.error
        written = sum(worker.rounds for worker in workers[:2])
        row = connection.execute("SELECT count(*), min(c9), max(c1) FROM a").fetchone()
        assert row == (100 + written, 9, 1)
        connection.execute("DROP TABLE a")


def test_a_change_that_fails_changes_nothing(tmp_path: Path) -> None:
    """One shard has learned of it, the other has not; then another change takes its place."""
    with Cluster(tmp_path) as own, own.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, x int) WITH (split_at = '3')")
        connection.execute("INSERT INTO a VALUES (1, 1), (5, 5)")
        connection.execute("ALTER TABLE a ADD y int DEFAULT 7")
        os.kill(own.child("shardb.node", 2), signal.SIGSTOP)
        try:
            connection.execute("SET statement_timeout = '1s'")
            with pytest.raises(psycopg.errors.QueryCanceled):
                connection.execute("ALTER TABLE a DROP y, ADD z int DEFAULT 9")
        finally:
            os.kill(own.child("shardb.node", 2), signal.SIGCONT)
        connection.execute("SET statement_timeout = 0")
        rows = [(1, 1, 7), (5, 5, 7)]
        assert connection.execute("SELECT * FROM a ORDER BY id").fetchall() == rows
        assert connection.execute("SELECT * FROM a WHERE id = 1").fetchall() == rows[:1]
        connection.execute("INSERT INTO a VALUES (2, 2, 2), (6, 6, NULL)")
        connection.execute("UPDATE a SET x = 0 WHERE id = 1")
        own.kill_child("shardb.node", 1)
        connection.execute("ALTER TABLE a ADD w text DEFAULT 'w'")
        connection.execute("INSERT INTO a VALUES (3, 3, 3, 'v')")
        rows = [(1, 0, 7, "w"), (2, 2, 2, "w"), (3, 3, 3, "v"), (5, 5, 7, "w"), (6, 6, None, "w")]
        assert connection.execute("SELECT * FROM a ORDER BY id").fetchall() == rows
        own.kill_child("shardb.node", 1)
        assert connection.execute("SELECT * FROM a ORDER BY id").fetchall() == rows


def test_rows_of_all_layouts_are_there_after_a_crash(tmp_path: Path) -> None:
    with Cluster(tmp_path) as own:
        with own.connect() as connection:
            connection.execute(
                "CREATE TABLE a (id int PRIMARY KEY, x text, y int) WITH (split_at = '3')"
            )
            connection.execute("INSERT INTO a VALUES (1, 'one', 1), (5, 'five', 5)")
            connection.execute("ALTER TABLE a ADD z int DEFAULT 9")
            connection.execute("INSERT INTO a VALUES (2, 'two', 2, 2), (6, 'six', 6, 6)")
            connection.execute("ALTER TABLE a DROP x, ADD w text DEFAULT 'w'")
            connection.execute("BEGIN")
            connection.execute("INSERT INTO a VALUES (3, 3, 3, NULL), (7, 7, 7, 'v')")
            connection.execute("UPDATE a SET y = 0 WHERE id IN (1, 6)")
            connection.execute("COMMIT")
        own.kill_all()
        own.start()
        with own.connect() as connection:
            assert connection.execute("SELECT * FROM a ORDER BY id").fetchall() == [
                (1, 0, 9, "w"),
                (2, 2, 2, "w"),
                (3, 3, 3, None),
                (5, 5, 9, "w"),
                (6, 0, 6, "w"),
                (7, 7, 7, "v"),
            ]
            connection.execute("ALTER TABLE a DROP z")
            assert connection.execute("SELECT * FROM a WHERE id = 5").fetchall() == [(5, 5, "w")]


def test_compression_is_an_option_of_tables(cluster: Cluster) -> None:
    with cluster.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS a")
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            connection.execute("CREATE TABLE a (id int) WITH (compression = 'gzip')")
        connection.execute("CREATE TABLE a (id int PRIMARY KEY) WITH (compression = 'zstd')")
        connection.execute("INSERT INTO a VALUES (1)")
        connection.execute("ALTER TABLE a SET (compression = lz4)")
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            connection.execute("ALTER TABLE a SET (compression = 'gzip')")
        assert connection.execute("SELECT * FROM a").fetchall() == [(1,)]
        connection.execute("DROP TABLE a")
