"""pgbench against shardb and a PostgreSQL beside it, in turns: medians and ratios.

    python -m bench.oltp [--scale 10] [--seconds 10] [--rounds 3] [--clients 1 8 32] [--only NAME]

Both run on this machine with durable commits, one at a time under load; the other one stays idle.
pgbench is PostgreSQL's, unmodified. The last column is shardb's median over PostgreSQL's.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.support.cluster import Cluster
from tests.support.postgres import Postgres
from tests.support.server import Server


class Work(NamedTuple):
    """One line of the table: a built-in script of pgbench in one protocol."""

    name: str
    script: str
    protocol: str


WORKS = (
    Work("S-simple", "select-only", "simple"),
    Work("S-extended", "select-only", "extended"),
    Work("S-prepared", "select-only", "prepared"),
    Work("tpcb-simple", "tpcb-like", "simple"),
    Work("tpcb-prepared", "tpcb-like", "prepared"),
    Work("update-simple", "simple-update", "simple"),
    Work("update-prepared", "simple-update", "prepared"),
)


def initialize(server: Server, scale: int) -> float:
    """pgbench -i; the seconds it says it took."""
    result = server.pgbench("-i", "-s", str(scale), "-q", timeout_seconds=1800)
    if result.returncode:
        raise SystemExit(f"pgbench -i on {server.name} failed:\n{result.stderr}")
    done = re.search(r"done in ([0-9.]+) s", result.stderr)
    return float(done[1]) if done else 0.0


def measure(server: Server, work: Work, scale: int, clients: int, seconds: int) -> float:
    """Transactions a second of one run; a failed transaction or an error ends the bench."""
    options = ["-n", "-b", work.script, "-M", work.protocol, "-s", str(scale)]
    options += ["-c", str(clients), "-j", "1", "-T", str(seconds)]
    result = server.pgbench(*options, timeout_seconds=seconds + 120)
    rate = re.search(r"tps = ([0-9.]+)", result.stdout)
    failed = re.search(r"number of failed transactions: (\d+)", result.stdout)
    if result.returncode or rate is None or (failed is not None and failed[1] != "0"):
        raise SystemExit(f"{work.name} on {server.name}:\n{result.stdout}{result.stderr}")
    return float(rate[1])


def compare(
    ours: Server, theirs: Server, work: Work, clients: int, options: argparse.Namespace
) -> str:
    """Runs both in turns; one line of the table."""
    rates: dict[str, list[float]] = {ours.name: [], theirs.name: []}
    for _ in range(options.rounds):
        for server in (ours, theirs):
            rate = measure(server, work, options.scale, clients, options.seconds)
            rates[server.name].append(rate)
    mine, other = (statistics.median(rates[server.name]) for server in (ours, theirs))
    return f"{work.name:16} {clients:7} {mine:12.0f} {other:12.0f} {mine / other:7.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the bench; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, prog="bench.oltp")
    parser.add_argument("--scale", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--only", nargs="+", choices=[work.name for work in WORKS])
    parser.add_argument("--shards", type=int, default=2)
    options = parser.parse_args(arguments)

    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-oltp-")))
        ours = stack.enter_context(Cluster(directory, options.shards))
        theirs = stack.enter_context(Postgres())
        for server in (ours, theirs):
            took = initialize(server, options.scale)
            print(f"pgbench -i -s {options.scale} on {server.name}: {took:.2f} s", flush=True)
        print(f"{'work':16} {'clients':>7} {'shardb':>12} {'postgresql':>12} {'ratio':>7}")
        for work in WORKS:
            if options.only and work.name not in options.only:
                continue
            for clients in options.clients:
                print(compare(ours, theirs, work, clients, options), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
