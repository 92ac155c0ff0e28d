"""What transactions write into a range's log (docs/formats/txn-records.md).

Each payload begins with a version byte; a reader refuses versions it does not know. Numbers are
little-endian. Writes travel as sections: all rows put into, or all keys deleted from, one table.

    section    u64 table id | u8 1 put, 2 delete, 3 link | u32 count | u64 key bytes | u64 row bytes
               | keys | rows          (both as `u32 length, bytes` items; no rows if deleted;
                                       of a link no keys, and as rows the names of its segments)
    commit     u8 version | 16 txn id | u64 commit_ts | u32 sections | sections
    prepare    u8 version (now 2) | 16 txn id | u64 state id | u64 min_commit_ts
               | u32 length, msgpack [participants, locks, spans] | u32 sections | sections
    decide     u8 version | 16 txn id | u64 commit_ts (0: aborted)
    abort      u8 version | 16 txn id | u64 txn_ts
    install    u8 version | msgpack InstallTable           drop   u8 version | msgpack DropTable
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from shardb.errors import StorageError
from shardb.meta.descriptors import Range, Table
from shardb.rpc.messages import Participant, Span
from shardb.txn.lockmodes import SHARE, UPDATE

VERSION: Final = 1
PREPARE_VERSION: Final = 2  # since locks have modes

COMMIT: Final = 1  # one phase: writes and their timestamp at once
PREPARE: Final = 2
DECIDE: Final = 3
ABORT: Final = 4
INSTALL: Final = 5
DROP: Final = 6

PUT: Final = 1
DELETE: Final = 2
LINK: Final = 3

_SECTION: Final = struct.Struct("<QBIQQ")
_COMMIT: Final = struct.Struct("<B16sQI")
_PREPARE: Final = struct.Struct("<B16sQQI")
_OUTCOME: Final = struct.Struct("<B16sQ")


class Section(NamedTuple):
    """Rows of one table: `keys` and `rows` as items; `rows` is None where the keys are deleted.

    With `links` there are neither: it names segments with the rows, in a form of the host's.
    """

    table_id: int
    count: int  # type: ignore[assignment]
    keys: bytes
    rows: bytes | None
    links: bytes | None = None


class LockedKey(msgspec.Struct, frozen=True, array_like=True):
    """A row lock that a prepared transaction holds without a write behind it (`lockmodes`)."""

    table_id: int
    key: bytes
    mode: int


class _LockedKey1(msgspec.Struct, frozen=True, array_like=True):
    """The same in version 1."""

    table_id: int
    key: bytes
    exclusive: bool


class _PrepareRest(msgspec.Struct, frozen=True, array_like=True):
    participants: tuple[Participant, ...]
    locks: tuple[LockedKey, ...]
    spans: tuple[Span, ...] = ()


class _PrepareRest1(msgspec.Struct, frozen=True, array_like=True):
    participants: tuple[Participant, ...]
    locks: tuple[_LockedKey1, ...]
    spans: tuple[Span, ...] = ()


class Commit(NamedTuple):
    txn_id: bytes
    commit_ts: int
    sections: list[Section]


class Prepare(NamedTuple):
    txn_id: bytes
    state_id: int
    min_commit_ts: int
    participants: tuple[Participant, ...]
    locks: tuple[LockedKey, ...]
    sections: list[Section]
    spans: tuple[Span, ...] = ()


class Outcome(NamedTuple):
    """A decision or an abort; `ts` is the commit timestamp, in an abort record the txn_ts."""

    txn_id: bytes
    ts: int


class Install(msgspec.Struct, frozen=True, array_like=True):
    range: Range
    table: Table


class Drop(msgspec.Struct, frozen=True, array_like=True):
    range_id: int
    table_id: int


def _put_sections(parts: list[bytes], sections: Sequence[Section]) -> None:
    for table_id, count, keys, rows, links in sections:
        kind = LINK if links is not None else DELETE if rows is None else PUT
        rows = rows if links is None else links
        parts.append(_SECTION.pack(table_id, kind, count, len(keys), len(rows or b"")))
        parts.append(keys)
        if rows:
            parts.append(rows)


def encode_commit(txn_id: bytes, commit_ts: int, sections: Sequence[Section]) -> bytes:
    """A one-phase commit."""
    parts = [_COMMIT.pack(VERSION, txn_id, commit_ts, len(sections))]
    _put_sections(parts, sections)
    return b"".join(parts)


def encode_prepare(record: Prepare) -> bytes:
    """Phase one of a commit."""
    rest = msgspec.msgpack.encode(_PrepareRest(record.participants, record.locks, record.spans))
    parts = [
        _PREPARE.pack(
            PREPARE_VERSION, record.txn_id, record.state_id, record.min_commit_ts, len(rest)
        ),
        rest,
        len(record.sections).to_bytes(4, "little"),
    ]
    _put_sections(parts, record.sections)
    return b"".join(parts)


def encode_outcome(txn_id: bytes, ts: int) -> bytes:
    """A decide or abort record."""
    return _OUTCOME.pack(VERSION, txn_id, ts)


def txn_id_of(payload: bytes) -> bytes:
    """The transaction that a commit, prepare, decide or abort record is of."""
    return payload[1:17]


def encode_install(range_: Range, table: Table) -> bytes:
    return bytes((VERSION,)) + msgspec.msgpack.encode(Install(range_, table))


def encode_drop(range_id: int, table_id: int) -> bytes:
    return bytes((VERSION,)) + msgspec.msgpack.encode(Drop(range_id, table_id))


def _damaged(what: str) -> StorageError:
    return StorageError("XX001", f"a log record is damaged: {what}")


def _check_version(payload: bytes, newest: int = VERSION) -> None:
    if not payload:
        raise _damaged("it is empty")
    if not VERSION <= payload[0] <= newest:
        raise StorageError(
            "0A000", f"a log record has version {payload[0]}, this shardb reads {newest}"
        )


def _get_sections(payload: bytes, at: int, count: int) -> list[Section]:
    sections = []
    for _ in range(count):
        if at + _SECTION.size > len(payload):
            raise _damaged("a section is cut")
        table_id, kind, rows, key_bytes, row_bytes = _SECTION.unpack_from(payload, at)
        at += _SECTION.size
        end = at + key_bytes + row_bytes
        if end > len(payload) or kind not in (PUT, DELETE, LINK):
            raise _damaged("a section is malformed")
        keys = payload[at : at + key_bytes]
        data = None if kind == DELETE else payload[at + key_bytes : end]
        if kind == LINK:
            sections.append(Section(table_id, rows, keys, None, data))
        else:
            sections.append(Section(table_id, rows, keys, data))
        at = end
    if at != len(payload):
        raise _damaged("there is more than its sections")
    return sections


def decode_commit(payload: bytes) -> Commit:
    _check_version(payload)
    if len(payload) < _COMMIT.size:
        raise _damaged("a commit is cut")
    _, txn_id, commit_ts, count = _COMMIT.unpack_from(payload)
    return Commit(txn_id, commit_ts, _get_sections(payload, _COMMIT.size, count))


def decode_prepare(payload: bytes) -> Prepare:
    _check_version(payload, PREPARE_VERSION)
    if len(payload) < _PREPARE.size:
        raise _damaged("a prepare is cut")
    _, txn_id, state_id, min_commit_ts, length = _PREPARE.unpack_from(payload)
    at = _PREPARE.size + length
    if at + 4 > len(payload):
        raise _damaged("a prepare is cut")
    try:
        rest = _decode_rest(payload[0], payload[_PREPARE.size : at])
    except msgspec.DecodeError as error:
        raise _damaged("a prepare is malformed") from error
    count = int.from_bytes(payload[at : at + 4], "little")
    sections = _get_sections(payload, at + 4, count)
    return Prepare(
        txn_id, state_id, min_commit_ts, rest.participants, rest.locks, sections, rest.spans
    )


def _decode_rest(version: int, data: bytes) -> _PrepareRest:
    if version == PREPARE_VERSION:
        return msgspec.msgpack.decode(data, type=_PrepareRest)
    rest = msgspec.msgpack.decode(data, type=_PrepareRest1)
    locks = (LockedKey(k.table_id, k.key, UPDATE if k.exclusive else SHARE) for k in rest.locks)
    return _PrepareRest(rest.participants, tuple(locks), rest.spans)


def decode_outcome(payload: bytes) -> Outcome:
    _check_version(payload)
    if len(payload) != _OUTCOME.size:
        raise _damaged("an outcome is malformed")
    _, txn_id, ts = _OUTCOME.unpack(payload)
    return Outcome(txn_id, ts)


def decode_install(payload: bytes) -> Install:
    _check_version(payload)
    try:
        return msgspec.msgpack.decode(payload[1:], type=Install)
    except msgspec.DecodeError as error:
        raise _damaged("an install is malformed") from error


def decode_drop(payload: bytes) -> Drop:
    _check_version(payload)
    try:
        return msgspec.msgpack.decode(payload[1:], type=Drop)
    except msgspec.DecodeError as error:
        raise _damaged("a drop is malformed") from error
