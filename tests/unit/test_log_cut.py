"""Cutting the log: which files go, and a crash at every point of appending and cutting."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest

from shardb.env import SystemRng
from shardb.errors import StorageError
from shardb.sim.disk import Disk
from shardb.sim.loop import Crash
from shardb.storage.log import Log
from tests.support.log_bench import Bench
from tests.support.stepped import SteppedBackground

FILE_BYTES = 400


def names(disk: Disk) -> list[str]:
    return sorted(path.removeprefix("log/00000").removesuffix(".log") for path in disk.written)


def filled() -> Bench:
    """Files 1 to 5, of range 7 and in the third also of range 9, and one that is made ahead."""
    bench = Bench(Disk(), FILE_BYTES)
    for number in range(5):
        assert bench.run_until(bench.append(bytes(100), 9 if number == 2 else 7)) == "durable"
        assert bench.run_until(bench.append(b"%d" % number * 100)) == "durable"
    assert names(bench.disk) == ["1", "2", "3", "4", "5", "6"]
    return bench


def first_index(bench: Bench) -> int:
    return Bench(bench.disk.after_kill(), FILE_BYTES).replayed[0].index


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize(
    ("needed", "left"),
    [
        ({7: 1}, "123456"),
        ({7: 2}, "123456"),
        ({7: 3}, "23456"),
        ({7: 6}, "3456"),
        ({7: 7}, "456"),
        ({7: 9, 9: 5}, "3456"),
        ({7: 9, 9: 6}, "56"),
        ({9: 5}, "3456"),
        ({7: 100, 9: 100}, "56"),
        ({}, "56"),
    ],
)
def test_files_that_nobody_needs_go(restarted: bool, needed: dict[int, int], left: str) -> None:
    bench = filled()
    if restarted:
        bench.log.close()
        index, bench = bench.index, Bench(bench.disk.after_kill(), FILE_BYTES)
        bench.index = index
    sizes = {path: len(content) for path, content in bench.disk.written.items()}
    freed = bench.log.cut(needed)
    assert names(bench.disk) == list(left)
    assert freed == sum(sizes[path] for path in sizes if path not in bench.disk.written)
    assert bench.log.cut(needed) == 0
    assert all(
        content.synced for content in bench.disk.after_crash(random.Random(1)).written.values()
    )
    assert first_index(bench) == 2 * int(left[0]) - 1
    bench.run_until(bench.append(bytes(100)))
    bench.log.close()
    again = Bench(bench.disk, FILE_BYTES)
    assert [record.index for record in again.replayed] == list(range(2 * int(left[0]) - 1, 12))


def test_a_file_that_cannot_be_removed_is_fatal() -> None:
    bench = filled()
    bench.disk.failing.add("remove")
    bench.log.cut({})
    assert [error.sqlstate for error in bench.fatal] == ["58030"]


def test_files_are_removed_by_jobs_one_after_another() -> None:
    bench = filled()
    background = SteppedBackground()
    sizes = {path: len(content) for path, content in bench.disk.written.items()}
    first, second = (f"log/{number:06d}.log" for number in (1, 2))
    assert bench.log.cut({7: 3}, background.run) == sizes[first]
    assert bench.log.cut({7: 5, 9: 5}, background.run) == sizes[second]
    assert names(bench.disk) == list("123456")
    assert len(background.jobs) == 1
    background.step()
    assert names(bench.disk) == list("23456")
    background.step()
    assert names(bench.disk) == list("3456")
    assert not background.jobs
    assert bench.log.cut({7: 7}, background.run)
    background.close()
    bench.log.close()
    assert first_index(bench) == 5


def work(disk: Disk, durable: list[int], cut_below: list[int]) -> None:
    """Appends up to index 20 and cuts now and then; says what was durable, and what it let go."""
    found: list[int] = []
    log = Log("log", disk, SystemRng(), pytest.fail, FILE_BYTES)
    log.recover(lambda record: found.append(record.index))
    kept = [index for index in durable if index >= cut_below[-1]]
    assert [index for index in found if index >= cut_below[-1]][: len(kept)] == kept
    assert found == list(range(found[0], found[0] + len(found))) if found else not kept
    durable.extend(index for index in found if index > durable[-1])

    def note(index: int, error: StorageError | None) -> None:
        assert error is None
        durable.append(index)

    for index in range(durable[-1] + 1, 21):
        log.append(7, 1, index, 3, bytes(120), partial(note, index))
        disk.step()
        if index % 6 == 0:
            cut_below.append(max(cut_below[-1], durable[-1] - 2))
            log.cut({7: cut_below[-1]})
    log.close()


def crashes(disk: Disk, job: Callable[[Disk], None], at: int, how: str) -> bool:
    """Runs `job` with a crash at a point; False if it ended before."""
    disk.crash_at, disk.crash_how = at, how
    try:
        job(disk)
    except Crash:
        return True
    return False


@pytest.mark.parametrize("how", ["before", "torn", "after"])
@pytest.mark.parametrize("power", [False, True])
def test_a_crash_at_every_point_and_again_later(how: str, power: bool) -> None:
    """What was durable and is needed is there, without a gap, and the log goes on."""
    at = 0
    while True:
        at += 1
        disk, durable, cut_below = Disk(), [0], [1]
        if not crashes(disk, partial(work, durable=durable, cut_below=cut_below), at, how):
            break
        for again in range(1, 100, 4):
            rng = random.Random(at * 1000 + again)
            second = disk.after_crash(rng) if power else disk.after_kill()
            more, below = list(durable), list(cut_below)
            job = partial(work, durable=more, cut_below=below)
            ended = not crashes(second, job, again + at % 4, how)
            work(second.after_crash(rng), more, below)
            assert more[-1] == 20, f"seed {at * 1000 + again}"
            if ended:
                break
    assert at > 60
