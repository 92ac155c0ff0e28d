"""A tpcb-like load that remembers what was acknowledged, and the checks that follow a crash.

The tables are pgbench's own. Each transaction writes its name into its history row, so that
afterwards every acknowledged one can be looked for, and every found one explained.
"""

from __future__ import annotations

import random
import threading
import time

import psycopg

from tests.support.server import Server

RECONNECT_SECONDS = 0.05


class Load:
    """Clients that run tpcb-like transactions until `stop`; connection losses are expected."""

    def __init__(self, server: Server, scale: int, clients: int, seed: int) -> None:
        self.acknowledged: set[str] = set()
        self.attempted: set[str] = set()
        self.failures: list[BaseException] = []
        self._server = server
        self._scale = scale
        self._seed = seed
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(clients)
        ]

    def start(self) -> None:
        """Starts the clients."""
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

    def wait_acknowledged(self, count: int, timeout_seconds: float = 60) -> None:
        """Returns when `count` transactions in all have been acknowledged."""
        end = time.monotonic() + timeout_seconds
        while len(self.acknowledged) < count:
            assert not self.failures, self.failures
            assert time.monotonic() < end, f"only {len(self.acknowledged)} of {count} transactions"
            time.sleep(0.005)

    def _run(self, number: int) -> None:
        choice = random.Random(self._seed * 1000 + number)
        serial = 0
        try:
            while not self._stopping.is_set():
                try:
                    with self._server.connect(autocommit=False) as connection:
                        while not self._stopping.is_set():
                            serial += 1
                            self._transact(connection, choice, f"{self._seed}-{number}-{serial}")
                except (psycopg.OperationalError, psycopg.InterfaceError):
                    time.sleep(RECONNECT_SECONDS)  # killed under us, as the test intends
        except BaseException as error:
            self.failures.append(error)

    def _transact(
        self, connection: psycopg.Connection[tuple[object, ...]], choice: random.Random, name: str
    ) -> None:
        account = choice.randint(1, 100_000 * self._scale)
        teller = choice.randint(1, 10 * self._scale)
        branch = choice.randint(1, self._scale)
        delta = choice.randint(-5000, 5000)
        self.attempted.add(name)
        for table, key, column, ident in (
            ("accounts", "aid", "abalance", account),
            ("tellers", "tid", "tbalance", teller),
            ("branches", "bid", "bbalance", branch),
        ):
            done = connection.execute(
                f"UPDATE pgbench_{table} SET {column} = {column} + %s WHERE {key} = %s",
                (delta, ident),
            )
            assert done.rowcount == 1, (table, ident, done.rowcount)
        connection.execute(
            "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime, filler)"
            " VALUES (%s, %s, %s, %s, CURRENT_TIMESTAMP, %s)",
            (teller, branch, account, delta, name),
        )
        connection.commit()
        self.acknowledged.add(name)


def check(server: Server, acknowledged: set[str], attempted: set[str]) -> None:
    """Everything acknowledged is there once, nothing is half there, and all sums agree."""
    with server.connect() as connection:
        rows = connection.execute(
            "SELECT filler FROM pgbench_history WHERE filler IS NOT NULL"
        ).fetchall()
        found = [str(row[0]).rstrip() for row in rows]
        assert len(found) == len(set(found)), "a transaction happened twice"
        lost = acknowledged - set(found)
        assert not lost, f"{len(lost)} acknowledged transactions are lost, such as {min(lost)}"
        assert set(found) <= attempted
        sums = connection.execute(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts),"
            " (SELECT sum(tbalance) FROM pgbench_tellers),"
            " (SELECT sum(bbalance) FROM pgbench_branches),"
            " (SELECT sum(delta) FROM pgbench_history)"
        ).fetchone()
        assert sums is not None
        assert len(set(sums)) == 1, f"accounts, tellers, branches, history: {sums}"
        for table, key, column in (
            ("accounts", "aid", "abalance"),
            ("tellers", "tid", "tbalance"),
            ("branches", "bid", "bbalance"),
        ):
            wrong = connection.execute(
                f"SELECT count(*) FROM pgbench_{table} t JOIN (SELECT {key}, sum(delta) AS total"
                f" FROM pgbench_history GROUP BY {key}) h ON t.{key} = h.{key}"
                f" WHERE t.{column} <> h.total"
            ).fetchone()
            assert wrong == (0,), f"{wrong} {table} differ from their history"
