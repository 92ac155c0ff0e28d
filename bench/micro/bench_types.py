"""Rows, keys and DataRow messages on one core. Run: python -m bench.micro.bench_types

Figures are medians of five runs, in nanoseconds per row, beside the same work in plain Python.
"""

from __future__ import annotations

import statistics
import struct
import time
from collections.abc import Callable
from decimal import Decimal

import pyarrow as pa

from shardb._core.datarow import DataRowWriter
from shardb._core.keycodec import KeyCodec
from shardb._core.rowcodec import RowLayout
from shardb.types import TypeCode, arrow_type, numeric_typmod

ROWS = 200_000
TYPES = [
    (TypeCode.INT4, -1),
    (TypeCode.TEXT, -1),
    (TypeCode.NUMERIC, numeric_typmod((12, 2))),
    (TypeCode.FLOAT8, -1),
]
VALUES = [list(range(ROWS)), ["abcdefgh"] * ROWS, [Decimal("12.34")] * ROWS, [1.25] * ROWS]


def nanoseconds(work: Callable[[], object], count: int, runs: int = 5) -> float:
    def once() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return statistics.median(once() for _ in range(runs)) / count * 1e9


def plain_datarows(batch: pa.RecordBatch) -> bytes:
    out = []
    for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
        cells = [str(value).encode() for value in row]
        body = b"".join(struct.pack("!I", len(cell)) + cell for cell in cells)
        out.append(struct.pack("!cIH", b"D", len(body) + 6, len(cells)) + body)
    return b"".join(out)


def main() -> None:
    columns = [pa.array(v, arrow_type(*t)) for v, t in zip(VALUES, TYPES, strict=True)]
    batch = pa.record_batch(columns, names=["a", "b", "c", "d"])
    layout = RowLayout(1, TYPES)
    codec = KeyCodec([(TypeCode.INT4, -1, False, False)])
    rows, ends = layout.encode_arrow(batch)
    text, binary = DataRowWriter(TYPES), DataRowWriter(TYPES, (1,))
    assert text.encode(batch) == plain_datarows(batch)
    params = RowLayout(0, [(TypeCode.INT4, -1)])
    one = (b"\0\0\0\5",)
    works: list[tuple[str, Callable[[], object], int]] = [
        ("rows from Arrow", lambda: layout.encode_arrow(batch), ROWS),
        ("keys from rows", lambda: codec.keys_from_rows(layout, (0,), rows, ends), ROWS),
        ("DataRow, text", lambda: text.encode(batch), ROWS),
        ("DataRow, binary", lambda: binary.encode(batch), ROWS),
        ("DataRow in plain Python", lambda: plain_datarows(batch), ROWS),
        ("one parameter", lambda: [params.encode_params((1,), one) for _ in range(ROWS)], ROWS),
    ]
    for name, work, count in works:
        print(f"{name:28} {nanoseconds(work, count):9.1f} ns")


if __name__ == "__main__":
    main()
