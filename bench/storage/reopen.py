"""How long a shard takes from the start of its process until it serves, with much data and log.

Makes a shard's directory with --gb of data in --tablets tables, by writing segments of up to
SEGMENT_TARGET_BYTES and naming them in the manifest; then opens it in new processes, with an empty
log and again after --tail-mib of log that no segment has. Before each the files are dropped from
the page cache. Beside it SQLite and DuckDB open a file of --peer-gb each.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import duckdb
import msgspec
import pyarrow as pa

from bench.storage.shard import ITEMS, LAYOUT, PAYLOAD, RANGE, SIGN, Shard
from shardb import limits
from shardb.node.ranges import schema_of
from shardb.rpc import messages as m
from shardb.storage import jobs
from shardb.storage.edits import Edit
from shardb.storage.segmentformat import SYSTEM_COLUMNS
from shardb.txn import records
from shardb.txn.records import Section

GB: Final = 10**9
FILE_ROW_BYTES: Final = 8 + 4 + 8 + 8 + 4 + len(PAYLOAD) + 4  # what a row takes in a segment
NEWER_RUNS: Final = (0.1, 0.05, 0.02)  # beside the oldest, as parts of it
RANDOM_GETS: Final = 10_000
SCANNED_ROWS: Final = 1_000_000
NAMES: Final = (*SYSTEM_COLUMNS, *(column.name for column in ITEMS.columns))


def batches(ids: range, ts: int) -> Iterator[pa.RecordBatch]:
    """Rows of these ids in a segment's form."""
    for first in range(0, len(ids), limits.SEGMENT_GROUP_ROWS):
        some = ids[first : first + limits.SEGMENT_GROUP_ROWS]
        count = len(some)
        keys = struct.pack(f">{count}Q", *range(some.start + SIGN, some.stop + SIGN, some.step))
        columns = [
            _strings(pa.binary(), count, keys, 8),
            _fixed(pa.uint64(), count, array("Q", [ts]) * count),
            _fixed(pa.bool_(), count, bytes((count + 7) // 8)),
            _fixed(pa.int64(), count, array("q", some)),
            _fixed(pa.int32(), count, bytes(4 * count)),
            _strings(pa.string(), count, PAYLOAD.encode() * count, len(PAYLOAD)),
        ]
        yield pa.RecordBatch.from_arrays(columns, NAMES)


def _fixed(kind: pa.DataType, count: int, data: bytes | array[int]) -> pa.Array:
    return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(data)])


def _strings(kind: pa.DataType, count: int, data: bytes, size: int) -> pa.Array:
    ends = array("i", range(0, size * (count + 1), size))
    return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(ends), pa.py_buffer(data)])


def tablet_of(number: int) -> m.InstallTable:
    """A table with a range of its own; the first is that of `Shard`."""
    table = msgspec.structs.replace(ITEMS, id=ITEMS.id + 10 * number, group_id=3 + 10 * number)
    bounds = msgspec.structs.replace(RANGE, id=RANGE.id + number, group_id=table.group_id)
    return m.InstallTable(bounds, table)


async def make(directory: Path, options: argparse.Namespace) -> None:
    """The data: in each tablet one run of all ids and a few newer ones of some."""
    shard = Shard(directory)
    engine = shard.node.engine
    rows = int(options.gb * GB / options.tablets / FILE_ROW_BYTES / (1 + sum(NEWER_RUNS)))
    for number in range(options.tablets):
        message = tablet_of(number)
        await shard.request(message)
        tablet = engine.tablets[message.range.id, message.table.id]
        columns = schema_of(message.table).columns
        for part in (1, *NEWER_RUNS):
            target = engine.target(tablet, engine.new_number(), columns, 1)
            ids = range(0, rows, round(1 / part))
            made = await asyncio.to_thread(jobs.write_segments, batches(ids, shard.issue()), target)
            edited = shard.loop.create_future()
            edit = Edit(put_tablets=(engine.state_of(tablet),), add_segments=tuple(made))
            engine.manifest.append(edit, edited.set_result)
            assert await edited is None
    counters = {
        "segments": len(engine.manifest.current.segments),
        "bytes": sum(meta.bytes for meta in engine.manifest.current.segments.values()),
    }
    print(f"data: {counters}", flush=True)
    shard.close()


async def append_tail(directory: Path, options: argparse.Namespace) -> None:
    """Commits of one row each to random rows of all tablets, as they are in the log."""
    shard = Shard(directory)
    engine = shard.node.engine
    engine.maintenance.stop()
    serial = itertools.count()
    left = int(options.tail_mib * limits.MIB)
    draw = random.Random(1)
    tablets = [tablet_of(number) for number in range(options.tablets)]
    while left > 0:
        for _ in range(2000):
            tablet = draw.choice(tablets)
            number = draw.randrange(1_000_000)
            row = LAYOUT.encode((number, 1, PAYLOAD))
            key = b"\x08\0\0\0" + struct.pack(">Q", number + SIGN)
            section = Section(tablet.table.id, 1, key, struct.pack("<I", len(row)) + row)
            payload = records.encode_commit(
                next(serial).to_bytes(16, "big"), shard.issue(), [section]
            )
            engine.append(tablet.range.id, records.COMMIT, payload, lambda error: None)
            left -= len(payload)
        await asyncio.sleep(0.002)
    print(f"log: {next(serial)} commits", flush=True)
    shard.close()


def uncache(path: Path) -> None:
    """Drops the files of a directory, or one file, from the page cache."""
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            fd = os.open(file, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


async def measure(directory: Path, tablets: int, begun: float) -> dict[str, float]:
    """Opens it, in this process; seconds since the process was started and of what follows."""
    found = {"process and imports": time.monotonic() - begun}
    start = time.monotonic()
    shard = Shard(directory)
    found["until it serves"] = time.monotonic() - begun
    found["of that opening"] = time.monotonic() - start
    start = time.monotonic()
    await _get(shard, 0)
    found["first get"] = time.monotonic() - start
    start = time.monotonic()
    for number in range(1, tablets):
        tablet = tablet_of(number)
        shard.node.engine.tablets[tablet.range.id, tablet.table.id].newest(b"\x80" + bytes(7))
    found["first get of each other tablet, sum"] = time.monotonic() - start
    start = time.monotonic()
    high = struct.pack(">Q", SCANNED_ROWS + SIGN)
    stream = await shard.scan((0, 1), b"", high)
    found["first scan, of a million rows"] = time.monotonic() - start
    assert stream.rows == SCANNED_ROWS, stream.rows
    start = time.monotonic()
    draw = random.Random(2)
    for _ in range(RANDOM_GETS):
        await _get(shard, draw.randrange(SCANNED_ROWS))
    found[f"{RANDOM_GETS} random gets among these"] = time.monotonic() - start
    shard.close()
    return found


async def _get(shard: Shard, number: int) -> None:
    done = shard.loop.create_future()
    shard.get(number, done.set_result)
    await done


def in_new_process(directory: Path, tablets: int) -> None:
    """Runs `measure` and prints what it found."""
    uncache(directory)
    command = [sys.executable, "-m", "bench.storage", "reopen", "--tablets", str(tablets)]
    command += ["--measure", str(directory), "--begun", str(time.monotonic())]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    for name, seconds in json.loads(result.stdout).items():
        print(f"  {name:<44}{seconds:>9.3f} s", flush=True)


def compare(directory: Path, gb: float) -> None:
    """SQLite and DuckDB: from the start of a process until the first row of a like table."""
    rows = int(gb * GB / FILE_ROW_BYTES)
    with duckdb.connect(str(directory / "duck")) as duck:
        duck.execute(
            "CREATE TABLE items AS SELECT range AS id, 0::INT AS number,"
            " repeat(md5(range::TEXT), 3) AS payload FROM range(?)",
            (rows,),
        )
    lite = sqlite3.connect(directory / "lite")
    lite.execute("PRAGMA journal_mode = off")
    lite.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, number INT, payload TEXT)")
    lite.executemany(
        "INSERT INTO items VALUES (?, 0, ?)", ((number, PAYLOAD) for number in range(rows))
    )
    lite.commit()
    lite.close()
    for module, name in (("duckdb", "duck"), ("sqlite3", "lite")):
        path = directory / name
        uncache(path)
        code = (
            f"import {module}; c = {module}.connect({str(path)!r});"
            f" print(c.execute('SELECT number FROM items WHERE id = {rows // 2}').fetchall())"
        )
        start = time.monotonic()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        size = path.stat().st_size / GB
        print(f"{module}, {size:.1f} GB: process to first row {time.monotonic() - start:.3f} s")


async def run(options: argparse.Namespace, directory: Path) -> None:
    """Makes the data and measures; or measures what another process made."""
    if options.measure:
        print(json.dumps(await measure(Path(options.measure), options.tablets, options.begun)))
        return
    needed = int((options.gb + 2 * options.peer_gb) * GB)
    if shutil.disk_usage(directory).free < 2 * needed:
        raise SystemExit(f"{2 * needed / GB:.0f} GB of free disk are needed")
    data = directory / "data"
    start = time.monotonic()
    await make(data, options)
    print(f"made in {time.monotonic() - start:.0f} s; empty log:", flush=True)
    in_new_process(data, options.tablets)
    await append_tail(data, options)
    print(f"{options.tail_mib} MiB of log:", flush=True)
    in_new_process(data, options.tablets)
    if options.peer_gb:
        compare(directory, options.peer_gb)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this bench."""
    parser.add_argument("--gb", type=float, default=10)
    parser.add_argument("--tablets", type=int, default=8)
    parser.add_argument("--tail-mib", type=float, default=64)
    parser.add_argument("--peer-gb", type=float, default=1)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
