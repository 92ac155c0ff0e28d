"""Segments on one core: writing, opening, rows by key.

Run: python -m bench.micro segment. Rows are like TPC-H's lineitem. Figures are medians
by processor time, so that others on the machine matter less. In the same run pyarrow writes the
same batches, and SQLite (a table in key order, in memory) looks up the same keys.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa

from shardb import limits
from shardb._core.corebench import find_in_segment, get_from_segment
from shardb._core.segment import Segment
from shardb.env import SystemFiles
from shardb.storage.jobs import open_segment, segment_path
from shardb.storage.segmentformat import SegmentColumn, SegmentMeta
from shardb.storage.segmentwriter import SegmentWriter, segment_schema
from shardb.types import TypeCode, numeric_typmod

MONEY = numeric_typmod((12, 2))
COLUMNS = [
    SegmentColumn(number, f"c{number}", int(code), typmod)
    for number, (code, typmod) in enumerate(
        [(TypeCode.INT8, -1)] * 3
        + [(TypeCode.INT4, -1)]
        + [(TypeCode.NUMERIC, MONEY)] * 4
        + [(TypeCode.BPCHAR, 5)] * 2
        + [(TypeCode.DATE, -1)] * 3
        + [(TypeCode.TEXT, -1)] * 3,
        1,
    )
]
KEY = struct.Struct(">QI")
TS = 1 << 40
ROWS = 1_000_000
LOOKUPS = 200_000
WORDS = ["furiously", "quickly", "deposits", "accounts", "packages", "regular", "ironic", "final"]


def show(name: str, value: float, unit: str) -> None:
    print(f"  {name:<48}{value:>10.2f} {unit}", flush=True)


def median_seconds(work: Callable[[], object], runs: int = 5) -> float:
    """Of this process's processor time."""

    def once() -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    return statistics.median(once() for _ in range(runs))


def key_of(row: int) -> bytes:
    """As of a primary key (int8, int4): four lines an order."""
    return KEY.pack(row // 4 * 8 | 1 << 63, row % 4 | 1 << 31)


def batch_of(start: int, rows: int, rng: random.Random) -> pa.RecordBatch:
    numbers = range(start, start + rows)
    money = [Decimal(rng.randrange(10**7)).scaleb(-2) for _ in range(1000)]
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(1, 6))) for _ in range(1000)]
    days = [rng.randrange(8000, 10_000) for _ in range(1000)]

    def drawn(values: Sequence[object], kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind).take(pa.array(rng.choices(range(1000), k=rows), pa.int32()))

    schema = segment_schema(COLUMNS)
    kinds = schema.types[3:]
    table = [
        pa.array([n // 4 * 8 for n in numbers], kinds[0]),
        pa.array([rng.randrange(200_000) for _ in numbers], kinds[1]),
        pa.array([rng.randrange(10_000) for _ in numbers], kinds[2]),
        pa.array([n % 4 for n in numbers], kinds[3]),
        *(drawn(money, kind) for kind in kinds[4:8]),
        *(drawn(["A", "N", "R", "O"] * 250, kind) for kind in kinds[8:10]),
        *(drawn(days, pa.int32()).cast(kind) for kind in kinds[10:13]),
        *(drawn(texts, kind) for kind in kinds[13:]),
    ]
    system = [
        pa.array([key_of(n) for n in numbers], pa.binary()),
        pa.array([TS] * rows, pa.uint64()),
        pa.array([False] * rows, pa.bool_()),
    ]
    return pa.record_batch([*system, *table], schema=schema)


class Unsynced:
    """An output file that leaves its bytes in the page cache: the disk is not what is measured."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: Any) -> None:
        self._file.write(data)

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def write(path: str, batches: list[pa.RecordBatch], codec: str) -> SegmentMeta:
    with open(path, "wb", buffering=0) as file:
        writer = SegmentWriter(Unsynced(file), COLUMNS, 1, codec)
        for batch in batches:
            writer.write(batch)
        return writer.finish(number=1, order=1, range_id=1, table_id=1)


def write_by_pyarrow(path: str, batches: list[pa.RecordBatch], codec: str) -> None:
    options = pa.ipc.IpcWriteOptions(compression=codec or None, use_threads=False)
    with (
        pa.OSFile(path, "wb") as file,
        pa.ipc.new_file(file, batches[0].schema, options=options) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)


def bench_write(directory: str, batches: list[pa.RecordBatch]) -> dict[str, SegmentMeta]:
    megabytes = sum(batch.nbytes for batch in batches) / 1e6
    metas = {}
    for codec in ("lz4", "zstd", ""):
        name = codec or "plain"
        os.makedirs(f"{directory}/{name}")
        path = segment_path(f"{directory}/{name}", 1)
        seconds = median_seconds(partial(write, path, batches, codec), 3)
        metas[name] = write(path, batches, codec)
        show(f"write, {name}", megabytes / seconds, "MB/s")
        show(f"size, {name}", metas[name].bytes / 1e6, f"MB of {megabytes:.0f}")
        seconds = median_seconds(partial(write_by_pyarrow, f"{directory}/peer", batches, codec), 3)
        show(f"write by pyarrow, {name}: no index", megabytes / seconds, "MB/s")
    return metas


def opened(directory: str, meta: SegmentMeta) -> Segment:
    files = SystemFiles(None)  # type: ignore[arg-type]
    return open_segment(files, directory, meta)


def bench_open(directory: str, meta: SegmentMeta, name: str) -> None:
    seconds = median_seconds(lambda: opened(directory, meta), 20)
    show(f"open, {name}", seconds * 1e3, "ms")

    def load(columns: range) -> float:
        segment = opened(directory, meta)
        start = time.process_time()
        for group in range(segment.groups):
            for column in columns:
                segment.check(group, column)
        return (time.process_time() - start) / segment.groups

    columns = opened(directory, meta).columns
    show(
        f"first touch of a group's keys, {name}", min(load(range(1)) for _ in range(3)) * 1e3, "ms"
    )
    seconds = min(load(range(columns)) for _ in range(3))
    show(f"first touch of a whole group, {name}", seconds * 1e3, "ms")


def rate(work: Callable[[], int], count: int) -> float:
    """Thousands a second, of which `count` must be found."""

    def checked() -> None:
        assert work() == count

    checked()
    return LOOKUPS / 1e3 / median_seconds(checked)


def bench_lookups(segment: Segment, rows: int, name: str) -> None:
    rng = random.Random(2)
    numbers = [rng.randrange(rows) for _ in range(LOOKUPS)]
    random_keys = b"".join(map(key_of, numbers))
    sorted_keys = b"".join(map(key_of, sorted(numbers)))
    absent = b"".join(KEY.pack(n // 4 * 8 + 1 | 1 << 63, n % 4) for n in numbers)
    width = KEY.size
    for what, keys, count in (
        ("random", random_keys, LOOKUPS),
        ("ascending", sorted_keys, LOOKUPS),
        ("absent", absent, 0),
    ):
        found = rate(partial(find_in_segment, segment, keys, width, TS), count)
        show(f"find in C, {what} keys, {name}", found, "k/s")
        if count:
            built = rate(partial(get_from_segment, segment, keys, width, TS), count)
            show(f"find and build the row in C, {what} keys, {name}", built, "k/s")
    each = list(map(key_of, numbers))
    get = segment.get
    found = rate(lambda: sum(get(key, TS) is not None for key in each), LOOKUPS)
    show(f"get from Python, random keys, {name}", found, "k/s")


def bench_sqlite(batches: list[pa.RecordBatch], rows: int) -> None:
    connection = sqlite3.connect(":memory:")
    names = [f"c{column.id}" for column in COLUMNS]
    connection.execute(f"CREATE TABLE t (k BLOB PRIMARY KEY, {', '.join(names)}) WITHOUT ROWID")
    marks = ", ".join("?" * (len(names) + 1))
    for batch in batches:
        plain = [
            column.cast(pa.string()) if pa.types.is_decimal(column.type) else column
            for column in (batch.column("_key"), *batch.columns[3:])
        ]
        plain = [c.cast(pa.int32()) if pa.types.is_date32(c.type) else c for c in plain]
        columns = [column.to_pylist() for column in plain]
        connection.executemany(f"INSERT INTO t VALUES ({marks})", zip(*columns, strict=True))
    rng = random.Random(2)
    keys = [(key_of(rng.randrange(rows)),) for _ in range(LOOKUPS)]
    execute = connection.execute

    def look_up() -> int:
        query = "SELECT * FROM t WHERE k = ?"
        return sum(execute(query, key).fetchone() is not None for key in keys)

    show("SQLite from Python, random keys", rate(look_up, LOOKUPS), "k/s")


def main() -> None:
    rows = ROWS
    rng = random.Random(1)
    step = limits.SEGMENT_GROUP_ROWS
    batches = [batch_of(at, min(step, rows - at), rng) for at in range(0, rows, step)]
    directory = tempfile.mkdtemp(prefix="shardb-bench-", dir=os.environ.get("BENCH_DIR", "."))
    try:
        metas = bench_write(directory, batches)
        for name in ("plain", "lz4"):
            bench_open(f"{directory}/{name}", metas[name], name)
            bench_lookups(opened(f"{directory}/{name}", metas[name]), rows, name)
    finally:
        shutil.rmtree(directory)
    bench_sqlite(batches, rows)


if __name__ == "__main__":
    main()
