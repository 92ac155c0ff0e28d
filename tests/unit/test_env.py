"""The operating system's files: whole writes, replacement in one step, locks."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from pathlib import Path

from shardb.env import AppendFile, SyncFailed, SystemClock, SystemFiles, SystemRng


class NoLoop:
    def add_reader(self, fd: int, callback: Callable[[], None], /) -> None:
        pass

    def remove_reader(self, fd: int, /) -> None:
        pass

    def call_later(self, delay: float, callback: Callable[[], None], /) -> None:
        pass


FILES = SystemFiles(NoLoop())


def append(file: AppendFile, parts: Sequence[bytes]) -> OSError | None:
    told: list[OSError | None] = []
    file.append_durably(parts, told.append)
    file.wait()
    assert len(told) == 1
    return told[0]


def test_appends_cuts_and_going_on(tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    file = FILES.open_append(path, 0)
    parts = [b"%d," % n * 200 for n in range(3000)]
    assert append(file, [b"small ", b"", b"parts "]) is None
    assert append(file, parts) is None
    assert FILES.read(path) == b"small parts " + b"".join(parts)
    file.truncate(6)
    assert append(file, [b"end"]) is None
    file.close()
    again = FILES.open_append(path, 9)
    assert append(again, [b"!"]) is None
    again.close()
    assert FILES.read(path) == b"small end!"


def test_a_full_disk_and_a_file_that_cannot_be_synced(tmp_path: Path) -> None:
    full = FILES.open_append("/dev/full", 0)
    error = append(full, [b"x"])
    assert error is not None and error.errno == errno.ENOSPC
    assert not isinstance(error, SyncFailed)
    full.close()
    unsyncable = FILES.open_append("/dev/null", 0)
    assert isinstance(append(unsyncable, [b"x"]), SyncFailed)
    unsyncable.close()


def test_the_loop_is_told_without_waiting(tmp_path: Path) -> None:
    async def work() -> int:
        told = asyncio.get_running_loop().create_future()
        files = SystemFiles(asyncio.get_running_loop())
        file = files.open_append(str(tmp_path / "f"), 0)
        file.append_durably([b"x"], told.set_result)
        assert not told.done()
        assert await asyncio.wait_for(told, 10) is None
        file.close()
        return len(files.read(str(tmp_path / "f")))

    assert asyncio.run(work()) == 1


def test_files_of_zeros_are_made_whole_or_not_at_all(tmp_path: Path) -> None:
    told: list[OSError | None] = []
    path = str(tmp_path / "f")
    FILES.make_zeroed(path, b"head", 1_000_001, told.append).wait()
    assert told == [None]
    assert FILES.read(path) == b"head" + bytes(1_000_001 - 4)
    assert FILES.read(path, 6) == b"head\0\0"
    making = FILES.make_zeroed(str(tmp_path / "g"), b"", 1 << 24, told.append)
    making.cancel()
    making.wait()
    making.wait()
    FILES.make_zeroed(str(tmp_path / "no" / "h"), b"", 1, told.append).wait()
    assert [error and error.errno for error in told] == [None, errno.ECANCELED, errno.ENOENT]
    assert FILES.names(str(tmp_path)) == ["f"]
    FILES.remove(path)
    assert FILES.names(str(tmp_path)) == []


def test_a_file_of_zeros_that_the_disk_has_no_room_for(tmp_path: Path) -> None:
    told: list[OSError | None] = []
    FILES.make_zeroed(str(tmp_path / "f"), b"", 1 << 43, told.append).wait()
    assert [error and error.errno for error in told] in ([errno.ENOSPC], [errno.EFBIG])
    assert FILES.names(str(tmp_path)) == []


def test_new_files_replace_old_ones(tmp_path: Path) -> None:
    files = FILES
    files.make_directory(str(tmp_path / "a" / "b"))
    files.make_directory(str(tmp_path / "a" / "b"))
    path = str(tmp_path / "a" / "b" / "f")
    assert not files.exists(path)
    for data in (b"long content", b"short"):
        files.write_new(path, data)
        assert files.read(path) == data
    assert files.names(str(tmp_path / "a" / "b")) == ["f"]


def test_a_lock_is_exclusive_until_closed(tmp_path: Path) -> None:
    files, path = FILES, str(tmp_path / "LOCK")
    first = files.lock(path)
    assert first is not None
    assert files.lock(path) is None
    first.close()
    second = files.lock(path)
    assert second is not None
    second.close()


def test_clock_and_randomness() -> None:
    clock = SystemClock()
    first = clock.monotonic_ms()
    assert clock.monotonic_ms() >= first
    assert clock.wall_ms() > 1_700_000_000_000
    assert SystemRng().token(16) != SystemRng().token(16)
