"""Lookups and short scans in a tablet's runs: memtables and segments of 600,000 rows.

The rows have four columns and 125 bytes. The segments are warm: every row group's checksum has been
verified. Beside it SQLite in memory, each lookup a call from Python, as one of ours.
"""

from __future__ import annotations

import random
import sqlite3
import struct
from collections import deque
from collections.abc import Sequence
from functools import partial

import pyarrow as pa

from bench.micro.harness import measure
from shardb._core.corebench import cursor_each, insert_each, lookup_each
from shardb._core.memtable import TS_MAX, MemTable
from shardb._core.rowcodec import RowLayout
from shardb._core.runmerge import RunMerge
from shardb._core.runs import Runs
from shardb._core.segment import Segment
from shardb._core.shadow import Shadows
from shardb.storage.scan import scan_runs
from shardb.types import TypeCode, arrow_type
from tests.support.segments import segment_of

ROWS = 600_000
ASKED = 100_000
INTERVALS = 20_000
TYPES = (TypeCode.INT8, TypeCode.INT4, TypeCode.FLOAT8, TypeCode.TEXT)
LAYOUT = RowLayout(1, [(int(code), -1) for code in TYPES])
ARROW = [arrow_type(int(code)) for code in TYPES]
TEXT = "text" * 20
ROW = LAYOUT.encode((1, 2, 3.5, TEXT))
Source = MemTable | Segment


def packed(numbers: Sequence[int]) -> bytes:
    return struct.pack(f">{len(numbers)}Q", *numbers)


def memtable(numbers: Sequence[int], ts: int = 1) -> MemTable:
    table = MemTable()
    insert_each(table, packed(numbers), 8, ROW, ts)
    return table


def segment(numbers: Sequence[int], ts: int = 1) -> Segment:
    names = [f"c{number}" for number in range(len(TYPES))]
    return segment_of(RunMerge([(memtable(numbers, ts), None)], LAYOUT, names, ARROW), LAYOUT)


def runs_of(sources: Sequence[Source]) -> Runs:
    return Runs(LAYOUT, [(False, [(source, None)]) for source in sources])


def lookups() -> None:
    """By key, in random order."""
    everything = range(0, 2 * ROWS, 2)
    draw = random.Random(1)
    asked = draw.sample(everything, ASKED)
    some = packed(asked)
    none = packed([number + 1 for number in asked])
    half = [draw.sample(everything, ROWS // 20) for _ in range(8)]
    base = segment(everything)
    shapes: dict[str, list[Source]] = {
        "a memtable": [memtable(everything)],
        "a segment": [base],
        "memtable, 2 frozen, all in the last": [
            memtable(half[0]), memtable(half[1]), memtable(everything)
        ],
        "memtable of 5 %, a segment": [memtable(half[0]), base],
        "memtable of 5 %, 4 segments of 5 %, one of all": [
            memtable(half[0]), *(segment(sorted(part), 2) for part in half[1:5]), base
        ],
        "memtable of 5 %, 7 segments of 5 %, one of all": [
            memtable(half[0]), *(segment(sorted(part), 2) for part in half[1:8]), base
        ],
    }  # fmt: skip
    for name, sources in shapes.items():
        runs = runs_of(sources)
        measure(f"get: {name}", partial(lookup_each, runs, some, 8, TS_MAX), ASKED)
        measure(f"get nothing: {name}", partial(lookup_each, runs, none, 8, TS_MAX), ASKED)
        keys = [struct.pack(">Q", number) for number in asked[:INTERVALS]]
        measure(
            f"10 rows: {name}",
            partial(cursor_each, runs, keys, 10, TS_MAX),
            INTERVALS,
        )
    get = runs_of([base]).get
    keys = [struct.pack(">Q", number) for number in asked]
    measure("get from Python: a segment", lambda: [get(key, TS_MAX) for key in keys], ASKED)
    beside_sqlite(asked)


def beside_sqlite(asked: Sequence[int]) -> None:
    lite = sqlite3.connect(":memory:")
    lite.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a INT, b REAL, c TEXT)")
    lite.executemany(
        "INSERT INTO t VALUES (?, 2, 3.5, ?)", ((number, TEXT) for number in range(0, 2 * ROWS, 2))
    )
    ask = lite.execute
    query = "SELECT * FROM t WHERE id = ?"
    measure("SQLite: get", lambda: [ask(query, (n,)).fetchone() for n in asked], ASKED)
    query = "SELECT * FROM t WHERE id >= ? LIMIT 10"
    some = asked[:INTERVALS]
    measure("SQLite: 10 rows", lambda: [ask(query, (n,)).fetchall() for n in some], INTERVALS)


def scans() -> None:
    """Of all rows and two columns, where newer runs hide some."""
    everything = range(0, 2 * ROWS, 2)
    base = segment(everything)
    draw = random.Random(2)
    for part in (0, 0.001, 0.01, 0.1):
        updated = draw.sample(everything, round(ROWS * part))
        sources: list[Source] = [memtable(updated, 2), base] if updated else [base]
        runs = runs_of(sources)
        shadows = Shadows(1 << 26)

        def scan(shadows: Shadows = shadows, runs: Runs = runs) -> None:
            batches = scan_runs(runs, [0, 2], [pa.int64(), pa.float64()], 2, shadows=shadows)
            deque(batches, maxlen=0)

        measure(f"scan, {part:.1%} updated in a memtable", scan, ROWS)
        if updated:

            def first(runs: Runs = runs) -> None:
                batches = scan_runs(
                    runs, [0, 2], [pa.int64(), pa.float64()], 2, shadows=Shadows(1 << 26)
                )
                deque(batches, maxlen=0)

            measure("  first, with all to be learned", first, ROWS)


def main() -> None:
    lookups()
    scans()
