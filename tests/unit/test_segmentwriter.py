"""Segments: any Arrow reader gets the rows, and the index tells the truth about the file."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from shardb._core.bloom import may_have
from shardb._core.crc32c import crc32c
from shardb.storage.segmentformat import (
    INDEX_KEY,
    ChunkIndex,
    GroupIndex,
    SegmentColumn,
    SegmentIndex,
    SegmentMeta,
    read_footer_note,
)
from shardb.storage.segmentwriter import SegmentWriter
from shardb.types import TypeCode
from tests.unit.test_rowcodec import CODES, VALUES, natural

CODECS = ("", "lz4", "zstd")


class MemoryFile:
    """An output file that keeps what is written."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.calls: list[str] = []

    def write(self, data: Any) -> None:
        assert not self.calls
        self.data += data

    def sync(self) -> None:
        self.calls.append("sync")

    def close(self) -> None:
        self.calls.append("close")


Row = tuple[bytes, int, bool, tuple[Any, ...]]


def columns_of(codes: list[TypeCode]) -> list[SegmentColumn]:
    return [SegmentColumn(n + 1, f"c{n}", int(code), -1) for n, code in enumerate(codes)]


def batch_of(schema: pa.Schema, codes: list[TypeCode], rows: list[Row]) -> pa.RecordBatch:
    table = [[natural(code, row[3][n]) for row in rows] for n, code in enumerate(codes)]
    data = [*([row[n] for row in rows] for n in range(3)), *table]
    arrays = [pa.array(of, kind) for of, kind in zip(data, schema.types, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def write_segment(
    codes: list[TypeCode], groups: list[list[Row]], codec: str = ""
) -> tuple[SegmentMeta, bytes]:
    file = MemoryFile()
    writer = SegmentWriter(file, columns_of(codes), 5, codec)
    for rows in groups:
        writer.write(batch_of(writer.schema, codes, rows))
    meta = writer.finish(number=9, order=8, range_id=7, table_id=6)
    assert file.calls == ["sync", "close"]
    return meta, bytes(file.data)


def read_index(meta: SegmentMeta, data: bytes) -> SegmentIndex:
    packed = data[meta.index_at : meta.index_at + meta.index_bytes]
    assert crc32c(packed) == meta.index_crc
    return msgspec.msgpack.decode(packed, type=SegmentIndex)


@st.composite
def segments(draw: st.DrawFn) -> tuple[list[TypeCode], list[list[Row]]]:
    codes = draw(st.lists(st.sampled_from(CODES), max_size=6))
    values = st.tuples(*(st.none() | VALUES[code] for code in codes))
    versions = draw(
        st.sets(
            st.tuples(st.binary(max_size=3), st.integers(0, 2**64 - 1)), min_size=1, max_size=12
        )
    )
    rows: list[Row] = []
    for key, ts in sorted(versions, key=lambda version: (version[0], -version[1])):
        deleted = draw(st.booleans())
        rows.append((key, ts, deleted, (None,) * len(codes) if deleted else draw(values)))
    cuts = sorted(draw(st.sets(st.integers(1, len(rows)), max_size=3)) - {len(rows)})
    ends = [0, *cuts, len(rows)]
    return codes, [rows[a:b] for a, b in pairwise(ends)]


@settings(max_examples=200)
@given(segments(), st.sampled_from(CODECS))
def test_arrow_gives_the_rows(case: Any, codec: str) -> None:
    codes, groups = case
    _, data = write_segment(codes, groups, codec)
    reader = pa.ipc.open_file(pa.py_buffer(data))
    found = reader.read_all()
    found.validate(full=True)
    schema = SegmentWriter(MemoryFile(), columns_of(codes), 5).schema
    expected = [batch_of(schema, codes, rows) for rows in groups]
    assert found == pa.Table.from_batches(expected)
    assert reader.num_record_batches == len(groups)
    assert pa.ipc.open_stream(pa.py_buffer(data[8:])).read_all() == found


@settings(max_examples=100)
@given(segments(), st.sampled_from(CODECS))
def test_meta_and_index_tell_of_the_rows(case: Any, codec: str) -> None:
    codes, groups = case
    meta, data = write_segment(codes, groups, codec)
    rows = [row for group in groups for row in group]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(meta), type=SegmentMeta) == meta
    assert (meta.bytes, meta.crc) == (len(data), crc32c(data))
    assert (meta.number, meta.order, meta.range_id, meta.table_id, meta.link_ts) == (9, 8, 7, 6, 0)
    assert (meta.rows, meta.tombstones) == (len(rows), sum(row[2] for row in rows))
    assert (meta.min_key, meta.max_key) == (rows[0][0], rows[-1][0])
    assert (meta.min_ts, meta.max_ts) == (min(r[1] for r in rows), max(r[1] for r in rows))
    index = read_index(meta, data)
    assert (index.version, index.schema_version, index.codec) == (1, 5, codec)
    assert list(index.columns) == columns_of(codes)
    bloom = data[index.bloom_at : index.bloom_at + index.bloom_bytes]
    assert crc32c(bloom) == index.bloom_crc
    assert all(may_have(bloom, row[0]) for row in rows)
    before = None
    for group, of in zip(groups, index.groups, strict=True):
        keys = [row[0] for row in group]
        assert (of.rows, of.first_key, of.last_key) == (len(group), keys[0], keys[-1])
        assert (of.min_ts, of.max_ts) == (min(r[1] for r in group), max(r[1] for r in group))
        assert of.tombstones == sum(row[2] for row in group)
        assert of.versions == (len(set(keys)) < len(keys) or before == keys[0])
        before = keys[-1]


def unpacked(data: bytes, codec: str, at: int, size: int) -> bytes:
    """A buffer as it was before compression."""
    if size:
        assert at % 64 == 0
    part = data[at : at + size]
    if not codec or not part:
        return part
    (length,) = struct.unpack_from("<q", part)
    if length == -1:
        return part[8:]
    return bytes(pa.Codec(codec).decompress(part[8:], length, asbytes=True))


@settings(max_examples=100)
@given(segments(), st.sampled_from(CODECS))
def test_chunks_lie_where_the_index_says(case: Any, codec: str) -> None:
    codes, groups = case
    meta, data = write_segment(codes, groups, codec)
    table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
    index = read_index(meta, data)
    for number, group in enumerate(index.groups):
        for chunk, column in zip(group.chunks, table.columns, strict=True):
            array = column.chunk(number)
            buffers = chunk_buffers(data, codec, chunk)
            assert crc32c(b"".join(buffers)) == chunk.crc
            assert chunk.nulls == array.null_count
            validity, offsets, values = (pa.py_buffer(b) if b else None for b in buffers)
            if not pa.types.is_fixed_size_binary(array.type) and len(array.buffers()) == 3:
                rebuilt = [validity, offsets, values or pa.py_buffer(b"")]
            else:
                rebuilt = [validity, values]
            assert pa.Array.from_buffers(array.type, group.rows, rebuilt).equals(array)


def chunk_buffers(data: bytes, codec: str, chunk: ChunkIndex) -> list[bytes]:
    places = (
        (chunk.validity_at, chunk.validity_bytes),
        (chunk.offsets_at, chunk.offsets_bytes),
        (chunk.values_at, chunk.values_bytes),
    )
    return [unpacked(data, codec, at, size) for at, size in places]


def test_the_footer_says_where_the_index_is() -> None:
    meta, data = write_segment([TypeCode.INT4], [[(b"k", 1, False, (5,))]])
    note = pa.ipc.open_file(pa.py_buffer(data)).metadata[INDEX_KEY]
    assert read_footer_note(note) == (meta.index_at, meta.index_bytes, meta.index_crc)


def test_golden_bytes_of_the_index() -> None:
    chunk = ChunkIndex(0, 0, 768, 12, 832, 2, 0x8718622E, 0)
    index = SegmentIndex(
        1,
        5,
        "lz4",
        (SegmentColumn(1, "a", 3, -1),),
        (GroupIndex(2, b"k", b"l", 3, 4, 1, True, (chunk, replace(chunk, low=b"\1", high=b"\2"))),),
        1024,
        32,
        0xDEADBEEF,
    )
    packed = msgspec.msgpack.encode(index)
    assert packed.hex() == (
        "980105a36c7a34919401a16103ff919802c4016bc4016c030401c3929a0000cd03000ccd034002ce8718622e00"
        "c400c4009a0000cd03000ccd034002ce8718622e00c40101c40102cd040020cedeadbeef"
    )
    assert msgspec.msgpack.decode(packed, type=SegmentIndex) == index


@pytest.mark.parametrize("second", [(b"a", 3), (b"a", 4), (b"Z", 1)])
def test_rows_out_of_order_are_refused(second: tuple[bytes, int]) -> None:
    rows: list[Row] = [(b"a", 3, False, ()), (*second, False, ())]
    with pytest.raises(AssertionError, match="row 1 of row group 0 is out of order"):
        write_segment([], [rows])
    with pytest.raises(AssertionError, match="row 0 of row group 1 is out of order"):
        write_segment([], [rows[:1], rows[1:]])


def test_large_groups() -> None:
    rows: list[Row] = [(b"%08d" % n, 1, False, (n, f"text {n}")) for n in range(65536)]
    meta, data = write_segment(
        [TypeCode.INT8, TypeCode.TEXT], [rows, [(b"z", 1, True, (None,) * 2)]]
    )
    found = pa.ipc.open_file(pa.py_buffer(data)).read_all()
    assert found.column("c0").to_pylist() == [*range(65536), None]
    assert (meta.rows, meta.tombstones, meta.crc) == (65537, 1, crc32c(data))
