"""The metadata store as the processes that do not own it see it: a client of `service`.

One connection, kept up in the background: reads are repeated after a reconnect, watches go on from
the revision after the last one seen, and a transaction that was under way raises
`StoreUnavailable`, because nobody knows whether it happened.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from shardb.errors import ProtocolError, SqlError
from shardb.meta import frames
from shardb.meta.store import (
    ChangeSet,
    Compare,
    KeyValue,
    Operation,
    Snapshot,
    Store,
    StoreUnavailable,
    TxnResult,
    Watch,
)

CALL_TIMEOUT_SECONDS: Final = 10.0
RECONNECT_SECONDS: Final = (0.02, 0.05, 0.1, 0.2, 0.5)


class RemoteWatch(Watch):
    """A watch over the connection; it survives reconnects."""

    def __init__(self, store: RemoteStore, prefix: str, from_revision: int) -> None:
        self._store = store
        self._prefix = prefix
        self._next_revision = from_revision
        self._queue: deque[ChangeSet] = deque()
        self._wake = asyncio.Event()
        self._error: SqlError | None = None
        self._closed = False
        self.number = 0

    def request(self, number: int) -> frames.WatchCall:
        """The call that (re)starts the watch after what was received so far."""
        self.number = number
        return frames.WatchCall(number, self._prefix, self._next_revision)

    def receive(self, answer: frames.Call) -> None:
        """Takes an answer with this watch's number."""
        if isinstance(answer, frames.WatchAnswer):
            self._next_revision = answer.changes.revision + 1
            self._queue.append(answer.changes)
        elif isinstance(answer, frames.FailureAnswer):
            self._error = answer.error()
        self._wake.set()

    async def __anext__(self) -> ChangeSet:
        while not self._queue:
            if self._error is not None:
                self.close()
                raise self._error
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._queue.popleft()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._store.forget(self)
            self._wake.set()


class RemoteStore(Store):
    """A client of the service at a unix socket path; it connects at the first call."""

    def __init__(self, path: str, timeout_seconds: float = CALL_TIMEOUT_SECONDS) -> None:
        self._path = path.removeprefix("unix:")
        self._timeout = timeout_seconds
        self._writer: asyncio.StreamWriter | None = None
        self._connected = asyncio.Event()
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._watches: dict[int, RemoteWatch] = {}
        self._last_number = 0
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def connect(self) -> RemoteStore:
        """Connects, waiting up to the timeout for the service to listen; returns itself."""
        await self._wait_connected(self._timeout)
        return self

    async def get(self, key: str) -> KeyValue | None:
        answer = await self._read(lambda number: frames.GetCall(number, key))
        assert isinstance(answer, frames.GetAnswer), answer
        return answer.found

    async def range(self, prefix: str) -> Snapshot:
        answer = await self._read(lambda number: frames.RangeCall(number, prefix))
        assert isinstance(answer, frames.RangeAnswer), answer
        return answer.snapshot

    async def txn(
        self,
        compare: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
    ) -> TxnResult:
        await self._wait_connected(self._timeout)
        answer = await self._call(
            lambda number: frames.TxnCall(number, tuple(compare), tuple(then), tuple(otherwise))
        )
        assert isinstance(answer, frames.TxnAnswer), answer
        return answer.result

    def watch(self, prefix: str, from_revision: int) -> Watch:
        if self._closed:
            raise SqlError("57P01", "the metadata store is closed")
        self._begin()
        watch = RemoteWatch(self, prefix, from_revision)
        number = self._next_number()
        self._watches[number] = watch
        request = watch.request(number)
        if self._writer is not None:
            self._writer.write(frames.frame(request))
        return watch

    async def grant_lease(self, ttl_ms: int) -> int:
        await self._wait_connected(self._timeout)
        answer = await self._call(lambda number: frames.GrantCall(number, ttl_ms))
        assert isinstance(answer, frames.NumberAnswer), answer
        return answer.value

    async def keep_alive(self, lease: int) -> bool:
        answer = await self._read(lambda number: frames.KeepAliveCall(number, lease))
        assert isinstance(answer, frames.NumberAnswer), answer
        return bool(answer.value)

    async def revoke_lease(self, lease: int) -> None:
        await self._read(lambda number: frames.RevokeCall(number, lease))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for watch in tuple(self._watches.values()):
            watch.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._lose_connection()

    def forget(self, watch: RemoteWatch) -> None:
        """Called by a watch that ends."""
        if self._watches.pop(watch.number, None) is not None and self._writer is not None:
            self._writer.write(frames.frame(frames.StopWatch(watch.number)))

    def _begin(self) -> None:
        """Starts to connect, the first time something is asked for."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._stay_connected())

    def _next_number(self) -> int:
        self._last_number += 1
        return self._last_number

    async def _wait_connected(self, timeout: float) -> None:
        if self._closed:
            raise SqlError("57P01", "the metadata store is closed")
        self._begin()
        try:
            await asyncio.wait_for(self._connected.wait(), timeout)
        except TimeoutError:
            raise StoreUnavailable(f"no answer at {self._path}") from None

    async def _call(self, make: Callable[[int], frames.Call]) -> frames.Call:
        """One call on the present connection. `StoreUnavailable` if that breaks."""
        if self._writer is None:
            raise StoreUnavailable("the connection was lost")
        number = self._next_number()
        request = frames.frame(make(number))
        future: asyncio.Future[frames.Call] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        try:
            self._writer.write(request)
            answer = await asyncio.wait_for(future, self._timeout)
        except TimeoutError:
            raise StoreUnavailable(f"no answer within {self._timeout} s") from None
        finally:
            self._calls.pop(number, None)
        if isinstance(answer, frames.FailureAnswer):
            raise answer.error()
        return answer

    async def _read(self, make: Callable[[int], frames.Call]) -> frames.Call:
        """A call that may be repeated: it is, until the timeout has passed."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout
        while True:
            await self._wait_connected(max(end - loop.time(), 0.001))
            try:
                return await self._call(make)
            except StoreUnavailable:
                if loop.time() >= end:
                    raise

    async def _stay_connected(self) -> None:
        attempt = 0
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path)
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS[min(attempt, len(RECONNECT_SECONDS) - 1)])
                attempt += 1
                continue
            attempt = 0
            self._writer = writer
            self._restart_watches()
            self._connected.set()
            await self._receive(reader)
            self._lose_connection()

    def _restart_watches(self) -> None:
        assert self._writer is not None
        watches = tuple(self._watches.values())
        self._watches.clear()
        for watch in watches:
            number = self._next_number()
            self._watches[number] = watch
            self._writer.write(frames.frame(watch.request(number)))

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        """Hands answers to whoever waits for them until the connection ends."""
        try:
            while True:
                answer = frames.ANSWERS.decode(await frames.read_frame(reader))
                waiting = self._calls.get(answer.number)
                if waiting is not None:
                    if not waiting.done():
                        waiting.set_result(answer)
                    continue
                watch = self._watches.get(answer.number)
                if watch is not None:
                    watch.receive(answer)
        except (OSError, EOFError, ProtocolError, msgspec.MsgspecError):
            return

    def _lose_connection(self) -> None:
        self._connected.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for future in self._calls.values():
            if not future.done():
                future.set_exception(StoreUnavailable("the connection was lost"))
