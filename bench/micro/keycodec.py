"""Keys: of rows in bulk, and one by one from Python."""

from __future__ import annotations

import struct

import pyarrow as pa

from bench.micro.harness import measure
from shardb._core.keycodec import KeyCodec
from shardb._core.rowcodec import RowLayout
from shardb.types import TypeCode

ROWS = 200_000


def main() -> None:
    layout = RowLayout(1, [(TypeCode.INT4, -1), (TypeCode.TEXT, -1)])
    batch = pa.record_batch(
        [pa.array(range(ROWS), pa.int32()), pa.array([f"name {n}" for n in range(ROWS)])],
        names=["a", "b"],
    )
    rows, ends = layout.encode_arrow(batch)
    one = KeyCodec([(TypeCode.INT4, -1, False, False)])
    both = KeyCodec([(TypeCode.TEXT, -1, False, False), (TypeCode.INT4, -1, True, False)])
    measure("int4 keys from rows", lambda: one.keys_from_rows(layout, (0,), rows, ends), ROWS)
    measure(
        "(text, int4 desc) keys from rows",
        lambda: both.keys_from_rows(layout, (1, 0), rows, ends),
        ROWS,
    )
    measure("int4 key from Python", lambda: [one.encode((n,)) for n in range(ROWS)], ROWS)
    measure("the same by struct", lambda: [struct.pack(">I", n) for n in range(ROWS)], ROWS)
    keys = [one.encode((n,)) for n in range(ROWS)]
    measure("int4 key to Python", lambda: [one.decode(key) for key in keys], ROWS)
