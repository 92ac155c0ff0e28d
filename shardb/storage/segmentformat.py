"""What is in a segment file beside its rows, and what the manifest says of it, declared once.

See docs/formats/segment.md. Offsets count from the start of the file. Both values are msgpack,
positional: new fields go last, with a default.
"""

from __future__ import annotations

import builtins
from typing import Final

import msgspec

VERSION: Final = 1
INDEX_KEY: Final = b"shardb.index"  # of the Arrow footer's custom metadata
SYSTEM_COLUMNS: Final = ("_key", "_ts", "_deleted")
GROUP_ROWS: Final = 64 * 1024


class SegmentColumn(msgspec.Struct, frozen=True, array_like=True):
    """A table's column as it was when the segment was written."""

    id: int
    name: str
    type_code: int
    typmod: int


class ChunkIndex(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One column of one row group: `(offset, bytes)` of its buffers, 0 bytes where there is none.

    `crc` is the CRC32C over the uncompressed buffers: validity bitmap if there are NULLs, then
    offsets, then values, each cut to what the rows need. `low` and `high` bound the column's
    values as key encodings (`[low, high]`; empty: not known, or all NULL).
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
    first_key: bytes
    last_key: bytes
    min_ts: int
    max_ts: int
    tombstones: int
    versions: bool  # a key has several versions here, or its newer ones end the group before
    chunks: tuple[ChunkIndex, ...]


class SegmentIndex(msgspec.Struct, frozen=True, array_like=True):
    """The index of a segment, in its footer's metadata under INDEX_KEY."""

    version: int
    schema_version: int
    codec: str  # "", "lz4" or "zstd"
    columns: tuple[SegmentColumn, ...]
    groups: tuple[GroupIndex, ...]
    bloom: bytes  # split block Bloom filter over the keys; empty: none


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
    min_key: builtins.bytes  # in this class `bytes` is the field above
    max_key: builtins.bytes
    min_ts: int
    max_ts: int
    link_ts: int = 0


def file_name(number: int) -> str:
    """The name of a segment's file in the segments directory."""
    return f"{number:08d}.arrow"
