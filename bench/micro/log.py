"""Commits through the log beside what the disk does, in turns in one run; then recovery.

The raw rate is that of one thread that overwrites written zeros with as many bytes as a commit and
calls fdatasync, over and over. `python -m bench.micro.log PROCESSES CLIENTS SECONDS` measures
several logs at once instead. BENCH_DIR chooses the disk.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict

import uvloop

from bench.micro.harness import report
from shardb.env import SystemFiles, SystemRng
from shardb.errors import StorageError
from shardb.storage.log import Log

PAYLOAD_BYTES = 400
ROUNDS = 15
TURN_SECONDS = 0.2
RAW_FILE_BYTES = 8 << 20


def raw_rate(directory: str, seconds: float) -> float:
    """Writes and syncs a second."""
    path = f"{directory}/raw"
    if not os.path.exists(path):
        with open(path, "wb") as file:
            file.write(bytes(RAW_FILE_BYTES))
            os.fsync(file.fileno())
    fd = os.open(path, os.O_WRONLY)
    data = bytes(PAYLOAD_BYTES + 70)  # a marker and two heads more
    syncs = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        os.pwrite(fd, data, syncs * len(data) % (RAW_FILE_BYTES - len(data)))
        os.fdatasync(fd)
        syncs += 1
    rate = syncs / (time.perf_counter() - start)
    os.close(fd)
    return rate


def opened(directory: str, loop: asyncio.AbstractEventLoop) -> Log:
    def fatal(error: StorageError) -> None:
        raise error

    log = Log(directory, SystemFiles(loop), SystemRng(), fatal)
    log.recover(lambda record: None)
    return log


async def commits(directory: str, clients: int, seconds: float, busy: bool) -> list[float]:
    """Latencies of clients that commit again and again; `busy` keeps the loop at work."""
    loop = asyncio.get_running_loop()
    log = opened(directory, loop)
    indexes = itertools.count(1)
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

        log.append(1, 1, next(indexes), 1, bytes(PAYLOAD_BYTES), durable)

    def spin() -> None:
        start = time.perf_counter()
        while time.perf_counter() - start < 0.0005:
            pass
        if start < end:
            loop.call_soon(spin)

    if busy:
        spin()
    for _ in range(clients):
        commit()
    await asyncio.sleep(seconds)
    log.close()
    return latencies


def compare(directory: str) -> None:
    """The raw rate and the log's, each in a turn of every round; figures are medians of rounds."""
    rates: defaultdict[str, list[float]] = defaultdict(list)
    medians: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        rates["raw"].append(raw_rate(directory, TURN_SECONDS))
        for clients, busy in ((1, False), (8, False), (32, False), (8, True)):
            name = f"{clients} clients" + (", loop busy in turns of 0.5 ms" if busy else "")
            found = uvloop.run(commits(f"{directory}/data", clients, TURN_SECONDS, busy))
            rates[name].append(len(found) / TURN_SECONDS)
            medians[name].append(statistics.median(found))
    report("raw writes and syncs", statistics.median(rates["raw"]))
    for name, latencies in medians.items():
        report(f"commits, {name}", statistics.median(rates[name]))
        report(f"latency, {name}", statistics.median(latencies) * 1e6, "us")
    one = rates["1 clients"]
    pairs = zip(rates["raw"], one, strict=True)
    report("raw rate / rate of 1 client", statistics.median(raw / log for raw, log in pairs), "x")
    pairs = zip(rates["32 clients"], one, strict=True)
    report("rate of 32 / rate of 1", statistics.median(many / log for many, log in pairs), "x")


async def recovery(directory: str) -> None:
    """Of a log of 32 MiB."""
    log = opened(directory, asyncio.get_running_loop())
    records = (32 << 20) // PAYLOAD_BYTES
    for index in range(1, records + 1):
        log.append(1, 1, index, 1, bytes(PAYLOAD_BYTES), lambda error: None)
    log.close()
    start = time.perf_counter()
    opened(directory, asyncio.get_running_loop()).close()
    report("recovery, before applying", records / (time.perf_counter() - start), "records/s")


def child(directory: str, clients: int, seconds: float) -> None:
    latencies = sorted(uvloop.run(commits(directory, clients, seconds, busy=False)))
    at = [latencies[int(len(latencies) * part)] * 1e6 for part in (0.5, 0.9, 0.99, 0.999)]
    print(
        f"{len(latencies) / seconds:9,.0f} commits/s"
        f"  p50 {at[0]:6.0f}  p90 {at[1]:6.0f}  p99 {at[2]:6.0f}  p99.9 {at[3]:6.0f}"
        f"  max {latencies[-1] * 1e6:7.0f} us"
    )


def several(directory: str, processes: int, clients: int, seconds: float) -> None:
    """Logs of several processes at once, as on a machine with several shards."""
    command = [sys.executable, "-m", "bench.micro.log", "child"]
    children = [
        subprocess.Popen([*command, f"{directory}/{number}", str(clients), str(seconds)])
        for number in range(processes)
    ]
    for process in children:
        process.wait()


def main(*arguments: str) -> None:
    directory = tempfile.mkdtemp(prefix="shardb-bench-", dir=os.environ.get("BENCH_DIR", "."))
    try:
        if arguments:
            several(directory, int(arguments[0]), int(arguments[1]), float(arguments[2]))
        else:
            compare(directory)
            uvloop.run(recovery(f"{directory}/recovery"))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    else:
        main(*sys.argv[1:])
