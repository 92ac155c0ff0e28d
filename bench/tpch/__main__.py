"""TPC-H on shardb, PostgreSQL and DuckDB over the same data: load times and medians per query.

    python -m bench.tpch [--scale 0.1] [--rounds 3] [--files DIR]

shardb and PostgreSQL are loaded by psql's \\copy; DuckDB reads the same files into its own tables.
Answers are compared with DuckDB's before anything is timed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from decimal import Decimal
from functools import partial
from pathlib import Path

from bench.tpch import data, queries
from tests.support.cluster import Cluster
from tests.support.postgres import Postgres
from tests.support.server import Server


def timed(work: Callable[[], object]) -> float:
    """The seconds `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def comparable(rows: Sequence[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """Rows with numbers cut to nine digits and padding removed."""

    def plain(value: object) -> object:
        if isinstance(value, Decimal | float):
            return f"{float(value):.9g}"
        return value.rstrip() if isinstance(value, str) else str(value)

    return [tuple(plain(value) for value in row) for row in rows]


def load(server: Server, files: Path, scale: float) -> float:
    """Creates and loads all tables; the seconds the loading took."""
    data.create(server, scale)
    return sum(timed(partial(data.load, server, files, table)) for table in data.COLUMNS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the bench; the exit code is 1 if an answer is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, prog="bench.tpch")
    parser.add_argument("--scale", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=Path, help="keep the generated files here")
    parser.add_argument("--shards", type=int, default=2)
    options = parser.parse_args(arguments)

    wrong = 0
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-tpch-")))
        files = options.files or directory / "files"
        files.mkdir(parents=True, exist_ok=True)
        files.chmod(0o755)
        data.generate(files, options.scale)
        reference = data.reference(files)
        ours = stack.enter_context(Cluster(directory / "cluster", options.shards))
        theirs = stack.enter_context(Postgres())
        loads = [load(server, files, options.scale) for server in (ours, theirs)]
        print(
            f"load at scale {options.scale}: shardb {loads[0]:.2f} s, postgresql {loads[1]:.2f} s"
        )
        with theirs.connect() as connection:
            connection.execute("ANALYZE")

        print(f"{'query':6} {'shardb ms':>10} {'postgresql':>11} {'duckdb':>8} {'answer':>7}")
        with ours.connect() as left, theirs.connect() as right:
            for name in queries.QUERIES:
                text = queries.query(name, options.scale)
                expected = comparable(reference.execute(text).fetchall())
                equal = comparable(left.execute(text).fetchall()) == expected
                wrong += not equal
                runs = (
                    lambda text=text: left.execute(text).fetchall(),
                    lambda text=text: right.execute(text).fetchall(),
                    lambda text=text: reference.execute(text).fetchall(),
                )
                mine, other, duck = (
                    statistics.median(timed(run) for _ in range(options.rounds)) * 1000
                    for run in runs
                )
                answer = "ok" if equal else "WRONG"
                print(f"{name:6} {mine:10.1f} {other:11.1f} {duck:8.1f} {answer:>7}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
