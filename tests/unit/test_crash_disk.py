"""The disk for tests of crashes keeps what a disk promises, and is the same for each seed."""

from __future__ import annotations

import errno
import random

import pytest

from shardb.appendfile import SyncFailed
from shardb.sim.disk import Disk
from shardb.sim.loop import Crash
from tests.support.stepped import SteppedBackground

DATA = bytes(range(256)) * 8


def outcomes(disk: Disk) -> set[tuple[tuple[str, bytes], ...]]:
    """What may be there after a crash."""
    return {
        tuple((path, bytes(data)) for path, data in left.written.items())
        for seed in range(60)
        for left in [disk.after_crash(random.Random(seed))]
    }


def test_what_is_synced_stays_and_the_rest_may() -> None:
    disk = Disk()
    output = disk.create("d/f")
    output.write(DATA)
    assert () in outcomes(disk), "the name is not durable"
    assert len(outcomes(disk)) > 10, "nor are the sectors"
    output.sync()
    assert outcomes(disk) == {(("d/f", DATA),)}
    output.write(b"more")
    left = {dict(found)["d/f"] for found in outcomes(disk)}
    assert left == {DATA, DATA + bytes(4), DATA + b"more"}
    assert bytes(disk.after_kill().read("d/f")) == DATA + b"more"
    assert disk.after_kill().after_crash(random.Random(3)) == disk.after_crash(random.Random(3))


def test_names_are_durable_with_their_directory() -> None:
    disk = Disk()
    disk.write_new("d/f", b"old")
    disk.write_new("d/f", b"new")
    assert outcomes(disk) == {(("d/f", b"new"),)}
    disk.rename("remove", "d/f", {"d/f": None})
    assert not disk.exists("d/f")
    assert outcomes(disk) == {(), (("d/f", b"new"),)}
    assert outcomes(disk.after_kill()) == outcomes(disk)
    disk.sync_directory("e")
    assert len(outcomes(disk)) == 2
    disk.sync_directory("d")
    assert outcomes(disk) == {()}


@pytest.mark.parametrize("how", ["before", "torn", "after"])
def test_every_point_can_be_the_last(how: str) -> None:
    disk = Disk()
    disk.write_new("d/f", b"12345678")
    expected = ["create", "write", "sync", "rename", "sync-directory"]
    assert [point.split()[0] for point in disk.points] == expected
    for at in range(1, len(expected) + 1):
        disk = Disk(crash_at=at, crash_how=how)
        with pytest.raises(Crash):
            disk.write_new("d/f", b"12345678")
        with pytest.raises(Crash):
            disk.exists("d/f")
        assert len(disk.points) == at
        left = disk.after_kill()
        if at == 2:
            written = {"before": b"", "torn": b"1234", "after": b"12345678"}[how]
            assert left.read("d/f.new") == written
        assert left.exists("d/f") == (at >= (4 if how == "after" else 5))


def test_room_and_errors() -> None:
    disk = Disk(free_bytes=6)
    output = disk.create("d/f")
    with pytest.raises(OSError) as caught:
        output.write(b"12345678")
    assert caught.value.errno == errno.ENOSPC and disk.read("d/f") == b"123456"
    disk.remove("d/f")
    assert disk.free_bytes == 6
    disk.failing.add("sync")
    output = disk.create("d/g")
    with pytest.raises(SyncFailed):
        output.sync()
    mapped = disk.map("d/g")
    disk.remove("d/g")
    assert mapped.size == 0
    with pytest.raises(FileNotFoundError):
        disk.read("d/g")


def test_jobs_run_when_stepped() -> None:
    background, told = SteppedBackground(), []
    background.run(lambda: 1, lambda result, error: told.append(result))
    background.run(lambda: 1 // 0, lambda result, error: told.append(type(error)))
    assert told == []
    assert background.step() and told == [1]
    background.wait()
    assert told == [1, ZeroDivisionError] and not background.step()
