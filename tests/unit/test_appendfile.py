"""A file that is appended to durably: by a thread, or by a loop that has little else to do."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from shardb.appendfile import BUSY_MEMORY, Idleness, SystemAppendFile

MILLISECOND = 1_000_000
SETTLED = round(5 / BUSY_MEMORY)  # measurements after which the first ones count no more


class Times:
    """A clock and a processor's use that a test moves."""

    def __init__(self) -> None:
        self.now = self.cpu = 0
        self.idleness = Idleness(lambda: self.now, lambda: self.cpu)

    def sync(self, work_ns: int, idle_ns: int, sync_ns: int = MILLISECOND // 10) -> bool:
        """The loop works and idles, then a sync: was it the loop's own?"""
        self.now += work_ns + idle_ns
        self.cpu += work_ns
        alone = self.idleness.begin()
        self.now += sync_ns
        if alone:
            self.cpu += sync_ns // 2  # the kernel's part
        self.idleness.end(alone)
        return alone


def test_a_loop_that_mostly_idles_syncs_alone_and_a_busy_one_does_not() -> None:
    times = Times()
    assert not times.sync(MILLISECOND, 0)
    idle = [times.sync(MILLISECOND // 50, MILLISECOND // 5) for _ in range(SETTLED)]
    assert all(idle[-5:])
    busy = [times.sync(MILLISECOND, MILLISECOND // 5) for _ in range(SETTLED)]
    assert not any(busy[-5:])


def test_work_beside_the_thread_counts() -> None:
    times = Times()
    for _ in range(SETTLED):
        times.now += MILLISECOND
        alone = times.idleness.begin()
        times.now += MILLISECOND // 2
        times.cpu += MILLISECOND  # all of it while the thread synced
        times.idleness.end(alone)
    assert not alone


def test_a_slow_sync_hands_the_next_ones_to_the_thread() -> None:
    times = Times()
    for _ in range(SETTLED):
        times.sync(0, MILLISECOND)
    assert times.sync(0, MILLISECOND, sync_ns=20 * MILLISECOND)
    assert not any(times.sync(0, MILLISECOND) for _ in range(10))
    assert any(times.sync(0, MILLISECOND) for _ in range(SETTLED))


@pytest.mark.parametrize("alone", [True, False])
def test_appends_are_told_later_and_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    monkeypatch.setattr(Idleness, "begin", lambda self: alone)

    async def run() -> None:
        file = SystemAppendFile(str(tmp_path / "f"), 3, asyncio.get_running_loop())
        for number in range(20):
            told: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
            file.append_durably([b"%02d" % number, b","], told.set_result)
            assert not told.done()
            if number % 3:
                assert await asyncio.wait_for(told, 10) is None
            else:
                file.wait()
                assert told.result() is None
        file.close()

    asyncio.run(run())
    expected = b"\0\0\0" + b"".join(b"%02d," % number for number in range(20))
    assert (tmp_path / "f").read_bytes() == expected


@pytest.mark.parametrize("alone", [True, False])
def test_a_full_disk_is_an_error_and_the_file_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    monkeypatch.setattr(Idleness, "begin", lambda self: alone)
    if not os.path.exists("/dev/full"):
        pytest.fail("this test needs /dev/full")

    async def run() -> None:
        file = SystemAppendFile("/dev/full", 0, asyncio.get_running_loop())
        for _ in range(2):
            told: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
            file.append_durably([b"x"], told.set_result)
            error = await asyncio.wait_for(told, 10)
            assert error is not None and error.errno == errno.ENOSPC
        file.close()

    asyncio.run(run())
