"""The anomalies of the literature at each level: what PostgreSQL does, and shardb as it does.

Cases after Hermitage (Kleppmann, 2014), whose names are Adya's (1999), and long fork. Under
SERIALIZABLE systems differ in whom they refuse; there the outcome must be one that some order of
the committed transactions one after another has.
"""

from __future__ import annotations

import itertools
from typing import Any

import psycopg
import pytest

from tests.support.cluster import Cluster
from tests.support.postgres import Postgres
from tests.support.schedules import PATIENT_S, SETTLE_S, carry_out, steps_of
from tests.support.server import Server

READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE = (
    "READ COMMITTED",
    "REPEATABLE READ",
    "SERIALIZABLE",
)

CASES = {
    "G0 dirty write": """
        a: UPDATE test SET value = 11 WHERE id = 1
        b: UPDATE test SET value = 12 WHERE id = 1
        a: UPDATE test SET value = 21 WHERE id = 2
        a: COMMIT
        a: SELECT * FROM test
        b: UPDATE test SET value = 22 WHERE id = 2
        b: COMMIT
    """,
    "G1a aborted read": """
        a: UPDATE test SET value = 101 WHERE id = 1
        b: SELECT * FROM test
        a: ROLLBACK
        b: SELECT * FROM test
        b: COMMIT
    """,
    "G1b intermediate read": """
        a: UPDATE test SET value = 101 WHERE id = 1
        b: SELECT * FROM test
        a: UPDATE test SET value = 11 WHERE id = 1
        a: COMMIT
        b: SELECT * FROM test
        b: COMMIT
    """,
    "G1c circular information flow": """
        a: UPDATE test SET value = 11 WHERE id = 1
        b: UPDATE test SET value = 22 WHERE id = 2
        a: SELECT * FROM test WHERE id = 2
        b: SELECT * FROM test WHERE id = 1
        a: COMMIT
        b: COMMIT
    """,
    "OTV observed transaction vanishes": """
        a: UPDATE test SET value = 11 WHERE id = 1
        a: UPDATE test SET value = 19 WHERE id = 2
        b: UPDATE test SET value = 12 WHERE id = 1
        a: COMMIT
        c: SELECT * FROM test WHERE id = 1
        b: UPDATE test SET value = 18 WHERE id = 2
        c: SELECT * FROM test WHERE id = 2
        b: COMMIT
        c: SELECT * FROM test WHERE id = 2
        c: SELECT * FROM test WHERE id = 1
        c: COMMIT
    """,
    "PMP phantom read": """
        a: SELECT * FROM test WHERE value = 30
        b: INSERT INTO test VALUES (3, 30)
        b: COMMIT
        a: SELECT * FROM test WHERE value % 3 = 0
        a: COMMIT
    """,
    "PMP phantom of a write": """
        a: UPDATE test SET value = value + 10
        b: DELETE FROM test WHERE value = 20
        a: COMMIT
        b: SELECT * FROM test WHERE value = 20
        b: COMMIT
    """,
    "P4 lost update": """
        a: SELECT * FROM test WHERE id = 1
        b: SELECT * FROM test WHERE id = 1
        a: UPDATE test SET value = 11 WHERE id = 1
        b: UPDATE test SET value = 11 WHERE id = 1
        a: COMMIT
        b: COMMIT
    """,
    "P4 lost update by key and filter": """
        a: SELECT * FROM test
        b: SELECT * FROM test
        a: UPDATE test SET value = value + 1 WHERE id = 1 AND value = 10
        a: COMMIT
        b: UPDATE test SET value = value + 1 WHERE id = 1 AND value = 10
        b: COMMIT
    """,
    "G-single read skew": """
        a: SELECT * FROM test WHERE id = 1
        b: SELECT * FROM test WHERE id = 1
        b: SELECT * FROM test WHERE id = 2
        b: UPDATE test SET value = 12 WHERE id = 1
        b: UPDATE test SET value = 18 WHERE id = 2
        b: COMMIT
        a: SELECT * FROM test WHERE id = 2
        a: COMMIT
    """,
    "G-single read skew by predicate": """
        a: SELECT * FROM test WHERE value % 5 = 0
        b: UPDATE test SET value = 12 WHERE value = 10
        b: COMMIT
        a: SELECT * FROM test WHERE value % 3 = 0
        a: COMMIT
    """,
    "G-single read skew and a write": """
        a: SELECT * FROM test WHERE id = 1
        b: SELECT * FROM test
        b: UPDATE test SET value = 12 WHERE id = 1
        b: UPDATE test SET value = 18 WHERE id = 2
        b: COMMIT
        a: DELETE FROM test WHERE value = 20
        a: COMMIT
    """,
    "fuzzy read": """
        a: SELECT value FROM test WHERE id = 2
        b: UPDATE test SET value = 21 WHERE id = 2
        b: COMMIT
        a: SELECT value FROM test WHERE id = 2
        a: SELECT sum(value) FROM test
        a: COMMIT
    """,
    "G2-item write skew": """
        a: SELECT * FROM test WHERE id IN (1, 2)
        b: SELECT * FROM test WHERE id IN (1, 2)
        a: UPDATE test SET value = 11 WHERE id = 1
        b: UPDATE test SET value = 21 WHERE id = 2
        a: COMMIT
        b: COMMIT
    """,
    "G2 write skew by predicate": """
        a: SELECT * FROM test WHERE value % 3 = 0
        b: SELECT * FROM test WHERE value % 3 = 0
        a: INSERT INTO test VALUES (3, 30)
        b: INSERT INTO test VALUES (4, 42)
        a: COMMIT
        b: COMMIT
        a: SELECT * FROM test WHERE value % 3 = 0
    """,
    "write skew by query": """
        a: UPDATE test SET value = (SELECT sum(value) FROM test) WHERE id = 1
        b: UPDATE test SET value = (SELECT sum(value) FROM test) WHERE id = 2
        a: COMMIT
        b: COMMIT
    """,
    "long fork": """
        a: UPDATE test SET value = 11 WHERE id = 1
        b: UPDATE test SET value = 21 WHERE id = 2
        c: SELECT value FROM test WHERE id = 1
        a: COMMIT
        d: SELECT value FROM test WHERE id = 1
        d: SELECT value FROM test WHERE id = 2
        b: COMMIT
        c: SELECT value FROM test WHERE id = 2
        c: COMMIT
        d: COMMIT
    """,
    "deleted meanwhile": """
        a: SELECT * FROM test
        b: DELETE FROM test WHERE id = 1
        a: UPDATE test SET value = 5 WHERE id = 1
        b: COMMIT
        a: COMMIT
    """,
    "inserted meanwhile": """
        a: SELECT * FROM test
        b: INSERT INTO test VALUES (3, 30)
        b: COMMIT
        a: UPDATE test SET value = 5 WHERE id = 3
        a: UPDATE test SET value = value + 1 WHERE id > 1
        a: INSERT INTO test VALUES (3, 31) ON CONFLICT (id) DO UPDATE SET value = 32
        a: COMMIT
    """,
    "duplicate that the snapshot does not see": """
        a: SELECT * FROM test
        b: INSERT INTO test VALUES (3, 30)
        b: COMMIT
        a: INSERT INTO test VALUES (3, 31)
        a: COMMIT
    """,
    "locking reads": """
        a: SELECT * FROM test WHERE id = 2
        b: UPDATE test SET value = 12 WHERE id = 1
        a: SELECT * FROM test WHERE id = 1 FOR UPDATE
        b: COMMIT
        a: COMMIT
    """,
    "own writes and a savepoint": """
        a: UPDATE test SET value = 11 WHERE id = 1
        a: SAVEPOINT s
        a: UPDATE test SET value = 12 WHERE id = 1
        a: INSERT INTO test VALUES (3, 30)
        a: SELECT * FROM test
        a: ROLLBACK TO s
        a: SELECT * FROM test
        b: SELECT * FROM test
        a: COMMIT
        b: SELECT * FROM test
        b: COMMIT
    """,
}


def make_table(server: Server, split: bool) -> None:
    where = " WITH (split_at = '2')" if split else ""
    with server.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS test")
        connection.execute(f"CREATE TABLE test (id int PRIMARY KEY, value int){where}")  # type: ignore[call-overload]
        connection.execute("INSERT INTO test VALUES (1, 10), (2, 20)")


def trace_of(
    server: Server, name: str, level: str, split: bool, settle_s: float = SETTLE_S
) -> list[tuple[Any, ...]]:
    make_table(server, split)
    steps = steps_of(CASES[name])
    sessions = dict.fromkeys(step.session for step in steps)
    begins = steps_of("\n".join(f"{s}: BEGIN ISOLATION LEVEL {level}" for s in sessions))
    return carry_out(server, [*begins, *steps, *steps_of("z: SELECT * FROM test")], settle_s)


@pytest.mark.parametrize("split", [False, True], ids=["one range", "two ranges"])
@pytest.mark.parametrize("level", [READ_COMMITTED, REPEATABLE_READ])
@pytest.mark.parametrize("name", list(CASES))
def test_answers_are_those_of_postgres(
    cluster: Cluster, postgres: Postgres, name: str, level: str, split: bool
) -> None:
    expected = trace_of(postgres, name, level, split=False)
    if trace_of(cluster, name, level, split) != expected:  # on a busy machine, once with patience
        expected = trace_of(postgres, name, level, False, PATIENT_S)
        assert trace_of(cluster, name, level, split, PATIENT_S) == expected


def serial_outcomes(
    server: Server, transactions: dict[str, list[str]]
) -> list[tuple[dict[str, list[object]], object]]:
    """What each order of these transactions, one after another, gives: answers and the table."""
    found = []
    for order in itertools.permutations(transactions):
        make_table(server, split=False)
        answers: dict[str, list[object]] = {}
        steps = [step for s in order for step in steps_of("\n".join(transactions[s]))]
        for session, _, result in carry_out(server, steps):
            answers.setdefault(session, []).append(result)
        final = carry_out(server, steps_of("z: SELECT * FROM test"))[0][2]
        found.append((answers, final))
    return found


@pytest.mark.parametrize("split", [False, True], ids=["one range", "two ranges"])
@pytest.mark.parametrize("name", list(CASES))
def test_serializable_is_some_order_of_the_committed(
    cluster: Cluster, postgres: Postgres, name: str, split: bool
) -> None:
    trace = trace_of(cluster, name, SERIALIZABLE, split)
    results: dict[str, list[tuple[str, object]]] = {}
    for session, sql, result in trace[:-1]:
        if result != "waits" and not sql.startswith("BEGIN"):
            results.setdefault(session, []).append((sql, result))
    committed: dict[str, list[str]] = {}
    answers: dict[str, list[object]] = {}
    for session, pairs in results.items():
        ended = next((at for at, (sql, _) in enumerate(pairs) if sql in ("COMMIT", "ROLLBACK")))
        if pairs[ended][1] == "COMMIT" and not any(
            isinstance(result, tuple) for _, result in pairs[:ended]
        ):
            lines = [f"{session}: {sql}" for sql, _ in pairs[: ended + 1]]
            committed[session] = [f"{session}: BEGIN ISOLATION LEVEL SERIALIZABLE", *lines]
            answers[session] = ["BEGIN", *(result for _, result in pairs[: ended + 1])]
        else:
            errors = [r for _, r in pairs if isinstance(r, tuple) and r[0] != "25P02"]
            assert pairs[ended][0] == "ROLLBACK" or errors[0][0] in ("40001", "23505"), errors
    final = trace[-1][2]
    assert (answers, final) in serial_outcomes(postgres, committed)
    assert committed or name == "G1a aborted read"


def test_modes_of_a_transaction_are_told_and_kept(server: Server) -> None:
    make_table(server, split=False)
    with server.connect() as connection:

        def result(sql: str) -> object:
            try:
                cursor = connection.execute(sql)  # type: ignore[call-overload]
                return cursor.fetchall() if cursor.description else cursor.statusmessage
            except psycopg.Error as error:
                return error.sqlstate, error.diag.message_primary

        assert result("SHOW transaction_isolation") == [("read committed",)]
        result("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY, DEFERRABLE")
        assert result("SHOW TRANSACTION ISOLATION LEVEL") == [("repeatable read",)]
        assert result("SELECT current_setting('transaction_read_only')") == [("on",)]
        assert result("INSERT INTO test VALUES (5, 5)") == (
            "25006",
            "cannot execute INSERT in a read-only transaction",
        )
        result("ROLLBACK")
        result("BEGIN")
        assert result("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE") == "SET"
        assert result("SHOW transaction_isolation") == [("serializable",)]
        result("SELECT 1 FROM test")
        assert result("SET TRANSACTION ISOLATION LEVEL READ COMMITTED") == (
            "25001",
            "SET TRANSACTION ISOLATION LEVEL must be called before any query",
        )
        result("ROLLBACK")
        result("BEGIN")
        result("SET transaction_isolation = 'repeatable read'")
        result("SET transaction_read_only = on")
        assert result("SELECT * FROM test WHERE id = 1 FOR UPDATE") == (
            "25006",
            "cannot execute SELECT FOR UPDATE in a read-only transaction",
        )
        result("COMMIT")
        assert result("SHOW transaction_isolation") == [("read committed",)]
        result("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        assert result("SHOW transaction_isolation") == [("serializable",)]
        result("BEGIN")
        assert result("SHOW transaction_isolation") == [("serializable",)]
        result("COMMIT")
        result("SET default_transaction_read_only = on")
        assert result("DELETE FROM test") == (
            "25006",
            "cannot execute DELETE in a read-only transaction",
        )
        assert result("BEGIN READ WRITE") == "BEGIN"
        assert result("UPDATE test SET value = 1 WHERE id = 1") == "UPDATE 1"
        result("ROLLBACK")


def test_statements_on_their_own_are_serializable_too(server: Server) -> None:
    """Each adds the sum of all rows to its own: any order but no mixture of two is right."""
    make_table(server, split=False)
    wanted = 6
    with server.connect() as first, server.connect() as second:
        done = 0
        for connection in (first, second):
            connection.execute("SET default_transaction_isolation = 'serializable'")
        while done < wanted:
            for row, connection in enumerate((first, second), 1):
                try:
                    connection.execute(
                        "UPDATE test SET value = (SELECT sum(value) FROM test) WHERE id = %s",
                        (row,),
                    )
                    done += 1
                except psycopg.errors.SerializationFailure:
                    continue
        rows = second.execute("SELECT value FROM test ORDER BY id").fetchall()
    expected = [10, 20]
    for number in range(wanted):
        expected[number % 2] = sum(expected)
    assert [value for (value,) in rows] == expected
