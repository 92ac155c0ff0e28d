"""`python -m shardb.node`: one shard process of a cluster."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import signal
import sys

import pyarrow as pa
import uvloop

from shardb import __name__ as package
from shardb import limits
from shardb.engine.fragments import FragmentEngine
from shardb.env import calm_garbage_collector, switch_threads_fast
from shardb.errors import SqlError
from shardb.meta import schema
from shardb.meta.descriptors import Node
from shardb.meta.registration import Registration
from shardb.meta.remote import RemoteStore
from shardb.node.server import NodeServer, end_on_bugs
from shardb.storage.memory import MemoryBudget, tame_allocators

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Asks the kernel for SIGTERM when the supervisor goes (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


async def serve(options: argparse.Namespace) -> None:
    """Runs until SIGINT or SIGTERM."""
    node_id, data, address = options.id, options.data, options.listen
    loop = asyncio.get_running_loop()
    end_on_bugs(loop)
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    store = await RemoteStore(options.meta).connect()
    nodes: dict[int, str] = {}
    budget = MemoryBudget(options.memory)
    engine = FragmentEngine(budget.engine_bytes)

    def filter_rows(sql: str, reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
        return engine.run(sql, {"scan": reader}, [])

    async def learn_nodes() -> None:
        while True:
            for node in await schema.read_all(store, Node):
                nodes[node.id] = node.address
            await asyncio.sleep(1.0)

    server = NodeServer(
        node_id,
        data,
        address,
        nodes.get,
        filter_rows,
        budget=budget,
        gc_ttl_ms=options.gc_ttl_ms,
    )
    await server.start()
    descriptor = Node(node_id, address)
    registration = Registration(store, [(schema.key_of(Node, node_id), schema.encode(descriptor))])
    await registration.start()
    learning = loop.create_task(learn_nodes())
    calm_garbage_collector()
    switch_threads_fast()
    await stopping.wait()
    learning.cancel()
    await server.stop()
    with contextlib.suppress(SqlError):  # without the store the lease ends by itself
        await registration.stop()
    await store.close()


def main() -> int:
    """The process's entry; 1 with one line of explanation if it cannot start."""
    parser = argparse.ArgumentParser(prog=f"{package}.node", description=__doc__)
    parser.add_argument("--id", type=int, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--listen", required=True, help="unix:/path or tcp:host:port")
    parser.add_argument("--meta", required=True, help="address of the metadata store")
    parser.add_argument("--memory", type=int, default=limits.MEMORY_DEFAULT_BYTES, help="bytes")
    parser.add_argument("--gc-ttl-ms", type=int, default=limits.GC_TTL_MS)
    arguments = parser.parse_args()
    die_with_parent()
    tame_allocators(MemoryBudget(arguments.memory))
    try:
        uvloop.run(serve(arguments))
    except (SqlError, OSError) as error:
        message = error.message if isinstance(error, SqlError) else str(error)
        print(f"shardb: shard {arguments.id}: {message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
