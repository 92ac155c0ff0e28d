"""Storage on one core: memtable, scan, checksum, log. Run: python -m bench.micro.bench_storage

Figures are medians of five runs. The disk's own sync time is printed beside the log's.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import statistics
import struct
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable
from functools import partial

import pyarrow as pa

from shardb._core.crc32c import crc32c, crc32c_portable
from shardb._core.memload import put_many
from shardb._core.memscan import scan_batches
from shardb._core.memtable import TS_MAX, MemTable
from shardb._core.rowcodec import RowLayout
from shardb._core.runs import Runs
from shardb.env import SystemFiles, SystemRng
from shardb.errors import StorageError
from shardb.storage.engine import Engine
from shardb.types import TypeCode

ROWS = 500_000
LAYOUT = RowLayout(
    1, [(int(code), -1) for code in (TypeCode.INT8, TypeCode.INT4, TypeCode.TEXT, TypeCode.FLOAT8)]
)
ARROW = [pa.int64(), pa.int32(), pa.string(), pa.float64()]


def median_seconds(work: Callable[[], object], runs: int = 5) -> float:
    def once() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return statistics.median(once() for _ in range(runs))


def drain(scan: Callable[[], Iterable[object]]) -> None:
    for _ in scan():
        pass


def show(name: str, value: float, unit: str) -> None:
    print(f"{name:<44}{value:>12.2f} {unit}")


def filled(keys: list[bytes]) -> MemTable:
    table = MemTable()
    row = LAYOUT.encode([1, 2, "sixteen bytes...", 3.5])
    put_many(
        table,
        b"".join(keys),
        array("Q", range(0, 8 * len(keys) + 1, 8)),
        row * len(keys),
        array("Q", range(0, len(row) * len(keys) + 1, len(row))),
        1,
    )
    return table


def runs_of(table: MemTable) -> Runs:
    return Runs(LAYOUT, [(False, [(table, None)])])


def bench_memtable() -> None:
    ascending = [struct.pack(">Q", i) for i in range(ROWS)]
    shuffled = random.Random(1).sample(ascending, ROWS)
    mrows = ROWS / 1e6
    show("insert, ascending keys", mrows / median_seconds(lambda: filled(ascending)), "M rows/s")
    show("insert, random keys", mrows / median_seconds(lambda: filled(shuffled)), "M rows/s")
    table = filled(shuffled)
    get = table.get
    show(
        "get from Python, random keys",
        mrows / median_seconds(lambda: [get(key, TS_MAX) for key in shuffled]),
        "M/s",
    )
    show("memory a row", table.memory_bytes / ROWS, "bytes")
    for columns in ([0], [2], [0, 1, 2, 3]):
        kinds = [ARROW[c] for c in columns]
        scan = partial(scan_batches, runs_of(table), columns, kinds, 1)
        seconds = median_seconds(partial(drain, scan))
        show(f"scan columns {columns}, loaded in random order", mrows / seconds, "M rows/s")
    table = filled(ascending)
    seconds = median_seconds(lambda: list(scan_batches(runs_of(table), [0, 1, 2, 3], ARROW, 1)))
    show("scan of all columns, loaded in key order", mrows / seconds, "M rows/s")


def bench_checksum() -> None:
    data = os.urandom(1 << 24)
    for function in (crc32c, crc32c_portable):
        seconds = median_seconds(partial(function, data))
        show(function.__name__, len(data) / seconds / 1e9, "GB/s")


def bench_sync(directory: str) -> None:
    fd = os.open(f"{directory}/sync", os.O_CREAT | os.O_WRONLY)

    def once() -> None:
        os.write(fd, bytes(500))
        os.fdatasync(fd)

    show("write and fdatasync of 500 bytes", median_seconds(once, 300) * 1e6, "us")
    os.close(fd)


async def bench_log(directory: str, clients: int, busy: bool, seconds: float = 1.0) -> None:
    """Clients that commit again and again; `busy` keeps the loop at work in turns of 0.5 ms."""
    loop = asyncio.get_running_loop()
    engine = Engine(
        directory,
        SystemFiles(loop),
        SystemRng(),
        lambda engine, record: None,
        lambda error: os._exit(1),
    )
    latencies: list[float] = []
    running = True

    def commit() -> None:
        start = time.perf_counter()

        def durable(error: StorageError | None) -> None:
            assert error is None
            latencies.append(time.perf_counter() - start)
            if running:
                commit()

        engine.append(1, 1, bytes(400), durable)

    def spin() -> None:
        start = time.perf_counter()
        while time.perf_counter() - start < 0.0005:
            pass
        if running:
            loop.call_soon(spin)

    if busy:
        spin()
    for _ in range(clients):
        commit()
    await asyncio.sleep(seconds)
    running = False
    commits = len(latencies)
    engine.close()
    name = f"log, {clients} clients" + (", busy loop" if busy else "")
    show(name, commits / seconds, "commits/s")
    show(f"{name}, median", statistics.median(latencies) * 1e6, "us")


def bench_recovery(directory: str) -> None:
    count = 0

    def replay(engine: Engine, record: object) -> None:
        nonlocal count
        count += 1

    start = time.perf_counter()

    async def recover() -> None:
        files = SystemFiles(asyncio.get_running_loop())
        Engine(directory, files, SystemRng(), replay, print).close()

    asyncio.run(recover())
    show("recovery, before applying", count / (time.perf_counter() - start) / 1e3, "k records/s")


def main() -> None:
    bench_memtable()
    bench_checksum()
    directory = tempfile.mkdtemp(prefix="shardb-bench-", dir=os.environ.get("BENCH_DIR", "."))
    try:
        bench_sync(directory)
        for clients in (1, 8, 32):
            for busy in (False, True):
                asyncio.run(bench_log(f"{directory}/data", clients, busy))
        bench_recovery(f"{directory}/data")
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
