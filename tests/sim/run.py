"""One run: a seed makes a cluster, faults and workloads, and says what came of it."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import shutil
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shardb.sim.loop import SECOND, World
from tests.sim.bank import Bank
from tests.sim.cluster import Cluster
from tests.sim.faults import KINDS, Faults
from tests.sim.history import OK, Client
from tests.sim.inserts import Inserts
from tests.sim.lists import Lists
from tests.sim.register import Registers
from tests.sim.unique import Unique
from tests.sim.workload import Workload

WORKLOADS: Final[dict[str, type[Workload]]] = {
    kind.name: kind for kind in (Bank, Lists, Registers, Inserts, Unique)
}
START_MAX_NS: Final = 60 * SECOND
WORK_MAX_NS: Final = 300 * SECOND
BACK_OFF_S: Final = 0.1
RECOVERY_MAX_NS: Final = 120 * SECOND  # after the last fault every client has got through


@dataclass
class Config:
    """What a run is to be; everything else is the seed's choice."""

    seed: int
    transactions: int = 1000
    workloads: tuple[str, ...] = ()
    faults: tuple[str, ...] | None = None
    level: str = ""
    verbose: bool = False


@dataclass
class Report:
    """What a run found."""

    seed: int
    failures: list[str] = field(default_factory=list)
    digest: int = 0
    turns: int = 0
    virtual_s: float = 0.0
    real_s: float = 0.0
    faults: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    setup: str = ""


class ErrorsLogged(logging.Handler):
    """What a process tells its operator of as an error is a bug here, but for a disk's troubles."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.problems = problems

    def emit(self, record: logging.LogRecord) -> None:
        self.problems.append(f"{record.name}: {record.getMessage()}")


class Run:
    """One cluster's life."""

    def __init__(self, config: Config, directory: Path) -> None:
        self.config = config
        rng = random.Random(f"setup {config.seed}")
        world = self.world = World(config.seed)
        shards = rng.choice((1, 2, 2, 3, 3, 4))
        clients = rng.randrange(3, 11)
        names = config.workloads or tuple(
            rng.sample(sorted(WORKLOADS), rng.randrange(1, min(3, len(WORKLOADS)) + 1))
        )
        kinds = config.faults
        if kinds is None:
            kinds = tuple(rng.sample(KINDS, rng.randrange(0, len(KINDS) + 1)))
        mean_s = rng.choice((0.15, 0.4, 1.0))
        self.think_s = rng.choice((0.0, 0.01, 0.05))
        level = config.level or rng.choice(("", "", "SERIALIZABLE", "REPEATABLE READ"))
        self.workloads = [WORKLOADS[name](rng, shards, level) for name in names]
        self.setup = (
            f"{shards} shards, {clients} clients, {', '.join(names)} at {level or 'any level'},"
            f" a fault each {mean_s} s of {', '.join(kinds) or 'none'}"
        )
        self.cluster = Cluster(world, shards, directory)
        self.cluster.network.late_part = rng.choice((0.001, 0.01, 0.1))
        self.faults = Faults(self.cluster, list(kinds), mean_s)
        self.left = config.transactions
        self.users = [
            (Client(world, number, workload.history), workload)
            for number in range(clients)
            for workload in (self.workloads[number % len(self.workloads)],)
        ]
        self.tasks: list[asyncio.Task[None]] = []
        self.phase = "start"

    def carry_out(self, report: Report) -> None:
        """All of it; what goes wrong goes into the report."""
        report.setup = self.setup
        world, cluster = self.world, self.cluster
        if self.config.verbose:
            world.on_event = lambda event: print(f"{world.now_ns / SECOND:.6f} {event}")
        cluster.start()
        errors = ErrorsLogged(world.problems)
        logging.getLogger().addHandler(errors)
        try:
            self._carry_out(report)
        finally:
            logging.getLogger().removeHandler(errors)
            report.failures += [f"bug: {problem}" for problem in world.problems]
            report.digest, report.turns = world.digest, world.turns
            report.virtual_s = world.now_ns / SECOND
            report.faults = self.faults.injected
            cluster.stop()

    def _carry_out(self, report: Report) -> None:
        world, create = self.world, self.cluster.clients.create_task
        setting_up = create(self._set_up())
        if not world.run(setting_up.done, START_MAX_NS):
            report.failures.append("the cluster does not start")
            return
        setting_up.result()
        self.faults.start()
        tasks = [create(self._use(client, workload)) for client, workload in self.users]
        until_ns = world.now_ns + WORK_MAX_NS
        world.run(lambda: self.left <= 0 or bool(world.problems), until_ns)
        self.left = 0
        self.faults.stop()
        world.note("faults end")
        until_ns = world.now_ns + RECOVERY_MAX_NS
        if not world.run(lambda: all(task.done() for task in tasks), until_ns):
            stuck = [n for n, task in enumerate(tasks) if not task.done()]
            report.failures.append(f"clients {stuck} do not get through after the last fault")
        for task in tasks:
            if task.done():
                task.result()
        for _ in range(2):
            finishing = create(self._finish())
            if not world.run(finishing.done, world.now_ns + RECOVERY_MAX_NS):
                report.failures.append("the final reads do not get through after the last fault")
                break
            finishing.result()
            for shard in self.cluster.shards:  # what was read is durable, and will be read again
                shard.kill(power=True)
        for workload in self.workloads:
            report.failures += [f"{workload.name}: {found}" for found in workload.check()]
            for operation in workload.history:
                report.outcomes[operation.outcome] += 1
                if operation.error:
                    report.outcomes[operation.error] += 1

    async def _set_up(self) -> None:
        client = Client(self.world, -1, [])
        for workload in self.workloads:
            await workload.set_up(client)

    async def _use(self, client: Client, workload: Workload) -> None:
        while self.left > 0:
            self.left -= 1
            operation = await workload.act(client)
            if operation.outcome != OK:
                await asyncio.sleep(client.rng.random() * BACK_OFF_S)
            if self.think_s:
                await asyncio.sleep(client.rng.random() * self.think_s)

    async def _finish(self) -> None:
        client = Client(self.world, -2, [])
        for workload in self.workloads:
            await workload.finish(client)


def simulate(config: Config) -> Report:
    """Carries out a run. REQUIRES: `cluster.set_limits` has been called."""
    report = Report(config.seed)
    begun = time.perf_counter()
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    directory = Path(tempfile.mkdtemp(prefix="shardb-sim-", dir=shared))
    gc.disable()  # nothing here may depend on when it runs
    try:
        run = Run(config, directory)
        run.carry_out(report)
    except Exception as error:  # a client that met what it did not expect: rows that are not there
        where = traceback.extract_tb(error.__traceback__)[-1]
        name = Path(where.filename).name
        report.failures.append(f"{name}:{where.lineno}: {type(error).__name__}: {error}")
    finally:
        gc.enable()
        shutil.rmtree(directory, ignore_errors=True)
    report.real_s = time.perf_counter() - begun
    return report
