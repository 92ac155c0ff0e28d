"""Is a segment's file what the manifest says it is, byte for byte, and its index the truth?

It reads everything; the file is read before it is mapped, so that a disk that cannot give it is an
error and not a signal. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
from msgspec.structs import replace

from shardb import limits
from shardb._core.bloom import first_missing
from shardb._core.coreerror import CoreError
from shardb._core.crc32c import crc32c
from shardb._core.segment import Segment
from shardb._core.zones import scan_rows, zone_map
from shardb.env import Files
from shardb.errors import StorageError
from shardb.storage.jobs import open_segment, segment_path
from shardb.storage.segmentformat import (
    SYSTEM_COLUMNS,
    GroupIndex,
    SegmentColumn,
    SegmentIndex,
    SegmentMeta,
)
from shardb.storage.segmentwriter import segment_schema

TS_MAX: Final = (1 << 64) - 1


def check_segment(files: Files, directory: str, meta: SegmentMeta) -> Iterator[str]:
    """What is wrong with it, a line each that names the file; nothing if it is sound."""
    path = segment_path(directory, meta.number)
    try:
        size, crc = _read_all(files, path)
    except OSError as error:
        yield f"segment {path} cannot be read: {error.strerror}"
        return
    found = False
    for line in _check_contents(files, directory, meta):
        found = True
        yield line
    if not found and (size, crc) != (meta.bytes, meta.crc):
        yield f"segment {path} is damaged outside of its rows: bad checksum of the whole file"


def _read_all(files: Files, path: str) -> tuple[int, int]:
    """The file's size and checksum."""
    at = crc = 0
    while data := files.read(path, limits.LOG_READ_BYTES, at):
        at += len(data)
        crc = crc32c(data, crc)
    return at, crc


def _check_contents(files: Files, directory: str, meta: SegmentMeta) -> Iterator[str]:
    try:
        # The rows' own timestamps are to be looked at, not the one of the link.
        segment = open_segment(files, directory, replace(meta, link_ts=0))
    except StorageError as error:
        yield error.message
        return
    except CoreError as error:
        yield error.message
        return
    index = segment.index
    assert isinstance(index, SegmentIndex)
    what = f"segment {segment.path}"
    yield from _check_facts(what, meta, index)
    last: tuple[bytes, int] | None = None
    bloom = segment.bloom_filter
    for number in range(len(index.groups)):
        of = _Group(segment, index, bloom, number, last)
        yield from of.check()
        last = of.last
        segment.trim()


def _check_facts(what: str, meta: SegmentMeta, index: SegmentIndex) -> Iterator[str]:
    """The manifest's words against the index's."""
    groups = index.groups
    if not groups:
        yield f"{what} has no row groups"
        return
    facts: list[tuple[str, object, object]] = [
        ("rows", meta.rows, sum(group.rows for group in groups)),
        ("tombstones", meta.tombstones, sum(group.tombstones for group in groups)),
        ("first key", meta.min_key, groups[0].first_key),
        ("last key", meta.max_key, groups[-1].last_key),
    ]
    if not meta.link_ts:
        facts += [
            ("least timestamp", meta.min_ts, min(group.min_ts for group in groups)),
            ("largest timestamp", meta.max_ts, max(group.max_ts for group in groups)),
        ]
    for name, said, found in facts:
        if said != found:
            yield f"{what}: {name} is {_text(found)} by its index, {_text(said)} by the manifest"


class _Group:
    """One row group. `last` is of the row before it, after `check` of its own last row."""

    def __init__(
        self,
        segment: Segment,
        index: SegmentIndex,
        bloom: bytes,
        number: int,
        last: tuple[bytes, int] | None,
    ) -> None:
        self._segment = segment
        self._index = index
        self._bloom = bloom
        self._number = number
        self._of: GroupIndex = index.groups[number]
        self.last = last
        self._what = f"segment {segment.path}, row group {number}"

    def check(self) -> Iterator[str]:
        arrays: list[pa.Array | None] = []
        for column, field in enumerate(segment_schema(self._index.columns)):
            array = None
            try:
                array = self._segment.array(self._number, column, field.type)
            except CoreError as error:
                yield error.message
            else:
                yield from self._check_array(column, field.name, array)
            arrays.append(array)
        key, ts, deleted = arrays[: len(SYSTEM_COLUMNS)]
        if key is not None and ts is not None and deleted is not None:
            yield from self._check_rows(key, ts, deleted)
            self.last = key[-1].as_py(), ts[-1].as_py()
        else:
            self.last = self._of.last_key, TS_MAX

    def _check_array(self, column: int, name: str, array: pa.Array) -> Iterator[str]:
        """Offsets ascend, strings are UTF-8, there are as many NULLs as the index says."""
        buffers = array.buffers()
        variable = pa.types.is_string(array.type) or pa.types.is_binary(array.type)
        try:
            # Not of others: Arrow knows no time 24:00.
            array.validate(full=variable)
        except pa.ArrowInvalid as error:
            yield f"{self._what}: column {name!r} is malformed: {error}"
            return
        counted = pa.Array.from_buffers(array.type, len(array), buffers)
        if counted.null_count != array.null_count:
            yield (
                f"{self._what}: column {name!r} has {counted.null_count} NULLs, "
                f"{array.null_count} by the index"
            )
        if column >= len(SYSTEM_COLUMNS):
            of = self._index.columns[column - len(SYSTEM_COLUMNS)]
            yield from self._check_zone(column, of, array)

    def _check_zone(self, column: int, of: SegmentColumn, array: pa.Array) -> Iterator[str]:
        chunk = self._of.chunks[column]
        validity, offsets, values = _buffers(array)
        low, high = zone_map(of.type_code, of.typmod, len(array), validity, offsets, values)
        if (chunk.low and (not low or low < chunk.low)) or (
            chunk.high and (not high or high > chunk.high)
        ):
            yield (
                f"{self._what}: the values of column {of.name!r} are not within the bounds "
                f"in the index, {_text(chunk.low)} to {_text(chunk.high)}"
            )

    def _check_rows(self, key: pa.Array, ts: pa.Array, deleted: pa.Array) -> Iterator[str]:
        """Keys and timestamps: order, what the index says of them, the Bloom filter."""
        of, rows = self._of, len(key)
        _, offsets, keys = _buffers(key)
        last_key, last_ts = self.last or (None, 0)
        tombstones, min_ts, max_ts, versions, disorder = scan_rows(
            rows, offsets, keys, ts.buffers()[1], deleted.buffers()[1], last_key, last_ts
        )
        if disorder >= 0:
            yield f"{self._what}: row {disorder} is out of order"
        found = GroupIndex(
            rows, key[0].as_py(), key[-1].as_py(), min_ts, max_ts, tombstones, versions, of.chunks
        )
        if found != of:
            yield (f"{self._what}: its index says {_facts(of)}, its rows are {_facts(found)}")
        bloom = self._bloom
        missing = first_missing(bloom, rows, offsets, keys) if bloom else -1
        if missing >= 0:
            yield f"{self._what}: the Bloom filter has not the key of row {missing}"


def _buffers(array: pa.Array) -> Any:
    """Validity (None if there are no NULLs), offsets (None if there are none), values."""
    buffers = array.buffers()
    validity = buffers[0] if array.null_count else None
    return validity, buffers[1] if len(buffers) == 3 else None, buffers[-1]


def _text(value: object) -> str:
    return f"x'{value.hex()}'" if isinstance(value, bytes) else str(value)


def _facts(group: GroupIndex) -> str:
    return (
        f"{group.rows} rows from {_text(group.first_key)} to {_text(group.last_key)} "
        f"at {group.min_ts} to {group.max_ts}, {group.tombstones} tombstones, "
        f"versions {group.versions}"
    )
