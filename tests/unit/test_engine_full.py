"""A disk that is full at times: writers hear of it, nothing is lost, all goes on by itself."""

from __future__ import annotations

import os
import random

import pytest

from shardb import limits
from shardb.rpc import messages as m
from shardb.sim.disk import Disk
from shardb.storage.log import Log
from tests.support.node_workload import Workload
from tests.support.small_node import (
    LAST_TS,
    LOW,
    MAIN,
    Life,
    Session,
    SmallBudget,
    set_small_limits,
    some,
    ticks,
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    set_small_limits(monkeypatch)


def test_a_full_disk_takes_nothing_back_and_stops_nothing_for_good() -> None:
    first = int(os.environ.get("SEED", random.randrange(1 << 32)))
    refusals = 0
    for seed in range(first, first + int(os.environ.get("CRASH_SEEDS", 1)) * 20):
        print(f"SEED={seed}")
        rng = random.Random(seed)
        disk = Disk()
        work = Workload(seed)
        work.begin(Life(disk, work.now))
        for _ in range(12):
            work.run(rng.randrange(60))
            room, disk.free_bytes = disk.free_bytes, rng.choice([0, 100, 3000, 10_000])
            given = disk.free_bytes
            work.full = True
            work.run(rng.randrange(80))
            disk.free_bytes += room - given
        work.finish()
        assert work.life.node.engine.maintenance.failure is None
        work.full = False
        work.run(60)
        work.finish()
        work.check()
        refusals += work.counts.get("53100", 0)
        work.recover(Life(disk.after_kill(), work.now))
        work.life.settle()
        work.check()
    assert refusals


def test_writers_hear_why_memory_is_full_and_go_on_once_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "LOG_ZEROED_FIRST_BYTES", 1 << 20)  # room in the log
    monkeypatch.setattr(limits, "LOG_ZEROED_MAX_BYTES", 1 << 20)
    monkeypatch.setattr(Log.__init__, "__defaults__", (1 << 20,))
    disk = Disk()
    life = Life(disk, next(ticks()), SmallBudget(memtables=60_000))
    life.install(MAIN)
    room, disk.free_bytes = disk.free_bytes, 0
    written = 0
    while True:
        rows = some(range(written, written + 20), 1, "x" * 40)
        message = Session(life, written + 1).write_message("put", rows, MAIN, commit=True)
        reply = life.reply(message)
        if isinstance(reply, m.Failure):
            break
        written += 20
    assert reply.sqlstate == "53100" and reply.aborted
    assert reply.message == "could not flush a memtable: No space left on device"
    assert life.rows(LOW, MAIN, LAST_TS).keys() == set(range(written))
    waits = life.ask(message)
    disk.free_bytes = room
    life.settle()
    assert isinstance(waits.message, m.Failure) and life.files()
    Session(life, 10_000).write("put", rows, commit=True)
    assert life.rows(LOW, MAIN, LAST_TS).keys() == set(range(written + 20))


def test_a_large_insert_without_room_is_refused_whole() -> None:
    disk = Disk()
    life = Life(disk, next(ticks()))
    life.install(MAIN)
    session = Session(life, 1)
    room, disk.free_bytes = disk.free_bytes, 100
    for first in range(0, 180, 60):
        session.write("insert", some(range(first, first + 60), 1, "x" * 40))
    reply = life.reply(session.commit_message(LOW))
    assert isinstance(reply, m.Failure) and reply.aborted
    assert (reply.sqlstate, life.rows(LOW, MAIN, LAST_TS)) == ("53100", {})
    disk.free_bytes += room
    session = Session(life, 2)
    session.write("insert", some(range(60), 1))
    session.commit()
    life.settle()
    assert life.rows(LOW, MAIN, LAST_TS).keys() == set(range(60))
    assert life.files() == life.named()
