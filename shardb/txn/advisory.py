"""Advisory locks as row locks: the built-in table whose rows never are, and its keys.

A key is one 64-bit number or two of 32 bits, which are different key spaces as in PostgreSQL. Its
row is locked like any other; but what a session holds is not in its own transactions' way.

    key    u16 hash | u32 class id | u32 object id | u16 1 one number, 2 two       big-endian
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

TABLE_ID: Final = 10  # below schema.FIRST_ID; its group and its first range have the next ids
GROUP_ID: Final = 11
RANGE_ID: Final = 12
NAME: Final = "pg_advisory_locks"
SCHEMA: Final = "shardb_internal"

DATABASE: Final = 5  # the OID of the only database

ONE: Final = 1
TWO: Final = 2

_KEY: Final = struct.Struct(">HIIH")
_BODY: Final = struct.Struct(">IIH")


def key_of_number(number: int) -> bytes:
    """The key of a signed 64-bit number."""
    unsigned = number & 0xFFFFFFFFFFFFFFFF
    return _key(unsigned >> 32, unsigned & 0xFFFFFFFF, ONE)


def key_of_pair(first: int, second: int) -> bytes:
    """The key of two signed 32-bit numbers."""
    return _key(first & 0xFFFFFFFF, second & 0xFFFFFFFF, TWO)


def parts_of(key: bytes) -> tuple[int, int, int]:
    """(class id, object id, object sub id) of a key, as pg_locks shows them."""
    _, class_id, object_id, sub_id = _KEY.unpack(key)
    return class_id, object_id, sub_id


def describe(key: bytes) -> str:
    """A key as PostgreSQL's messages name it."""
    class_id, object_id, sub_id = parts_of(key)
    return f"advisory lock [{DATABASE},{class_id},{object_id},{sub_id}]"


def _key(class_id: int, object_id: int, sub_id: int) -> bytes:
    body = _BODY.pack(class_id, object_id, sub_id)
    return (zlib.crc32(body) & 0xFFFF).to_bytes(2, "big") + body
