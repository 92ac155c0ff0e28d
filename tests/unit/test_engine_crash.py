"""A node crashes at any point of anything, once or twice; what it had promised is there.

SEED=n runs one seed, CRASH_SEEDS=n as many from a random one (`make crash`).
"""

from __future__ import annotations

import os
import random

import pytest

from shardb.sim.disk import Disk
from shardb.sim.loop import Crash
from tests.support.node_workload import Workload
from tests.support.small_node import Life, set_small_limits

STEPS = 300
CRASHES = 150  # of a seed


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    set_small_limits(monkeypatch)


def seeds() -> list[int]:
    first = int(os.environ.get("SEED", random.randrange(1 << 32)))
    return [first + number for number in range(int(os.environ.get("CRASH_SEEDS", 1)))]


def work_on(disk: Disk, seed: int) -> Workload:
    """Some work, up to where the disk has the process crash, if it does."""
    work = Workload(seed)
    try:
        work.begin(Life(disk, work.now))
        for _ in range(2):
            work.run(STEPS)
            work.finish()
            work.check()
    except Crash:
        pass
    return work


def go_on(work: Workload, disk: Disk, rng: random.Random) -> None:
    """The next processes, of which the first may crash as well, while it recovers or soon after."""
    if rng.random() < 0.4:
        disk.crash_at = rng.randrange(1, 60)
        disk.crash_how = rng.choice(["before", "torn", "after"])
        try:
            work.recover(Life(disk, work.now))
            work.run(STEPS // 4)
        except Crash:
            pass
        work.crashed()
        disk = disk.after_kill() if rng.random() < 0.5 else disk.after_crash(rng)
    work.recover(Life(disk, work.now))
    work.life.settle()
    work.check()
    work.run(STEPS // 4)
    work.finish()
    work.check()
    work.life.node.close()
    work.recover(Life(disk.after_kill(), work.now))
    work.life.settle()
    work.check()


def test_what_was_promised_survives_a_crash_at_any_point() -> None:
    for seed in seeds():
        print(f"SEED={seed}")
        disk = Disk()
        whole = work_on(disk, seed)
        print(whole.counts, whole.life.node.engine.counters())
        rng = random.Random(seed)
        count = len(disk.points)
        for number in range(CRASHES):
            # Each kind of place as often as the others.
            kinds = sorted({kind_of(point) for point in disk.points})
            kind = kinds[number % len(kinds)]
            places = [at for at in range(count) if kind_of(disk.points[at]) == kind]
            at, how = rng.choice(places) + 1, rng.choice(["before", "torn", "after"])
            power = rng.random() < 0.6
            print(f"crash {how} point {at} of {count}, {disk.points[at - 1]}, power {power}")
            doomed = Disk(crash_at=at, crash_how=how)
            work = work_on(doomed, seed)
            assert doomed.crashed and doomed.points == disk.points[:at]
            work.crashed()
            go_on(work, doomed.after_crash(rng) if power else doomed.after_kill(), rng)


def kind_of(point: str) -> str:
    """A point without the numbers of files."""
    return "".join(character for character in point if not character.isdigit())
