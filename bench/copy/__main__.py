"""COPY of TPC-H's lineitem into shardb and a PostgreSQL beside it, in turns: rates and costs.

    python -m bench.copy [--scale 0.1] [--rounds 3] [--files DIR] [--shards 2]

psql's \\copy is the client of both; the table has its primary key. Rates are medians; CPU seconds
and memory are the last round's, by process. What PostgreSQL's processes share counts in each.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from bench.copy.usage import Usage, Watch, with_children
from bench.tpch import data
from tests.support.cluster import Cluster
from tests.support.postgres import Postgres
from tests.support.server import Server

TABLE: Final = "lineitem"
MEBI: Final = 1024


class Load(NamedTuple):
    """One load: its seconds, and what each process used."""

    seconds: float
    client_cpu_seconds: float
    usage: Mapping[str, Usage]


def groups_of(server: Server) -> dict[str, Callable[[], list[int]]]:
    """The processes of a server by the part they play."""
    if isinstance(server, Cluster):
        coordinator = server.child("coordinator.server")
        groups: dict[str, Callable[[], list[int]]] = {"coordinator": lambda: [coordinator]}
        for number in range(1, server.shards + 1):
            shard = server.child("shardb.node", number)
            groups[f"shard {number}"] = partial(list, (shard,))
        return groups
    assert isinstance(server, Postgres)
    postmaster = server.pid
    return {"postgresql": lambda: with_children(postmaster)}


def client_cpu_seconds() -> float:
    """CPU time of all clients that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def load(server: Server, files: Path, scale: float, rows: int) -> Load:
    """Makes the table anew and loads it; raises if rows are missing."""
    with server.connect() as connection:
        connection.execute(f"DROP TABLE IF EXISTS {TABLE}")
        connection.execute(data.create_statement(TABLE, scale, server.name == "shardb"))
        if server.name == "postgresql":
            connection.execute("CHECKPOINT")
    before = client_cpu_seconds()
    with Watch(groups_of(server)) as watch:
        start = time.perf_counter()
        data.load(server, files, TABLE)
        seconds = time.perf_counter() - start
    client = client_cpu_seconds() - before
    with server.connect() as connection:
        found = connection.execute(f"SELECT count(*) FROM {TABLE}").fetchone()
    if found != (rows,):
        raise SystemExit(f"{server.name} has {found} rows of {rows}")
    return Load(seconds, client, watch.usage)


def report(name: str, loads: Sequence[Load], rows: int) -> float:
    """Prints one server's lines; its rate in rows a second."""
    seconds = statistics.median(item.seconds for item in loads)
    rate = rows / seconds
    millions = rows / 1_000_000
    last = loads[-1]
    print(f"{name}: {rate:,.0f} rows/s, median {seconds:.2f} s of {len(loads)}")
    print(f"  {'process':12} {'CPU s':>7} {'s/M rows':>9} {'RSS MiB':>8} {'anonymous':>10}")
    client = last.client_cpu_seconds
    total = client + sum(item.cpu_seconds for item in last.usage.values())
    print(f"  {'client':12} {client:7.2f} {client / millions:9.2f}")
    for process, item in last.usage.items():
        print(
            f"  {process:12} {item.cpu_seconds:7.2f} {item.cpu_seconds / millions:9.2f}"
            f" {item.rss_peak_kib / MEBI:8.0f} {item.anonymous_peak_kib / MEBI:10.0f}"
        )
    print(f"  {'together':12} {total:7.2f} {total / millions:9.2f}", flush=True)
    return rate


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the bench; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, prog="bench.copy")
    parser.add_argument("--scale", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=Path, help="keep the generated files here")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--only", choices=["shardb", "postgresql"], help="run one of them alone")
    options = parser.parse_args(arguments)

    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-copy-")))
        files = options.files or directory / "files"
        files.mkdir(parents=True, exist_ok=True)
        files.chmod(0o755)
        data.generate(files, options.scale)
        with (files / f"{TABLE}.csv").open("rb") as lines:
            rows = sum(1 for _ in lines) - 1
        servers: list[Server] = []
        if options.only != "postgresql":
            servers.append(stack.enter_context(Cluster(directory / "cluster", options.shards)))
        if options.only != "shardb":
            servers.append(stack.enter_context(Postgres()))
        loads: dict[str, list[Load]] = {server.name: [] for server in servers}
        for _ in range(options.rounds):
            for server in servers:
                loads[server.name].append(load(server, files, options.scale, rows))
        rates = [report(name, items, rows) for name, items in loads.items()]
        if len(rates) == 2:
            print(f"{TABLE} at scale {options.scale}: {rates[0] / rates[1]:.2f} x postgresql")
    return 0


if __name__ == "__main__":
    sys.exit(main())
