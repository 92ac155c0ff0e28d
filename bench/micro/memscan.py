"""Snapshot scans of a memtable to Arrow, in rows a second."""

from __future__ import annotations

import random
import struct
from collections import deque
from functools import partial

import pyarrow as pa

from bench.micro.harness import measure
from shardb._core.corebench import insert_each
from shardb._core.memscan import scan_batches
from shardb._core.memtable import MemTable
from shardb._core.rowcodec import RowLayout
from shardb._core.runs import Runs
from shardb.types import TypeCode

ROWS = 500_000
LAYOUT = RowLayout(
    1, [(int(code), -1) for code in (TypeCode.INT8, TypeCode.INT4, TypeCode.TEXT, TypeCode.FLOAT8)]
)
ARROW = [pa.int64(), pa.int32(), pa.string(), pa.float64()]


def drain(table: MemTable, columns: list[int]) -> None:
    kinds = [ARROW[column] for column in columns]
    runs = Runs(LAYOUT, [(False, [(table, None)])])
    deque(scan_batches(runs, columns, kinds, 1), maxlen=0)


def main() -> None:
    row = LAYOUT.encode([1, 2, "sixteen bytes...", 3.5])
    order = list(range(ROWS))
    for name in ("in key order", "in random order"):
        table = MemTable()
        insert_each(table, struct.pack(f">{ROWS}Q", *order), 8, row, 1)
        for columns in ([0], [2], [0, 1, 2, 3]):
            measure(f"columns {columns}, put {name}", partial(drain, table, columns), ROWS)
        random.Random(1).shuffle(order)
