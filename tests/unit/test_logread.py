"""The walk over records in bytes, held to the same in Python; reading files in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardb import limits
from shardb._core.crc32c import crc32c
from shardb._core.logread import RecordWalk
from shardb.sim.disk import Content, Disk
from shardb.storage.logfile import (
    FILE_HEADER_BYTES,
    KIND_BATCH,
    PREFIX,
    RECORD,
    RECORD_HEADER_BYTES,
    LogRecord,
    RecordReader,
    encode_file_header,
    encode_head,
    is_zero,
    marker_after,
)

TOKEN = b"tokentok"
Fields = tuple[int, int, int, int, int, int]


def read_record(data: bytes, offset: int) -> Fields | int:
    """The oracle: the record at `offset`; or how many bytes would be needed, 0 if it is none."""
    start = offset + PREFIX.size
    if start + RECORD.size > len(data):
        return RECORD_HEADER_BYTES
    length, checksum = PREFIX.unpack_from(data, offset)
    if length < RECORD.size:
        return 0
    if start + length > len(data):
        return PREFIX.size + length
    if crc32c(data[start : start + length]) != checksum:
        return 0
    return *RECORD.unpack_from(data, start), start + RECORD.size, length - RECORD.size


U64 = st.integers(0, (1 << 64) - 1)
RECORDS = st.lists(
    st.tuples(U64, st.integers(0, (1 << 32) - 1), U64, st.integers(0, 255), st.binary(max_size=60)),
    max_size=6,
)


@given(RECORDS, st.binary(max_size=40), st.integers(0, 500), st.data())
def test_the_walk_does_as_the_oracle(
    records: list[tuple[int, int, int, int, bytes]],
    junk: bytes,
    cut: int,
    data: st.DataObject,
) -> None:
    content = bytearray(b"head")
    for fields in records:
        content += encode_head(*fields) + fields[-1]
    content += junk
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del content[max(cut, 4) :]
    found: list[Fields] = []
    offset = 4
    while not isinstance(record := read_record(bytes(content), offset), int):
        found.append(record)
        offset = record[4] + record[5]
    walk = RecordWalk(content, 4)
    assert list(walk) == found
    assert (walk.offset, walk.needed) == (offset, record)
    assert list(walk) == [] and walk.offset == offset


def test_a_walk_begins_within_its_bytes() -> None:
    assert list(RecordWalk(b"")) == []
    for offset in (-1, 4):
        with pytest.raises(ValueError):
            RecordWalk(b"abc", offset)


@given(st.integers(30, 300), st.lists(st.integers(0, 120), max_size=20), st.integers(0, 60))
def test_a_file_is_read_alike_in_pieces_of_any_size(
    piece: int, sizes: list[int], zeros: int
) -> None:
    content = bytearray(encode_file_header(1, 0, TOKEN))
    for index, size in enumerate(sizes, 1):
        if index % 3 == 1:
            content += encode_head(0, 0, len(content), KIND_BATCH, TOKEN) + TOKEN
        content += encode_head(7, 1, index, 3, b"x" * size) + b"x" * size
    end = len(content)
    disk = Disk({"f": Content(content + bytes(zeros))})
    markers = [at - RECORD_HEADER_BYTES for at in range(end) if content[at : at + 8] == TOKEN][1:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "LOG_READ_BYTES", piece)
        records = RecordReader(disk, "f", len(content) + zeros)
        assert list(records) == [
            LogRecord(7, 1, index, 3, b"x" * size) for index, size in enumerate(sizes, 1)
        ]
        assert records.end == end
        assert is_zero(disk, "f", end)
        assert not sizes or not is_zero(disk, "f", FILE_HEADER_BYTES)
        for at in (FILE_HEADER_BYTES - 1, *markers, end - 1):
            assert marker_after(disk, "f", at, TOKEN) == any(marker > at for marker in markers)
        short = RecordReader(disk, "f", end - 1)
        assert len(list(short)) == max(len(sizes) - 1, 0)
