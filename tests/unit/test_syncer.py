"""The background writer: every job is told once, by waiting for it or by the eventfd."""

from __future__ import annotations

import errno
import os
import random
import select
from pathlib import Path

import pytest

from shardb._core.syncer import Syncer, write_back


def told(syncer: Syncer) -> tuple[int, int]:
    """Waits for the job as an event loop does."""
    poll = select.poll()
    poll.register(syncer.fileno(), select.POLLIN)
    for _ in range(100):
        assert poll.poll(10_000), "never told"
        result = syncer.take()
        if result is not None:
            return result
    raise AssertionError("woken again and again, but no job was done")


@pytest.mark.parametrize("seed", [1, 2])
def test_every_job_is_told_however_it_is_waited_for(tmp_path: Path, seed: int) -> None:
    ways = random.Random(seed)
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    syncer = Syncer()
    at = 0
    expected = b""
    for number in range(300):
        parts = [b"%d," % number] * ways.choice([0, 1, 3, 600])
        assert syncer.take() is None
        syncer.submit(fd, parts, at)
        assert (syncer.take(True) if ways.random() < 0.5 else told(syncer)) == (0, 0)
        expected += b"".join(parts)
        at = len(expected)
    syncer.close()
    assert os.pread(fd, at + 1, 0) == expected
    os.close(fd)


def test_a_waiting_take_leaves_at_most_one_wakeup_a_job(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    syncer = Syncer()
    poll = select.poll()
    poll.register(syncer.fileno(), select.POLLIN)
    wakeups = 0
    for _ in range(200):
        syncer.submit(fd, [b"x"], 0)
        assert syncer.take(True) == (0, 0)
        while poll.poll(1):
            assert syncer.take() is None
            wakeups += 1
    assert wakeups <= 200
    syncer.close()
    os.close(fd)


def test_errors_of_writing_are_told(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "f", os.O_RDONLY | os.O_CREAT)
    syncer = Syncer()
    syncer.submit(fd, [b"x"], 0)
    assert syncer.take(True) == (errno.EBADF, 0)
    os.close(fd)
    # Closing waits for the job that runs.
    syncer.submit(fd, [b"x"], 0)
    syncer.close()
    syncer.close()


def test_writing_back_changes_nothing_and_tells_of_errors(tmp_path: Path) -> None:
    with open(tmp_path / "f", "wb", buffering=0) as file:
        for at in range(0, 4000, 1000):
            file.write(b"%d" % at * 1000)
            write_back(file.fileno(), at, 1000, 1000 if at else 0)
        closed = file.fileno()
    assert (tmp_path / "f").read_bytes() == b"".join(
        b"%d" % at * 1000 for at in range(0, 4000, 1000)
    )
    with pytest.raises(OSError) as caught:
        write_back(closed, 0, 1, 0)
    assert caught.value.errno == errno.EBADF
