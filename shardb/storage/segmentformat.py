"""What is in a segment file beside its rows, and what the manifest says of it, declared once.

See docs/formats/segment.md. Offsets count from the start of the file. Both values are msgpack,
positional: new fields go last, with a default.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

VERSION: Final = 1
INDEX_KEY: Final = b"shardb.index"  # of the Arrow footer's custom metadata: see footer_note
SYSTEM_COLUMNS: Final = ("_key", "_ts", "_deleted")
Key: TypeAlias = bytes


class SegmentColumn(msgspec.Struct, frozen=True, array_like=True):
    """A table's column as it was when the segment was written."""

    id: int
    name: str
    type_code: int
    typmod: int


class ChunkIndex(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One column of one row group: `(offset, bytes)` of its buffers, 0 bytes where there is none.

    A compressed buffer is its uncompressed size in 8 bytes (little-endian; -1: stored as it is) and
    then a frame of the codec, as Arrow's body compression has it. `crc` is the CRC32C over the
    uncompressed buffers: validity bitmap if there are NULLs, then offsets, then values, each cut to
    what the rows need. `low` and `high` bound the column's values as key encodings, ascending and
    not nullable (`[low, high]`, where a long string's are cut; empty: not known, or all NULL).
    """

    validity_at: int
    validity_bytes: int
    offsets_at: int
    offsets_bytes: int
    values_at: int
    values_bytes: int
    crc: int
    nulls: int
    low: bytes = b""
    high: bytes = b""


class GroupIndex(msgspec.Struct, frozen=True, array_like=True):
    """One row group; `chunks` has the system columns first."""

    rows: int
    first_key: Key
    last_key: Key
    min_ts: int
    max_ts: int
    tombstones: int
    versions: bool  # a key has several versions here, or its newer ones end the group before
    chunks: tuple[ChunkIndex, ...]


class SegmentIndex(msgspec.Struct, frozen=True, array_like=True):
    """The index of a segment: after its last row group, before the Arrow footer."""

    version: int
    schema_version: int
    codec: str  # "", "lz4" or "zstd"
    columns: tuple[SegmentColumn, ...]
    groups: tuple[GroupIndex, ...]
    # The split block Bloom filter over the keys (`_core/bloom.pxd`); 0 bytes: there is none.
    bloom_at: int
    bloom_bytes: int
    bloom_crc: int


class SegmentMeta(msgspec.Struct, frozen=True, array_like=True):
    """A live segment as the manifest names it. Immutable; a linked one's rows are all at `link_ts`.

    `order` ranks the runs of a tablet: of two that hold the same key, the one with the larger has
    the newer versions. `number` names the file and is never reused.
    """

    number: int
    order: int
    range_id: int
    table_id: int
    bytes: int
    crc: int  # CRC32C of the whole file
    index_at: int  # where the index lies in the file
    index_bytes: int
    index_crc: int
    rows: int
    tombstones: int
    min_key: Key
    max_key: Key
    min_ts: int
    max_ts: int
    link_ts: int = 0


def file_name(number: int) -> str:
    """The name of a segment's file in the segments directory."""
    return f"{number:08d}.arrow"


def footer_note(index_at: int, index_bytes: int, index_crc: int) -> bytes:
    """What the footer's metadata says under INDEX_KEY, for those without the SegmentMeta."""
    return f"{index_at} {index_bytes} {index_crc:08x}".encode()


def read_footer_note(note: bytes) -> tuple[int, int, int]:
    """`(index_at, index_bytes, index_crc)`; ValueError if it is not one."""
    at, size, crc = note.split()
    return int(at), int(size), int(crc, 16)
