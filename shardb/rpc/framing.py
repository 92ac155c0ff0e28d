"""How messages become frames and back; the byte layout is in docs/formats/rpc.md.

Every body is the msgpack of one message of `shardb.rpc.messages`, but for Execute and Rows, whose
bodies `shardb._core.frames` packs, and credit, which is a plain number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from shardb import limits
from shardb._core.frames import FrameReader, pack_execute, pack_frame, pack_header, pack_rows
from shardb.errors import SqlError
from shardb.rpc import messages as m

if TYPE_CHECKING:
    from typing_extensions import Buffer

PROTOCOL_VERSION: Final = 2

REQUEST: Final = 1  # to the server
REPLY: Final = 2  # to the client, the last word on its request
EXECUTE: Final = 3
ROWS: Final = 4
ITEM: Final = 5  # one message of a stream; the stream ends with a REPLY
CREDIT: Final = 6  # the client takes so many more items
CANCEL: Final = 7  # the client has no use for the rest

Request = (
    m.Hello
    | m.RegisterProgram
    | m.Execute
    | m.Write
    | m.Scan
    | m.CommitOne
    | m.Prepare
    | m.Decide
    | m.Rollback
    | m.CancelStatement
    | m.WatchWaits
    | m.BreakWait
    | m.ListLocks
    | m.QueryOutcome
    | m.InstallTable
    | m.DropTable
    | m.Status
    | m.Forget
)
Reply = (
    m.Ack
    | m.Failure
    | m.Rows
    | m.Written
    | m.Chunk
    | m.StreamEnd
    | m.Prepared
    | m.Committed
    | m.Outcome
    | m.StatusReply
    | m.WaitReport
    | m.LockList
)

_EMPTY_BINS: Final = b"\xc4\0\xc4\0"  # no keys and no rows
_BIN_32: Final = b"\xc6"  # then a u32 length, big-endian

_encoder: Final = msgspec.msgpack.Encoder()
_request_decoder: Final = msgspec.msgpack.Decoder(Request)
_reply_decoder: Final = msgspec.msgpack.Decoder(Reply)


def new_reader() -> FrameReader:
    """A reader for one connection."""
    return FrameReader(m.Execute, m.TxnRef, m.Rows, limits.RPC_MESSAGE_MAX_BYTES)


def encode_request(request_id: int, message: m.Message) -> bytes:
    """The frame of a request; 54000 if it is too long."""
    if type(message) is m.Execute:
        frame = pack_execute(request_id, message)
    else:
        frame = pack_frame(request_id, REQUEST, _encoder.encode(message))
    if len(frame) > limits.RPC_MESSAGE_MAX_BYTES:
        raise SqlError("54000", f"a message of {len(frame)} bytes to a shard is too long")
    return frame


def encode_write(request_id: int, message: m.Write, keys: Buffer, rows: Buffer) -> list[Buffer]:
    """The frame of a Write as buffers to send one after another; `keys` and `rows` are not copied.

    `message` has neither keys nor rows. 54000 if the frame is too long.
    """
    keys, rows = memoryview(keys), memoryview(rows)
    body = _encoder.encode(message)
    rest = (message.expected_ts, message.lock, message.nowait)
    end = b"".join(map(_encoder.encode, rest))
    stop = len(body) - len(end) - len(_EMPTY_BINS)
    assert body.startswith(_EMPTY_BINS, stop), "a Write with keys or rows of its own"
    before_keys = body[:stop] + _BIN_32 + keys.nbytes.to_bytes(4, "big")
    before_rows = _BIN_32 + rows.nbytes.to_bytes(4, "big")
    length = len(before_keys) + keys.nbytes + len(before_rows) + rows.nbytes + len(end)
    if length > limits.RPC_MESSAGE_MAX_BYTES - limits.KIB:
        raise SqlError("54000", f"a message of {length} bytes to a shard is too long")
    head = pack_header(request_id, REQUEST, length, before_keys)
    return [head, keys, before_rows, rows, end]


def encode_reply(request_id: int, message: m.Message) -> bytes:
    """The frame of a final reply."""
    if type(message) is m.Rows:
        return pack_rows(
            request_id,
            message.data,
            message.rows,
            message.state_id,
            message.commit_ts,
            message.newest_ts,
        )
    return pack_frame(request_id, REPLY, _encoder.encode(message))


def encode_item(request_id: int, message: m.Message) -> bytes:
    """The frame of one message of a stream."""
    return pack_frame(request_id, ITEM, _encoder.encode(message))


def encode_credit(request_id: int, items: int) -> bytes:
    """The frame that lets the server send so many more items."""
    return pack_frame(request_id, CREDIT, items.to_bytes(4, "little"))


def encode_cancel(request_id: int) -> bytes:
    """The frame that ends a stream early."""
    return pack_frame(request_id, CANCEL, b"")


def decode_request(body: bytes) -> m.Message:
    """The request in a REQUEST frame; msgspec.DecodeError if it is none."""
    message: m.Message = _request_decoder.decode(body)
    return message


def decode_reply(body: bytes) -> m.Message:
    """The message in a REPLY or ITEM frame; msgspec.DecodeError if it is none."""
    message: m.Message = _reply_decoder.decode(body)
    return message
