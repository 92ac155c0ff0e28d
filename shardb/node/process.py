"""A shard as a member of its cluster: the server, its registration, and what it knows of others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from shardb import limits
from shardb.engine.fragments import FragmentEngine
from shardb.env import Env
from shardb.errors import SqlError, StorageError
from shardb.meta import schema
from shardb.meta.descriptors import Node
from shardb.meta.registration import Registration
from shardb.meta.remote import RemoteStore
from shardb.node.server import NodeServer, end_on_bugs, end_process
from shardb.storage.memory import MemoryBudget

LEARN_SECONDS = 1.0  # between looks at the addresses of other shards


@dataclass(frozen=True, slots=True)
class ShardOptions:
    """Where a shard lives. `listen` and `meta` are addresses, `data` is a directory."""

    id: int
    data: str
    listen: str
    meta: str
    gc_ttl_ms: int = limits.GC_TTL_MS


async def run_shard(
    options: ShardOptions,
    env: Env,
    budget: MemoryBudget,
    engine: FragmentEngine,
    stopping: asyncio.Event,
    started: Callable[[NodeServer], None],
    on_fatal: Callable[[StorageError], None] = end_process,
) -> None:
    """Serves until `stopping`; `started` is called when it does. SqlError: it cannot."""
    loop = asyncio.get_running_loop()
    end_on_bugs(loop, on_fatal)
    store = await RemoteStore(options.meta).connect()
    nodes: dict[int, str] = {}

    def filter_rows(sql: str, reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
        return engine.run(sql, {"scan": reader}, [])

    async def learn_nodes() -> None:
        while True:
            for node in await schema.read_all(store, Node):
                nodes[node.id] = node.address
            await asyncio.sleep(LEARN_SECONDS)

    server = NodeServer(
        options.id,
        options.data,
        options.listen,
        nodes.get,
        filter_rows,
        env.files,
        env.rng,
        env.clock,
        budget,
        options.gc_ttl_ms,
        on_fatal,
        env.background,
        env.workers,
    )
    await server.start()
    me = Node(options.id, options.listen)
    registration = Registration(
        store,
        [(schema.key_of(Node, options.id), schema.encode(me))],
        clock=lambda: env.clock.monotonic_ms() / 1000,
    )
    await registration.start()
    learning = loop.create_task(learn_nodes())
    started(server)
    await stopping.wait()
    learning.cancel()
    await server.stop()
    with contextlib.suppress(SqlError):  # without the store the lease ends by itself
        await registration.stop()
    await store.close()
