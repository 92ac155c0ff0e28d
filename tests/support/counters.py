"""Clients that increment few hot rows over two shards, and what must hold of the rows afterwards.

Each client keeps count of what it was told: an increment that was acknowledged happened exactly
once, one whose outcome the client could not learn at most once, all others never.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter

import psycopg

from tests.support.server import Server

ROWS = (1, 2, 3, 1_000_001, 1_000_002, 1_000_003)  # three in each shard's range
OPENING = 1000
RECONNECT_SECONDS = 0.05
AMBIGUOUS = frozenset({None, "08007", "57P01"})  # None: the connection went without a word


def connected(server: Server) -> psycopg.Connection[tuple[object, ...]]:
    """A connection, once the coordinator is up again."""
    end = time.monotonic() + 20
    while True:
        try:
            return server.connect()
        except psycopg.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(RECONNECT_SECONDS)


def create(server: Server) -> None:
    """The table, with its rows on both shards."""
    with server.connect() as connection:
        connection.execute(
            "CREATE TABLE counters (id int PRIMARY KEY, n int NOT NULL, m int NOT NULL)"
            " WITH (split_at = '1000000')"
        )
        for ident in ROWS:
            connection.execute("INSERT INTO counters VALUES (%s, 0, %s)", (ident, OPENING))


class Increments:
    """Clients at work until `stop`."""

    def __init__(self, server: Server, clients: int, seed: int) -> None:
        self.done: Counter[int] = Counter()
        self.perhaps: Counter[int] = Counter()
        self.refused: Counter[str | None] = Counter()
        self.sums: list[int] = []
        self.failures: list[BaseException] = []
        self._server = server
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        work = [self._increments] * clients + [self._transfers] * 2 + [self._sums]
        self._threads = [
            threading.Thread(target=self._run, args=(what, random.Random(seed * 100 + at)))
            for at, what in enumerate(work)
        ]
        for thread in self._threads:
            thread.daemon = True

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the clients; raises what went wrong other than by the kills."""
        self._stopping.set()
        end = time.monotonic() + 45
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0.1))
            assert not thread.is_alive(), "a client hangs"
        if self.failures:
            raise self.failures[0]

    def _run(self, work: object, choice: random.Random) -> None:
        assert callable(work)
        while not self._stopping.is_set():
            try:
                with self._server.connect() as connection:
                    while not self._stopping.is_set():
                        work(connection, choice)
            except (psycopg.OperationalError, psycopg.InterfaceError):
                time.sleep(RECONNECT_SECONDS)
            except BaseException as error:
                self.failures.append(error)
                return

    def _increments(
        self, connection: psycopg.Connection[tuple[object, ...]], choice: random.Random
    ) -> None:
        rows = sorted(choice.sample(ROWS, choice.choice((1, 1, 2, 3))))
        kind = choice.choice(("statement", "block", "query"))
        add = "UPDATE counters SET n = n + 1 WHERE id = %s"
        if kind == "query":  # computed from a snapshot, written by key
            add = "UPDATE counters SET n = n + (SELECT 1) WHERE id = %s"
        sent = False
        try:
            if kind == "block" or len(rows) > 1:
                with connection.transaction():
                    for row in rows:
                        connection.execute(add, (row,))
                    sent = True
            else:
                sent = True
                connection.execute(add, (rows[0],))
        except psycopg.Error as error:
            with self._lock:
                if sent and error.sqlstate in AMBIGUOUS:
                    self.perhaps.update(rows)
                else:
                    self.refused[error.sqlstate] += 1
            if connection.closed:
                raise
            return
        with self._lock:
            self.done.update(rows)

    def _transfers(
        self, connection: psycopg.Connection[tuple[object, ...]], choice: random.Random
    ) -> None:
        low, high = sorted(choice.sample(ROWS, 2))
        amount = choice.randint(-5, 5)
        move = "UPDATE counters SET m = m + %s WHERE id = %s"
        try:
            with connection.transaction():
                connection.execute(move, (-amount, low))
                connection.execute(move, (amount, high))
        except psycopg.Error as error:
            with self._lock:
                self.refused[error.sqlstate] += 1
            if connection.closed:
                raise

    def _sums(
        self, connection: psycopg.Connection[tuple[object, ...]], choice: random.Random
    ) -> None:
        text = choice.choice(
            (
                "SELECT sum(m) FROM counters",
                "SELECT sum(a.m) FROM counters a JOIN counters b ON a.id = b.id",
            )
        )
        try:
            row = connection.execute(text).fetchone()
        except psycopg.Error as error:
            with self._lock:
                self.refused[error.sqlstate] += 1
            if connection.closed:
                raise
            return
        assert row is not None
        self.sums.append(int(str(row[0])))
        time.sleep(0.01)


def check(server: Server, load: Increments) -> None:
    """Every acknowledged increment is there once, and money was neither made nor lost."""
    with connected(server) as connection:
        found = connection.execute("SELECT id, n, m FROM counters ORDER BY id").fetchall()
        assert [row[0] for row in found] == list(ROWS)
        for ident, n, _ in found:
            least, most = load.done[ident], load.done[ident] + load.perhaps[ident]
            assert least <= n <= most, f"row {ident} is {n}, not {least} to {most}"
        assert set(load.sums) <= {OPENING * len(ROWS)}, set(load.sums)
        assert sum(row[2] for row in found) == OPENING * len(ROWS), found
        # No lock is left: every row can be written at once.
        connection.execute("UPDATE counters SET n = n WHERE id > 0")
