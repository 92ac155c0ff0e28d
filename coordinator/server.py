"""The coordinator process: sockets of clients, and the wiring of everything behind them.

`python -m coordinator.server --meta unix:/path --listen 127.0.0.1:5433`. This is a shell: it owns
the event loop and carries bytes and tasks for sessions, which know neither.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

import uvloop

from coordinator.cluster import Cluster
from coordinator.executor import Executor
from coordinator.ports import Cancellable
from coordinator.session import Session
from shardb import limits
from shardb.engine.fragments import FragmentEngine
from shardb.env import Env, calm_garbage_collector, system_env
from shardb.errors import SqlError

log = logging.getLogger("coordinator.server")

BACKLOG: Final = 1024
THREADS: Final = 4  # for engine stages and COPY parsing; they release the GIL
SHUTDOWN_GRACE_SECONDS: Final = 2.0


class Connection(asyncio.Protocol):
    """One client's socket, and the shell of its session."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = server.loop
        self._transport: asyncio.Transport | None = None
        executor = server.executor
        self._session = Session(executor, self, executor.new_process_id(), server.secret())
        # The loop looks the method up once, before connection_made: no hop on the hot path.
        self.data_received = self._session.data_received  # type: ignore[method-assign]
        self._drained: asyncio.Future[None] | None = None

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        assert self._transport is not None
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._transport.set_write_buffer_limits(high=limits.CLIENT_SEND_BUFFER_MAX_BYTES)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server.connections.discard(self)
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._session.connection_lost()

    def pause_writing(self) -> None:
        self._drained = self._loop.create_future()
        self._session.writing_paused()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None
        self._session.writing_resumed()

    # --- the session's shell

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def spawn(
        self, work: Coroutine[Any, Any, None], done: Callable[[BaseException | None], None]
    ) -> Cancellable:
        def finished(task: asyncio.Task[None]) -> None:
            if task.cancelled():
                done(asyncio.CancelledError())
            else:
                done(task.exception())

        task = self._loop.create_task(work)
        task.add_done_callback(finished)
        return task

    def waiter(self) -> asyncio.Future[None]:
        return self._loop.create_future()

    def call_soon(self, function: Callable[[], None]) -> object:
        return self._loop.call_soon(function)

    def pause_reading(self) -> None:
        if self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    async def drain(self) -> None:
        if self._drained is not None:
            await self._drained
        if self._transport is None:
            raise SqlError("08006", "connection to client lost")

    def gather(self, works: Sequence[Coroutine[Any, Any, Any]]) -> Awaitable[list[Any]]:
        return asyncio.gather(*works)

    def in_thread(self, function: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        return self._loop.run_in_executor(self._server.threads, function, *args)

    def timer(self, seconds: float, function: Callable[[], None]) -> Cancellable:
        return self._loop.call_later(seconds, function)

    def terminate(self, error: SqlError) -> None:
        """Tells the client why and closes."""
        self._session.terminate(error)


class Server:
    """The listening side of a coordinator."""

    def __init__(self, executor: Executor, loop: asyncio.AbstractEventLoop, env: Env) -> None:
        self.executor = executor
        self.loop = loop
        self.threads = env.workers
        self._rng = env.rng
        self.connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None

    def secret(self) -> int:
        """What a client has to know to cancel a statement."""
        return int.from_bytes(self._rng.token(4), "little") >> 1

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Begins to accept clients; the address really used."""
        self._listener = await self.loop.create_server(
            lambda: Connection(self), host, port, backlog=BACKLOG, reuse_address=True
        )
        name = self._listener.sockets[0].getsockname()
        return name[0], name[1]

    async def stop(self) -> None:
        """Accepts nobody any more and tells everybody to go."""
        if self._listener is not None:
            self._listener.close()
        goodbye = SqlError("57P01", "terminating connection due to administrator command")
        for connection in tuple(self.connections):
            connection.terminate(goodbye)
        end = self.loop.time() + SHUTDOWN_GRACE_SECONDS
        while self.connections and self.loop.time() < end:
            await asyncio.sleep(0.01)
        self.threads.shutdown(wait=False, cancel_futures=True)


class _LoopTools:
    """The event loop as the cluster uses it; keeps background tasks alive and reports failures."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()

    def background(self, work: Coroutine[Any, Any, None]) -> object:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task failed", exc_info=error)

    def waiter(self) -> asyncio.Future[None]:
        return self._loop.create_future()


async def serve(meta: str, host: str, port: int, memory_bytes: int) -> None:
    """Runs a coordinator until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    engine = FragmentEngine(memory_bytes * 7 // 10)  # the rest is for results on their way
    await run_coordinator(meta, host, port, system_env(loop, THREADS), engine, stop, os.getpid())


async def run_coordinator(
    meta: str,
    host: str,
    port: int,
    env: Env,
    engine: FragmentEngine,
    stop: asyncio.Event,
    process_id: int,
    started: Callable[[], None] = calm_garbage_collector,
) -> None:
    """Runs a coordinator until `stop`; `started` is called before the first client."""
    loop = asyncio.get_running_loop()
    tools = _LoopTools(loop)
    cluster = Cluster(meta, f"{host}:{port}", tools, engine, env.clock, env.rng, process_id)
    await cluster.start()
    server = Server(cluster.executor, loop, env)
    try:
        started()
        await server.listen(host, port)
        log.info("coordinator %d serves %s:%d", cluster.coordinator_id, host, port)
        watcher = asyncio.ensure_future(cluster.watch())
        stopping = asyncio.ensure_future(stop.wait())
        done, _ = await asyncio.wait((watcher, stopping), return_when=asyncio.FIRST_COMPLETED)
        if watcher in done:
            watcher.result()
        watcher.cancel()
        stopping.cancel()
    finally:
        await server.stop()
        await cluster.stop()


def address_of(text: str) -> tuple[str, int]:
    """`host:port`, with an IPv6 host in brackets."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not host:port")
    return host.strip("[]"), int(port)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="coordinator.server", description=__doc__)
    parser.add_argument("--meta", required=True, help="the metadata store, unix:/path")
    parser.add_argument("--listen", type=address_of, default=("127.0.0.1", 5433))
    parser.add_argument("--memory", type=int, default=limits.MEMORY_DEFAULT_BYTES, help="bytes")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=os.environ.get("SHARDB_LOG", "WARNING"),
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    try:
        with contextlib.suppress(KeyboardInterrupt):
            host, port = options.listen
            uvloop.run(serve(options.meta, host, port, options.memory))
    except (OSError, SqlError) as error:
        print(f"coordinator: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
