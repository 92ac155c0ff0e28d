"""Merging runs, flush and compaction: rows of ten columns, bytes of the batches that come out.

Beside it the same mix of four segments put in order by PyArrow: concatenate and sort.
"""

from __future__ import annotations

import random
import struct
from array import array
from collections.abc import Callable, Sequence

import pyarrow as pa

from bench.micro.harness import measure, median_seconds, report
from shardb._core.memload import put_many
from shardb._core.memtable import MemTable
from shardb._core.rowcodec import RowLayout
from shardb._core.rowmap import RowMap
from shardb._core.runmerge import RunMerge
from shardb._core.segment import Segment
from shardb.types import TypeCode, arrow_type
from tests.support.segments import segment_of

ROWS = 500_000
TYPES = [
    TypeCode.INT8,
    TypeCode.INT4,
    TypeCode.INT4,
    TypeCode.NUMERIC,
    TypeCode.NUMERIC,
    TypeCode.DATE,
    TypeCode.DATE,
    TypeCode.TEXT,
    TypeCode.TEXT,
    TypeCode.FLOAT8,
]
LAYOUT = RowLayout(1, [(int(code), -1) for code in TYPES])
NAMES = [f"c{number}" for number in range(len(TYPES))]
ARROW = [arrow_type(int(code)) for code in TYPES]

Run = MemTable | Segment


def filled(numbers: Sequence[int], ts: int = 1) -> MemTable:
    table = MemTable()
    row = LAYOUT.encode([1, 2, 3, 4, 5, None, None, "sixteen bytes...", "a comment of a line", 3.5])
    count = len(numbers)
    put_many(
        table,
        b"".join(struct.pack(">Q", number) for number in numbers),
        array("Q", range(0, 8 * count + 1, 8)),
        row * count,
        array("Q", range(0, len(row) * count + 1, len(row))),
        ts,
    )
    return table


def merge(runs: Sequence[Run], row_map: RowMap | None = None, gc_ts: int = 0) -> RunMerge:
    return RunMerge([(run, row_map) for run in runs], LAYOUT, NAMES, ARROW, gc_ts=gc_ts)


def segment(numbers: Sequence[int], ts: int = 1) -> Segment:
    return segment_of(merge([filled(numbers, ts)]), LAYOUT)


def bench(name: str, work: Callable[[], RunMerge]) -> None:
    rows = size = 0
    for batch in work():
        rows += batch.num_rows
        size += batch.nbytes

    def drain() -> None:
        for _ in work():
            pass

    seconds = median_seconds(drain, 3)
    report(name, rows / seconds, "rows/s")
    report(f"{name}, bytes", size / seconds, "B/s")


def main() -> None:
    everything = range(ROWS)
    shuffled = random.Random(1).sample(everything, ROWS)
    quarter = ROWS // 4
    ascending, scattered = filled(everything), filled(shuffled)
    bench("flush, loaded in key order", lambda: merge([ascending]))
    bench("flush, loaded in random order", lambda: merge([scattered]))
    identity = RowMap(LAYOUT, LAYOUT, [0, 1, 2, 3, 4, 5, 6, 7, -1, 9], None)
    bench("flush, a column is missing", lambda: merge([ascending], identity))
    parts = [segment(everything[at : at + quarter]) for at in range(0, ROWS, quarter)]
    bench("merge of 4 segments, apart", lambda: merge(parts))
    bench("merge of 4 segments, a column is missing", lambda: merge(parts, identity))
    dealt = [segment(everything[at::4]) for at in range(4)]
    bench("merge of 4 segments, row by row", lambda: merge(dealt))
    mixed = [segment(sorted(shuffled[at : at + quarter])) for at in range(0, ROWS, quarter)]
    bench("merge of 4 segments, mixed at random", lambda: merge(mixed))
    many = [segment(sorted(shuffled[at::32])) for at in range(32)]
    bench("merge of 32 segments, mixed at random", lambda: merge(many))
    base = segment(everything)
    updates = segment(sorted(shuffled[: ROWS // 50]), 2)
    bench("merge of updates of 2 % into a segment", lambda: merge([updates, base], gc_ts=2))
    tables = [pa.Table.from_batches(list(merge([part]))) for part in mixed]
    measure("PyArrow sorts the same mix", lambda: pa.concat_tables(tables).sort_by("_key"), ROWS, 3)
