"""The first five minutes: start, quick start script, status, prompt, stop, start again."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import ROOT, Cluster
from tests.support.processes import run


def shardb(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "shardb", *arguments], 60, stdin)


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        yield cluster


def test_the_quick_start_runs_and_shows_both_shards(cluster: Cluster) -> None:
    result = cluster.psql("-f", str(ROOT / "examples" / "quickstart.sql"))
    assert result.returncode == 0, result.stderr
    assert "ERROR" not in result.stderr
    explained = "\n".join(
        line for line in result.stdout.splitlines() if re.search(r"shard|node", line, re.I)
    )
    assert re.search(r"\b1\b", explained), result.stdout
    assert re.search(r"\b2\b", explained), result.stdout


def test_data_is_there_after_a_clean_restart(own_cluster: Cluster) -> None:
    with own_cluster.connect() as connection:
        connection.execute(
            "CREATE TABLE kept (id int PRIMARY KEY, name text) WITH (split_at = '500')"
        )
        connection.execute("INSERT INTO kept SELECT g, 'n' || g FROM generate_series(1, 1000) g")
    own_cluster.stop()
    own_cluster.start()
    with own_cluster.connect() as connection:
        found = connection.execute("SELECT count(*), sum(id), max(name) FROM kept").fetchone()
        assert found == (1000, 500_500, "n999")
        assert connection.execute("SELECT name FROM kept WHERE id = 777").fetchone() == ("n777",)
        connection.execute("INSERT INTO kept VALUES (1001, 'new')")


def test_status_and_sql_commands(own_cluster: Cluster) -> None:
    data = str(own_cluster.directory / "data")
    created = shardb("sql", "--data", data, "-c", "CREATE TABLE t (id int PRIMARY KEY)")
    assert created.returncode == 0, created.stderr
    status = shardb("status", "--data", data)
    assert status.returncode == 0, status.stderr
    assert own_cluster.url in status.stdout
    assert "shard 1: up" in status.stdout
    assert "shard 2: up" in status.stdout
    assert "public.t: 1 ranges" in status.stdout
    piped = shardb("sql", "--data", data, stdin="INSERT INTO t VALUES (41);\nSELECT id+1 FROM t;\n")
    assert "42" in piped.stdout, piped


def test_a_second_start_says_that_the_directory_is_in_use(own_cluster: Cluster) -> None:
    result = shardb("start", "--data", str(own_cluster.directory / "data"), "--port", "1")
    assert result.returncode == 1
    assert "is in use by process" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_second_cluster_on_the_same_port_says_that_it_is_taken(
    own_cluster: Cluster, tmp_path: Path
) -> None:
    result = shardb("start", "--data", str(tmp_path / "other"), "--port", str(own_cluster.port))
    assert result.returncode == 1
    assert "Address already in use" in result.stderr
    assert result.stderr.count("\n") == 1


def test_interrupt_stops_everything_cleanly(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.start()
    connection = cluster.connect()
    connection.execute("BEGIN")
    assert cluster._process is not None
    cluster._process.send_signal(signal.SIGINT)
    cluster.stop()
    connection.close()
    assert cluster.log_text().rstrip().endswith("shardb: stopped")


def test_more_shards_on_an_existing_directory(tmp_path: Path) -> None:
    with Cluster(tmp_path, shards=1) as cluster:
        with cluster.connect() as connection:
            connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
            connection.execute("INSERT INTO t VALUES (1)")
        cluster.stop()
        cluster.shards = 3
        cluster.start()
        with cluster.connect() as connection:
            assert connection.execute("SELECT id FROM t").fetchall() == [(1,)]
            connection.execute("CREATE TABLE wide (id int PRIMARY KEY) WITH (split_at = '10, 20')")
            connection.execute("INSERT INTO wide SELECT g FROM generate_series(1, 30) g")
            assert connection.execute("SELECT count(*) FROM wide").fetchone() == (30,)
