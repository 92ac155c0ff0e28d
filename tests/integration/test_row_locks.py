"""Row locks and advisory locks of several sessions: who waits, who goes on, who is told what.

Schedules are carried out on a real PostgreSQL and on clusters, with the rows on one range and on
two. SQLSTATEs, messages, results and who waits must be the same.
"""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import psycopg
import pytest

from tests.support.cluster import Cluster
from tests.support.postgres import Postgres
from tests.support.schedules import PATIENT_S, SETTLE_S, carry_out, steps_of
from tests.support.server import Server

STRENGTHS = ("KEY SHARE", "SHARE", "NO KEY UPDATE", "UPDATE")

SCHEDULES = {
    "an update of other columns lets key share through": """
        a: BEGIN
        a: UPDATE test SET value = 11 WHERE id = 1
        b: SELECT * FROM test WHERE id = 1 FOR KEY SHARE
        b: SELECT * FROM test WHERE id = 1 FOR SHARE
        a: COMMIT
    """,
    "a delete waits for key share": """
        a: BEGIN
        a: SELECT * FROM test WHERE id = 1 FOR KEY SHARE
        b: UPDATE test SET value = 11 WHERE id = 1
        b: DELETE FROM test WHERE id = 1
        a: COMMIT
        a: SELECT * FROM test
    """,
    "a change of the key waits for key share": """
        a: BEGIN
        a: SELECT * FROM test WHERE id = 1 FOR KEY SHARE
        b: UPDATE test SET id = 0 WHERE id = 1
        a: COMMIT
        a: SELECT * FROM test
    """,
    "nowait": """
        a: BEGIN
        a: SELECT * FROM test WHERE id = 1 FOR UPDATE
        b: SELECT * FROM test WHERE id = 1 FOR UPDATE NOWAIT
        b: SELECT * FROM test ORDER BY value FOR SHARE NOWAIT
        b: SELECT * FROM test WHERE id > 1 FOR SHARE NOWAIT
        a: COMMIT
        b: SELECT * FROM test ORDER BY value FOR SHARE NOWAIT
    """,
    "skip locked": """
        a: BEGIN
        a: SELECT * FROM test WHERE id = 2 FOR UPDATE
        b: SELECT * FROM test WHERE id > 0 FOR UPDATE SKIP LOCKED
        b: SELECT * FROM test ORDER BY value DESC LIMIT 2 FOR UPDATE SKIP LOCKED
        b: SELECT * FROM test WHERE id >= 1 ORDER BY id LIMIT 2 FOR UPDATE SKIP LOCKED
        b: SELECT * FROM test ORDER BY value LIMIT 1 OFFSET 1 FOR UPDATE SKIP LOCKED
        b: SELECT * FROM test ORDER BY value LIMIT 0 FOR UPDATE SKIP LOCKED
        a: ROLLBACK
    """,
    "what changed is looked at again": """
        a: BEGIN
        a: UPDATE test SET value = 15 WHERE id = 1
        b: SELECT * FROM test WHERE value < 12 FOR UPDATE
        a: COMMIT
        a: BEGIN
        a: UPDATE test SET value = 16 WHERE id = 1
        b: SELECT id, value FROM test WHERE value < 18 ORDER BY value FOR UPDATE
        a: COMMIT
    """,
    "what changed in another level is refused": """
        b: BEGIN ISOLATION LEVEL REPEATABLE READ
        b: SELECT * FROM test
        a: UPDATE test SET value = 15 WHERE id = 1
        b: SELECT * FROM test ORDER BY value FOR UPDATE
        b: ROLLBACK
        b: BEGIN ISOLATION LEVEL REPEATABLE READ
        b: SELECT * FROM test
        a: DELETE FROM test WHERE id = 1
        b: SELECT * FROM test WHERE id = 1 FOR SHARE
        b: ROLLBACK
    """,
    "a join locks what it is told to": """
        a: BEGIN
        a: SELECT t.id FROM test t JOIN other o ON o.id = t.id WHERE t.id = 1 FOR UPDATE OF t
        b: SELECT * FROM other WHERE id = 1 FOR UPDATE NOWAIT
        b: SELECT * FROM test WHERE id = 1 FOR UPDATE NOWAIT
        a: SELECT t.id FROM test t JOIN other o ON o.id = t.id WHERE t.id = 1 FOR SHARE OF o
        b: SELECT * FROM other WHERE id = 1 FOR UPDATE NOWAIT
        b: SELECT * FROM other WHERE id = 1 FOR SHARE NOWAIT
        a: COMMIT
    """,
    "a subquery that locks": """
        a: BEGIN
        a: UPDATE test SET value = 1 WHERE id = (SELECT id FROM test ORDER BY id LIMIT 1 FOR UPDATE)
        b: DELETE FROM test WHERE id IN (SELECT id FROM test LIMIT 2 FOR UPDATE SKIP LOCKED)
        b: SELECT * FROM test
        a: COMMIT
        b: SELECT * FROM test
    """,
    "an insert of a row that is only locked fails at once": """
        a: BEGIN
        a: SELECT * FROM test WHERE id = 1 FOR UPDATE
        b: INSERT INTO test VALUES (1, 5) ON CONFLICT DO NOTHING
        b: INSERT INTO test VALUES (1, 5)
        a: COMMIT
    """,
    "an insert waits for another of its key": """
        a: BEGIN
        a: INSERT INTO test VALUES (7, 70)
        b: INSERT INTO test VALUES (7, 71)
        a: COMMIT
        a: BEGIN
        a: INSERT INTO test VALUES (8, 80)
        b: INSERT INTO test VALUES (8, 81)
        a: ROLLBACK
        a: SELECT * FROM test
    """,
    "who shares and wants more": """
        a: BEGIN
        b: BEGIN
        a: SELECT * FROM test WHERE id = 1 FOR SHARE
        b: SELECT * FROM test WHERE id = 1 FOR SHARE
        a: UPDATE test SET value = 1 WHERE id = 1
        b: COMMIT
        a: COMMIT
        a: SELECT * FROM test
    """,
    "a deadlock": """
        a: BEGIN
        a: UPDATE test SET value = 1 WHERE id = 1
        b: BEGIN
        b: UPDATE test SET value = 2 WHERE id = 3
        a: UPDATE test SET value = 1 WHERE id = 3
        b: UPDATE test SET value = 2 WHERE id = 1
        b: ROLLBACK
        a: COMMIT
        a: SELECT * FROM test
    """,
    "a deadlock by query": """
        a: BEGIN
        a: SELECT * FROM test WHERE id = 1 FOR UPDATE
        b: BEGIN
        b: SELECT * FROM test WHERE id = 3 FOR UPDATE
        a: UPDATE test SET value = o.id FROM other o WHERE o.id = test.id AND test.id = 3
        b: UPDATE test SET value = o.id FROM other o WHERE o.id = test.id AND test.id = 1
        b: ROLLBACK
        a: COMMIT
    """,
    "a deadlock of three": """
        a: BEGIN
        a: UPDATE test SET value = 1 WHERE id = 1
        b: BEGIN
        b: UPDATE test SET value = 2 WHERE id = 2
        c: BEGIN
        c: UPDATE test SET value = 3 WHERE id = 3
        a: UPDATE test SET value = 1 WHERE id = 2
        b: UPDATE test SET value = 2 WHERE id = 3
        c: UPDATE test SET value = 3 WHERE id = 1
        c: ROLLBACK
        b: ROLLBACK
        a: COMMIT
    """,
    "a savepoint after a deadlock": """
        a: BEGIN
        a: UPDATE test SET value = 1 WHERE id = 1
        b: BEGIN
        b: UPDATE test SET value = 2 WHERE id = 3
        a: UPDATE test SET value = 1 WHERE id = 3
        b: UPDATE test SET value = 2 WHERE id = 1
        b: SELECT 1
        b: COMMIT
        a: COMMIT
        a: SELECT * FROM test
    """,
    "lock timeout": """
        a: BEGIN
        a: UPDATE test SET value = 1
        b: SET lock_timeout = '50ms'
        b: UPDATE test SET value = 2 WHERE id = 1
        b: UPDATE test SET value = 2
        b: SELECT * FROM test ORDER BY value FOR UPDATE
        b: DELETE FROM test WHERE id IN (SELECT id FROM other)
        b: SELECT pg_advisory_lock(1)
        c: SELECT pg_advisory_lock(2)
        b: SELECT pg_advisory_lock(2)
        b: SELECT pg_advisory_xact_lock_shared(2)
        c: SELECT pg_advisory_unlock(2)
        b: SELECT pg_advisory_lock(2)
        a: ROLLBACK
    """,
    "statement timeout": """
        a: BEGIN
        a: UPDATE test SET value = 1
        c: SELECT pg_advisory_lock(2)
        b: SET statement_timeout = '50ms'
        b: UPDATE test SET value = 2 WHERE id = 1
        b: UPDATE test SET value = 2
        b: SELECT * FROM test ORDER BY value FOR UPDATE
        b: DELETE FROM test WHERE id IN (SELECT id FROM other)
        b: SELECT pg_advisory_lock(2)
        a: ROLLBACK
        c: SELECT pg_advisory_unlock(2)
        b: SET statement_timeout = 0
        b: SELECT pg_try_advisory_lock(2)
    """,
    "advisory locks of sessions": """
        a: SELECT pg_advisory_lock(1)
        b: SELECT pg_try_advisory_lock(1), pg_try_advisory_lock(2), pg_try_advisory_lock(0, 1)
        b: SELECT pg_advisory_lock_shared(1)
        a: SELECT pg_advisory_lock(1)
        a: SELECT pg_advisory_unlock(1)
        a: SELECT pg_advisory_unlock(1)
        a: SELECT pg_advisory_unlock(1)
        a: SELECT pg_try_advisory_lock_shared(1)
        a: SELECT pg_try_advisory_lock(1)
        b: SELECT pg_advisory_unlock_shared(1)
        a: SELECT pg_try_advisory_lock(1)
        b: SELECT pg_advisory_unlock_all()
        a: SELECT pg_try_advisory_lock(2)
        c: SELECT pg_advisory_lock(2)
        a: DISCARD ALL
        c: SELECT pg_advisory_unlock(2)
    """,
    "advisory locks of transactions": """
        a: BEGIN
        a: SELECT pg_advisory_xact_lock(1)
        b: SELECT pg_try_advisory_xact_lock(1)
        b: SELECT pg_advisory_xact_lock(1)
        a: UPDATE test SET value = 7 WHERE id = 1
        a: COMMIT
        a: BEGIN
        a: SELECT pg_advisory_xact_lock(hashtext('job'), 4)
        b: SELECT pg_try_advisory_lock(hashtext('job'), 4)
        a: ROLLBACK
        b: SELECT pg_try_advisory_lock(hashtext('job'), 4)
        a: SELECT pg_advisory_unlock(1)
    """,
    "advisory locks outlive a rollback": """
        a: BEGIN
        a: SELECT pg_advisory_lock(5)
        a: SELECT pg_advisory_xact_lock(6)
        a: ROLLBACK
        b: SELECT pg_try_advisory_lock(5), pg_try_advisory_lock(6)
        a: SELECT pg_advisory_unlock(5)
        b: SELECT pg_try_advisory_lock(5)
    """,
    "a deadlock of advisory locks and a row": """
        a: BEGIN
        a: SELECT pg_advisory_xact_lock(1)
        b: BEGIN
        b: UPDATE test SET value = 2 WHERE id = 1
        a: UPDATE test SET value = 1 WHERE id = 1
        b: SELECT pg_advisory_xact_lock(1)
        b: ROLLBACK
        a: COMMIT
        a: SELECT * FROM test
    """,
}


def make_tables(server: Server, split: bool) -> None:
    where = " WITH (split_at = '2')" if split else ""
    with server.connect() as connection:
        for name in ("test", "other"):
            connection.execute(f"DROP TABLE IF EXISTS {name}")  # type: ignore[call-overload]
            connection.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, value int){where}")  # type: ignore[call-overload]
            connection.execute(f"INSERT INTO {name} VALUES (1, 10), (2, 20), (3, 30)")  # type: ignore[call-overload]
            # The first query of the engine takes its time, which is not to be taken for a wait.
            connection.execute(f"SELECT id FROM {name} ORDER BY value FOR UPDATE")  # type: ignore[call-overload]


def trace_of(
    server: Server, text: str, split: bool, settle_s: float = SETTLE_S
) -> list[tuple[Any, ...]]:
    make_tables(server, split)
    settings = "SET deadlock_timeout = '20ms'\n" if server.name == "postgresql" else ""
    steps = steps_of(text)
    sessions = dict.fromkeys(step.session for step in steps)
    first = steps_of("\n".join(f"{s}: {line}" for s in sessions for line in settings.splitlines()))
    return carry_out(server, [*first, *steps], settle_s)[len(first) :]


def assert_as_postgres(cluster: Cluster, postgres: Postgres, text: str, split: bool) -> None:
    """On a busy machine what is slow looks as if it waited: then once more with patience."""
    expected = trace_of(postgres, text, split=False)
    if trace_of(cluster, text, split) != expected:
        assert trace_of(cluster, text, split, PATIENT_S) == expected


@pytest.mark.parametrize("split", [False, True], ids=["one range", "two ranges"])
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_locks_are_those_of_postgres(
    cluster: Cluster, postgres: Postgres, name: str, split: bool
) -> None:
    assert_as_postgres(cluster, postgres, SCHEDULES[name], split)


@pytest.mark.parametrize("wanted", STRENGTHS)
@pytest.mark.parametrize("held", STRENGTHS)
def test_strengths_conflict_as_in_postgres(
    cluster: Cluster, postgres: Postgres, held: str, wanted: str
) -> None:
    text = f"""
        a: BEGIN
        a: SELECT * FROM test WHERE id = 1 FOR {held}
        b: SELECT * FROM test WHERE id = 1 FOR {wanted} NOWAIT
        b: SELECT * FROM test ORDER BY value LIMIT 1 FOR {wanted} NOWAIT
        a: ROLLBACK
    """
    assert_as_postgres(cluster, postgres, text, split=True)


REFUSED = [
    "SELECT count(*) FROM test FOR UPDATE",
    "SELECT DISTINCT value FROM test FOR SHARE",
    "SELECT value FROM test GROUP BY value FOR KEY SHARE",
    "SELECT 1 FROM test HAVING true FOR UPDATE",
    "SELECT max(value) OVER () FROM test FOR NO KEY UPDATE",
    "SELECT id FROM test UNION SELECT id FROM other FOR UPDATE",
    "SELECT t.id FROM test t LEFT JOIN other o ON o.id = t.id FOR UPDATE",
    "SELECT id FROM test FOR UPDATE OF nobody",
    "WITH w AS (SELECT 1 AS x) SELECT * FROM test, w FOR UPDATE OF w",
]


@pytest.mark.parametrize("sql", REFUSED)
def test_what_cannot_be_locked_is_refused_in_the_same_words(
    cluster: Cluster, postgres: Postgres, sql: str
) -> None:
    def error(server: Server) -> tuple[object, ...]:
        make_tables(server, False)
        with server.connect() as connection, pytest.raises(psycopg.Error) as caught:
            connection.execute(sql)  # type: ignore[call-overload]
        return caught.value.sqlstate, caught.value.diag.message_primary

    assert error(cluster) == error(postgres)


def test_a_deadlock_names_the_processes(server: Server) -> None:
    make_tables(server, server.name == "shardb")
    with server.connect() as a, server.connect() as b:
        for connection, ident in ((a, 1), (b, 3)):
            if server.name == "postgresql":
                connection.execute("SET deadlock_timeout = '20ms'")
            connection.execute("BEGIN")
            connection.execute("UPDATE test SET value = 0 WHERE id = %s", (ident,))
        waiting = threading.Thread(
            target=a.execute, args=("UPDATE test SET value = 1 WHERE id = 3",)
        )
        waiting.start()
        time.sleep(0.2)
        begun = time.monotonic()
        with pytest.raises(psycopg.errors.DeadlockDetected) as caught:
            b.execute("UPDATE test SET value = 2 WHERE id = 1")
        assert time.monotonic() - begun < 3
        b.execute("ROLLBACK")
        waiting.join()
        a.execute("ROLLBACK")
        diag = caught.value.diag
        pids = a.info.backend_pid, b.info.backend_pid
        detail = re.sub(r"transaction \d+", "transaction N", diag.message_detail or "")
        assert detail.splitlines() == [
            f"Process {one} waits for ShareLock on transaction N; blocked by process {other}."
            for one, other in (pids[::-1], pids)
        ]
        assert diag.message_hint == "See server log for query details."


POPS = {
    "by select and delete": None,
    "by delete": """DELETE FROM queue WHERE id = (SELECT id FROM queue ORDER BY id LIMIT 1
        FOR UPDATE SKIP LOCKED) RETURNING id""",
    "by update": """UPDATE queue SET state = 'done' WHERE id IN (SELECT id FROM queue
        WHERE state = 'new' ORDER BY id LIMIT 3 FOR UPDATE SKIP LOCKED) RETURNING id""",
}


@pytest.mark.parametrize("how", list(POPS))
def test_workers_pop_each_row_of_a_queue_once(cluster: Cluster, how: str) -> None:
    rows, workers = 120, 8
    with cluster.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS queue")
        connection.execute(
            "CREATE TABLE queue (id int PRIMARY KEY, state text) WITH (split_at = '60')"
        )
        connection.execute(
            "INSERT INTO queue SELECT i, 'new' FROM generate_series(1, %s) g(i)", (rows,)
        )
    popped: list[int] = []

    def pop(connection: psycopg.Connection[Any]) -> list[int]:
        text = POPS[how]
        with connection.transaction():
            if text is not None:
                return [row[0] for row in connection.execute(text)]
            found = connection.execute(
                "SELECT id FROM queue ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED"
            ).fetchall()
            for row in found:
                connection.execute("DELETE FROM queue WHERE id = %s", row)
            return [row[0] for row in found]

    errors: list[BaseException] = []

    def work() -> None:
        try:
            with cluster.connect() as connection:
                while got := pop(connection):
                    popped.extend(got)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert sorted(popped) == list(range(1, rows + 1))


def test_locks_and_waits_are_listed(server: Server) -> None:
    query = (
        "SELECT pid, mode, granted, classid, objid, objsubid FROM pg_locks "
        "WHERE locktype = 'advisory' ORDER BY granted DESC, objsubid"
    )
    with server.connect() as a, server.connect() as b:
        a.execute("SELECT pg_advisory_lock(4294967299), pg_advisory_lock_shared(-1, 2)")
        waiting = threading.Thread(target=b.execute, args=("SELECT pg_advisory_lock(4294967299)",))
        waiting.start()
        time.sleep(0.3)
        pids = a.info.backend_pid, b.info.backend_pid
        assert a.execute(query).fetchall() == [
            (pids[0], "ExclusiveLock", True, 1, 3, 1),
            (pids[0], "ShareLock", True, 4294967295, 2, 2),
            (pids[1], "ExclusiveLock", False, 1, 3, 1),
        ]
        states = a.execute(
            "SELECT pid, state, wait_event_type, wait_event FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' ORDER BY pid"
        ).fetchall()
        assert (pids[1], "active", "Lock", "advisory") in states
        assert any(row[:2] == (pids[0], "active") for row in states)
        a.execute("SELECT pg_advisory_unlock_all()")
        waiting.join()


def test_who_loses_advisory_locks_with_a_shard_is_told(cluster: Cluster) -> None:
    with cluster.connect() as holder, cluster.connect() as bystander:
        holder.execute("BEGIN")
        for number in range(16):  # of both shards, whichever they are on
            holder.execute("SELECT pg_advisory_lock(%s)", (number,))
        holder.execute("COMMIT")
        bystander.execute("SELECT 1")
        cluster.kill_child("shardb.node", 1)
        time.sleep(0.5)
        with pytest.raises(psycopg.OperationalError) as caught:
            holder.execute("SELECT 1")
        assert caught.value.sqlstate == "57P02"
        end = time.monotonic() + 10
        while True:
            try:
                row = bystander.execute("SELECT pg_try_advisory_lock(3)").fetchone()
                break
            except psycopg.Error:
                assert time.monotonic() < end
                time.sleep(0.1)
        assert row == (True,)
