"""Clients that move amounts between rows, and readers for whom the sum of all is always 0.

Single rows, intervals and large batches change in transactions that add nothing up, some of which
roll back, while storage flushes, merges and links what they write. Connections lost to a kill are
made again.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import psycopg

from tests.support.differential import LOST, Connection
from tests.support.server import Server

ROWS = 4000
BATCH_ROWS = 2000
LANE_BATCHES = 20  # of which one is replaced at a time
SPLITS = "2000, 100000"


class Sums:
    """Runs until `stop`. `done` counts what was carried out, `lost` what a kill ended."""

    def __init__(self, server: Server, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.failures: list[BaseException] = []
        self._server = server
        self._stopping = threading.Event()
        work = [self._move, self._sweep, self._batch, self._batch, self._read, self._read]
        self._threads = [
            threading.Thread(target=self._run, args=(one, seed * 100 + at), daemon=True)
            for at, one in enumerate(work)
        ]

    def start(self) -> None:
        """Makes the table and starts the clients."""
        with self._server.connect() as connection:
            connection.execute("DROP TABLE IF EXISTS sums")
            connection.execute(
                "CREATE TABLE sums (id int PRIMARY KEY, n bigint, padding text) "
                f"WITH (split_at = '{SPLITS}')"
            )
            connection.execute(
                f"INSERT INTO sums SELECT i, 0, 'row' FROM generate_series(1, {ROWS}) AS s(i)"
            )
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the clients; raises what went wrong other than lost connections."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a client hangs"
        if self.failures:
            raise self.failures[0]

    def check(self) -> None:
        """What is there must add up; waits for the cluster."""
        end = time.monotonic() + 30
        while True:
            try:
                with self._server.connect() as connection:
                    self._read(connection, random.Random(0))
                return
            except psycopg.OperationalError:
                assert time.monotonic() < end, "the cluster does not come back"
                time.sleep(0.1)

    def _run(self, work: Callable[[Connection, random.Random], None], seed: int) -> None:
        choice = random.Random(seed)
        name = work.__name__
        connection: Connection | None = None
        while not self._stopping.is_set():
            try:
                if connection is None or connection.closed:
                    connection = self._server.connect()
                work(connection, choice)
                self.done[name] += 1
            except psycopg.Error as error:
                if not (error.sqlstate or "08000").startswith(LOST):
                    self.failures.append(error)
                    return
                self.lost[name] += 1
                with contextlib.suppress(psycopg.Error):
                    assert connection is None or connection.rollback() is None
                time.sleep(0.05)
            except BaseException as error:
                self.failures.append(error)
                return
        if connection is not None:
            connection.close()

    def _move(self, connection: Connection, choice: random.Random) -> None:
        one, other = sorted(choice.sample(range(1, ROWS + 1), 2))
        with connection.transaction():
            connection.execute(f"UPDATE sums SET n = n + 5 WHERE id = {one}")
            connection.execute(f"UPDATE sums SET n = n - 5 WHERE id = {other}")

    def _sweep(self, connection: Connection, choice: random.Random) -> None:
        low = choice.randrange(ROWS)
        rows = f"id BETWEEN {low} AND {low + 300}"
        with connection.transaction():
            connection.execute(f"UPDATE sums SET n = n + 1 WHERE {rows}")
            connection.execute(f"UPDATE sums SET n = n - 1 WHERE {rows} AND n + 0 = n")

    def _batch(self, connection: Connection, choice: random.Random) -> None:
        """Replaces a batch of rows, changes its own, and perhaps takes all back."""
        # Keys of this client alone: a DELETE does not see what another is inserting.
        lane = self._threads.index(threading.current_thread())
        first = (100 + lane * LANE_BATCHES + choice.randrange(LANE_BATCHES)) * BATCH_ROWS
        rows = f"id >= {first} AND id < {first + BATCH_ROWS}"
        with connection.transaction():
            connection.execute(f"DELETE FROM sums WHERE {rows}")
            with connection.cursor().copy("COPY sums FROM STDIN") as copy:
                for at in range(first, first + BATCH_ROWS):
                    copy.write(f"{at}\t{7 if at % 2 else -7}\tbatch {at}\n")
            if choice.random() < 0.5:
                connection.execute(f"UPDATE sums SET n = n * 2 WHERE {rows}")
            if choice.random() < 0.2:
                raise psycopg.Rollback

    def _read(self, connection: Connection, choice: random.Random) -> None:
        found = connection.execute("SELECT sum(n), count(*) FROM sums").fetchone()
        assert found is not None
        assert found[0] == 0 and found[1] % BATCH_ROWS == 0, found
