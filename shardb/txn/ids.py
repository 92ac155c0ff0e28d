"""Transaction ids: 16 bytes that say when a transaction began and whose it is.

    u64 begin timestamp | u32 process id | u16 incarnation | u16 number       big-endian

The process id is the one its client was told (BackendKeyData), 0 for work of the system's own. The
incarnation tells coordinators apart, also former lives of one; the number tells apart what one
session begins at one timestamp. Everybody but this module takes ids for opaque.
"""

from __future__ import annotations

import struct
from typing import Final

_ID: Final = struct.Struct(">QIHH")
_NUMBERS: Final = 1 << 16


def make(begin_ts: int, process_id: int, incarnation: int, number: int) -> bytes:
    """The id of a transaction; of incarnation and number the low 16 bits."""
    return _ID.pack(begin_ts, process_id & 0xFFFFFFFF, incarnation % _NUMBERS, number % _NUMBERS)


def begin_ts_of(txn_id: bytes) -> int:
    """When it began: the newest timestamp that its coordinator knew."""
    return int.from_bytes(txn_id[:8], "big")


def process_id_of(txn_id: bytes) -> int:
    """The process id of its session, as clients know it; 0 if it has none."""
    return int.from_bytes(txn_id[8:12], "big")


def session_of(txn_id: bytes) -> bytes:
    """What all transactions of one session have in common, and no others."""
    return txn_id[8:14] if any(txn_id[8:12]) else txn_id


def number_of(txn_id: bytes) -> int:
    """What stands for PostgreSQL's transaction number in messages."""
    return begin_ts_of(txn_id)
