"""The log: group commit, full and failing disks, recovery after every kind of cut and damage."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardb.env import AppendFile, Lock, SyncFailed, SystemFiles, SystemRng
from shardb.errors import StorageError
from shardb.storage.log import (
    FILE_HEADER_BYTES,
    KIND_BATCH,
    RECORD_HEADER_BYTES,
    Log,
    LogRecord,
    encode_file_header,
    encode_head,
)


@dataclass
class Disk:
    """Files in memory; `synced` is what survives a power failure."""

    written: dict[str, bytearray] = field(default_factory=dict)
    synced: dict[str, bytes] = field(default_factory=dict)
    free_bytes: int = 1 << 40
    fail_sync: bool = False
    fail_truncate: bool = False
    syncs: int = 0
    jobs: list[Callable[[], None]] = field(default_factory=list)

    def step(self) -> None:
        """Carries out one append of those under way."""
        self.jobs.pop(0)()

    def make_directory(self, path: str) -> None:
        pass

    def names(self, path: str) -> list[str]:
        return [name.rpartition("/")[2] for name in self.written]

    def exists(self, path: str) -> bool:
        return path in self.written

    def read(self, path: str) -> bytes:
        return bytes(self.written[path])

    def write_new(self, path: str, data: bytes) -> None:
        self.take(len(data))
        self.written[path] = bytearray(data)
        self.synced[path] = data

    def open_append(self, path: str) -> AppendFile:
        return DiskFile(self, path)

    def lock(self, path: str) -> Lock | None:
        raise NotImplementedError

    def take(self, size: int) -> None:
        if size > self.free_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.free_bytes -= size


@dataclass
class DiskFile:
    disk: Disk
    path: str

    def append_durably(
        self, parts: Sequence[bytes], done: Callable[[OSError | None], None]
    ) -> None:
        assert not self.disk.jobs, "one append at a time"

        def work() -> None:
            try:
                self.write(parts)
                self.sync()
            except OSError as error:
                done(error)
            else:
                done(None)

        self.disk.jobs.append(work)

    def wait(self) -> None:
        if self.disk.jobs:
            self.disk.step()

    def write(self, parts: Sequence[bytes]) -> None:
        for part in parts:
            room = min(len(part), self.disk.free_bytes)
            self.disk.written[self.path] += part[:room]
            self.disk.take(len(part))

    def sync(self) -> None:
        if self.disk.fail_sync:
            raise SyncFailed(errno.EIO, "Input/output error")
        self.disk.syncs += 1
        self.disk.synced[self.path] = bytes(self.disk.written[self.path])

    def truncate(self, size_bytes: int) -> None:
        if self.disk.fail_truncate:
            raise OSError(errno.EIO, "Input/output error")
        del self.disk.written[self.path][size_bytes:]

    def close(self) -> None:
        pass


class Bench:
    """A log on a disk, and what its callbacks said."""

    def __init__(self, disk: Disk, file_target_bytes: int = 1 << 20) -> None:
        self.disk = disk
        self.fatal: list[StorageError] = []
        self.replayed: list[LogRecord] = []
        self.outcomes: dict[int, str] = {}
        self.index = 0
        self.log = Log("log", disk, SystemRng(), self.fatal.append, file_target_bytes)
        self.log.recover(self.replayed.append)

    def append(self, payload: bytes) -> int:
        self.index += 1
        index = self.index
        self.log.append(7, 1, index, 3, payload, lambda error: self.note(index, error))
        return index

    def note(self, index: int, error: StorageError | None) -> None:
        assert index not in self.outcomes, "told twice"
        self.outcomes[index] = "durable" if error is None else error.sqlstate

    def run_until(self, index: int) -> str:
        while index not in self.outcomes:
            self.disk.step()
        return self.outcomes[index]

    def payloads(self) -> list[bytes]:
        return [record.payload for record in self.replayed]


FIRST = "log/000001.log"


TOKEN = b"tokentok"
MARKER_BYTES = RECORD_HEADER_BYTES + len(TOKEN)


def filled(batches: Sequence[Sequence[bytes]], clean: bool = False) -> Disk:
    """A disk with a log of exactly these batches, killed or closed at the end."""
    content = bytearray(encode_file_header(1, 0, TOKEN))
    index = 0
    for batch in [*batches, []] if clean else batches:
        content += encode_head(0, 0, len(content), KIND_BATCH, TOKEN) + TOKEN
        for payload in batch:
            index += 1
            content += encode_head(7, 1, index, 3, payload) + payload
    return Disk(written={FIRST: content})


def test_records_come_back_as_appended() -> None:
    disk = Disk()
    bench = Bench(disk)
    payloads = [b"", b"one", bytes(100_000)]
    for payload in payloads:
        bench.append(payload)
    assert bench.run_until(bench.index) == "durable"
    bench.log.close()
    again = Bench(disk)
    assert again.replayed == [LogRecord(7, 1, i, 3, p) for i, p in enumerate(payloads, 1)]
    again.index = 3
    again.append(b"later")
    again.log.close()
    assert Bench(disk).payloads() == [*payloads, b"later"]


def test_nothing_is_told_before_it_is_synced() -> None:
    disk = Disk()
    bench = Bench(disk)
    index = bench.append(b"x")
    assert bench.outcomes == {}
    disk.step()
    assert bench.outcomes == {index: "durable"}
    assert b"x" in disk.synced[FIRST]


def test_what_waits_during_a_sync_is_one_batch() -> None:
    disk = Disk()
    bench = Bench(disk)
    for number in range(50):
        bench.append(b"%d" % number)
    before = disk.syncs
    bench.run_until(50)
    assert disk.syncs - before == 2
    assert (bench.log.records, bench.log.batches) == (50, 2)
    assert list(bench.outcomes) == list(range(1, 51))


def test_callbacks_may_append() -> None:
    disk = Disk()
    bench = Bench(disk)
    told: list[int] = []

    def again(error: StorageError | None) -> None:
        told.append(bench.index)
        if bench.index < 5:
            bench.index += 1
            bench.log.append(7, 1, bench.index, 3, b"chain", again)

    again(None)
    bench.log.close()
    assert told == [0, 1, 2, 3, 4, 5]
    assert len(Bench(disk).payloads()) == 5


def test_files_follow_one_another() -> None:
    disk = Disk()
    bench = Bench(disk, file_target_bytes=1000)
    for number in range(40):
        bench.run_until(bench.append(b"%02d" % number * 50))
    bench.log.close()
    assert len(disk.written) > 3
    assert Bench(disk).payloads() == [b"%02d" % n * 50 for n in range(40)]


def test_a_full_disk_fails_what_waits_and_the_log_goes_on() -> None:
    disk = Disk()
    bench = Bench(disk)
    bench.run_until(bench.append(b"kept"))
    disk.free_bytes = 60
    index = bench.append(bytes(1000))
    assert bench.run_until(index) == "53100"
    disk.free_bytes = 1 << 20
    assert bench.run_until(bench.append(b"after")) == "durable"
    bench.log.close()
    assert bench.fatal == []
    assert Bench(disk).payloads() == [b"kept", b"after"]


def test_what_was_queued_behind_a_failed_write_fails_with_it() -> None:
    disk = Disk()
    bench = Bench(disk)
    disk.free_bytes = 60
    first = bench.append(bytes(1000))
    second = bench.append(b"built on the first")
    disk.step()
    assert bench.outcomes == {first: "53100", second: "53100"}
    disk.free_bytes = 1 << 20
    assert bench.run_until(bench.append(b"new")) == "durable"
    bench.log.close()
    assert Bench(disk).payloads() == [b"new"]


def test_without_room_for_the_next_file_the_old_one_goes_on() -> None:
    disk = Disk()
    bench = Bench(disk, file_target_bytes=100)
    bench.append(bytes(200))
    disk.free_bytes = 400
    assert bench.run_until(1) == "durable"
    disk.free_bytes = 3
    assert bench.run_until(bench.append(b"x")) == "53100"
    disk.free_bytes = 1 << 20
    assert bench.run_until(bench.append(b"y")) == "durable"
    bench.log.close()
    assert Bench(disk).payloads() == [bytes(200), b"y"]


def test_no_room_for_a_file_header(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    bench = Bench(disk, file_target_bytes=190)
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(disk, "write_new", Mock(side_effect=full))
        bench.run_until(bench.append(bytes(200)))
        bench.run_until(bench.append(b"still the first"))
    assert list(disk.written) == [FIRST]
    bench.run_until(bench.append(b"the last of the first"))
    bench.run_until(bench.append(b"second"))
    bench.log.close()
    assert len(disk.written) == 2
    assert Bench(disk).payloads()[1:] == [b"still the first", b"the last of the first", b"second"]


@pytest.mark.parametrize("fault", ["sync", "truncate"])
def test_a_disk_that_cannot_be_trusted_is_fatal(fault: str) -> None:
    disk = Disk()
    bench = Bench(disk)
    if fault == "sync":
        disk.fail_sync = True
    else:
        disk.free_bytes, disk.fail_truncate = 60, True
    bench.append(bytes(500))
    disk.step()
    bench.append(b"later")
    bench.log.close()
    assert [error.sqlstate for error in bench.fatal] == ["58030"]
    assert bench.outcomes == {} and not disk.jobs


BATCHES = st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=4), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(BATCHES, st.data())
def test_a_cut_tail_leaves_a_prefix(batches: list[list[bytes]], data: st.DataObject) -> None:
    disk = filled(batches)
    everything = [payload for batch in batches for payload in batch]
    whole = len(disk.written[FIRST])
    cut = data.draw(st.integers(FILE_HEADER_BYTES, whole))
    junk = data.draw(st.one_of(st.just(b""), st.just(bytes(50)), st.binary(max_size=60)))
    del disk.written[FIRST][cut:]
    disk.written[FIRST] += junk
    bench = Bench(disk)
    found = bench.payloads()
    assert found == everything[: len(found)]
    if cut == whole:
        assert found == everything
    bench.index = len(everything)
    bench.run_until(bench.append(b"next"))
    bench.log.close()
    assert Bench(disk).payloads() == [*found, b"next"]


@settings(max_examples=100, deadline=None)
@given(BATCHES, st.booleans(), st.data())
def test_damage_is_refused_unless_it_may_be_a_torn_last_batch(
    batches: list[list[bytes]], clean: bool, data: st.DataObject
) -> None:
    disk = filled(batches, clean)
    content = disk.written[FIRST]
    everything = [payload for batch in batches for payload in batch]
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    last = [] if clean else batches[-1]
    torn_from = len(content) - MARKER_BYTES - sum(RECORD_HEADER_BYTES + len(p) for p in last)
    if at < torn_from:
        with pytest.raises(StorageError) as caught:
            Bench(disk)
        assert caught.value.sqlstate == "XX001"
        assert FIRST in caught.value.message
        return
    found = Bench(disk).payloads()
    assert everything[: len(everything) - len(last)] == found[: len(everything) - len(last)]
    assert found == everything[: len(found)]


def test_a_hole_in_the_last_batch_is_a_torn_tail() -> None:
    """Pages of one unsynced write reach the disk in any order."""
    disk = filled([[b"durable"], [b"a" * 30, b"b" * 30, b"c" * 30]])
    content = disk.written[FIRST]
    at = content.index(b"a" * 30)
    content[at : at + 30] = bytes(30)
    assert Bench(disk).payloads() == [b"durable"]


def test_a_payload_cannot_pass_for_a_marker() -> None:
    disk = filled([[b"durable"], [b"x" * 64, b"y" * 64]])
    content = disk.written[FIRST]
    at = content.index(b"y" * 64)
    content[at : at + MARKER_BYTES] = encode_head(0, 0, at, KIND_BATCH, b"guessed!") + b"guessed!"
    content[content.index(b"x" * 64)] ^= 1
    assert Bench(disk).payloads() == [b"durable"]


def several_files() -> Disk:
    disk = Disk()
    bench = Bench(disk, file_target_bytes=100)
    for number in range(3):
        bench.run_until(bench.append(b"%d" % number * 100))
    bench.log.close()
    assert len(disk.written) == 4
    return disk


def damage_middle(disk: Disk) -> None:
    disk.written["log/000002.log"][-50] ^= 1


def shorten_middle(disk: Disk) -> None:
    del disk.written["log/000002.log"][FILE_HEADER_BYTES:]


def remove_middle(disk: Disk) -> None:
    del disk.written["log/000002.log"]


def swap(disk: Disk) -> None:
    written = disk.written
    written[FIRST], written["log/000002.log"] = written["log/000002.log"], written[FIRST]


@pytest.mark.parametrize("hurt", [damage_middle, shorten_middle, remove_middle, swap])
def test_damage_to_an_earlier_file_is_refused(hurt: Callable[[Disk], None]) -> None:
    disk = several_files()
    hurt(disk)
    with pytest.raises(StorageError) as caught:
        Bench(disk)
    assert caught.value.sqlstate == "XX001"
    assert "log/00000" in caught.value.message


def test_golden_bytes() -> None:
    """The format on disk (docs/formats/log.md); a change needs a new version."""
    assert encode_head(1, 2, 3, 4, b"payload").hex() == (
        "1c000000a4426346010000000000000002000000030000000000000004"
    )
    assert encode_file_header(1, 77, b"tokentok").hex() == (
        "53485244424c4f470100000001000000000000004d00000000000000746f6b656e746f6b3cf50a05"
    )


def test_on_a_real_disk(tmp_path: Path) -> None:
    directory = str(tmp_path / "log")
    told: list[StorageError | None] = []

    def fatal(error: StorageError) -> None:
        raise error

    def opened(loop: asyncio.AbstractEventLoop, replayed: list[LogRecord]) -> Log:
        log = Log(directory, SystemFiles(loop), SystemRng(), fatal, 10_000)
        log.recover(replayed.append)
        return log

    payloads = [b"%d" % n * (n % 50) for n in range(1, 1500)]

    async def work(replayed: list[LogRecord]) -> None:
        loop = asyncio.get_running_loop()
        log = opened(loop, [])
        for index, payload in enumerate(payloads, 1):
            log.append(1, 1, index, 1, payload, told.append)
            if index % 300 == 0:
                while len(told) < index:
                    await asyncio.sleep(0.001)
        log.close()
        opened(loop, replayed).close()

    replayed: list[LogRecord] = []
    asyncio.run(work(replayed))
    assert told == [None] * len(payloads)
    assert [record.payload for record in replayed] == payloads
