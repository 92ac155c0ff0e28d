"""A client as users have them: the Postgres protocol over a connection that may break.

Each request has a time limit, after which the client gives its connection up. Errors are what the
server said (`PgError`), or `ConnectionLost`, after which nobody knows what became of the request.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any, Final

Row = tuple[str | None, ...]
REQUEST_MAX_S: Final = 60.0
_STARTUP: Final = struct.pack(">I", 196608) + b"user\0shardb\0database\0shardb\0\0"
_SYNC: Final = b"S\0\0\0\4"


class PgError(Exception):
    """An ErrorResponse."""

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(f"{sqlstate} {message}")
        self.sqlstate = sqlstate
        self.message = message


class ConnectionLost(Exception):
    """No answer will come."""


class Result:
    """Rows as text, and the tag of the last statement."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.tag = ""
        self.error: PgError | None = None

    @property
    def count(self) -> int:
        """How many rows it changed or selected."""
        return int(self.tag.rpartition(" ")[2])


class Connection(asyncio.Protocol):
    """One session. One request at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: Any = None
        self._buffer = b""
        self._waiting: asyncio.Future[Result] | None = None
        self._result = Result()
        self._timer: Any = None
        self._prepared: dict[str, bytes] = {}
        self._names = 0
        self.lost = False

    @staticmethod
    async def open(host: str, port: int) -> Connection:
        """OSError or ConnectionLost: there is nobody, or nobody answers."""
        loop = asyncio.get_running_loop()
        _, connection = await asyncio.wait_for(
            loop.create_connection(lambda: Connection(loop), host, port), REQUEST_MAX_S
        )
        await connection._ask(struct.pack(">I", len(_STARTUP) + 4) + _STARTUP)
        return connection

    async def query(self, sql: str) -> Result:
        """The simple protocol."""
        text = sql.encode()
        return await self._ask(b"Q" + struct.pack(">I", len(text) + 5) + text + b"\0")

    async def execute(self, sql: str, *params: object) -> Result:
        """The extended protocol, with statements prepared once."""
        out = b""
        name = self._prepared.get(sql)
        if name is None:
            self._names += 1
            name = self._prepared[sql] = b"s%d" % self._names
            out = _message(b"P", name + b"\0" + sql.encode() + b"\0" + struct.pack(">H", 0))
        values = b"".join(
            struct.pack(">I", len(value)) + value for value in (str(p).encode() for p in params)
        )
        head = b"\0" + name + b"\0" + struct.pack(">HH", 0, len(params))
        out += _message(b"B", head + values + struct.pack(">H", 0))
        try:
            return await self._ask(out + _message(b"E", b"\0\0\0\0\0") + _SYNC)
        except PgError:
            self._prepared.pop(sql, None)  # perhaps it was not even parsed
            raise

    def close(self) -> None:
        """Ends the session."""
        self.lost = True
        if self._transport is not None:
            self._transport.close()

    async def _ask(self, data: bytes) -> Result:
        if self.lost:
            raise ConnectionLost
        assert self._waiting is None
        self._result = Result()
        self._waiting = self._loop.create_future()
        self._timer = self._loop.call_later(REQUEST_MAX_S, self._give_up)
        self._transport.write(data)
        result = await self._waiting
        if result.error is not None:
            raise result.error
        return result

    def _give_up(self) -> None:
        self._transport.abort()

    def _end(self) -> None:
        waiting, self._waiting = self._waiting, None
        if self._timer is not None:
            self._timer.cancel()
        if waiting is None or waiting.done():
            return
        if self.lost:
            waiting.set_exception(ConnectionLost())
        else:
            waiting.set_result(self._result)

    # --- asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._end()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data
        at = 0
        while len(buffer) - at >= 5:
            end = at + 1 + int.from_bytes(buffer[at + 1 : at + 5], "big")
            if len(buffer) < end:
                break
            self._take(buffer[at : at + 1], buffer[at + 5 : end])
            at = end
        self._buffer = buffer[at:]

    def _take(self, kind: bytes, body: bytes) -> None:
        result = self._result
        if kind == b"D":
            result.rows.append(_fields(body))
        elif kind == b"C":
            result.tag = body[:-1].decode()
        elif kind == b"E":
            fields = {part[:1]: part[1:].decode() for part in body.split(b"\0") if part}
            result.error = PgError(fields[b"C"], fields[b"M"])
        elif kind == b"Z":
            self._end()


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">I", len(body) + 4) + body


def _fields(body: bytes) -> Row:
    out: list[str | None] = []
    at = 2
    for _ in range(int.from_bytes(body[:2], "big")):
        size = int.from_bytes(body[at : at + 4], "big", signed=True)
        at += 4
        if size < 0:
            out.append(None)
        else:
            out.append(body[at : at + size].decode())
            at += size
    return tuple(out)
