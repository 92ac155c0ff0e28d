"""Commits through the logs of several processes at once: rate and latency.

Run from the repository: `python -m bench.micro.bench_log [processes] [clients] [seconds] [bytes]`;
BENCH_DIR chooses the disk.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time

from shardb.env import SystemFiles, SystemRng
from shardb.errors import StorageError
from shardb.storage.engine import Engine


async def commit_for(directory: str, clients: int, seconds: float, size: int) -> list[float]:
    """The latency of every commit of clients that commit again and again."""
    loop = asyncio.get_running_loop()
    engine = Engine(
        directory,
        SystemFiles(loop),
        SystemRng(),
        lambda engine, record: None,
        lambda error: os._exit(1),
    )
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    def commit() -> None:
        start = time.perf_counter()

        def durable(error: StorageError | None) -> None:
            assert error is None
            now = time.perf_counter()
            latencies.append(now - start)
            if now < end:
                commit()

        engine.append(1, 1, bytes(size), durable)

    for _ in range(clients):
        commit()
    await asyncio.sleep(seconds)
    engine.close()
    return latencies


def child(directory: str, clients: int, seconds: float, size: int) -> None:
    latencies = sorted(asyncio.run(commit_for(directory, clients, seconds, size)))
    at = [latencies[int(len(latencies) * part)] * 1e6 for part in (0.5, 0.9, 0.99, 0.999)]
    print(
        f"{len(latencies) / seconds:9,.0f} commits/s"
        f"  p50 {at[0]:6.0f}  p90 {at[1]:6.0f}  p99 {at[2]:6.0f}  p99.9 {at[3]:6.0f}"
        f"  max {latencies[-1] * 1e6:7.0f} us"
    )


def main(processes: int = 2, clients: int = 8, seconds: int = 5, size: int = 400) -> None:
    directory = tempfile.mkdtemp(prefix="shardb-bench-", dir=os.environ.get("BENCH_DIR", "."))
    command = [sys.executable, "-m", "bench.micro.bench_log", "child"]
    try:
        children = [
            subprocess.Popen(
                [*command, f"{directory}/{number}", *map(str, (clients, seconds, size))]
            )
            for number in range(processes)
        ]
        for process in children:
            process.wait()
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
    else:
        main(*map(int, sys.argv[1:]))
