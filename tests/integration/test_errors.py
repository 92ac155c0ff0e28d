"""Bad input gets PostgreSQL's SQLSTATE and leaves a connection that goes on.

Every case runs against a real PostgreSQL first: it decides what is expected.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.support.server import Server

TABLES = """
CREATE TABLE bad_input (
    id int4 PRIMARY KEY, small int2, n int4, big int8, name varchar(5), note text NOT NULL,
    amount numeric(6, 2), day date
);
INSERT INTO bad_input VALUES (1, 1, 1, 1, 'one', 'first', 1.00, '2020-01-01');
INSERT INTO bad_input VALUES (2, 2, 2, 2, 'two', 'second', 2.00, '2020-01-02');
"""

Connection = psycopg.Connection[tuple[Any, ...]]


class Case(NamedTuple):
    """A statement and what PostgreSQL says to it; `position` 0 is not compared."""

    name: str
    sql: str
    sqlstate: str
    position: int = 0


CASES = (
    Case("misspelt keyword", "SELEC 1", "42601", 1),
    Case("missing table", "SELECT 1 FROM WHERE", "42601", 15),
    Case("end of input", "SELECT (1", "42601"),
    Case("unterminated string", "SELECT 'abc", "42601", 8),
    Case("unknown table", "SELECT * FROM nowhere", "42P01", 15),
    Case("unknown table in insert", "INSERT INTO nowhere VALUES (1)", "42P01", 13),
    Case("unknown table in update", "UPDATE nowhere SET a = 1", "42P01", 8),
    Case("unknown table in drop", "DROP TABLE nowhere", "42P01"),
    Case("unknown column", "SELECT nothing FROM bad_input", "42703", 8),
    Case("unknown column in where", "SELECT id FROM bad_input WHERE nope = 1", "42703", 32),
    Case("unknown column in insert", "INSERT INTO bad_input (id, nope) VALUES (1, 2)", "42703", 28),
    Case("unknown column in update", "UPDATE bad_input SET nope = 1 WHERE id = 1", "42703", 22),
    Case("ambiguous column", "SELECT id FROM bad_input a, bad_input b", "42702", 8),
    Case("unknown function", "SELECT frobnicate(id) FROM bad_input", "42883", 8),
    Case("function of wrong types", "SELECT lower(1, 2)", "42883", 8),
    Case("operator of wrong types", "SELECT 1 + true", "42883", 10),
    Case("bad integer text", "SELECT id + 'abc' FROM bad_input", "22P02", 13),
    Case("bad integer in where", "SELECT * FROM bad_input WHERE id = 'x'", "22P02", 36),
    Case("bad date", "SELECT '2020-13-01'::date", "22008"),
    Case("no date", "SELECT 'soon'::date", "22007"),
    Case("wrong type in insert", "INSERT INTO bad_input (id, note) VALUES (true, '')", "42804", 42),
    Case("wrong type in update", "UPDATE bad_input SET n = true WHERE id = 1", "42804"),
    Case("where is no boolean", "SELECT 1 FROM bad_input WHERE n", "42804", 31),
    Case("too many values", "INSERT INTO bad_input (id) VALUES (1, 2)", "42601"),
    Case("not grouped", "SELECT n, count(*) FROM bad_input", "42803", 8),
    Case("aggregate in where", "SELECT 1 FROM bad_input WHERE count(*) > 1", "42803"),
    Case("division by zero", "SELECT 1 / 0", "22012"),
    Case("division by zero in a row", "SELECT n / (n - 1) FROM bad_input WHERE id = 1", "22012"),
    Case("division by zero in a scan", "SELECT sum(n / (n - 1)) FROM bad_input", "22012"),
    Case("division by zero in update", "UPDATE bad_input SET n = n / 0 WHERE id = 1", "22012"),
    Case("modulo zero", "SELECT 1 % 0", "22012"),
    Case("numeric division by zero", "SELECT 1.0 / 0", "22012"),
    Case("int4 overflow", "SELECT 2147483647 + 1", "22003"),
    Case("int8 overflow", "SELECT 9223372036854775807 * 2", "22003"),
    Case("int2 overflow", "SELECT 40000::int2", "22003"),
    Case("overflow in a row", "SELECT n + 2147483647 FROM bad_input WHERE id = 1", "22003"),
    Case("overflow in a scan", "SELECT max(n + 2147483647) FROM bad_input", "22003"),
    Case("overflow in update", "UPDATE bad_input SET n = n + 2147483647 WHERE id = 1", "22003"),
    Case("overflow in assignment", "UPDATE bad_input SET small = 40000 WHERE id = 1", "22003"),
    Case("numeric overflow", "UPDATE bad_input SET amount = 12345.6 WHERE id = 1", "22003"),
    Case("too long", "UPDATE bad_input SET name = 'too long' WHERE id = 1", "22001"),
    Case("too long insert", "INSERT INTO bad_input VALUES (9,1,1,1,'too long','')", "22001"),
    Case("NULL", "INSERT INTO bad_input (id) VALUES (9)", "23502"),
    Case("NULL by update", "UPDATE bad_input SET note = NULL WHERE id = 1", "23502"),
    Case("NULL by update of all", "UPDATE bad_input SET note = NULL", "23502"),
    Case("NULL key", "INSERT INTO bad_input (note) VALUES ('')", "23502"),
    Case("duplicate key", "INSERT INTO bad_input (id, note) VALUES (1, '')", "23505"),
    Case("duplicate keys", "INSERT INTO bad_input (id, note) VALUES (8, ''), (8, '')", "23505"),
    Case("duplicate by query", "INSERT INTO bad_input SELECT * FROM bad_input", "23505"),
    Case("duplicate table", "CREATE TABLE bad_input (id int)", "42P07"),
    Case("duplicate column", "CREATE TABLE bad_columns (a int, a int)", "42701"),
    Case("unknown type", "CREATE TABLE bad_columns (a froob)", "42704"),
    Case("unknown setting", "SET no_such_thing = 1", "42704"),
    Case("many rows in a scalar", "SELECT (SELECT id FROM bad_input)", "21000"),
    Case("negative limit", "SELECT id FROM bad_input LIMIT -1", "2201W"),
    Case("unions that differ", "SELECT 1 UNION SELECT 1, 2", "42601"),
)


@pytest.fixture(scope="module")
def prepared_server(server: Server) -> Iterator[Server]:
    with server.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS bad_input")
        connection.execute(TABLES)
    yield server
    with server.connect() as connection:
        connection.execute("DROP TABLE bad_input")


@pytest.fixture
def connection(prepared_server: Server) -> Iterator[Connection]:
    with prepared_server.connect() as opened:
        yield opened


def assert_goes_on(connection: Connection) -> None:
    rows = connection.execute("SELECT id, note FROM bad_input ORDER BY id").fetchall()
    assert rows == [(1, "first"), (2, "second")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
@pytest.mark.parametrize("how", ["simple", "prepared"])
def test_bad_statement(connection: Connection, case: Case, how: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        connection.execute(case.sql, prepare=how == "prepared")
    diagnostics = caught.value.diag
    assert diagnostics.sqlstate == case.sqlstate, diagnostics.message_primary
    if case.position:
        assert diagnostics.statement_position == str(case.position)
    assert diagnostics.severity == "ERROR"
    assert_goes_on(connection)


def test_a_failed_block_ignores_statements_until_its_end(connection: Connection) -> None:
    connection.execute("BEGIN")
    connection.execute("INSERT INTO bad_input (id, note) VALUES (5, 'gone')")
    with pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute("INSERT INTO bad_input (id, note) VALUES (1, 'again')")
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        connection.execute("SELECT 1")
    connection.execute("COMMIT")
    assert_goes_on(connection)


def test_duplicate_key_names_the_key(connection: Connection) -> None:
    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        connection.execute("INSERT INTO bad_input (id, note) VALUES (1, '')")
    diagnostics = caught.value.diag
    expected = 'duplicate key value violates unique constraint "bad_input_pkey"'
    assert diagnostics.message_primary == expected
    assert diagnostics.message_detail == "Key (id)=(1) already exists."


def test_null_names_the_column(connection: Connection) -> None:
    with pytest.raises(psycopg.errors.NotNullViolation) as caught:
        connection.execute("INSERT INTO bad_input (id) VALUES (9)")
    expected = 'null value in column "note" of relation "bad_input" violates not-null constraint'
    assert caught.value.diag.message_primary == expected


@pytest.mark.parametrize(
    "query",
    [
        "COPY bad_input (id, note) FROM STDIN",
        "INSERT INTO bad_input SELECT 9, n, NULL, 9, 'a', NULL, 1.5 FROM bad_input WHERE n = 1",
        "INSERT INTO bad_input VALUES (9, 1, NULL, 9, 'a', NULL, 1.5)",
    ],
)
def test_null_shows_the_row(connection: Connection, query: str) -> None:
    with pytest.raises(psycopg.errors.NotNullViolation) as caught:
        if query.startswith("COPY"):
            with connection.cursor() as cursor, cursor.copy(query) as copy:
                copy.write("9\t\\N\n")
        else:
            connection.execute(query)
    shown = "9, null, null, null, null, null, null, null"
    if not query.startswith("COPY"):
        shown = "9, 1, null, 9, a, null, 1.50, null"
    assert caught.value.diag.message_detail == f"Failing row contains ({shown})."


COPY_ERRORS = {
    "too few columns": ("7,x\n8\n", "22P04", 2),
    "too many columns": ("7,x\n8,y\n9,z,z\n", "22P04", 3),
    "bad integer": ("7,x\nseven,y\n", "22P02", 2),
    "unterminated quote": ('7,x\n8,"y\n', "22P04", 0),
    "NULL": ("7,x\n8,\n", "23502", 2),
    "duplicate": ("7,x\n1,again\n", "23505", 0),
    "duplicate within": ("7,x\n7,again\n", "23505", 0),
}


@pytest.mark.parametrize("name", COPY_ERRORS)
def test_malformed_csv_stores_nothing(connection: Connection, name: str) -> None:
    text, sqlstate, line = COPY_ERRORS[name]
    statement = "COPY bad_input (id, note) FROM STDIN (FORMAT csv)"
    with (
        pytest.raises(psycopg.Error) as caught,
        connection.cursor() as cursor,
        cursor.copy(statement) as copy,
    ):
        copy.write(text)
    diagnostics = caught.value.diag
    assert diagnostics.sqlstate == sqlstate, diagnostics.message_primary
    if line:
        assert f"COPY bad_input, line {line}" in (diagnostics.context or "")
    assert_goes_on(connection)


def test_an_aborted_copy_stores_nothing(connection: Connection) -> None:
    with (
        pytest.raises(psycopg.errors.QueryCanceled),
        connection.cursor() as cursor,
        cursor.copy("COPY bad_input (id, note) FROM STDIN") as copy,
    ):
        copy.write("7\tx\n")
        raise psycopg.errors.QueryCanceled("enough")
    assert_goes_on(connection)


def test_too_few_parameters(connection: Connection) -> None:
    with psycopg.RawCursor(connection) as cursor, pytest.raises(psycopg.Error) as caught:
        cursor.execute("SELECT $1::int4 + $2::int4", [1])
    assert caught.value.diag.sqlstate == "08P01"
    assert_goes_on(connection)


def test_a_parameter_that_does_not_parse(connection: Connection) -> None:
    with psycopg.RawCursor(connection) as cursor, pytest.raises(psycopg.Error) as caught:
        cursor.execute("SELECT note FROM bad_input WHERE id = $1", ["one"])
    assert caught.value.diag.sqlstate == "22P02"
    assert_goes_on(connection)


def test_invalid_utf8(connection: Connection) -> None:
    for statement, parameters in (
        (b"SELECT '\xff'", None),
        (b"SELECT id FROM bad_input WHERE note = '\xc3\x28'", None),
        (b"SELECT %s::text", [psycopg_text(b"\xff")]),
    ):
        with pytest.raises(psycopg.Error) as caught:
            connection.execute(statement, parameters)
        assert caught.value.diag.sqlstate == "22021"
    assert_goes_on(connection)


class RawText(bytes):
    """Text that psycopg sends as it is."""


class RawTextDumper(psycopg.adapt.Dumper):
    """Sends `RawText` as text of unknown type."""

    def dump(self, obj: bytes) -> bytes:
        return bytes(obj)


psycopg.adapters.register_dumper(RawText, RawTextDumper)


def psycopg_text(value: bytes) -> RawText:
    return RawText(value)


def raw_session(server: Server) -> socket.socket:
    """A socket past the start-up, all of its answers read."""
    parts = urlsplit(server.url)
    opened = socket.create_connection((parts.hostname, parts.port), 20)
    body = struct.pack(">I", 196_608) + b"user\0shardb\0database\0shardb\0\0"
    opened.sendall(struct.pack(">I", len(body) + 4) + body)
    received = b""
    while not received.endswith(b"Z\0\0\0\5I"):
        part = opened.recv(65_536)
        assert part, received
        received += part
    return opened


def read_to_end(opened: socket.socket) -> bytes:
    received = b""
    try:
        while part := opened.recv(65_536):
            received += part
    except ConnectionResetError:
        return received
    return received


@pytest.mark.parametrize("length", [0x7FFFFFFF, 0xFFFFFFFF, 3], ids=["2GB", "negative", "short"])
def test_a_message_of_impossible_length_ends_the_session(
    prepared_server: Server, length: int
) -> None:
    with raw_session(prepared_server) as opened:
        opened.sendall(b"Q" + struct.pack(">I", length) + b"SELECT 1")
        answer = read_to_end(opened)
    assert answer == b"" or (answer[:1] == b"E" and b"C08P01\0" in answer)
    with prepared_server.connect() as connection:
        assert_goes_on(connection)


def test_an_unknown_message_type_ends_the_session(prepared_server: Server) -> None:
    with raw_session(prepared_server) as opened:
        opened.sendall(b"!" + struct.pack(">I", 4))
        answer = read_to_end(opened)
    assert answer[:1] == b"E"
    assert b"C08P01\0" in answer


def test_a_client_that_vanishes_leaves_no_lock(prepared_server: Server) -> None:
    gone = prepared_server.connect(autocommit=False)
    gone.execute("UPDATE bad_input SET n = 5 WHERE id = 1")
    with socket.socket(fileno=os.dup(gone.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
    with prepared_server.connect() as connection:
        connection.execute("UPDATE bad_input SET n = 1 WHERE id = 1")
        assert_goes_on(connection)
    gone.close()


def test_a_savepoint_outlives_statements_in_a_failed_block(connection: Connection) -> None:
    connection.execute("BEGIN")
    connection.execute("INSERT INTO bad_input (id, note) VALUES (10, 'kept')")
    connection.execute("SAVEPOINT s")
    with pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute("INSERT INTO bad_input (id, note) VALUES (10, 'twice')")
    for statement in ("SELECT 1", "INSERT INTO bad_input (id, note) VALUES (11, 'no')", "SELECT 1"):
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            connection.execute(statement)
    connection.execute("ROLLBACK TO s")
    connection.execute("INSERT INTO bad_input (id, note) VALUES (12, 'later')")
    found = connection.execute("SELECT id FROM bad_input WHERE id > 9 ORDER BY id").fetchall()
    connection.execute("ROLLBACK")
    assert found == [(10,), (12,)]
