"""A damaged segment under a running cluster: what needs it fails by name, all else goes on."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from shardb.cli import main
from tests.support.cluster import Cluster

ROWS = 120_000


def load(cluster: Cluster) -> None:
    """Enough rows in one COPY for a segment on each shard."""
    with cluster.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE t (id int8 PRIMARY KEY, a text) WITH (split_at = '60000')")
        with cursor.copy("COPY t FROM STDIN") as copy:
            for number in range(ROWS):
                copy.write(f"{number}\tvalue {number:06d} of a column {'x' * 60}\n")


def test_a_damaged_segment_is_named_and_nothing_else_fails(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    cluster = Cluster(tmp_path)
    with cluster:
        load(cluster)
        assert main(["storage", "verify", str(data)]) == 1
        assert f"{data} is in use by process {cluster.pid}" in capfd.readouterr().err
    assert main(["storage", "verify", str(data)]) == 0
    (path,) = data.glob("node-1/segments/*.arrow")
    content = bytearray(path.read_bytes())
    content[content.index(b"value 000777 ")] ^= 1
    path.write_bytes(content)
    capfd.readouterr()
    assert main(["storage", "verify", str(data)]) == 1
    assert f"DAMAGE: segment {path} is damaged: column 'a' of row group 0" in capfd.readouterr().out
    with cluster, cluster.connect() as connection:
        for query in ("SELECT a FROM t WHERE id = 777", "SELECT max(a) FROM t"):
            with pytest.raises(psycopg.DatabaseError, match=str(path)) as caught:
                connection.execute(query)
            assert caught.value.sqlstate == "XX001"

        def answer(query: str) -> object:
            return connection.execute(query).fetchone()

        # The other column, the other shard, and a new row beside the damaged ones.
        assert answer("SELECT count(*), sum(id) FROM t") == (ROWS, ROWS * (ROWS - 1) // 2)
        assert answer("SELECT left(a, 12) FROM t WHERE id = 60777") == ("value 060777",)
        connection.execute("INSERT INTO t VALUES (-1, 'new')")
        assert answer("SELECT a FROM t WHERE id = -1") == ("new",)
    assert main(["storage", "verify", str(data)]) == 1
