"""A whole cluster in a simulated world: metadata process, shards, a coordinator, and clients.

A process is what `python -m` starts, without the signals. Its `kill` ends it in the midst of
whatever it does; a supervisor, as reliable as the real one, starts it again some time later.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from coordinator.server import run_coordinator
from shardb import limits
from shardb.engine.fragments import FragmentEngine
from shardb.env import Env
from shardb.errors import SqlError, StorageError
from shardb.meta.embedded import EmbeddedStore
from shardb.meta.service import MetaService
from shardb.node.process import ShardOptions, run_shard
from shardb.node.server import NodeServer
from shardb.sim.disk import Disk
from shardb.sim.loop import MS, Crash, ProcessLoop, World
from shardb.sim.network import Network
from shardb.sim.world import SimBackground, SimClock, SimFiles, SimRng, SimWorkers
from shardb.storage import jobs
from shardb.storage.log import Log
from shardb.storage.memory import MemoryBudget

RESTART_MIN_NS: Final = 20 * MS
RESTART_MAX_NS: Final = 600 * MS
DRIFT_MAX: Final = 0.002
META: Final = "meta/socket"
LIMITS: Final = {
    "LOG_ZEROED_FIRST_BYTES": 8 * limits.KIB,
    "LOG_ZEROED_MAX_BYTES": 16 * limits.KIB,
    "LOG_ZEROED_BATCH_MAX_BYTES": 4 * limits.KIB,
    "LOG_UNSETTLED_MAX_BYTES": 32 * limits.KIB,
    "MANIFEST_REWRITE_BYTES": 8 * limits.KIB,
}


class SmallBudget(MemoryBudget):
    """Memtables are frozen after some hundred rows."""

    @property
    def memtables_bytes(self) -> int:
        return 1_000_000

    @property
    def memtable_bytes(self) -> int:
        return 24_000


def set_limits(set_attribute: Callable[[Any, str, Any], None]) -> None:
    """Has files be so small that logs are changed and memtables flushed in every run."""
    for name, value in LIMITS.items():
        set_attribute(limits, name, value)
    set_attribute(Log.__init__, "__defaults__", (24 * limits.KIB,))
    set_attribute(jobs.write_segments, "__defaults__", (limits.MIB,))


@functools.cache
def fragment_engine() -> FragmentEngine:
    """One for all: nothing is kept between fragments, and it takes long to open."""
    return FragmentEngine(256 * limits.MIB, threads=1)


Main = Callable[["Process", ProcessLoop], Coroutine[Any, Any, None]]


class Process:
    """A supervised process; `loop` is its present life."""

    def __init__(self, cluster: Cluster, name: str, main: Main) -> None:
        self.cluster = cluster
        self.name = name
        self.main = main
        self.disk = Disk()
        self.files: SimFiles | None = None
        self.clock: SimClock | None = None
        self.server: NodeServer | None = None
        self.loop: ProcessLoop | None = None
        self.starts = 0
        self._task: asyncio.Task[None] | None = None  # the loop itself would not keep it
        self._restarting = False

    @property
    def running(self) -> bool:
        return self.loop is not None and not self.loop.dead

    def start(self) -> None:
        """Begins a life."""
        cluster, world = self.cluster, self.cluster.world
        self._restarting = False
        if self.running:
            return
        cluster.network.machine_started(self.name)
        self.starts += 1
        rate = 1 + world.rng.uniform(-DRIFT_MAX, DRIFT_MAX)
        loop = self.loop = ProcessLoop(world, self.name, cluster.network, rate)
        loop.on_crash = lambda: self._crashed(loop)
        self.files = SimFiles(self.disk, loop)
        self.clock = SimClock(loop, world.rng.randrange(-500, 500))
        world.note(f"{self.name} starts")
        task = self._task = loop.create_task(self._run(loop))
        task.add_done_callback(lambda _: self._ended(loop))

    def env(self, loop: ProcessLoop) -> Env:
        assert self.files is not None and self.clock is not None
        rng = SimRng(random.Random(self.cluster.world.rng.getrandbits(64)))
        return Env(self.clock, rng, self.files, SimBackground(loop), SimWorkers(loop))

    def fatal(self, error: StorageError) -> None:
        """What ends the process from inside."""
        world = self.cluster.world
        world.note(f"{self.name} ends: {error.message}")
        self._power = world.rng.random() < 0.5
        if error.sqlstate.startswith("XX"):
            world.problems.append(f"{self.name} ends: {error.message}")
        raise Crash

    def kill(self, power: bool = False) -> None:
        """SIGKILL, or `power` failure: of what was not synced any part is lost."""
        if not self.running:
            return
        assert self.loop is not None
        self.cluster.world.note(f"{self.name} {'loses power' if power else 'is killed'}")
        self._power = power
        self.loop.crash()

    _power = False

    async def _run(self, loop: ProcessLoop) -> None:
        try:
            await self.main(self, loop)
        except (SqlError, OSError) as error:
            self.cluster.world.note(f"{self.name} gives up: {error}")
            if isinstance(error, SqlError) and error.sqlstate.startswith("XX"):
                self.cluster.world.problems.append(f"{self.name} does not start: {error}")

    def _ended(self, loop: ProcessLoop) -> None:
        if not loop.dead:
            loop.crash()

    def _crashed(self, loop: ProcessLoop) -> None:
        """The one end of a life."""
        cluster = self.cluster
        power, self._power = self._power, False
        if not power and self.disk.crashed:  # at a point of the disk
            power = cluster.world.rng.random() < 0.5
        self.server = None
        old = self.disk
        old.on_crash = None
        old.crashed = True
        self.disk = old.after_crash(cluster.world.rng) if power else old.after_kill()
        cluster.network.process_ended(loop, machine=power)
        if not self._restarting:
            self._restarting = True
            delay = cluster.world.rng.randrange(RESTART_MIN_NS, RESTART_MAX_NS)
            cluster.control.post(cluster.world.now_ns + delay, self.start)


class Cluster:
    """Everything that a run needs but its workload. `control` is never killed."""

    def __init__(self, world: World, shards: int, directory: Path) -> None:
        self.world = world
        self.network = Network(world)
        self.control = ProcessLoop(world, "control", self.network)
        self.clients = ProcessLoop(world, "clients", self.network)
        self.meta = Process(self, "meta", self._run_meta)
        self.shards = [
            Process(self, f"shard{number}", functools.partial(self._run_shard, number))
            for number in range(1, shards + 1)
        ]
        self.coordinator = Process(self, "coordinator", self._run_coordinator)
        self._meta_path = directory / "meta"

    @property
    def processes(self) -> list[Process]:
        return [self.meta, *self.shards, self.coordinator]

    def start(self) -> None:
        """Starts every process."""
        for process in self.processes:
            process.start()

    def stop(self) -> None:
        """Ends everything; nothing starts again."""
        for process in self.processes:
            process._restarting = True
            if process.loop is not None:
                process.loop.crash()
        self.clients.crash()
        self.control.crash()

    def heal(self) -> None:
        """No fault is there any more, but what they have begun."""
        self.network.unblock_all()
        for process in self.processes:
            process.disk.crash_at = None
            process.disk.failing.clear()
            process.disk.free_bytes = 1 << 40
            if process.files is not None:
                process.files.slow_until_ns = 0

    # --- what processes run

    async def _run_meta(self, process: Process, loop: ProcessLoop) -> None:
        clock = process.clock
        assert clock is not None
        store = EmbeddedStore(self._meta_path, lambda: clock.monotonic_ms() / 1000)
        on_crash = loop.on_crash
        assert on_crash is not None

        def crashed() -> None:
            store._db.close()
            on_crash()

        loop.on_crash = crashed
        service = MetaService(store, META, asyncio.start_unix_server)
        await service.start()
        await loop.create_future()

    async def _run_shard(self, number: int, process: Process, loop: ProcessLoop) -> None:
        def started(server: NodeServer) -> None:
            process.server = server

        await run_shard(
            ShardOptions(number, "data", f"tcp:{process.name}:1", META),
            process.env(loop),
            SmallBudget(),
            fragment_engine(),
            asyncio.Event(),
            started,
            process.fatal,
        )

    async def _run_coordinator(self, process: Process, loop: ProcessLoop) -> None:
        await run_coordinator(
            META,
            "coordinator",
            1,
            process.env(loop),
            fragment_engine(),
            asyncio.Event(),
            1,
            lambda: None,
        )
