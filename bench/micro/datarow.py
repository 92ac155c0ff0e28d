"""DataRow messages from Arrow, beside the same in plain Python."""

from __future__ import annotations

import struct

import pyarrow as pa

from bench.micro.harness import measure
from bench.micro.rowcodec import ROWS, TYPES, table_batch
from shardb._core.datarow import DataRowWriter


def plain_datarows(batch: pa.RecordBatch) -> bytes:
    out = []
    for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
        cells = [str(value).encode() for value in row]
        body = b"".join(struct.pack("!I", len(cell)) + cell for cell in cells)
        out.append(struct.pack("!cIH", b"D", len(body) + 6, len(cells)) + body)
    return b"".join(out)


def main() -> None:
    batch = table_batch()
    text, binary = DataRowWriter(TYPES), DataRowWriter(TYPES, (1,))
    assert text.encode(batch) == plain_datarows(batch)
    measure("text", lambda: text.encode(batch), ROWS)
    measure("binary", lambda: binary.encode(batch), ROWS)
    measure("text in plain Python", lambda: plain_datarows(batch), ROWS, runs=1)
