"""Serves the embedded store to the other processes of this machine, over a unix socket.

One task a connection reads calls and answers them in order of completion; one task a watch
forwards its changes. A slow reader makes its own watches wait, nobody else's. The service does not
own the store: whoever opened it closes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec

from shardb.errors import ProtocolError, SqlError, internal
from shardb.meta import frames
from shardb.meta.embedded import EmbeddedStore
from shardb.meta.store import Watch

LEASE_CHECK_SECONDS: Final = 0.25


class _Connection:
    """One client: its writer and its running watches by call number."""

    def __init__(self, store: EmbeddedStore, writer: asyncio.StreamWriter) -> None:
        self._store = store
        self._writer = writer
        self._watches: dict[int, tuple[Watch, asyncio.Task[None]]] = {}

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Answers calls until the client goes away."""
        try:
            while True:
                request = frames.REQUESTS.decode(await frames.read_frame(reader))
                self._send(await self._answer(request))
                await self._writer.drain()
        except (OSError, EOFError, ProtocolError, msgspec.MsgspecError):
            return  # gone, or not one of ours
        finally:
            for watch, task in self._watches.values():
                watch.close()
                task.cancel()
            self._writer.close()

    def _send(self, answer: frames.Call | None) -> None:
        if answer is None or self._writer.is_closing():
            return
        try:
            self._writer.write(frames.frame(answer))
        except SqlError as error:
            self._writer.write(frames.frame(frames.failure(answer.number, error)))

    async def _answer(self, request: frames.Call) -> frames.Call | None:
        try:
            return await self._carry_out(request)
        except SqlError as error:
            return frames.failure(request.number, error)

    async def _carry_out(self, request: frames.Call) -> frames.Call | None:
        number, store = request.number, self._store
        match request:
            case frames.GetCall():
                return frames.GetAnswer(number, await store.get(request.key))
            case frames.RangeCall():
                return frames.RangeAnswer(number, await store.range(request.prefix))
            case frames.TxnCall():
                result = await store.txn(request.compare, request.then, request.otherwise)
                return frames.TxnAnswer(number, result)
            case frames.GrantCall():
                return frames.NumberAnswer(number, await store.grant_lease(request.ttl_ms))
            case frames.KeepAliveCall():
                return frames.NumberAnswer(number, int(await store.keep_alive(request.lease)))
            case frames.RevokeCall():
                await store.revoke_lease(request.lease)
                return frames.NumberAnswer(number, 1)
            case frames.WatchCall():
                self._watch(request)
                return None
            case frames.StopWatch():
                running = self._watches.pop(number, None)
                if running is not None:
                    running[0].close()
                return None
            case _:
                raise internal(f"no handler for {type(request).__name__}")

    def _watch(self, request: frames.WatchCall) -> None:
        watch = self._store.watch(request.prefix, request.from_revision)
        task = asyncio.get_running_loop().create_task(self._forward(request.number, watch))
        self._watches[request.number] = (watch, task)

    async def _forward(self, number: int, watch: Watch) -> None:
        try:
            async for changes in watch:
                self._send(frames.WatchAnswer(number, changes))
                await self._writer.drain()
        except OSError:
            return
        except SqlError as error:
            self._send(frames.failure(number, error))
        finally:
            watch.close()
            self._watches.pop(number, None)


Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Listen = Callable[[Accept, str], Awaitable[asyncio.Server]]


async def listen_for_owner(accept: Accept, path: str) -> asyncio.Server:
    """Listens at a unix socket that only the files' owner may use."""
    server = await asyncio.start_unix_server(accept, path)
    Path(path).chmod(0o600)
    return server


class MetaService:
    """Listens on a unix socket. `await start()`; `await stop()` ends every connection."""

    def __init__(
        self, store: EmbeddedStore, path: Path | str, listen: Listen = listen_for_owner
    ) -> None:
        self._store = store
        self._path = Path(path)
        self._listen = listen
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Listens; a stale socket file is replaced (the caller holds the directory's lock)."""
        self._path.unlink(missing_ok=True)
        self._server = await self._listen(self._accept, str(self._path))
        self._expire()

    async def stop(self) -> None:
        """Stops listening and drops the clients."""
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            self._server.close()
            for task in tuple(self._clients):
                task.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)
            self._server = None
        self._path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            await _Connection(self._store, writer).serve(reader)
        except asyncio.CancelledError:
            return  # stop()
        finally:
            self._clients.discard(task)

    def _expire(self) -> None:
        self._store.expire_leases()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LEASE_CHECK_SECONDS, self._expire)
