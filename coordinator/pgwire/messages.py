"""The Postgres wire protocol, version 3, as data: type bytes, fixed messages and builders.

Source: PostgreSQL manual, chapter 55 (Frontend/Backend Protocol), "Message Formats". Builders
return complete messages, ready to be concatenated. Nothing here knows a session or a socket.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Final

from shardb.errors import SqlError


class Frontend(IntEnum):
    """Type bytes of messages from the client."""

    BIND = 0x42  # B
    CLOSE = 0x43  # C
    COPY_DATA = 0x64  # d
    COPY_DONE = 0x63  # c
    COPY_FAIL = 0x66  # f
    DESCRIBE = 0x44  # D
    EXECUTE = 0x45  # E
    FLUSH = 0x48  # H
    FUNCTION_CALL = 0x46  # F
    PARSE = 0x50  # P
    PASSWORD = 0x70  # p
    QUERY = 0x51  # Q
    SYNC = 0x53  # S
    TERMINATE = 0x58  # X


# Start-up packets begin with one of these instead of a type byte.
PROTOCOL_VERSION: Final = 3 << 16
CANCEL_REQUEST: Final = 1234 << 16 | 5678
SSL_REQUEST: Final = 1234 << 16 | 5679
GSSENC_REQUEST: Final = 1234 << 16 | 5680

_HEAD: Final = struct.Struct("!cI")
_INT16: Final = struct.Struct("!H")
_INT32: Final = struct.Struct("!I")
_COLUMN: Final = struct.Struct("!IhIhih")  # table oid, attnum, type oid, typlen, typmod, format
_KEY: Final = struct.Struct("!II")


def message(kind: bytes, body: bytes = b"") -> bytes:
    """A complete message: type, length (which counts itself), body."""
    return _HEAD.pack(kind, len(body) + 4) + body


AUTHENTICATION_OK: Final = message(b"R", _INT32.pack(0))
BIND_COMPLETE: Final = message(b"2")
CLOSE_COMPLETE: Final = message(b"3")
COPY_DONE: Final = message(b"c")
EMPTY_QUERY_RESPONSE: Final = message(b"I")
NO_DATA: Final = message(b"n")
PARSE_COMPLETE: Final = message(b"1")
PORTAL_SUSPENDED: Final = message(b"s")
READY: Final = {status: message(b"Z", status) for status in (b"I", b"T", b"E")}
ENCRYPTION_REFUSED: Final = b"N"


def command_complete(tag: str) -> bytes:
    """CommandComplete with its tag, e.g. `INSERT 0 1`."""
    return message(b"C", tag.encode() + b"\0")


def parameter_status(name: str, value: str) -> bytes:
    """ParameterStatus: a reported setting."""
    return message(b"S", name.encode() + b"\0" + value.encode() + b"\0")


def backend_key_data(process_id: int, secret: int) -> bytes:
    """BackendKeyData: what a CancelRequest must repeat."""
    return message(b"K", _KEY.pack(process_id, secret))


def parameter_description(oids: Sequence[int]) -> bytes:
    """ParameterDescription: the parameter types of a statement."""
    return message(b"t", _INT16.pack(len(oids)) + b"".join(map(_INT32.pack, oids)))


def row_description(
    columns: Iterable[tuple[str, int, int, int, int, int]], formats: bytes
) -> bytes:
    """RowDescription of (name, table oid, attnum, type oid, typlen, typmod) columns.

    `formats` has one byte a column, or one for all, or none for all text.
    """
    parts = []
    for index, (name, table_oid, attnum, oid, typlen, typmod) in enumerate(columns):
        code = format_of(formats, index)
        parts.append(name.encode() + b"\0")
        parts.append(_COLUMN.pack(table_oid, attnum, oid, typlen, typmod, code))
    return message(b"T", _INT16.pack(len(parts) // 2) + b"".join(parts))


def format_of(formats: bytes, index: int) -> int:
    """The format code of column `index` by the protocol's none / one for all / each rule."""
    if not formats:
        return 0
    return formats[0] if len(formats) == 1 else formats[index]


def data_row(values: Sequence[bytes | None]) -> bytes:
    """DataRow of ready-made values; for SHOW, EXPLAIN and the like (bulk rows come from _core)."""
    parts = [_INT16.pack(len(values))]
    for value in values:
        if value is None:
            parts.append(b"\xff\xff\xff\xff")
        else:
            parts.append(_INT32.pack(len(value)))
            parts.append(value)
    return message(b"D", b"".join(parts))


def copy_in_response(columns: int) -> bytes:
    """CopyInResponse: send us `columns` columns in text format (CSV is text too)."""
    return message(b"G", b"\0" + _INT16.pack(columns) + b"\0\0" * columns)


def negotiate_protocol_version(minor: int, options: Sequence[str]) -> bytes:
    """NegotiateProtocolVersion: our newest minor version and the options we do not know."""
    body = _INT32.pack(minor) + _INT32.pack(len(options))
    return message(b"v", body + b"".join(option.encode() + b"\0" for option in options))


def error_response(error: SqlError, severity: str = "ERROR") -> bytes:
    """ErrorResponse with the fields that are set; FATAL says that we close the connection."""
    return message(b"E", _fields(error, severity))


def notice_response(error: SqlError, severity: str = "WARNING") -> bytes:
    """NoticeResponse; `error` carries its fields."""
    return message(b"N", _fields(error, severity))


def _fields(error: SqlError, severity: str) -> bytes:
    fields = [
        (b"S", severity),
        (b"V", severity),
        (b"C", error.sqlstate),
        (b"M", error.message),
        (b"D", error.detail),
        (b"H", error.hint),
        (b"P", str(error.position) if error.position else ""),
        (b"W", error.where),
        (b"n", error.constraint),
    ]
    body = b"".join(
        code + text.replace("\0", "").encode("utf-8", "replace") + b"\0"
        for code, text in fields
        if text
    )
    return body + b"\0"
