"""The messages between the metadata service and its clients: `u32 length | msgpack`, big-endian.

A connection carries many calls at once: each has a number chosen by the client, and its answer
carries the same. A watch is a call with many answers, ended by `StopWatch` or by a failure.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any, Final

import msgspec

from shardb.errors import ProtocolError, SqlError
from shardb.meta.store import (
    ChangeSet,
    Compacted,
    Compare,
    KeyValue,
    Operation,
    Snapshot,
    TxnResult,
)

PROTOCOL: Final = 1
FRAME_MAX_BYTES: Final = 64 * 1024 * 1024
HEADER: Final = struct.Struct(">I")


class Call(msgspec.Struct, frozen=True, array_like=True):
    """Base of all requests; `number` names the call on its connection."""

    number: int


class GetCall(Call, frozen=True, tag=True):
    """`Store.get`."""

    key: str


class RangeCall(Call, frozen=True, tag=True):
    """`Store.range`."""

    prefix: str


class TxnCall(Call, frozen=True, tag=True):
    """`Store.txn`."""

    compare: tuple[Compare, ...]
    then: tuple[Operation, ...]
    otherwise: tuple[Operation, ...]


class GrantCall(Call, frozen=True, tag=True):
    """`Store.grant_lease`."""

    ttl_ms: int


class KeepAliveCall(Call, frozen=True, tag=True):
    """`Store.keep_alive`."""

    lease: int


class RevokeCall(Call, frozen=True, tag=True):
    """`Store.revoke_lease`."""

    lease: int


class WatchCall(Call, frozen=True, tag=True):
    """`Store.watch`; answered by `WatchAnswer` again and again."""

    prefix: str
    from_revision: int


class StopWatch(Call, frozen=True, tag=True):
    """Ends the watch of the same number; not answered."""


Request = (
    GetCall | RangeCall | TxnCall | GrantCall | KeepAliveCall | RevokeCall | WatchCall | StopWatch
)


class GetAnswer(Call, frozen=True, tag=True):
    """Answers `GetCall`."""

    found: KeyValue | None


class RangeAnswer(Call, frozen=True, tag=True):
    """Answers `RangeCall`."""

    snapshot: Snapshot


class TxnAnswer(Call, frozen=True, tag=True):
    """Answers `TxnCall`."""

    result: TxnResult


class NumberAnswer(Call, frozen=True, tag=True):
    """Answers the calls about leases: the lease, or 1 and 0 for yes and no."""

    value: int


class WatchAnswer(Call, frozen=True, tag=True):
    """One change set of a watch."""

    changes: ChangeSet


class FailureAnswer(Call, frozen=True, tag=True):
    """The call failed. `wanted` and `oldest` are set if its revision was compacted."""

    sqlstate: str
    message: str
    wanted: int = 0
    oldest: int = 0

    def error(self) -> SqlError:
        """The error to raise at the caller's."""
        if self.oldest:
            return Compacted(self.wanted, self.oldest)
        return SqlError(self.sqlstate, self.message)


Answer = GetAnswer | RangeAnswer | TxnAnswer | NumberAnswer | WatchAnswer | FailureAnswer

ENCODER: Final = msgspec.msgpack.Encoder()
REQUESTS: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder(Request)
ANSWERS: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder(Answer)


def failure(number: int, error: SqlError) -> FailureAnswer:
    """The answer that carries `error`."""
    if isinstance(error, Compacted):
        return FailureAnswer(number, error.sqlstate, error.message, error.wanted, error.oldest)
    return FailureAnswer(number, error.sqlstate, error.message)


def frame(message: Call) -> bytes:
    """A message as it goes over the wire. 54000 if it is too long."""
    body = ENCODER.encode(message)
    if len(body) > FRAME_MAX_BYTES:
        raise SqlError("54000", f"a metadata message of {len(body)} bytes is too long")
    return HEADER.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The next frame's body. `IncompleteReadError` at the end of the stream."""
    (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
    if length > FRAME_MAX_BYTES:
        raise ProtocolError(f"a metadata message of {length} bytes, at most {FRAME_MAX_BYTES}")
    return await reader.readexactly(length)
