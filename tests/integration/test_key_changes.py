"""UPDATE of a primary key, within a range and to another one, on PostgreSQL and shardb alike."""

from __future__ import annotations

import psycopg
import pytest

from tests.support.server import Server


def test_a_row_moves_to_where_its_new_key_belongs(server: Server) -> None:
    with server.connect() as connection:
        connection.autocommit = True
        options = "" if server.name == "postgresql" else "WITH (split_at = '100')"
        connection.execute("DROP TABLE IF EXISTS moved")
        connection.execute(f"CREATE TABLE moved (id int PRIMARY KEY, v text) {options}")
        connection.execute("INSERT INTO moved VALUES (1, 'a'), (2, 'b'), (200, 'c')")
        row = connection.execute("UPDATE moved SET id = 150 WHERE id = 1 RETURNING *").fetchone()
        assert row == (150, "a")
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("UPDATE moved SET id = 200 WHERE id = 2")
        with connection.transaction(force_rollback=True):
            connection.execute("UPDATE moved SET id = %s WHERE id = %s", (3, 150))
            found = connection.execute("SELECT id FROM moved ORDER BY id").fetchall()
            assert found == [(2,), (3,), (200,)]
        connection.execute("UPDATE moved SET id = id + 1000 WHERE id > 100")
        found = connection.execute("SELECT * FROM moved ORDER BY id").fetchall()
        assert found == [(2, "b"), (1150, "a"), (1200, "c")]
        connection.execute("DROP TABLE moved")
