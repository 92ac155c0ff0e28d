"""The parts of an Arrow IPC file around the data: schema, record batch headers, footer.

https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format; the tables are those of
`Message.fbs` and `File.fbs` there. They are written here and not by pyarrow so that the writer
knows where each buffer lies, buffers are aligned to whole cache lines, and the footer can tell what
is known only at the end. Nothing here does I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import pyarrow as pa

ALIGNMENT: Final = 64  # of messages, bodies and buffers in the file
MAGIC: Final = b"ARROW1"
FILE_START: Final = MAGIC + b"\0\0"
END_OF_STREAM: Final = b"\xff\xff\xff\xff\0\0\0\0"  # readers of the stream format stop here
CODECS: Final = {"lz4": 0, "zstd": 1}  # enum CompressionType; lz4 is the frame format

_VERSION_5: Final = 4  # enum MetadataVersion
_RECORD_BATCH: Final = 3  # union MessageHeader
_CONTINUATION: Final = b"\xff\xff\xff\xff"


class Block(NamedTuple):
    """Where a record batch lies in the file; the body follows the header at once."""

    at: int
    header_bytes: int
    body_bytes: int


class FlatBuffer:
    """Builds a flatbuffer from front to back: a table first, what it points to after it.

    https://flatbuffers.dev/internals/: a table begins with the distance back to its vtable, which
    tells where in the table each field is; a reference is the distance forward to its target.
    """

    def __init__(self) -> None:
        self.out = bytearray(4)  # the reference to the root table

    def align(self, size: int, ahead: int = 0) -> int:
        """Pads so that what comes after the next `ahead` bytes is aligned; returns the offset."""
        self.out += bytes(-(len(self.out) + ahead) % size)
        return len(self.out)

    def refer(self, reference_at: int, target_at: int) -> None:
        """Lets the reference at `reference_at` point to a later offset."""
        struct.pack_into("<I", self.out, reference_at, target_at - reference_at)

    def table(self, reference_at: int, *fields: tuple[str, int] | None) -> list[int]:
        """Appends a table of fields `(struct format, value)`, None where one is left out.

        Returns the offset of each field in the buffer, -1 for those left out.
        """
        vtable_at = self.align(2)
        vtable_bytes = 4 + 2 * len(fields)
        self.out += bytes(vtable_bytes)
        at = self.align(8)
        self.out += struct.pack("<i", at - vtable_at)
        places = []
        for field in fields:
            if field is None:
                places.append(-1)
                continue
            data = struct.pack("<" + field[0], field[1])
            places.append(self.align(len(data)))
            self.out += data
        relative = [place - at if place >= 0 else 0 for place in places]
        struct.pack_into(
            f"<HH{len(fields)}H", self.out, vtable_at, vtable_bytes, len(self.out) - at, *relative
        )
        self.refer(reference_at, at)
        return places

    def vector(self, reference_at: int, count: int, items: bytes, alignment: int) -> int:
        """Appends a vector of structs or references; returns the offset of its first item."""
        at = self.align(alignment, ahead=4) + 4
        self.out += struct.pack("<I", count) + items
        self.refer(reference_at, at - 4)
        return at

    def string(self, reference_at: int, text: bytes) -> None:
        self.vector(reference_at, len(text), text + b"\0", 4)


def framed(flatbuffer: bytes, at: int) -> bytes:
    """An encapsulated message for offset `at` of the file, padded so that its end is aligned."""
    pad = -(at + 8 + len(flatbuffer)) % ALIGNMENT
    size = len(flatbuffer) + pad
    return _CONTINUATION + struct.pack("<i", size) + flatbuffer + bytes(pad)


def schema_flatbuffer(schema: pa.Schema) -> bytes:
    """The flatbuffer of a schema's message, as pyarrow makes it."""
    message = bytes(schema.serialize())
    assert message[:4] == _CONTINUATION, message[:4]
    (size,) = struct.unpack_from("<i", message, 4)
    return message[8 : 8 + size]


def record_batch_header(
    rows: int,
    nodes: Sequence[tuple[int, int]],
    buffers: Sequence[tuple[int, int]],
    body_bytes: int,
    codec: str,
) -> bytes:
    """The flatbuffer of a record batch's message.

    `nodes` has `(rows, nulls)` of each column, `buffers` has `(offset in the body, bytes)` of each
    buffer.
    """
    flat = FlatBuffer()
    reference = ("I", 0)
    message = flat.table(0, ("h", _VERSION_5), ("B", _RECORD_BATCH), reference, ("q", body_bytes))
    batch = flat.table(message[2], ("q", rows), reference, reference, reference if codec else None)
    flat.vector(batch[1], len(nodes), _pairs(nodes), 8)
    flat.vector(batch[2], len(buffers), _pairs(buffers), 8)
    if codec:
        flat.table(batch[3], ("b", CODECS[codec]), ("b", 0))
    flat.align(8)
    return bytes(flat.out)


def footer(schema: bytes, blocks: Sequence[Block], metadata: dict[bytes, bytes]) -> bytes:
    """The end of a file: footer, its length and the magic. `schema` is `schema_flatbuffer`'s.

    Keys and values of `metadata` must be UTF-8: some readers insist.
    """
    flat = FlatBuffer()
    reference = ("I", 0)
    places = flat.table(0, ("h", _VERSION_5), reference, reference, reference, reference)
    # references are relative, so that the schema's table can be used where its message lies
    base = flat.align(8)
    flat.out += schema
    flat.refer(places[1], base + _message_header_at(schema))
    flat.vector(places[2], 0, b"", 8)
    packed = b"".join(struct.pack("<qixxxxq", *block) for block in blocks)
    flat.vector(places[3], len(blocks), packed, 8)
    pairs = flat.vector(places[4], len(metadata), bytes(4 * len(metadata)), 4)
    for index, (key, value) in enumerate(metadata.items()):
        pair = flat.table(pairs + 4 * index, reference, reference)
        flat.string(pair[0], key)
        flat.string(pair[1], value)
    flat.align(8)
    return bytes(flat.out) + struct.pack("<i", len(flat.out)) + MAGIC


def _pairs(pairs: Sequence[tuple[int, int]]) -> bytes:
    return struct.pack(f"<{2 * len(pairs)}q", *(number for pair in pairs for number in pair))


def _message_header_at(flatbuffer: bytes) -> int:
    """The offset of the table that a message's `header` (its third field) refers to."""
    (table,) = struct.unpack_from("<I", flatbuffer, 0)
    (back,) = struct.unpack_from("<i", flatbuffer, table)
    (relative,) = struct.unpack_from("<H", flatbuffer, table - back + 4 + 2 * 2)
    at: int = table + relative
    (forward,) = struct.unpack_from("<I", flatbuffer, at)
    return at + int(forward)
