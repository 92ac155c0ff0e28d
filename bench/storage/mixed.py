"""Memory of a shard whose data is many times its budget, under all kinds of work at once.

Inserts in bulk until there is --times the budget of data, while clients update random rows, read
random rows and scan all of it, over and over. Prints the process's own memory (RssAnon: not the
pages of mapped files, which the kernel takes back when it likes) at its peak, beside the budget and
what the process had before, and how fast all of it went.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import time
from collections.abc import Awaitable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import pyarrow as pa

from bench.copy.usage import memory_kib
from bench.storage.compaction import Load
from bench.storage.shard import BULK_ROWS, PAYLOAD, Batch, Shard, batches_of
from bench.storage.watch import LoopWatch
from shardb import limits

ROW_BYTES: Final = 40 + len(PAYLOAD)
TRANSACTION_ROWS: Final = 4 * BULK_ROWS  # 8 MB; a batch is here three times: sent, got, used
SAMPLE_SECONDS: Final = 0.05
CLOCK_SPEED: Final = 200


class Work:
    """Reads and scans until `stop`; and the peak of memory since the beginning."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._random = random.Random(2)
        self.rows = 1  # ids below have rows
        self.gets = 0
        self.scans = 0
        self.scanned_rows = 0
        self.peak_kib = 0
        self.at_peak = 0, 0  # bytes of memtables, and of Arrow's allocator
        self.running = True
        self._tasks = [
            asyncio.create_task(work()) for work in (self._get, self._scan, self._sample)
        ]

    async def stop(self) -> None:
        self.running = False
        await asyncio.gather(*self._tasks)

    async def _get(self) -> None:
        while self.running:
            done = self._shard.loop.create_future()
            self._shard.get(self._random.randrange(self.rows), done.set_result)
            await done
            self.gets += 1
            await asyncio.sleep(0)

    async def _scan(self) -> None:
        while self.running:
            stream = await self._shard.scan((0, 1, 2))
            self.scans += 1
            self.scanned_rows += stream.rows

    async def _sample(self) -> None:
        while self.running:
            now = memory_kib([os.getpid()])[1]
            if now > self.peak_kib:
                self.peak_kib = now
                self.at_peak = self._shard.node.engine.memtable_bytes, pa.total_allocated_bytes()
            await asyncio.sleep(SAMPLE_SECONDS)


def batch_of(ids: range) -> Batch:
    """In a process of its own, so that making it does not count."""
    return next(batches_of(ids))


async def run(options: argparse.Namespace, directory: Path) -> None:
    """Runs it."""
    budget = options.budget_mib * limits.MIB
    shard = Shard(directory / "data", budget, CLOCK_SPEED)
    await shard.install()
    total = options.times * budget // ROW_BYTES
    maker = ProcessPoolExecutor(1)

    def made(first: int) -> Iterator[Awaitable[Batch]]:
        for at in range(first, first + TRANSACTION_ROWS, BULK_ROWS):
            yield shard.loop.run_in_executor(maker, batch_of, range(at, at + BULK_ROWS))

    await next(made(0))
    before_kib = memory_kib([os.getpid()])[1]
    begun = time.perf_counter()
    with LoopWatch() as watch:
        await shard.insert(made(0))
        work = Work(shard)
        load = Load(shard, TRANSACTION_ROWS, options.clients, 1)
        for first in range(TRANSACTION_ROWS, total, TRANSACTION_ROWS):
            await shard.insert(made(first))
            work.rows = load.rows = first + TRANSACTION_ROWS
        inserted = time.perf_counter() - begun
        await asyncio.sleep(options.seconds)
        await work.stop()
        load.stop()
        await load.ended
    seconds = time.perf_counter() - begun
    counters = shard.counters
    for name, value in (
        ("budget", budget),
        ("data, in segments", counters["segment_bytes"]),
        ("own memory before", before_kib * limits.KIB),
        ("own memory at its peak", work.peak_kib * limits.KIB),
        ("  of that memtables", work.at_peak[0]),
        ("  of that Arrow's", work.at_peak[1]),
    ):
        print(f"{name:<28}{value / limits.MIB:>10.0f} MiB")
    print(f"inserted in bulk: {work.rows / inserted:,.0f} rows/s")
    print(f"gets: {work.gets / seconds:,.0f}/s; {work.scans} scans of {work.scanned_rows:,} rows")
    load.report("updates", seconds)
    print({key: counters[key] for key in ("flushes", "merges", "runs_max", "segments")})
    watch.report()
    shard.close()
    maker.shutdown()


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this bench."""
    parser.add_argument("--budget-mib", type=int, default=128)
    parser.add_argument("--times", type=int, default=10, help="data, in budgets")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10, help="of work after the inserts")
