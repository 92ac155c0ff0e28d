"""Segments in memory: what a reader looks at of a segment file, put together in plain Python."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa

from shardb._core.crc32c import crc32c
from shardb._core.rowcodec import RowLayout
from shardb._core.segment import Segment
from shardb.storage.segmentformat import (
    VERSION,
    ChunkIndex,
    GroupIndex,
    SegmentColumn,
    SegmentIndex,
    SegmentMeta,
)


class Body:
    """The buffers of a file, one after the other."""

    def __init__(self, codec: str) -> None:
        self.codec = codec
        self.data = bytearray()

    def add(self, buffer: bytes) -> tuple[int, int]:
        """Where it came to lie, and the bytes that it takes there."""
        self.data += bytes(-len(self.data) % 64)
        at = len(self.data)
        if self.codec and buffer:
            self.data += len(buffer).to_bytes(8, "little")
            self.data += pa.Codec(self.codec).compress(buffer, asbytes=True)
        else:
            self.data += buffer
        return at, len(self.data) - at

    def chunk(self, array: pa.Array) -> ChunkIndex:
        assert array.offset == 0
        rows = len(array)
        validity, *rest = array.buffers()
        bitmap = validity.to_pybytes()[: (rows + 7) // 8] if array.null_count else b""
        offsets = rest[0].to_pybytes()[: 4 * (rows + 1)] if len(rest) == 2 else b""
        values = rest[-1].to_pybytes() if rest[-1] else b""
        if offsets:
            values = values[: int.from_bytes(offsets[-4:], "little")]
        else:
            values = values[: (rows * array.type.bit_width + 7) // 8]
        crc = crc32c(values, crc32c(offsets, crc32c(bitmap)))
        places = [self.add(part) for part in (bitmap, offsets, values)]
        return ChunkIndex(*places[0], *places[1], *places[2], crc, array.null_count)


def segment_of(
    batches: Iterable[pa.RecordBatch], layout: RowLayout, *, link_ts: int = 0, codec: str = ""
) -> Segment:
    """A segment whose row groups are `batches`, as `RunMerge` makes them; one at least."""
    body = Body(codec)
    groups: list[GroupIndex] = []
    rows = 0
    last_key: object = None
    for batch in batches:
        keys = batch["_key"].to_pylist()
        stamps = batch["_ts"].to_pylist()
        groups.append(
            GroupIndex(
                rows=batch.num_rows,
                first_key=keys[0],
                last_key=keys[-1],
                min_ts=min(stamps),
                max_ts=max(stamps),
                tombstones=sum(batch["_deleted"].to_pylist()),
                versions=len(set(keys)) < len(keys) or keys[0] == last_key,
                chunks=tuple(body.chunk(column) for column in batch.columns),
            )
        )
        last_key = keys[-1]
        rows += batch.num_rows
    columns: Sequence[tuple[int, int]] = layout.types
    index = SegmentIndex(
        version=VERSION,
        schema_version=int.from_bytes(layout.encode([None] * len(columns))[:2], "little"),
        codec=codec,
        columns=tuple(
            SegmentColumn(number, f"c{number}", code, typmod)
            for number, (code, typmod) in enumerate(columns)
        ),
        groups=tuple(groups),
        bloom=b"",
    )
    meta = SegmentMeta(
        number=1,
        order=1,
        range_id=1,
        table_id=1,
        bytes=len(body.data),
        crc=0,
        index_at=0,
        index_bytes=0,
        index_crc=0,
        rows=rows,
        tombstones=sum(group.tombstones for group in groups),
        min_key=groups[0].first_key,
        max_key=groups[-1].last_key,
        min_ts=min(group.min_ts for group in groups),
        max_ts=max(group.max_ts for group in groups),
        link_ts=link_ts,
    )
    return Segment(meta, index, pa.py_buffer(bytes(body.data)), "memory")
