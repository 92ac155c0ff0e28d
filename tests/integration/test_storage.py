"""The storage engine through SQL, with bounds so small that all is flushed and merged all the time.

Whole tables have to be PostgreSQL's, shards are killed in between, and no file may be left that
nothing names. `python -m tests.soak` runs the same for longer.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.cluster import Cluster
from tests.support.differential import SMALL_LIMITS, Connection, Differential, Workload
from tests.support.memory import Peaks, copy_numbered
from tests.support.postgres import Postgres
from tests.support.sums import Sums

ROWS = 30_000
COPY = "COPY large FROM STDIN"
SMALL = ("--memory", "256MiB", "--gc-ttl", "2")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that flushes after a few hundred rows."""
    directory = tmp_path_factory.mktemp("small")
    with Cluster(directory, arguments=SMALL, limits=SMALL_LIMITS) as running:
        yield running


@pytest.fixture
def connection(small: Cluster) -> Iterator[Connection]:
    with small.connect() as connection:
        create(connection)
        yield connection
        connection.execute("DROP TABLE large")
    assert_files(small, 0)


def create(connection: Connection) -> None:
    connection.execute(
        f"CREATE TABLE large (id int PRIMARY KEY, padding text) WITH (split_at = '{ROWS // 3}')"
    )


def lines(first: int, last: int) -> str:
    return "".join(f"{number}\t{'x' * 80}\n" for number in range(first, last))


def copy(connection: Connection, *texts: str) -> None:
    with connection.cursor().copy(COPY) as writer:
        for text in texts:
            writer.write(text)


def count(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) FROM large").fetchone()
    assert row is not None
    return int(row[0])


def files(cluster: Cluster) -> list[Path]:
    """The segments on disk, those of tables that other tests left included."""
    return sorted((cluster.directory / "data").glob("node-*/segments/*"))


def assert_files(cluster: Cluster, most: int) -> None:
    """Waits until there are no more segments than that."""
    end = time.monotonic() + 20
    while len(files(cluster)) > most:
        assert time.monotonic() < end, files(cluster)
        time.sleep(0.05)


@pytest.mark.parametrize("seed", [1, 2])
def test_random_statements_give_what_postgres_gives(
    small: Cluster, postgres: Postgres, seed: int
) -> None:
    runs = Differential(small, postgres, Workload(seed))
    for _ in range(3):
        for _ in range(30):
            runs.step()
        runs.compare()
    runs.close()


def test_killed_shards_lose_nothing(tmp_path: Path, postgres: Postgres) -> None:
    choice = random.Random(7)
    with Cluster(tmp_path, arguments=SMALL, limits=SMALL_LIMITS) as own:

        def kill() -> None:
            with contextlib.suppress(RuntimeError, ProcessLookupError):  # not up again yet
                own.kill_child("shardb.node", choice.choice([1, 2]))

        runs = Differential(own, postgres, Workload(7))
        for number in range(24):
            runs.step(kill if number % 8 == 5 else None)
        own.kill_all()
        own.start()
        runs.reconnect()
        runs.compare()
        runs.close()


def test_sums_stay_while_everything_is_flushed(tmp_path: Path) -> None:
    with Cluster(tmp_path, arguments=("--memory", "256MiB"), limits=SMALL_LIMITS) as own:
        load = Sums(own, seed=1)
        load.start()
        time.sleep(3)
        own.kill_child("shardb.node", 2)
        time.sleep(4)
        load.stop()
        assert min(load.done[name] for name in ("_move", "_sweep", "_batch", "_read")) > 5, (
            load.done
        )
        load.check()


def test_keys_twice_in_one_copy(connection: Connection) -> None:
    for at in (10, ROWS // 2, ROWS - 1):  # in the same batch, and in one flushed before
        with pytest.raises(psycopg.errors.UniqueViolation):
            copy(connection, lines(0, ROWS), lines(at, at + 1))
        assert count(connection) == 0
    copy(connection, lines(0, ROWS))
    with pytest.raises(psycopg.errors.UniqueViolation):
        copy(connection, lines(ROWS, 2 * ROWS), lines(5, 6))
    assert count(connection) == ROWS


@pytest.mark.parametrize("commits", [True, False])
def test_a_copy_waits_for_another_of_the_same_keys(
    small: Cluster, connection: Connection, commits: bool
) -> None:
    outcome: list[Any] = []

    def later() -> None:
        with small.connect() as other:
            try:
                copy(other, lines(ROWS // 2, ROWS))
                outcome.append("copied")
            except psycopg.Error as error:
                outcome.append(error.sqlstate)

    connection.execute("BEGIN")
    copy(connection, lines(0, ROWS // 2 + 1))
    waiting = threading.Thread(target=later)
    waiting.start()
    time.sleep(0.5)
    assert not outcome
    connection.execute("COMMIT" if commits else "ROLLBACK")
    waiting.join(20)
    assert outcome == ["23505" if commits else "copied"]
    assert count(connection) == (ROWS // 2 + 1 if commits else ROWS // 2)


def begin_copy(connection: Connection, cluster: Cluster) -> Any:
    """A COPY that has private segments on both shards and goes on."""
    before = set(files(cluster))
    manager = connection.cursor().copy(COPY)
    writer = manager.__enter__()
    for first in range(0, 100 * ROWS, 1000):
        writer.write(lines(first, first + 1000))
        fresh = set(files(cluster)) - before
        if len(fresh) > 4 and len({path.parent for path in fresh}) == 2:
            return manager
    raise AssertionError("a COPY makes no files")


def test_a_client_that_goes_away_leaves_no_files(small: Cluster, connection: Connection) -> None:
    gone = small.connect()
    begin_copy(gone, small)
    gone.pgconn.finish()
    assert_files(small, 0)
    assert count(connection) == 0


def test_a_cancelled_copy_leaves_no_files(small: Cluster, connection: Connection) -> None:
    with small.connect() as other:
        manager = begin_copy(other, small)
        other.cancel()
        with pytest.raises(psycopg.errors.QueryCanceled):
            manager.__exit__(None, None, None)
        assert_files(small, 0)
    assert count(connection) == 0


def test_a_shard_killed_in_a_copy_leaves_no_files(small: Cluster, connection: Connection) -> None:
    for number in (1, 2):
        with small.connect() as other:
            manager = begin_copy(other, small)
            small.kill_child("shardb.node", number)
            with pytest.raises(psycopg.errors.SerializationFailure):
                manager.__exit__(None, None, None)
        assert_files(small, 0)
        assert count(connection) == 0


def test_a_full_disk_ends_a_copy_and_nothing_else(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk of limited size takes the right to mount one")
    try:
        with Cluster(disk, shards=1, arguments=SMALL) as own:
            with own.connect() as connection:
                create(connection)
                connection.execute("INSERT INTO large VALUES (-1, 'before')")
                for _ in range(2):
                    with pytest.raises(psycopg.errors.DiskFull):
                        texts = (lines(at, at + 1000) for at in range(0, 1_000_000, 1000))
                        copy(connection, *texts)
                    assert_files(own, 0)
                    assert count(connection) == 1
                connection.execute("INSERT INTO large VALUES (-2, 'after')")
                copy(connection, lines(0, 1000))
                assert count(connection) == 1002
            own.kill_all()
            own.start()
            with own.connect() as connection:
                assert count(connection) == 1002
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_rows_of_more_than_the_memory(tmp_path: Path) -> None:
    megabytes, budget = 150, 64
    with (
        Cluster(tmp_path, shards=1, arguments=["--memory", f"{2 * budget}MiB"]) as own,
        own.connect() as connection,
        Peaks(own, "shardb.node") as peaks,
    ):
        rows = copy_numbered(connection, megabytes)
        found = connection.execute("SELECT count(*), sum(grp), max(id) FROM numbered").fetchone()
        assert found == (rows, sum(number % 100 for number in range(rows)), rows - 1)
        tags = [connection.execute(f"DELETE FROM numbered WHERE id < {n}") for n in (10, 5000)]
        assert [tag.rowcount for tag in tags] == [10, 4990]
        changed = connection.execute("UPDATE numbered SET grp = grp + 1 WHERE id < 305000")
        assert changed.rowcount == 300_000
        found = connection.execute("SELECT sum(grp) FROM numbered WHERE id < 305000").fetchone()
        assert found == (sum(number % 100 + 1 for number in range(5000, 305_000)),)
        first = connection.execute("SELECT id FROM numbered ORDER BY id LIMIT 1").fetchone()
        last = connection.execute("SELECT id FROM numbered ORDER BY id DESC LIMIT 1").fetchone()
        assert (first, last) == ((5000,), (rows - 1,))
        print(peaks)
        assert peaks.bytes < peaks.first_bytes + budget * 2**20, peaks
