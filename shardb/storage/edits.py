"""The live file set of a shard as a value, and the edits that lead from one to the next.

What is in a file set exists; a file that is in none may be deleted once no reader holds it. The
manifest makes edits durable (docs/formats/manifest.md). All of it is immutable; `apply` is pure.

It must not know of files, nor of what a descriptor means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from shardb.storage.segmentformat import SegmentMeta

EDITS_VERSION: Final = 1  # of the encoding below
NUMBER_FIRST: Final = 1  # of a segment

TabletKey = tuple[int, int]  # range id, table id


class TabletState(msgspec.Struct, frozen=True, array_like=True):
    """One table's rows in one range. Every version is in its segments up to `flushed_index`.

    `flushed_index` is that of the range's last log record whose writes to this tablet are all in
    segments; `gc_ts` the timestamp below which reads are refused, as versions are gone.
    """

    range_id: int
    table_id: int
    descriptor: bytes
    flushed_index: int
    gc_ts: int

    @property
    def key(self) -> TabletKey:
        return self.range_id, self.table_id


class Edit(msgspec.Struct, frozen=True, array_like=True):
    """One step of the file set: all of it or nothing. Carried out in the order of the fields."""

    drop_tablets: tuple[TabletKey, ...] = ()  # with all of their segments
    put_tablets: tuple[TabletState, ...] = ()
    remove_segments: tuple[int, ...] = ()
    add_segments: tuple[SegmentMeta, ...] = ()
    next_number: int = 0  # 0: as it was, or past the added segments
    range_indexes: tuple[tuple[int, int], ...] = ()  # (range id, index); 0 forgets the range


class FileSet(msgspec.Struct, frozen=True):
    """What is live. Invariant: the tablet of each segment is there, its number below `next_number`.

    `range_indexes` has each range's last log index that is known here, so that indexes go on even
    if the log holds no record of the range any more.
    """

    tablets: Mapping[TabletKey, TabletState] = {}
    segments: Mapping[int, SegmentMeta] = {}
    next_number: int = NUMBER_FIRST
    range_indexes: Mapping[int, int] = {}

    def apply(self, edit: Edit) -> FileSet:
        """The file set after `edit`. AssertionError if the edit contradicts this one."""
        tablets, segments = dict(self.tablets), dict(self.segments)
        for key in edit.drop_tablets:
            assert key in tablets, f"edit drops tablet {key}, which is not there"
            del tablets[key]
        if edit.drop_tablets:
            dropped = frozenset(edit.drop_tablets)
            segments = {
                number: meta
                for number, meta in segments.items()
                if (meta.range_id, meta.table_id) not in dropped
            }
        for tablet in edit.put_tablets:
            before = tablets.get(tablet.key)
            assert before is None or before.flushed_index <= tablet.flushed_index, (
                f"edit takes tablet {tablet.key} back to index {tablet.flushed_index}"
            )
            tablets[tablet.key] = tablet
        for number in edit.remove_segments:
            assert number in segments, f"edit removes segment {number}, which is not there"
            del segments[number]
        next_number = max(self.next_number, edit.next_number)
        for meta in edit.add_segments:
            key = meta.range_id, meta.table_id
            assert key in tablets, f"edit adds segment {meta.number} to tablet {key}, not there"
            # A removed segment may come back in the same edit, changed in what is said of it.
            assert meta.number not in segments, f"edit adds segment {meta.number} twice"
            segments[meta.number] = meta
            next_number = max(next_number, meta.number + 1)
        return FileSet(tablets, segments, next_number, self._indexes_after(edit))

    def _indexes_after(self, edit: Edit) -> Mapping[int, int]:
        if not edit.range_indexes:
            return self.range_indexes
        indexes = dict(self.range_indexes)
        for range_id, index in edit.range_indexes:
            if index:
                assert index >= indexes.get(range_id, 0), (
                    f"edit takes range {range_id} back to index {index}"
                )
                indexes[range_id] = index
            else:
                indexes.pop(range_id, None)
        return indexes

    def runs(self, range_id: int, table_id: int) -> list[SegmentMeta]:
        """The tablet's segments, newest first."""
        found = [
            meta
            for meta in self.segments.values()
            if meta.range_id == range_id and meta.table_id == table_id
        ]
        return sorted(found, key=lambda meta: meta.order, reverse=True)

    def as_edit(self) -> Edit:
        """The edit that makes this of an empty file set."""
        return Edit(
            put_tablets=tuple(self.tablets.values()),
            add_segments=tuple(self.segments.values()),
            next_number=self.next_number,
            range_indexes=tuple(self.range_indexes.items()),
        )


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(tuple[Edit, ...])


def encode_edits(edits: tuple[Edit, ...]) -> bytes:
    """The edits as msgpack, positional; new fields go last, with a default."""
    return _encoder.encode(edits)


def decode_edits(data: bytes) -> tuple[Edit, ...]:
    """What `encode_edits` was given. Raises msgspec.DecodeError."""
    return _decoder.decode(data)
