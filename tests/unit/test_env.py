"""The operating system's files: whole writes, replacement in one step, locks."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from shardb import limits
from shardb.appendfile import SyncFailed
from shardb.env import (
    AppendFile,
    SystemBackground,
    SystemClock,
    SystemFiles,
    SystemOutputFile,
    SystemRng,
)


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


def test_a_file_that_could_not_be_replaced_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        FILES.write_new(str(path), b"new")
    assert FILES.names(str(tmp_path)) == ["f"]


def test_output_is_read_mapped_and_stays_mapped(tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    output = FILES.create(path)
    with pytest.raises(FileExistsError):
        FILES.create(path)
    output.write(b"bytes, ")
    output.write(memoryview(b"--views--")[2:7])
    output.write(pa.array([1, 2], pa.int16()).buffers()[1].slice(0, 4))
    output.write(b"")
    output.sync()
    output.close()
    output.close()
    expected = b"bytes, views\1\0\2\0"
    assert FILES.read(path) == expected
    assert FILES.size(path) == len(expected)
    assert [FILES.read(path, 5, 7), FILES.read(path, 99, 7)] == [b"views", expected[7:]]
    assert [FILES.read(path, offset=12), FILES.read(path, 0), FILES.read(path, 1, 99)] == [
        b"\1\0\2\0",
        b"",
        b"",
    ]
    mapped = FILES.map(path)
    FILES.remove(path)
    FILES.sync_directory(str(tmp_path))
    assert mapped.to_pybytes() == expected and not mapped.is_mutable
    FILES.create(path).close()
    assert FILES.map(path).size == 0
    FILES.remove(path)
    for call in (FILES.map, FILES.size, FILES.read):
        with pytest.raises(FileNotFoundError):
            call(path)


def test_long_output_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WRITE_BACK_BYTES", 10_000)
    output = FILES.create(str(tmp_path / "f"))
    parts = [bytes([number]) * size for number, size in enumerate([1, 9_999, 25_000, 3, 9_998, 2])]
    for part in parts:
        output.write(part)
    output.sync()
    output.close()
    assert (tmp_path / "f").read_bytes() == b"".join(parts)


def test_output_to_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.O_EXCL", 0)
    output = SystemOutputFile("/dev/full")
    with pytest.raises(OSError) as caught:
        output.write(b"x")
    assert caught.value.errno == errno.ENOSPC
    output.close()
    unsyncable = SystemOutputFile("/dev/null")
    with pytest.raises(SyncFailed):
        unsyncable.sync()
    unsyncable.close()


def test_jobs_run_in_threads_and_are_told_on_the_loop() -> None:
    told: list[object] = []
    here = threading.get_ident()

    async def work() -> None:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        background = SystemBackground(loop)

        def done(result: int | None, error: BaseException | None) -> None:
            assert threading.get_ident() == here
            told.append(result if error is None else error.args)
            if len(told) == 2:
                ended.set_result(None)

        background.run(lambda: threading.get_ident() == here, done)
        background.run(lambda: 1 // 0, done)
        assert told == []
        await asyncio.wait_for(ended, 10)
        background.close()

    asyncio.run(work())
    assert sorted(told, key=str) == [("integer division or modulo by zero",), False]


class DeadLoop:
    def call_soon_threadsafe(self, callback: Callable[[], None], /) -> None:
        raise RuntimeError("Event loop is closed")


def test_jobs_are_waited_for_and_may_run_others() -> None:
    told: list[int | None] = []
    background = SystemBackground(DeadLoop(), threads=1)

    def done(result: int | None, error: BaseException | None) -> None:
        told.append(result)
        if result == 1:
            background.run(lambda: 3, done)

    background.run(lambda: 1, done)
    background.run(lambda: 2, done)
    background.wait()
    assert told == [1, 2, 3]
    background.wait()
    started = threading.Event()
    background.run(lambda: started.set() or 4, done)
    started.wait()
    background.close()
    assert told == [1, 2, 3], "nobody is told after the end"


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
