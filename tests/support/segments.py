"""Segments in memory, written as those on disk are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa

from shardb._core.rowcodec import RowLayout
from shardb._core.segment import Segment
from shardb.storage.segmentformat import SegmentColumn, SegmentIndex
from shardb.storage.segmentwriter import SegmentWriter

if TYPE_CHECKING:
    from typing_extensions import Buffer


class MemoryFile:
    """An output file that keeps what is written."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: Buffer) -> None:
        self.data += data

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def segment_of(
    batches: Iterable[pa.RecordBatch], layout: RowLayout, *, link_ts: int = 0, codec: str = ""
) -> Segment:
    """A segment whose row groups are `batches`, as `RunMerge` makes them; one at least."""
    columns = [
        SegmentColumn(number, f"c{number}", code, typmod)
        for number, (code, typmod) in enumerate(layout.types)
    ]
    version = int.from_bytes(layout.encode([None] * len(columns))[:2], "little")
    file = MemoryFile()
    writer = SegmentWriter(file, columns, version, codec)
    for batch in batches:
        writer.write(batch)
    meta = writer.finish(number=1, order=1, range_id=1, table_id=1, link_ts=link_ts)
    index = file.data[meta.index_at : meta.index_at + meta.index_bytes]
    return Segment(
        meta,
        msgspec.msgpack.decode(index, type=SegmentIndex),
        pa.py_buffer(bytes(file.data)),
        "memory",
    )
