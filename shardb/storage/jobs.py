"""What workers do with files: flushes and compactions, from frozen inputs to finished segments.

A job touches nothing that the engine's thread changes. It makes new files only; whether they count
is for the manifest to say, and a job that fails removes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec
import pyarrow as pa

from shardb import limits
from shardb._core.coreerror import CoreError
from shardb._core.crc32c import crc32c
from shardb._core.rowcodec import RowLayout
from shardb._core.runmerge import RunMerge
from shardb._core.segment import Segment
from shardb.env import Files, OutputFile
from shardb.errors import StorageError
from shardb.storage.pieces import Piece
from shardb.storage.segmentformat import (
    VERSION,
    SegmentColumn,
    SegmentIndex,
    SegmentMeta,
    file_name,
)
from shardb.storage.segmentwriter import SegmentWriter
from shardb.types import arrow_type


@dataclass(frozen=True, slots=True)
class Target:
    """Where a job writes to, and what its segments are said to be."""

    files: Files
    directory: str
    number: Callable[[], int]  # a new one with each call, from any thread
    range_id: int
    table_id: int
    order: int
    columns: Sequence[SegmentColumn]
    version: int
    codec: str


def merge(
    sources: Sequence[Piece],
    layout: RowLayout,
    columns: Sequence[SegmentColumn],
    gc_ts: int,
    drop_tombstones: bool,
    group_bytes: int,
) -> RunMerge:
    """What to write: all rows of sources, newest first, in one layout. See `RunMerge`."""
    return RunMerge(
        sources,
        layout,
        [column.name for column in columns],
        [arrow_type(column.type_code, column.typmod) for column in columns],
        gc_ts=gc_ts,
        drop_tombstones=drop_tombstones,
        group_rows=limits.SEGMENT_GROUP_ROWS,
        group_bytes=group_bytes,
    )


def segment_path(directory: str, number: int) -> str:
    """Where a segment's file is."""
    return f"{directory}/{file_name(number)}"


def write_segments(
    batches: Iterable[pa.RecordBatch],
    target: Target,
    segment_bytes: int = limits.SEGMENT_TARGET_BYTES,
) -> list[SegmentMeta]:
    """Writes sorted row groups to as many files as it takes, durably; none if there is no row.

    A key's versions are all in one file. Raises OSError, and whatever `batches` raise.
    """
    made: list[SegmentMeta] = []
    numbers: list[int] = []
    writer: SegmentWriter | None = None
    file: OutputFile | None = None
    last_key = b""

    def finish(done: SegmentWriter) -> None:
        made.append(
            done.finish(
                number=numbers[-1],
                order=target.order,
                range_id=target.range_id,
                table_id=target.table_id,
            )
        )

    try:
        for batch in batches:
            keys = batch.column(0)
            full = writer is not None and writer.bytes_written >= segment_bytes
            if writer is not None and full and keys[0].as_py() != last_key:
                finish(writer)
                writer = None
            if writer is None:
                number = target.number()
                numbers.append(number)
                file = target.files.create(segment_path(target.directory, number))
                writer = SegmentWriter(file, target.columns, target.version, target.codec)
            writer.write(batch)
            last_key = keys[batch.num_rows - 1].as_py()
        if writer is not None:
            finish(writer)
    except BaseException:
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()
        remove_segments(target.files, target.directory, numbers)
        raise
    return made


def make_segments(batches: Iterable[pa.RecordBatch], target: Target) -> list[Segment]:
    """The same, and opens and checks them: else the first reads of each row group would have to.

    Leaves no file if it fails.
    """
    made = write_segments(batches, target)
    try:
        segments = [open_segment(target.files, target.directory, meta) for meta in made]
        if not target.codec:  # decompressed, they would take memory before anybody asks
            for segment in segments:
                check_segment(segment)
    except (StorageError, CoreError):
        remove_segments(target.files, target.directory, [meta.number for meta in made])
        raise
    return segments


def check_segment(segment: Segment) -> None:
    """Raises CoreError XX001 if a column of a row group does not have its checksum."""
    for group in range(segment.groups):
        for column in range(segment.columns):
            segment.check(group, column)


def remove_segments(files: Files, directory: str, numbers: Iterable[int]) -> None:
    """Removes files that nothing names; one that cannot be removed now goes at the next start."""
    for number in numbers:
        with contextlib.suppress(OSError):
            files.remove(segment_path(directory, number))


def open_segment(files: Files, directory: str, meta: SegmentMeta) -> Segment:
    """Maps a segment and reads its index. StorageError XX001 names the file if it is damaged."""
    path = segment_path(directory, meta.number)
    try:
        data = files.map(path)
    except OSError as error:
        raise StorageError("58030", f"could not open segment {path}: {error.strerror}") from error
    if data.size != meta.bytes:
        raise StorageError("XX001", f"segment {path} has {data.size} bytes, not {meta.bytes}")
    raw = data.slice(meta.index_at, meta.index_bytes)
    if raw.size != meta.index_bytes or crc32c(raw) != meta.index_crc:
        raise StorageError(
            "XX001", f"segment {path} is damaged at offset {meta.index_at}: bad index"
        )
    try:
        index = msgspec.msgpack.decode(raw, type=SegmentIndex)
    except msgspec.DecodeError as error:
        raise StorageError("XX001", f"the index of segment {path} is malformed") from error
    bloom = data.slice(min(index.bloom_at, data.size), index.bloom_bytes)
    if bloom.size != index.bloom_bytes or crc32c(bloom) != index.bloom_crc:
        raise StorageError(
            "XX001", f"segment {path} is damaged at offset {index.bloom_at}: bad Bloom filter"
        )
    if index.version > VERSION:
        raise StorageError(
            "0A000", f"segment {path} has format {index.version}, this shardb reads up to {VERSION}"
        )
    return Segment(meta, index, data, path)
