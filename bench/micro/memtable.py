"""The memtable alone, in loops in C, on tables of rows of 60 bytes.

350,000 are about as many as one has before it is frozen (`limits.MEMTABLE_MAX_BYTES`).
"""

from __future__ import annotations

import random
import struct
from array import array
from functools import partial

from bench.micro.harness import measure, report
from shardb._core.corebench import get_each, insert_each, seek_each, walk
from shardb._core.memload import put_many
from shardb._core.memtable import TS_MAX, MemTable

ROW = bytes(60)


def inserted(keys: bytes) -> MemTable:
    """A table of these keys, put one by one."""
    table = MemTable()
    insert_each(table, keys, 8, ROW, 1)
    return table


def loaded(keys: bytes) -> MemTable:
    """The same by one bulk put."""
    count = len(keys) // 8
    table = MemTable()
    put_many(
        table,
        keys,
        array("Q", range(0, 8 * count + 1, 8)),
        ROW * count,
        array("Q", range(0, 60 * count + 1, 60)),
        1,
    )
    return table


def main() -> None:
    for rows in (100_000, 350_000):
        order = list(range(rows))
        ascending = struct.pack(f">{rows}Q", *order)
        random.Random(1).shuffle(order)
        shuffled = struct.pack(f">{rows}Q", *order)
        size = f"{rows // 1000} k rows"
        measure(f"insert, ascending, {size}", partial(inserted, ascending), rows)
        measure(f"insert, random, {size}", partial(inserted, shuffled), rows)
        measure(f"bulk put, random, {size}", partial(loaded, shuffled), rows)
        table = loaded(shuffled)
        measure(f"get, random, {size}", partial(get_each, table, shuffled, 8, TS_MAX), rows)
        measure(f"seek, random, {size}", partial(seek_each, table, shuffled, 8, TS_MAX), rows)
        measure(f"walk in order, {size}", partial(walk, table, TS_MAX), rows)
        report(f"memory beside keys and rows, {size}", table.memory_bytes / rows - 68, "bytes/row")
    keys = [struct.pack(">Q", key) for key in order[:100_000]]
    measure("get from Python", lambda: [table.get(key, TS_MAX) for key in keys], len(keys))
