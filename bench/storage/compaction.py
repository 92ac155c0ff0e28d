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
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.storage.shard import Batch, Shard, batches_of
from bench.storage.watch import LoopWatch, summary
from shardb import limits

CLOCK_SPEED: Final = 200
BULK_TRANSACTION_ROWS: Final = 350_000  # 50 MB
SMALL_BUDGET_BYTES: Final = 64 * limits.MIB


class Load:
    """`clients` that update ids below `rows`, one after another each, until `stop`."""

    def __init__(self, shard: Shard, rows: int, clients: int, seed: int) -> None:
        self._shard = shard
        self.rows = rows
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

        self._shard.add(self._random.randrange(self.rows), 1, durable)

    def report(self, name: str, seconds: float) -> None:
        rate = len(self.latencies) / seconds
        print(f"{name}: {rate:,.0f} commits/s, latency {summary(self.latencies)}")


async def phase(
    name: str, shard: Shard, options: argparse.Namespace, bulks: Sequence[Sequence[Batch]] = ()
) -> None:
    """Runs the load for a while, and transactions of bulk inserts beside it."""
    before = shard.counters
    with LoopWatch() as watch:
        begun = time.perf_counter()
        load = Load(shard, options.rows, options.clients, options.seed)
        for bulk in bulks:
            await shard.insert(bulk)
        inserted_seconds = time.perf_counter() - begun
        await asyncio.sleep(max(options.seconds - inserted_seconds, 0))
        load.stop()
        await load.ended
        seconds = time.perf_counter() - begun
    load.report(name, seconds)
    after = shard.counters
    done = {key: after[key] - before[key] for key in ("flushes", "merges", "merged_bytes")}
    print(f"  {done}, runs {after['runs_max']}, log files {shard.log_files}")
    if bulks:
        rows = sum(count for bulk in bulks for count, *_ in bulk)
        print(f"  {rows / inserted_seconds:,.0f} rows/s inserted in bulk")
    watch.report()


async def run(options: argparse.Namespace, directory: Path) -> None:
    """All phases on one directory."""
    shard = Shard(directory / "data", clock_speed=CLOCK_SPEED)
    await shard.install()
    await shard.insert(batches_of(range(options.rows)))
    shard.node.engine.maintenance.stop()
    await phase("no maintenance", shard, options)
    shard.close()
    shard = Shard(directory / "data", clock_speed=CLOCK_SPEED)
    await phase("default memory", shard, options)
    shard.close()
    shard = Shard(directory / "data", SMALL_BUDGET_BYTES, clock_speed=CLOCK_SPEED)
    await phase("64 MiB of memory", shard, options)
    ids = range(options.rows, options.rows + options.bulks * BULK_TRANSACTION_ROWS)
    bulks = [
        list(batches_of(ids[at : at + BULK_TRANSACTION_ROWS]))
        for at in range(0, len(ids), BULK_TRANSACTION_ROWS)
    ]
    await phase("bulk inserts beside it", shard, options, bulks)
    shard.close()


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this bench."""
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--bulks", type=int, default=5, help="bulk transactions of 50 MB")
    parser.add_argument("--seed", type=int, default=1)
