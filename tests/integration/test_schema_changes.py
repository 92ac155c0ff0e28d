"""Schema changes beside writers and within transactions: nothing acknowledged is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.support.cluster import Cluster
from tests.support.server import Server

WRITERS = 4
ROWS_BEFORE = 2_000


@pytest.fixture
def table(cluster: Cluster) -> Iterator[str]:
    """A table without a key and with some rows."""
    with cluster.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS changing")
        connection.execute("CREATE TABLE changing (id int8 NOT NULL, note text)")
        connection.execute(
            "INSERT INTO changing SELECT i, 'old' FROM generate_series(1, %s) AS s(i)".replace(
                "%s", str(ROWS_BEFORE)
            )
        )
    yield "changing"
    with cluster.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS changing")


class Writer(threading.Thread):
    """Inserts rows of its own numbers until it is told to stop; keeps what was acknowledged."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        super().__init__()
        self.cluster = cluster
        self.number = number
        self.stop = threading.Event()
        self.acknowledged: list[int] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        ident = self.number * 1_000_000
        try:
            with self.cluster.connect() as connection:
                while not self.stop.is_set():
                    ident += 1
                    if ident % 3:
                        insert(connection, ident)
                        self.acknowledged.append(ident)
                        continue
                    with connection.transaction():
                        insert(connection, ident)
                        time.sleep(0.002)
                        insert(connection, -ident)
                    self.acknowledged += [ident, -ident]
        except BaseException as error:
            self.error = error


def insert(connection: psycopg.Connection[Any], ident: int) -> None:
    connection.execute("INSERT INTO changing (id, note) VALUES (%s, 'new')", (ident,))


def test_adding_a_key_loses_no_row_of_concurrent_writers(cluster: Cluster, table: str) -> None:
    writers = [Writer(cluster, number + 1) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        time.sleep(0.3)
        with cluster.connect() as connection:
            connection.execute("ALTER TABLE changing ADD PRIMARY KEY (id)")
        time.sleep(0.2)
    finally:
        for writer in writers:
            writer.stop.set()
        for writer in writers:
            writer.join(30)
    assert [writer.error for writer in writers] == [None] * WRITERS
    expected = set(range(1, ROWS_BEFORE + 1))
    for writer in writers:
        expected.update(writer.acknowledged)
    with cluster.connect() as connection:
        rows = [row[0] for row in connection.execute("SELECT id FROM changing")]
    assert len(rows) == len(set(rows))
    assert set(rows) == expected


def test_adding_a_key_waits_for_a_transaction_that_wrote(cluster: Cluster, table: str) -> None:
    with cluster.connect() as one, cluster.connect() as other, cluster.connect() as third:
        one.execute("BEGIN")
        insert(one, -1)
        changed = threading.Thread(
            target=other.execute, args=("ALTER TABLE changing ADD PRIMARY KEY (id)",)
        )
        changed.start()
        time.sleep(0.2)
        late = threading.Thread(target=insert, args=(third, -3))
        late.start()
        time.sleep(0.2)
        assert changed.is_alive() and late.is_alive()
        insert(one, -2)  # a transaction that is in goes on
        one.execute("COMMIT")
        changed.join(20)
        late.join(20)
        found = one.execute("SELECT id FROM changing WHERE id < 0 ORDER BY id").fetchall()
        assert found == [(-3,), (-2,), (-1,)]


@pytest.mark.parametrize(
    "change",
    ["ALTER TABLE changing ADD PRIMARY KEY (id)", "TRUNCATE changing", "DROP TABLE changing"],
)
def test_a_change_gives_up_after_lock_timeout(cluster: Cluster, table: str, change: str) -> None:
    with cluster.connect() as one, cluster.connect() as other:
        one.execute("BEGIN")
        insert(one, -1)
        other.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute(change)
        insert(one, -2)
        one.execute("COMMIT")
        assert other.execute("SELECT count(*) FROM changing WHERE id < 0").fetchone() == (2,)
        other.execute(change)


def test_a_change_of_what_the_own_transaction_wrote_is_refused(
    cluster: Cluster, table: str
) -> None:
    with cluster.connect() as connection:
        connection.execute("BEGIN")
        insert(connection, -1)
        with pytest.raises(psycopg.errors.ObjectInUse):
            connection.execute("DROP TABLE changing")
        connection.execute("ROLLBACK")


def test_changes_within_a_block_warn_that_they_stay(cluster: Cluster) -> None:
    notices: list[str] = []
    with cluster.connect() as connection:
        connection.add_notice_handler(
            lambda notice: notices.append(f"{notice.severity} {notice.message_primary}")
        )
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE stays (id int4 PRIMARY KEY)")
        connection.execute("ROLLBACK")
        assert notices == ["WARNING CREATE TABLE takes effect at once and cannot be rolled back"]
        assert connection.execute("SELECT count(*) FROM stays").fetchone() == (0,)
        connection.execute("DROP TABLE stays")
        assert len(notices) == 1


def test_truncate_in_a_transaction_is_undone_by_rollback(server: Server) -> None:
    with server.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS emptied")
        connection.execute("CREATE TABLE emptied (id int4 PRIMARY KEY)")
        connection.execute("INSERT INTO emptied SELECT i FROM generate_series(1, 1000) AS s(i)")
        connection.execute("BEGIN")
        connection.execute("TRUNCATE emptied")
        assert connection.execute("SELECT count(*) FROM emptied").fetchone() == (0,)
        connection.execute("INSERT INTO emptied VALUES (1)")
        connection.execute("ROLLBACK")
        assert connection.execute("SELECT count(*) FROM emptied").fetchone() == (1000,)
        connection.execute("BEGIN")
        connection.execute("TRUNCATE emptied")
        with connection.cursor() as cursor, cursor.copy("COPY emptied FROM STDIN") as copy:
            copy.write("".join(f"{i}\n" for i in range(500, 2000)))
        connection.execute("COMMIT")
        assert connection.execute("SELECT count(*), min(id) FROM emptied").fetchone() == (1500, 500)
        connection.execute("DROP TABLE emptied")
