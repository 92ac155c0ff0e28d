"""Writes a segment: row groups as they come, then the index that readers go by.

The format is in docs/formats/segment.md and `segmentformat.py`. A writer belongs to one thread at a
time, any one; what is long runs without the GIL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import pyarrow as pa

from shardb import limits
from shardb._core.bloom import BloomBuilder
from shardb._core.crc32c import crc32c
from shardb._core.zones import scan_rows, zone_map
from shardb.env import OutputFile
from shardb.storage import arrowfile
from shardb.storage.segmentformat import (
    INDEX_KEY,
    SYSTEM_COLUMNS,
    VERSION,
    ChunkIndex,
    GroupIndex,
    SegmentColumn,
    SegmentIndex,
    SegmentMeta,
    footer_note,
)
from shardb.types import arrow_type

if TYPE_CHECKING:
    from typing_extensions import Buffer

COALESCE_BYTES: Final = 256 * 1024  # small parts are written together up to this
_PADDING: Final = bytes(arrowfile.ALIGNMENT)


class _Sink:
    """An output file, its checksum so far, and small parts that wait for company."""

    def __init__(self, file: OutputFile) -> None:
        self._file = file
        self._waiting = bytearray()
        self.at = 0
        self.crc = 0

    def put(self, data: Buffer) -> None:
        size = memoryview(data).nbytes
        self.at += size
        if len(self._waiting) + size > COALESCE_BYTES:
            self.flush()
        if size > COALESCE_BYTES:
            self._write(data)
        else:
            self._waiting += data

    def align(self) -> None:
        self.put(_PADDING[: -self.at % arrowfile.ALIGNMENT])

    def flush(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, bytearray()
            self._write(waiting)

    def _write(self, data: Buffer) -> None:
        self.crc = crc32c(data, self.crc)
        self._file.write(data)


class _Column(NamedTuple):
    """A column of a batch, each buffer cut to what the rows need; None where there is none."""

    nulls: int
    validity: pa.Buffer | None
    offsets: pa.Buffer | None
    values: pa.Buffer | None

    def checksum(self) -> int:
        crc = 0
        for buffer in (self.validity, self.offsets, self.values):
            if buffer is not None:
                crc = crc32c(buffer, crc)
        return crc


class SegmentWriter:
    """One segment in the making; after an error it must not be used on, and the file be removed."""

    def __init__(
        self,
        file: OutputFile,
        columns: Sequence[SegmentColumn],
        schema_version: int,
        codec: str = "",
    ) -> None:
        """`columns` are the table's. OSError of the file passes through, here and below."""
        assert codec == "" or codec in arrowfile.CODECS, codec
        self._file = file
        self._sink = _Sink(file)
        self._columns = tuple(columns)
        self._schema_version = schema_version
        self._codec = codec
        self._compressor = pa.Codec(codec) if codec else None
        self.schema = segment_schema(columns)
        self._flat_schema = arrowfile.schema_flatbuffer(self.schema)
        self._blocks: list[arrowfile.Block] = []
        self._groups: list[GroupIndex] = []
        self._bloom = BloomBuilder()
        self._last: tuple[bytes, int] | None = None  # key and timestamp of the last row
        self._sink.put(arrowfile.FILE_START)
        self._sink.put(arrowfile.framed(self._flat_schema, self._sink.at))

    @property
    def bytes_written(self) -> int:
        """The file's size so far."""
        return self._sink.at

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends a row group: `schema`'s columns, rows by key and then newest first.

        REQUIRES: 1 to SEGMENT_GROUP_ROWS rows, in arrays that are no slices, and after the rows
        of the batch before.
        """
        rows = batch.num_rows
        assert 0 < rows <= limits.SEGMENT_GROUP_ROWS, rows
        assert batch.schema.types == self.schema.types, batch.schema
        columns = [_column(array) for array in batch.columns]
        key, ts, deleted = columns[:3]
        assert key.offsets is not None and ts.values is not None and deleted.values is not None
        last_key, last_ts = self._last or (None, 0)
        tombstones, min_ts, max_ts, versions, disorder = scan_rows(
            rows, key.offsets, key.values, ts.values, deleted.values, last_key, last_ts
        )
        assert disorder < 0, f"row {disorder} of row group {len(self._groups)} is out of order"
        self._bloom.add(rows, key.offsets, key.values)
        first_key = batch.column(0)[0].as_py()
        last_key = batch.column(0)[rows - 1].as_py()
        self._last = last_key, batch.column(1)[rows - 1].as_py()
        places = self._write_body(rows, columns)
        chunks = tuple(
            self._chunk(rows, number, column, place)
            for number, (column, place) in enumerate(zip(columns, places, strict=True))
        )
        self._groups.append(
            GroupIndex(rows, first_key, last_key, min_ts, max_ts, tombstones, versions, chunks)
        )

    def _write_body(self, rows: int, columns: list[_Column]) -> list[list[tuple[int, int]]]:
        """Writes a record batch: for each column where its three buffers lie in the file."""
        parts: list[Buffer] = []
        header_buffers: list[tuple[int, int]] = []
        places: list[list[tuple[int, int]]] = []
        at = 0
        for column in columns:
            place = []
            for buffer in column[1:]:
                packed = self._pack(buffer)
                size = sum(len(part) for part in packed)
                place.append((at, size))
                parts += packed
                pad = -size % arrowfile.ALIGNMENT
                parts.append(_PADDING[:pad])
                at += size + pad
            places.append(place)
            header_buffers += place if column.offsets is not None else (place[0], place[2])
        header = arrowfile.record_batch_header(
            rows, [(rows, column.nulls) for column in columns], header_buffers, at, self._codec
        )
        start = self._sink.at
        self._sink.put(arrowfile.framed(header, start))
        body = self._sink.at
        for part in parts:
            self._sink.put(part)
        self._blocks.append(arrowfile.Block(start, body - start, at))
        return [[(body + at if size else 0, size) for at, size in place] for place in places]

    def _pack(self, buffer: pa.Buffer | None) -> list[Any]:
        """A buffer as it is in the file: compressed ones have their length before them."""
        if buffer is None or buffer.size == 0:
            return []
        if self._compressor is None:
            return [buffer]
        packed = self._compressor.compress(buffer)
        if packed.size < buffer.size:
            return [buffer.size.to_bytes(8, "little"), packed]
        return [(-1).to_bytes(8, "little", signed=True), buffer]

    def _chunk(
        self, rows: int, number: int, column: _Column, place: list[tuple[int, int]]
    ) -> ChunkIndex:
        low = high = b""
        if number >= len(SYSTEM_COLUMNS):
            of = self._columns[number - len(SYSTEM_COLUMNS)]
            low, high = zone_map(of.type_code, of.typmod, rows, *column[1:])
        (validity, offsets, values) = place
        return ChunkIndex(*validity, *offsets, *values, column.checksum(), column.nulls, low, high)

    def finish(
        self, *, number: int, order: int, range_id: int, table_id: int, link_ts: int = 0
    ) -> SegmentMeta:
        """Writes the index and the footer, makes the file durable and closes it.

        REQUIRES: at least one row group.
        """
        assert self._groups
        sink, groups = self._sink, self._groups
        sink.put(arrowfile.END_OF_STREAM)
        sink.align()
        bloom, bloom_at = self._bloom.build(), sink.at
        sink.put(bloom)
        index = msgspec.msgpack.encode(
            SegmentIndex(
                VERSION,
                self._schema_version,
                self._codec,
                self._columns,
                tuple(groups),
                bloom_at,
                len(bloom),
                crc32c(bloom),
            )
        )
        sink.align()
        index_at, index_crc = sink.at, crc32c(index)
        sink.put(index)
        sink.align()
        note = footer_note(index_at, len(index), index_crc)
        sink.put(arrowfile.footer(self._flat_schema, self._blocks, {INDEX_KEY: note}))
        sink.flush()
        self._file.sync()
        self._file.close()
        return SegmentMeta(
            number=number,
            order=order,
            range_id=range_id,
            table_id=table_id,
            bytes=sink.at,
            crc=sink.crc,
            index_at=index_at,
            index_bytes=len(index),
            index_crc=index_crc,
            rows=sum(group.rows for group in groups),
            tombstones=sum(group.tombstones for group in groups),
            min_key=groups[0].first_key,
            max_key=groups[-1].last_key,
            min_ts=min(group.min_ts for group in groups),
            max_ts=max(group.max_ts for group in groups),
            link_ts=link_ts,
        )


def segment_schema(columns: Sequence[SegmentColumn]) -> pa.Schema:
    """The Arrow schema of a segment with these columns of the table."""
    return pa.schema(
        [
            pa.field("_key", pa.binary(), nullable=False),
            pa.field("_ts", pa.uint64(), nullable=False),
            pa.field("_deleted", pa.bool_(), nullable=False),
            *(pa.field(c.name, arrow_type(c.type_code, c.typmod)) for c in columns),
        ]
    )


def _column(array: pa.Array) -> _Column:
    assert array.offset == 0
    rows, kind = len(array), array.type
    buffers = array.buffers()
    validity, values = buffers[0], buffers[-1]
    validity = validity.slice(0, (rows + 7) // 8) if array.null_count else None
    if len(buffers) == 2:
        return _Column(
            array.null_count, validity, None, values.slice(0, (rows * kind.bit_width + 7) // 8)
        )
    offsets = buffers[1].slice(0, 4 * (rows + 1))
    ends = memoryview(offsets).cast("B").cast("i")
    assert ends[0] == 0
    return _Column(
        array.null_count,
        validity,
        offsets,
        None if values is None else values.slice(0, ends[rows]),
    )
