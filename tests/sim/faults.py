"""What goes wrong in a run, and when: all of the seed's choosing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from shardb.sim.loop import SECOND
from tests.sim.cluster import Cluster, Process

KINDS: Final = (
    "kill shard",
    "power off shard",
    "crash shard at a write",
    "kill coordinator",
    "kill meta",
    "pause",
    "partition",
    "break connection",
    "slow disk",
    "full disk",
    "clock jump",
    "disk error",
    "power off all",
)


class Faults:
    """Injects faults of the `kinds` until stopped, on average one every `mean_s` seconds."""

    def __init__(self, cluster: Cluster, kinds: list[str], mean_s: float) -> None:
        self.cluster = cluster
        self.kinds = kinds
        self.mean_s = mean_s
        self.injected = 0
        self.rng: random.Random = cluster.world.rng
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins."""
        if self.kinds:
            self._task = self.cluster.control.create_task(self._run())

    def stop(self) -> None:
        """Lets the cluster recover."""
        if self._task is not None:
            self._task.cancel()
        self.cluster.heal()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self.rng.expovariate(1 / self.mean_s))
            kind = self.rng.choice(self.kinds)
            self.injected += 1
            self._inject(kind)

    def _inject(self, kind: str) -> None:
        rng, cluster = self.rng, self.cluster
        shard = rng.choice(cluster.shards)
        process = rng.choice(cluster.processes)
        actions: dict[str, Callable[[], None]] = {
            "kill shard": shard.kill,
            "power off shard": lambda: shard.kill(power=True),
            "crash shard at a write": lambda: self._crash_at_write(shard),
            "kill coordinator": cluster.coordinator.kill,
            "kill meta": cluster.meta.kill,
            "pause": lambda: self._pause(process),
            "partition": self._partition,
            "break connection": self._break,
            "slow disk": lambda: self._slow(shard),
            "full disk": lambda: self._fill(shard),
            "clock jump": lambda: self._jump(process),
            "disk error": lambda: self._fail_disk(shard),
            "power off all": self._power_off,
        }
        actions[kind]()

    def _crash_at_write(self, shard: Process) -> None:
        if shard.running:
            how = self.rng.choice(("before", "after", "torn"))
            shard.disk.crash_how = how
            shard.disk.crash_at = len(shard.disk.points) + self.rng.randrange(1, 20)
            self.cluster.world.note(f"{shard.name} will crash {how} a write")

    def _seconds(self) -> float:
        """Short mostly, now and then long enough for time limits to pass."""
        return self.rng.choice((0.01, 0.05, 0.2, 0.5, 1.5, 5.0, 15.0)) * self.rng.uniform(0.5, 1.5)

    def _pause(self, process: Process) -> None:
        if process.loop is not None and process.running:
            seconds = self._seconds()
            self.cluster.world.note(f"{process.name} pauses for {seconds:.3f} s")
            process.loop.pause(self.cluster.world.now_ns + int(seconds * SECOND))

    def _partition(self) -> None:
        cluster, world = self.cluster, self.cluster.world
        names = [process.name for process in cluster.processes] + ["clients"]
        source, target = self.rng.sample(names, 2)
        both = self.rng.random() < 0.6
        seconds = self._seconds()
        arrow = "><" if both else ">"
        world.note(f"partition {source} {arrow} {target} for {seconds:.3f} s")
        cluster.network.block(source, target)
        if both:
            cluster.network.block(target, source)
        at_ns = world.now_ns + int(seconds * SECOND)
        cluster.control.post(at_ns, self._unblock)

    def _unblock(self) -> None:
        self.cluster.network.unblock_all()
        if self.rng.random() < 0.3:
            self._break()

    def _break(self) -> None:
        connections = self.cluster.network.connections()
        if connections:
            found = self.rng.choice(connections)
            self.cluster.world.note(f"connection {found.loop.name} - {found.peer_name} breaks")
            self.cluster.network.break_connection(found)

    def _slow(self, shard: Process) -> None:
        if shard.files is not None:
            seconds = self._seconds()
            self.cluster.world.note(f"disk of {shard.name} is slow for {seconds:.3f} s")
            shard.files.slow_until_ns = self.cluster.world.now_ns + int(seconds * SECOND)

    def _fill(self, shard: Process) -> None:
        disk, world = shard.disk, self.cluster.world
        disk.free_bytes = self.rng.randrange(20_000)
        world.note(f"disk of {shard.name} has {disk.free_bytes} bytes left")

        def make_room() -> None:
            shard.disk.free_bytes = 1 << 40

        self.cluster.control.post(world.now_ns + int(self._seconds() * SECOND), make_room)

    def _jump(self, process: Process) -> None:
        if process.clock is not None:
            process.clock.offset_ms += self.rng.randrange(-5_000, 5_000)

    def _fail_disk(self, shard: Process) -> None:
        """The next sync fails, after which the process must trust nothing."""
        self.cluster.world.note(f"disk of {shard.name} fails")
        shard.disk.failing.add("sync")

    def _power_off(self) -> None:
        self.cluster.world.note("power failure")
        for process in self.cluster.processes:
            process.kill(power=True)
