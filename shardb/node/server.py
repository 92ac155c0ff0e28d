"""The shard process: sockets, threads and timers around `ShardNode`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Final

from shardb import limits
from shardb.env import (
    Background,
    Clock,
    Files,
    Rng,
    SystemBackground,
    SystemClock,
    SystemFiles,
    SystemRng,
)
from shardb.errors import StorageError
from shardb.node.node import ShardNode
from shardb.node.recover import Resolver
from shardb.node.scan import Filter
from shardb.rpc import framing
from shardb.rpc import messages as m
from shardb.rpc.transport import Client, listen
from shardb.storage.memory import MemoryBudget

SCAN_THREADS: Final = 4


def end_process(error: StorageError) -> None:
    """What a shard does when its disk lies: it ends, at once and without a clean-up."""
    print(f"shardb: fatal: {error.message}", file=sys.stderr, flush=True)
    os._exit(70)


def end_on_bugs(
    loop: asyncio.AbstractEventLoop, on_fatal: Callable[[StorageError], None] = end_process
) -> None:
    """Has an exception that a callback of the loop let through end the process.

    It is a bug, and what it left half done would keep others waiting for ever: a record that is
    durable and not carried out, a flush that never ends. After a restart the log says what is true.
    """

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        loop.default_exception_handler(context)
        error = context.get("exception")
        if "handle" in context and isinstance(error, Exception):
            on_fatal(StorageError("XX000", f"{type(error).__name__}: {error}"))

    loop.set_exception_handler(handle)


class NodeServer:
    """A running shard. `peers(node_id)` gives the address of another one, or None."""

    def __init__(
        self,
        node_id: int,
        data: str,
        address: str,
        peers: Callable[[int], str | None],
        filter_rows: Filter,
        files: Files | None = None,
        rng: Rng | None = None,
        clock: Clock | None = None,
        budget: MemoryBudget | None = None,
        gc_ttl_ms: int = limits.GC_TTL_MS,
        on_fatal: Callable[[StorageError], None] = end_process,
        background: Background | None = None,
        workers: Executor | None = None,
    ) -> None:
        self.node_id = node_id
        self.address = address
        self._peers = peers
        self._clients: dict[int, Client] = {}
        self._loop = asyncio.get_running_loop()
        self._workers = workers or ThreadPoolExecutor(
            SCAN_THREADS, thread_name_prefix="shardb-scan"
        )
        self._server: asyncio.AbstractServer | None = None
        self.node = ShardNode(
            data,
            files or SystemFiles(self._loop),
            rng or SystemRng(),
            on_fatal,
            self._workers,
            filter_rows,
            background or SystemBackground(self._loop),
            budget,
            gc_ttl_ms,
        )
        self._resolver = Resolver(
            clock or SystemClock(), self.node.prepared_states, self.node.ranges.get, self._client
        )

    async def start(self) -> None:
        """Listens, and begins to finish what is in doubt."""
        self._server = await listen(self.address, self.node)
        self._resolver.start()

    async def stop(self) -> None:
        """Stops listening, makes everything durable and lets the directory go."""
        if self._server is not None:
            self._server.close()
        await self._resolver.stop()
        for client in self._clients.values():
            await client.close()
        self.node.drop_connections()
        self.node.close()
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _client(self, node_id: int) -> Client | None:
        address = self._peers(node_id)
        if address is None:
            return None
        client = self._clients.get(node_id)
        if client is None or client.address != address:
            if client is not None:
                self._loop.create_task(client.close())
            hello = m.Hello(f"shard {self.node_id}", framing.PROTOCOL_VERSION)
            client = self._clients[node_id] = Client(address, lambda: hello, self._loop)
        return client
