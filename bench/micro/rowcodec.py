"""Rows of an int4, a text, a numeric and a float8: in bulk from Arrow, and one by one."""

from __future__ import annotations

from collections import deque
from decimal import Decimal
from itertools import repeat

import pyarrow as pa

from bench.micro.harness import measure
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


def table_batch() -> pa.RecordBatch:
    """The rows as Arrow has them."""
    columns = [pa.array(v, arrow_type(*t)) for v, t in zip(VALUES, TYPES, strict=True)]
    return pa.record_batch(columns, names=["a", "b", "c", "d"])


def main() -> None:
    batch = table_batch()
    layout = RowLayout(1, TYPES)
    measure("rows from Arrow", lambda: layout.encode_arrow(batch), ROWS)
    rows = list(zip(*VALUES, strict=True))
    measure("rows from Python", lambda: [layout.encode(row) for row in rows], ROWS)
    row = layout.encode(rows[0])
    measure("row to Python", lambda: [layout.decode(row) for _ in range(ROWS)], ROWS)
    measure("check of a row", lambda: deque(map(layout.check, repeat(row, ROWS)), 0), ROWS)
    parameter = RowLayout(0, [(TypeCode.INT4, -1)])
    one = (b"\0\0\0\5",)
    measure(
        "one binary parameter",
        lambda: [parameter.encode_params((1,), one) for _ in range(ROWS)],
        ROWS,
    )
