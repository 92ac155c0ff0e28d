"""Frames over sockets: a client that reconnects, and the server's side of a connection.

Callbacks, not futures, on the hot path: `Client.call` takes a function that gets the reply, exactly
once, `LOST` if the connection went before it came. Frames going out are gathered and written once a
loop turn. Everything here runs on one event loop, but for `ServerStream.send` and `end`.

A lost connection says nothing about whether a request was carried out: callers have to find out.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from shardb import limits
from shardb.errors import SqlError
from shardb.rpc import framing
from shardb.rpc import messages as m

if TYPE_CHECKING:
    from typing_extensions import Buffer

LOST: Final = m.Failure("08006", "the connection to a shard was lost")
OnReply = Callable[[m.Message], None]

RECONNECT_FIRST_S: Final = 0.02
RECONNECT_MAX_S: Final = 0.5
STREAM_STALL_MAX_S: Final = 600.0  # a stream's reader that takes nothing for so long is given up


def failure_error(failure: m.Failure) -> SqlError:
    """The error a Failure describes."""
    return SqlError(
        failure.sqlstate,
        failure.message,
        position=failure.position,
        detail=failure.detail,
        hint=failure.hint,
        where=failure.where,
        constraint=failure.constraint,
    )


def error_failure(error: BaseException, aborted: bool = False) -> m.Failure:
    """The Failure that carries `error`; one that is not SQL's becomes XX000."""
    if isinstance(error, SqlError):
        return m.Failure(
            error.sqlstate,
            error.message,
            error.position,
            error.detail,
            error.hint,
            error.where,
            error.constraint,
            aborted,
        )
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(sqlstate, str) and len(sqlstate) == 5:  # an error of _core
        message = getattr(error, "message", None) or str(error)
        detail = getattr(error, "detail", None) or ""
        return m.Failure(sqlstate, message, detail=detail, aborted=aborted)
    return m.Failure("XX000", f"{type(error).__name__}: {error}", aborted=aborted)


class _Wire(asyncio.Protocol):
    """What both sides share: cutting frames and writing once a turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._reader = framing.new_reader()
        self._out: list[Buffer] = []
        self._scattered = False  # something in `_out` is too long to be copied
        self._scheduled = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]

    def send(self, frame: bytes) -> None:
        """Queues a frame; nothing happens if the connection is gone."""
        self._out.append(frame)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def send_buffers(self, buffers: Sequence[Buffer]) -> None:
        """Queues a frame in several buffers, which are sent from where they are."""
        self._out.extend(buffers)
        self._scattered = True
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        out = self._out
        if not out:
            return
        self._out = []
        scattered, self._scattered = self._scattered, False
        if self._transport is None:
            return
        if scattered:
            self._transport.writelines(out)  # type: ignore[arg-type]
        else:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))  # type: ignore[arg-type]

    def abort(self) -> None:
        """Drops the connection at once."""
        if self._transport is not None:
            self._transport.abort()


# --- the client's side


class _ClientWire(_Wire):
    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._client = client

    def data_received(self, data: bytes) -> None:
        try:
            self._client.on_frames(self._reader.feed(data))
        except (ValueError, msgspec.DecodeError):
            self.abort()  # the peer speaks nonsense: its requests are lost with the connection

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._client.on_lost(self)


class Client:
    """Requests to one server, over one connection that is made again when it breaks.

    `known_programs` is for the caller: what it has registered over the present connection. `lost`
    is called when that is gone, before anything else hears of it.
    `hello` makes the first message of each connection; a SqlError from it means "not yet".
    """

    def __init__(
        self,
        address: str,
        hello: Callable[[], m.Hello],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.address = address
        self.known_programs: set[int] = set()
        self.lost: Callable[[], None] | None = None
        self._hello = hello
        self._loop = loop or asyncio.get_running_loop()
        self._wire: _ClientWire | None = None
        self._pending: dict[int, OnReply] = {}
        self._streams: dict[int, Stream] = {}
        self._next_id = 0
        self._closed = False
        self._connected: asyncio.Event = asyncio.Event()
        self._task = self._loop.create_task(self._connect())

    @property
    def connected(self) -> bool:
        """True if requests go out at once."""
        return self._wire is not None

    async def wait_connected(self, timeout_s: float) -> bool:
        """Waits until there is a connection; False if there is none in time."""
        if self._wire is not None:
            return True
        try:
            await asyncio.wait_for(self._connected.wait(), timeout_s)
        except TimeoutError:
            return False
        return self._wire is not None

    def call(self, message: m.Message, on_reply: OnReply) -> None:
        """Sends a request; `on_reply` gets the reply, or LOST."""
        wire = self._wire
        if wire is None:
            self._loop.call_soon(on_reply, LOST)
            return
        request_id = self._take_id()
        frame = framing.encode_request(request_id, message)
        self._pending[request_id] = on_reply
        wire.send(frame)

    def call_write(self, message: m.Write, keys: Buffer, rows: Buffer, on_reply: OnReply) -> None:
        """`call` for a Write without keys and rows: these are sent with it and not copied.

        They must not change before the reply.
        """
        wire = self._wire
        if wire is None:
            self._loop.call_soon(on_reply, LOST)
            return
        request_id = self._take_id()
        buffers = framing.encode_write(request_id, message, keys, rows)
        self._pending[request_id] = on_reply
        wire.send_buffers(buffers)

    async def request(self, message: m.Message) -> m.Message:
        """Sends a request and waits for its reply; a Failure (LOST too) is raised as SqlError."""
        done: asyncio.Future[m.Message] = self._loop.create_future()

        def finish(reply: m.Message) -> None:
            if not done.done():
                done.set_result(reply)

        self.call(message, finish)
        reply = await done
        if isinstance(reply, m.Failure):
            raise failure_error(reply)
        return reply

    def stream(self, message: m.Message) -> Stream:
        """Sends a request that is answered by a stream."""
        request_id = self._take_id()
        stream = Stream(self, request_id)
        wire = self._wire
        if wire is None:
            stream.finish(LOST)
            return stream
        self._streams[request_id] = stream
        wire.send(framing.encode_request(request_id, message))
        wire.send(framing.encode_credit(request_id, limits.RPC_STREAM_CREDIT_CHUNKS))
        return stream

    def control(self, frame: bytes) -> None:
        """Sends a credit or cancel frame, if connected."""
        if self._wire is not None:
            self._wire.send(frame)

    def drop_stream(self, request_id: int) -> None:
        """Forgets a stream and tells the server."""
        if self._streams.pop(request_id, None) is not None:
            self.control(framing.encode_cancel(request_id))

    async def close(self) -> None:
        """Closes the connection; what is pending gets LOST."""
        self._closed = True
        self._task.cancel()
        if self._wire is not None:
            self._wire.abort()
            self.on_lost(self._wire)

    def on_frames(self, frames: list[tuple[int, int, m.Message | bytes]]) -> None:
        """Called with the frames that arrived."""
        for kind, request_id, body in frames:
            if kind == framing.ROWS:
                on_reply = self._pending.pop(request_id, None)
                if on_reply is not None:
                    on_reply(body)  # type: ignore[arg-type]
                continue
            assert isinstance(body, bytes)
            message = framing.decode_reply(body)
            if kind == framing.ITEM:
                stream = self._streams.get(request_id)
                if stream is not None:
                    stream.add(message)
                continue
            if kind != framing.REPLY:
                raise ValueError(f"frame of kind {kind} from a server")
            on_reply = self._pending.pop(request_id, None)
            if on_reply is not None:
                on_reply(message)
                continue
            stream = self._streams.pop(request_id, None)
            if stream is not None:
                stream.finish(message)

    def on_lost(self, wire: _ClientWire) -> None:
        """Called when the connection went: everything pending gets LOST."""
        if self._wire is not wire:
            return
        self._wire = None
        self._connected.clear()
        self.known_programs = set()
        if self.lost is not None:
            self.lost()
        pending, self._pending = self._pending, {}
        streams, self._streams = self._streams, {}
        if not self._closed:
            self._task = self._loop.create_task(self._connect())
        for on_reply in pending.values():
            on_reply(LOST)
        for stream in streams.values():
            stream.finish(LOST)

    def _take_id(self) -> int:
        while True:
            self._next_id = (self._next_id + 1) & 0xFFFFFFFF
            if self._next_id not in self._pending and self._next_id not in self._streams:
                return self._next_id

    async def _connect(self) -> None:
        delay = RECONNECT_FIRST_S
        while not self._closed:
            wire = _ClientWire(self, self._loop)
            try:
                kind, path, host, port = parse_address(self.address)
                if kind == "unix":
                    await self._loop.create_unix_connection(lambda: wire, path)  # noqa: B023
                else:
                    await self._loop.create_connection(lambda: wire, host, port)  # noqa: B023
            except OSError:
                await asyncio.sleep(delay)
                delay = min(delay * 2, RECONNECT_MAX_S)
                continue
            if wire._transport is None:
                continue  # lost again already
            try:
                hello = self._hello()
            except SqlError:  # not ready to introduce itself
                wire.abort()
                await asyncio.sleep(delay)
                delay = min(delay * 2, RECONNECT_MAX_S)
                continue
            wire.send(framing.encode_request(0, hello))
            self._wire = wire
            self._connected.set()
            return


class Stream:
    """The messages of one answer, in order; the last is a StreamEnd, or an error is raised."""

    def __init__(self, client: Client, request_id: int) -> None:
        self._client = client
        self._request_id = request_id
        self._items: list[m.Message] = []
        self._end: m.Message | None = None
        self._wake: asyncio.Event = asyncio.Event()

    def add(self, message: m.Message) -> None:
        self._items.append(message)
        self._wake.set()

    def finish(self, message: m.Message) -> None:
        self._end = message
        self._wake.set()

    async def items(self) -> AsyncGenerator[m.Message, None]:
        """Yields the items, then the final message; SqlError if it is a Failure."""
        try:
            while True:
                while not self._items and self._end is None:
                    self._wake.clear()
                    await self._wake.wait()
                items, self._items = self._items, []
                for item in items:
                    yield item
                if items and self._end is None:
                    self._client.control(framing.encode_credit(self._request_id, len(items)))
                    continue
                if self._end is not None and not self._items:
                    if isinstance(self._end, m.Failure):
                        raise failure_error(self._end)
                    yield self._end
                    return
        finally:
            self._client.drop_stream(self._request_id)


# --- the server's side


class Handler(Protocol):
    """What a server does with what arrives; all on the event loop."""

    def on_message(
        self, connection: ServerConnection, request_id: int, message: m.Message
    ) -> None: ...

    def on_execute(
        self, connection: ServerConnection, request_id: int, message: m.Execute
    ) -> None: ...

    def on_lost(self, connection: ServerConnection) -> None: ...


class ServerConnection(_Wire):
    """A client's connection at the server."""

    def __init__(self, handler: Handler, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._handler = handler
        self._streams: dict[int, ServerStream] = {}
        self.lost = False
        self.peer = ""

    def data_received(self, data: bytes) -> None:
        handler = self._handler
        try:
            for kind, request_id, body in self._reader.feed(data):
                if kind == framing.EXECUTE:
                    handler.on_execute(self, request_id, body)
                elif kind == framing.REQUEST:
                    handler.on_message(self, request_id, framing.decode_request(body))
                elif kind == framing.CREDIT:
                    stream = self._streams.get(request_id)
                    if stream is not None:
                        stream.grant(int.from_bytes(body, "little"))
                elif kind == framing.CANCEL:
                    stream = self._streams.pop(request_id, None)
                    if stream is not None:
                        stream.cancel()
                else:
                    raise ValueError(f"frame of kind {kind} from a client")
        except (ValueError, msgspec.DecodeError):
            self.abort()
            return
        if self._out:
            self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.lost = True
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.cancel()
        self._handler.on_lost(self)

    def reply(self, request_id: int, message: m.Message) -> None:
        """Sends the final answer to a request."""
        self.send(framing.encode_reply(request_id, message))

    def open_stream(self, request_id: int) -> ServerStream:
        """Begins to answer by a stream."""
        stream = ServerStream(self, request_id, self._loop)
        self._streams[request_id] = stream
        return stream

    def close_stream(self, request_id: int) -> None:
        self._streams.pop(request_id, None)


class ServerStream:
    """The sending end of a stream; `send` and `end` belong to one worker thread."""

    def __init__(
        self, connection: ServerConnection, request_id: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._connection = connection
        self._request_id = request_id
        self._loop = loop
        self._credit = threading.Semaphore(0)
        self.cancelled = False

    def grant(self, items: int) -> None:
        self._credit.release(min(items, limits.RPC_STREAM_CREDIT_CHUNKS))

    def cancel(self) -> None:
        """The reader is gone: `send` returns False from now on."""
        self.cancelled = True
        self._credit.release()

    def send(self, message: m.Message) -> bool:
        """Sends an item, waiting for credit; False if nobody reads any more. From a thread."""
        if not self._credit.acquire(timeout=STREAM_STALL_MAX_S) or self.cancelled:
            return False
        frame = framing.encode_item(self._request_id, message)
        self._loop.call_soon_threadsafe(self._connection.send, frame)
        return True

    def end(self, message: m.Message) -> None:
        """Sends the final message. From a thread."""
        if not self.cancelled:
            self._loop.call_soon_threadsafe(self._finish, message)

    def _finish(self, message: m.Message) -> None:
        self._connection.close_stream(self._request_id)
        self._connection.reply(self._request_id, message)


def parse_address(address: str) -> tuple[str, str, str, int]:
    """(kind, path, host, port) of `unix:/path` or `tcp:host:port`."""
    kind, _, rest = address.partition(":")
    if kind == "unix" and rest:
        return "unix", rest, "", 0
    host, _, port = rest.rpartition(":")
    if kind != "tcp" or not host or not port.isdigit():
        raise ValueError(f"address {address!r} is neither unix:/path nor tcp:host:port")
    return "tcp", "", host.strip("[]"), int(port)


async def listen(address: str, handler: Handler) -> asyncio.AbstractServer:
    """Serves `handler` at `address`; a socket file left behind is replaced."""
    loop = asyncio.get_running_loop()
    kind, path, host, port = parse_address(address)
    if kind == "tcp":
        return await loop.create_server(lambda: ServerConnection(handler, loop), host, port)
    if os.path.exists(path):
        os.unlink(path)
    return await loop.create_unix_server(lambda: ServerConnection(handler, loop), path)
