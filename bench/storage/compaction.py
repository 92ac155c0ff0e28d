"""Commits while flushes, merges and cuts of the log go on: nobody may wait long for those.

Clients of a shard in this process update random rows, each its next when its last is durable, over
real files: first with the maintenance stopped, then with a memory budget so small that memtables
are flushed and runs merged all the time, then beside bulk inserts. The shard's clock runs fast, so
that the log is cut as it would be after ten minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from pathlib import Path
from typing import Final

from bench.storage.shard import Shard
from bench.storage.watch import LoopWatch
from shardb import limits

CLOCK_SPEED: Final = 200
BULK_TRANSACTION_ROWS: Final = 700_000  # 100 MB
SMALL_BUDGET_BYTES: Final = 64 * limits.MIB


class Load:
    """`clients` that commit, one after another each, until `stop`."""

    def __init__(self, shard: Shard, rows: int, clients: int, seed: int) -> None:
        self._shard = shard
        self._rows = rows
        self._random = random.Random(seed)
        self._running = True
        self._active = clients
        self.latencies: list[float] = []
        self.ended = shard.loop.create_future()
        for _ in range(clients):
            self._commit()

    def stop(self) -> None:
        self._running = False

    def _commit(self) -> None:
        begun = time.perf_counter()

        def durable(reply: object) -> None:
            now = time.perf_counter()
            self.latencies.append(now - begun)
            if self._running:
                self._commit()
            else:
                self._active -= 1
                if not self._active:
                    self.ended.set_result(None)

        self._shard.add(self._random.randrange(self._rows), 1, durable)

    def report(self, name: str, seconds: float) -> None:
        found = sorted(self.latencies)
        at = [found[int(len(found) * part)] * 1e3 for part in (0.5, 0.99, 0.999)]
        print(
            f"{name}: {len(found) / seconds:,.0f} commits/s, latency p50 {at[0]:.1f}"
            f"  p99 {at[1]:.1f}  p99.9 {at[2]:.1f}  max {found[-1] * 1e3:.1f} ms"
        )


async def phase(
    name: str, shard: Shard, options: argparse.Namespace, rows: int, bulk_from: int = 0
) -> None:
    """Runs the load for a while; from `bulk_from` on, bulk inserts of new ids beside it."""
    before = shard.counters
    with LoopWatch() as watch:
        begun = time.perf_counter()
        load = Load(shard, rows, options.clients, options.seed)
        first = bulk_from
        while (left := begun + options.seconds - time.perf_counter()) > 0:
            if bulk_from:
                await shard.insert(first, BULK_TRANSACTION_ROWS)
                first += BULK_TRANSACTION_ROWS
            else:
                await asyncio.sleep(left)
        load.stop()
        await load.ended
        seconds = time.perf_counter() - begun
    load.report(name, seconds)
    after = shard.counters
    done = {key: after[key] - before[key] for key in ("flushes", "merges", "merged_bytes")}
    print(f"  {done}, log files {shard.log_files}, runs {after['runs_max']}")
    if bulk_from:
        print(f"  {(first - bulk_from) / seconds:,.0f} rows/s inserted in bulk")
    watch.report()


async def run(options: argparse.Namespace, directory: Path) -> None:
    """All phases on one directory."""
    shard = Shard(directory / "data", clock_speed=CLOCK_SPEED)
    await shard.install()
    await shard.insert(0, options.rows)
    shard.node.engine.maintenance.stop()
    await phase("no maintenance", shard, options, options.rows)
    shard.close()
    shard = Shard(directory / "data", clock_speed=CLOCK_SPEED)
    await phase("default memory", shard, options, options.rows)
    shard.close()
    shard = Shard(directory / "data", SMALL_BUDGET_BYTES, clock_speed=CLOCK_SPEED)
    await phase("64 MiB of memory", shard, options, options.rows)
    await phase("bulk inserts beside it", shard, options, options.rows, options.rows)
    shard.close()


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this bench."""
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--seed", type=int, default=1)
