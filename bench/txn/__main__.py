"""What a second shard costs a transaction: the latency of the same one on one shard and on two.

    python -m bench.txn [--seconds 10] [--level "READ COMMITTED"]

One client updates two rows in a transaction over and over, prepared; rows of one shard and rows of
two take turns, so that both meet the same machine. PostgreSQL does the same beside it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import psycopg

from tests.support.cluster import Cluster
from tests.support.postgres import Postgres
from tests.support.server import Server

ROWS: Final = 10_000
UPDATE: Final = "UPDATE bench_txn SET n = n + 1 WHERE id = %s"


def create(connection: psycopg.Connection[Any], options: str) -> None:
    """The table; its lower half is one range of shardb's, the upper half another."""
    connection.execute("DROP TABLE IF EXISTS bench_txn")
    connection.execute(f"CREATE TABLE bench_txn (id int PRIMARY KEY, n int){options}".encode())
    with connection.cursor().copy("COPY bench_txn FROM STDIN") as copy:
        for number in range(ROWS):
            copy.write_row((number, 0))


def run(connection: psycopg.Connection[Any], rows: tuple[int, int], level: str) -> float:
    """One transaction; its seconds."""
    begun = time.perf_counter()
    connection.execute(f"BEGIN ISOLATION LEVEL {level}".encode())
    for row in rows:
        connection.execute(UPDATE, (row,), prepare=True)
    connection.execute("COMMIT")
    return time.perf_counter() - begun


def pairs(seed: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Two rows of one half, and one of each."""
    draw = random.Random(seed)
    half = ROWS // 2
    while True:
        one, other = draw.randrange(half), draw.randrange(half)
        yield (one, (one + 1) % half), (other, half + draw.randrange(half))


def measure(server: Server, seconds: float, level: str) -> tuple[list[float], list[float]]:
    """Latencies on one shard and on two."""
    near: list[float] = []
    far: list[float] = []
    with server.connect() as connection:
        create(connection, f" WITH (split_at = '{ROWS // 2}')" if server.name == "shardb" else "")
        end = time.perf_counter() + seconds
        for number, (same, both) in enumerate(pairs(1)):
            if time.perf_counter() > end:
                break
            turns = [(near, same), (far, both)]
            for latencies, rows in turns if number % 2 else reversed(turns):
                latencies.append(run(connection, rows, level))
    return near, far


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the bench; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, prog="bench.txn")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--level", default="READ COMMITTED")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-txn-")))
        servers = [stack.enter_context(Cluster(directory)), stack.enter_context(Postgres())]
        for server in servers:
            latencies = measure(server, options.seconds, options.level)
            near, far = (statistics.median(found) * 1e3 for found in latencies)
            print(
                f"{server.name:12} one shard {near:6.2f} ms, two shards {far:6.2f} ms, "
                f"ratio {far / near:.2f} ({len(latencies[0])} transactions each)",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
