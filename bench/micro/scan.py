"""Scans of segments on one core. Run: python -m bench.micro scan

int64 and float64 columns, drained and summed by the engine, beside DuckDB's own table and pyarrow's
IPC reader; then with 1 % of the rows overwritten in a memtable. Figures are medians of processor
time, so that they can be had on a busy machine; GB count what the columns take.
"""

from __future__ import annotations

import os
import random
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from shardb._core.memtable import MemTable
from shardb._core.rowcodec import RowLayout
from shardb._core.runs import Runs
from shardb._core.segment import Segment
from shardb._core.shadow import Shadows
from shardb.engine.fragments import FragmentEngine
from shardb.storage.scan import TabletScan, scan_runs
from shardb.storage.segmentformat import SegmentColumn, SegmentIndex, SegmentMeta
from shardb.storage.segmentwriter import SegmentWriter
from shardb.types import TypeCode

ROWS = 4_000_000
GROUP_ROWS = 64 * 1024
CODES = [TypeCode.INT8, TypeCode.FLOAT8, TypeCode.INT8, TypeCode.FLOAT8]
TYPES = [pa.int64(), pa.float64(), pa.int64(), pa.float64()]
LAYOUT = RowLayout(1, [(int(code), -1) for code in CODES])
COLUMNS = list(range(len(CODES)))
GIGABYTES = ROWS * 8 * len(CODES) / 1e9
SUM = "SELECT sum(c0), sum(c1), sum(c2), sum(c3) FROM t"


class Output:
    """A file of the system for the segment writer."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: Any) -> None:
        self._file.write(data)

    def sync(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def key(number: int) -> bytes:
    return struct.pack(">Q", number)


def groups(schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for low in range(0, ROWS, GROUP_ROWS):
        rows = min(GROUP_ROWS, ROWS - low)
        values = pc.floor(pc.multiply(pc.random(rows, initializer=low), 1000.0))
        arrays = [
            pa.array([key(number) for number in range(low, low + rows)]),
            pa.repeat(pa.scalar(1, pa.uint64()), rows),
            pa.repeat(pa.scalar(False), rows),
            *(values.cast(kind) for kind in TYPES),
        ]
        yield pa.record_batch(arrays, schema=schema)


def write(path: str) -> SegmentMeta:
    columns = [SegmentColumn(at, f"c{at}", int(code), -1) for at, code in enumerate(CODES)]
    with open(path, "wb") as file:
        writer = SegmentWriter(Output(file), columns, 1)
        for batch in groups(writer.schema):
            writer.write(batch)
        return writer.finish(number=1, order=1, range_id=1, table_id=1)


def opened(path: str, meta: SegmentMeta) -> Segment:
    data = pa.memory_map(path).read_buffer()
    packed = data.slice(meta.index_at, meta.index_bytes)
    return Segment(meta, msgspec.msgpack.decode(packed, type=SegmentIndex), data, path)


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def show(name: str, taken: float) -> float:
    print(f"{name:<52}{taken * 1000:>10.1f} ms{GIGABYTES / taken:>9.2f} GB/s", flush=True)
    return taken


def median(name: str, work: Callable[[], object], runs: int = 7) -> float:
    return show(name, statistics.median(seconds(work) for _ in range(runs)))


class Bench:
    """Scans over one segment and a memtable, by turns drained and summed."""

    def __init__(self, segment: Segment, memtable: MemTable) -> None:
        self.runs = Runs(LAYOUT, [(False, [(memtable, None)]), (False, [(segment, None)])])
        self.shadows = Shadows(1 << 30)
        self.engine = FragmentEngine(threads=1)

    def scan(self) -> TabletScan:
        return scan_runs(self.runs, COLUMNS, TYPES, 10, shadows=self.shadows)

    def drain(self) -> int:
        return sum(batch.num_rows for batch in self.scan())

    def total(self) -> pa.Table:
        scan = self.scan()
        reader = pa.RecordBatchReader.from_batches(scan.schema, scan)
        return self.engine.run(SUM, {"t": reader}).read_all()

    def show(self, name: str) -> float:
        assert self.drain() == ROWS
        median(f"{name}, drained", self.drain)
        return median(f"{name}, summed by the engine", self.total)


def overwritten(share: float) -> MemTable:
    memtable = MemTable()
    row = LAYOUT.encode([1, 1.0, 1, 1.0])
    for number in random.Random(2).sample(range(ROWS), int(ROWS * share)):
        memtable.put(key(number), row, 5)
    return memtable


def others(path: str) -> None:
    """The same sums elsewhere: DuckDB's own table, and pyarrow's reader of the file."""
    with duckdb.connect(":memory:", config={"threads": "1"}) as connection:
        rows = pa.ipc.open_file(pa.memory_map(path)).read_all()
        connection.execute("CREATE TABLE t AS SELECT c0, c1, c2, c3 FROM rows")
        del rows
        median("DuckDB's own table, summed", lambda: connection.execute(SUM).fetchall())

        def arrow() -> None:
            file = pa.ipc.open_file(
                pa.memory_map(path), options=pa.ipc.IpcReadOptions(included_fields=[3, 4, 5, 6])
            )
            batches = (file.get_batch(at) for at in range(file.num_record_batches))
            t = pa.RecordBatchReader.from_batches(file.schema, batches)
            connection.register("t2", t)
            connection.execute(SUM.replace("FROM t", "FROM t2")).fetchall()

        median("pyarrow's IPC reader, summed by DuckDB", arrow)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/segment.arrow"
        meta = write(path)
        print(f"{ROWS} rows, {GIGABYTES:.2f} GB in columns, {os.path.getsize(path) / 1e9:.2f} GB")
        segment = opened(path, meta)
        bench = Bench(segment, MemTable())
        show("first scan, drained: checksums", seconds(bench.drain))
        whole = bench.show("untouched segment")
        others(path)
        bench = Bench(segment, overwritten(0.01))
        show("1 % overwritten, first scan: marks", seconds(bench.drain))
        part = bench.show("1 % overwritten")
        print(f"1 % overwritten takes {part / whole:.2f} times as long, summed")
        print(f"{bench.shadows.memory_bytes / 1e6:.1f} MB remembered of {bench.shadows.marks} rows")
        bench.runs = Runs(
            LAYOUT, [(False, [(overwritten(0.0001), None)]), (False, [(segment, None)])]
        )
        bench.shadows.clear()
        bench.show("0.01 % overwritten")


if __name__ == "__main__":
    main()
