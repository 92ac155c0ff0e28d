"""A few runs of the simulator, and that what they rest on holds."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardb.sim.loop import MS, SECOND, ProcessLoop, World
from shardb.sim.network import Network
from tests.sim.cluster import set_limits
from tests.sim.mutations import mutated
from tests.sim.run import WORKLOADS, Config, simulate

ROOT = Path(__file__).resolve().parent.parent.parent
SEEDS = range(1, 9)


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    set_limits(monkeypatch.setattr)
    yield


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cluster_with_faults_keeps_its_promises(seed: int) -> None:
    report = simulate(Config(seed, transactions=400))
    assert not report.failures, f"make sim SEED={seed}: {report.setup}\n" + "\n".join(
        report.failures
    )


@pytest.mark.parametrize("name", WORKLOADS)
def test_without_faults_every_statement_gets_through(name: str) -> None:
    report = simulate(Config(1, 200, (name,), ()))
    assert not report.failures
    assert not report.outcomes["unknown"]
    expected = ("40001", "40P01", "23505")  # deadlocks are found, no lock timeout is needed
    errors = [found for found in report.outcomes if found.startswith("PgError")]
    assert all(error.split()[1] in expected for error in errors), errors


def test_the_same_seed_repeats_byte_for_byte() -> None:
    """In another process, with other hashes of strings."""
    digests = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.sim", "--seed", "3", "--transactions", "200", "--quiet"],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        digests.add(done.stdout[done.stdout.index("digest") :])
    assert len(digests) == 1


def test_another_seed_is_another_run() -> None:
    first, second = (simulate(Config(seed, 50)) for seed in (1, 2))
    assert first.digest != second.digest


@pytest.mark.parametrize("name", ["no max read ts", "reply before sync", "readers do not wait"])
def test_a_broken_rule_is_noticed(name: str) -> None:
    faults = ("power off shard",) if name == "reply before sync" else ()
    workloads = ("inserts",) if faults else ("lists",)
    with mutated(name):
        reports = (simulate(Config(seed, 400, workloads, faults)) for seed in range(1, 21))
        assert any(report.failures for report in reports)


# --- the world


class Echo(asyncio.Protocol):
    """Sends back what it gets, and keeps it."""

    def __init__(self, echoes: bool) -> None:
        self.echoes = echoes
        self.got = b""
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got += data
        if self.echoes:
            self.transport.write(data)  # type: ignore[attr-defined]

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


class Pair:
    """A client and a server that are connected."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.network = Network(self.world)
        self.client = ProcessLoop(self.world, "client", self.network)
        self.server = ProcessLoop(self.world, "server", self.network)
        self.there = Echo(True)
        self.here = Echo(False)
        self.server.create_task(self.server.create_server(lambda: self.there, "server", 1))
        self.run(0.01)
        self.client.create_task(self.client.create_connection(lambda: self.here, "server", 1))
        self.run(0.1)

    def run(self, seconds: float) -> None:
        self.world.run(lambda: False, self.world.now_ns + int(seconds * SECOND))


@pytest.mark.parametrize("seed", range(20))
def test_connections_keep_order(seed: int) -> None:
    pair = Pair(seed)
    for number in range(100):
        pair.here.transport.write(b"%d." % number)
        pair.run(0.0001)
    pair.run(1)
    assert pair.here.got == b"".join(b"%d." % number for number in range(100))


@pytest.mark.parametrize("seed", range(20))
def test_a_partition_holds_bytes_up_and_loses_none(seed: int) -> None:
    pair = Pair(seed)
    pair.network.block("client", "server")
    pair.here.transport.write(b"late")
    pair.run(10)
    assert pair.there.got == b""
    pair.network.unblock_all()
    pair.here.transport.write(b"r")
    pair.run(1)
    assert pair.here.got == b"later"


@pytest.mark.parametrize("seed", range(20))
def test_a_broken_connection_delivers_a_beginning_of_what_was_sent(seed: int) -> None:
    pair = Pair(seed)
    pair.here.transport.write(b"0123456789")
    pair.network.break_connection(pair.network.connections()[0])
    pair.run(1)
    assert pair.here.lost and pair.there.lost
    assert b"0123456789".startswith(pair.there.got)


def test_a_killed_process_does_nothing_more_and_others_hear_of_it() -> None:
    pair = Pair(1)
    pair.server.crash()
    pair.network.process_ended(pair.server, machine=False)
    pair.run(1)
    pair.here.transport.write(b"hello")
    pair.run(1)
    assert pair.here.lost and pair.there.got == b"" and not pair.there.lost


def test_of_a_stopped_machine_others_hear_when_it_is_there_again() -> None:
    pair = Pair(1)
    pair.server.crash()
    pair.network.process_ended(pair.server, machine=True)
    pair.run(60)
    assert not pair.here.lost
    pair.network.machine_started("server")
    pair.run(1)
    assert pair.here.lost


def test_time_passes_as_the_process_counts_it() -> None:
    world = World(1)
    fast = ProcessLoop(world, "fast", None, rate=1.5)
    slept = fast.create_task(asyncio.sleep(3))
    assert world.run(slept.done, 10 * SECOND)
    assert 2 * SECOND <= world.now_ns < 2 * SECOND + 10 * MS


def test_a_paused_process_wakes_up_late() -> None:
    world = World(1)
    loop = ProcessLoop(world, "p", None)
    slept = loop.create_task(asyncio.sleep(1))
    loop.pause(5 * SECOND)
    assert world.run(slept.done, 10 * SECOND)
    assert world.now_ns >= 5 * SECOND
