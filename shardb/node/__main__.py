"""`python -m shardb.node`: one shard process of a cluster."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import signal
import sys

import uvloop

from shardb import __name__ as package
from shardb import limits
from shardb.engine.fragments import FragmentEngine
from shardb.env import calm_garbage_collector, switch_threads_fast, system_env
from shardb.errors import SqlError
from shardb.node.process import ShardOptions, run_shard
from shardb.node.server import SCAN_THREADS, NodeServer
from shardb.storage.memory import MemoryBudget, tame_allocators

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Asks the kernel for SIGTERM when the supervisor goes (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


async def serve(options: argparse.Namespace) -> None:
    """Runs until SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    budget = MemoryBudget(options.memory)

    def started(_: NodeServer) -> None:
        calm_garbage_collector()
        switch_threads_fast()

    await run_shard(
        ShardOptions(options.id, options.data, options.listen, options.meta, options.gc_ttl_ms),
        system_env(loop, SCAN_THREADS),
        budget,
        FragmentEngine(budget.engine_bytes),
        stopping,
        started,
    )


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
