"""The log: group commit, full and failing disks, recovery after every kind of cut and damage."""

from __future__ import annotations

import asyncio
import errno
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardb import limits
from shardb._core.crc32c import crc32c
from shardb.env import SystemFiles, SystemRng
from shardb.errors import StorageError
from shardb.sim.disk import Content, Disk
from shardb.storage.log import Log
from shardb.storage.logfile import (
    FILE_HEADER_BYTES,
    KIND_BATCH,
    MARKER_BYTES,
    NOT_BEGUN,
    RECORD_HEADER_BYTES,
    LogRecord,
    encode_file_header,
    encode_head,
)
from tests.support.log_bench import Bench

FIRST = "log/000001.log"


TOKEN = b"tokentok"


def filled(batches: Sequence[Sequence[bytes]], clean: bool = False, zeros: int = 0) -> Disk:
    """A disk with a log of exactly these batches, killed or closed at the end, and zeros."""
    content = bytearray(encode_file_header(1, 0, TOKEN))
    index = 0
    for batch in [*batches, []] if clean else batches:
        content += encode_head(0, 0, len(content), KIND_BATCH, TOKEN) + TOKEN
        for payload in batch:
            index += 1
            content += encode_head(7, 1, index, 3, payload) + payload
    return Disk(written={FIRST: content + bytes(zeros)})


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
    assert b"x" in disk.written[FIRST].synced


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


def test_a_lazy_record_goes_with_the_next_or_when_its_time_is_up() -> None:
    bench = Bench(Disk())
    told: list[str] = []

    def lazy(name: str) -> None:
        bench.index += 1
        bench.log.append(
            7, 1, bench.index, 3, name.encode(), lambda error: told.append(name), lazy=True
        )

    lazy("a")
    assert not bench.disk.jobs
    syncs = bench.disk.syncs
    assert bench.run_until(bench.append(b"b")) == "durable"
    assert told == ["a"]
    assert bench.disk.syncs == syncs + 1
    lazy("c")
    bench.disk.step_timers()
    bench.disk.step()
    assert told == ["a", "c"]
    lazy("d")
    bench.log.close()
    assert told == ["a", "c", "d"]
    assert Bench(bench.disk).payloads() == [b"a", b"b", b"c", b"d"]


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
    assert bench.run_until(bench.append(b"fits into the zeros")) == "durable"
    index = bench.append(bytes(1 << 21))
    assert bench.run_until(index) == "53100"
    disk.free_bytes = 1 << 20
    assert bench.run_until(bench.append(b"after")) == "durable"
    bench.log.close()
    assert bench.fatal == []
    assert Bench(disk).payloads() == [b"kept", b"fits into the zeros", b"after"]


def test_what_was_queued_behind_a_failed_write_fails_with_it() -> None:
    disk = Disk()
    bench = Bench(disk)
    disk.free_bytes = 60
    first = bench.append(bytes(1 << 21))
    second = bench.append(b"built on the first")
    disk.step()
    assert bench.outcomes == {first: "53100", second: "53100"}
    disk.free_bytes = 1 << 20
    assert bench.run_until(bench.append(b"new")) == "durable"
    bench.log.close()
    assert Bench(disk).payloads() == [b"new"]


def test_without_room_for_the_next_file_the_old_one_goes_on() -> None:
    disk = Disk()
    bench = Bench(disk, file_target_bytes=1000)
    disk.free_bytes = 600
    for _ in range(3):
        assert bench.run_until(bench.append(bytes(350))) == "durable"
    assert disk.free_bytes < 600 and list(disk.written) == [FIRST]
    disk.free_bytes = 3
    assert bench.run_until(bench.append(b"x")) == "53100"
    disk.free_bytes = 1 << 20
    for number in range(5):
        assert bench.run_until(bench.append(b"%d" % number * 250)) == "durable"
    bench.log.close()
    assert len(disk.written) == 3 and not disk.makings
    expected = [bytes(350)] * 3 + [b"%d" % number * 250 for number in range(5)]
    assert Bench(disk).payloads() == expected


@pytest.mark.parametrize("made", [False, True])
def test_a_commit_takes_the_room_of_the_next_file(made: bool) -> None:
    disk = Disk()
    bench = Bench(disk, file_target_bytes=2000)
    disk.make_late = True
    disk.free_bytes = 2000
    bench.append(bytes(1200))
    disk.step()
    assert disk.makings
    if made:
        disk.makings[0].wait()
        assert disk.free_bytes == 0
    else:
        disk.free_bytes = 60
    first = bench.append(bytes(700))
    second = bench.append(b"behind it")
    bench.run_until(first)
    disk.free_bytes = 1 << 20
    assert bench.run_until(second) == ("durable" if made else "53100")
    assert bench.outcomes[first] == ("durable" if made else "53100")
    disk.free_bytes = 1 << 20
    assert bench.run_until(bench.append(b"later")) == "durable"
    bench.log.close()
    assert Bench(disk).payloads()[-1] == b"later"


def test_a_file_made_ahead_is_used_after_a_restart() -> None:
    disk = Disk()
    bench = Bench(disk, file_target_bytes=1000)
    bench.run_until(bench.append(bytes(600)))
    bench.log.close()
    assert [len(content) for content in disk.written.values()] == [1000, 1000]
    room = disk.free_bytes
    bench = Bench(disk, file_target_bytes=1000)
    bench.index = 1
    bench.run_until(bench.append(b"x" * 600))
    assert b"x" * 600 in disk.written["log/000002.log"]
    assert disk.free_bytes == room - 1000, "only the third file took room"
    bench.log.close()
    assert Bench(disk).payloads() == [bytes(600), b"x" * 600]


def test_a_file_whose_header_cannot_be_written_is_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = Disk()
    bench = Bench(disk, file_target_bytes=1000)
    bench.run_until(bench.append(bytes(600)))
    full = OSError(errno.ENOSPC, "No space left on device")
    index = bench.append(bytes(600))
    with monkeypatch.context() as patch:
        patch.setattr(disk, "write", Mock(side_effect=full))
        disk.step()
    assert list(disk.written) == [FIRST]
    assert bench.run_until(index) == "durable"
    bench.log.close()
    assert Bench(disk).payloads() == [bytes(600)] * 2


@pytest.mark.parametrize("when", ["making", "made", "beginning"])
def test_closing_while_the_next_file_is_on_its_way(when: str) -> None:
    disk = Disk(make_late=True)
    bench = Bench(disk, file_target_bytes=1000)
    bench.run_until(bench.append(bytes(600)))
    if when != "making":
        disk.step()
    if when == "beginning":
        bench.append(bytes(600))
    bench.log.close()
    assert len(disk.written) == {"making": 1, "made": 2, "beginning": 2}[when]
    assert not disk.jobs and not disk.makings
    assert Bench(disk).payloads() == [bytes(600)] * (2 if when == "beginning" else 1)


def test_the_next_file_cannot_be_made_on_a_broken_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    bench = Bench(disk, file_target_bytes=1000)
    monkeypatch.setattr(disk, "write_new", Mock(side_effect=OSError(errno.EIO, "broken")))
    bench.run_until(bench.append(bytes(600)))
    assert [error.sqlstate for error in bench.fatal] == ["58030"]
    index = bench.append(b"never told")
    bench.log.close()
    assert index not in bench.outcomes


def test_files_are_small_at_first_and_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    bench = Bench(disk, file_target_bytes=1 << 28)
    bench.run_until(bench.append(b"x"))
    assert [len(content) for content in disk.written.values()] == [limits.LOG_ZEROED_FIRST_BYTES]
    monkeypatch.setattr(limits, "LOG_ZEROED_FIRST_BYTES", 1 << 10)
    monkeypatch.setattr(limits, "LOG_ZEROED_MAX_BYTES", 1 << 12)
    disk = Disk()
    bench = Bench(disk, file_target_bytes=1 << 28)
    for _ in range(100):
        bench.run_until(bench.append(bytes(200)))
    sizes = [len(content) for content in disk.written.values()]
    assert sizes[:3] == [1 << 10, 1 << 11, 1 << 12] and set(sizes[3:]) == {1 << 12}


def test_no_room_for_a_file_header(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    bench = Bench(disk, file_target_bytes=190)
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(disk, "write_new", Mock(side_effect=full))
        bench.run_until(bench.append(bytes(200)))
        bench.run_until(bench.append(b"still the first"))
    assert list(disk.written) == [FIRST]
    more = [b"%d" % number * 20 for number in range(10)]
    for payload in more:
        bench.run_until(bench.append(payload))
    bench.log.close()
    assert len(disk.written) > 2
    assert Bench(disk).payloads()[1:] == [b"still the first", *more]


@pytest.mark.parametrize("fault", ["sync", "truncate"])
def test_a_disk_that_cannot_be_trusted_is_fatal(fault: str) -> None:
    disk = Disk()
    bench = Bench(disk)
    if fault == "sync":
        disk.failing.add("sync")
    else:
        disk.free_bytes = 60
        disk.failing.add("truncate")
    bench.append(bytes(1 << 21))
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
    zeros = bytes(data.draw(st.sampled_from([0, 1, 500])))
    junk = data.draw(st.one_of(st.just(b""), st.just(bytes(50)), st.binary(max_size=60))) + zeros
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
@given(BATCHES, st.booleans(), st.sampled_from([0, 1, 200]), st.data())
def test_damage_is_refused_unless_it_may_be_a_torn_last_batch(
    batches: list[list[bytes]], clean: bool, zeros: int, data: st.DataObject
) -> None:
    disk = filled(batches, clean, zeros)
    content = disk.written[FIRST]
    everything = [payload for batch in batches for payload in batch]
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    last = [] if clean else batches[-1]
    torn_from = (
        len(content) - zeros - MARKER_BYTES - sum(RECORD_HEADER_BYTES + len(p) for p in last)
    )
    if at < torn_from:
        with pytest.raises(StorageError) as caught:
            Bench(disk)
        assert caught.value.sqlstate == "XX001"
        assert FIRST in caught.value.message
        return
    found = Bench(disk).payloads()
    assert everything[: len(everything) - len(last)] == found[: len(everything) - len(last)]
    assert found == everything[: len(found)]


SECTOR_BYTES = 64  # small, to tear more; the file header is in one
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["append", "lazy"]), st.integers(0, 700)),
        st.tuples(st.sampled_from(["step", "timers"]), st.just(0)),
        st.tuples(st.just("make"), st.just(0)),
        st.tuples(st.just("room"), st.sampled_from([0, 100, 1000, 1 << 30])),
        st.tuples(st.sampled_from(["kill", "power", "close"]), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.data())
def test_whatever_happens_the_acknowledged_is_there(
    steps: list[tuple[str, int]], data: st.DataObject
) -> None:
    """A model: durable records in order, then perhaps some untold ones; never a failed one."""
    disk = Disk(make_late=True)
    bench = Bench(disk, file_target_bytes=1000)
    kept: list[int] = []  # indexes found at the last start
    payloads: dict[int, bytes] = {}
    for what, number in [*steps, ("power", 0)]:
        if what in ("append", "lazy"):
            payloads[bench.append(bytes(number), lazy=what == "lazy")] = bytes(number)
        elif what == "step":
            disk.step()
        elif what == "timers":
            timers, disk.timers = disk.timers, []
            for timer in timers:
                timer()
        elif what == "make" and disk.makings:
            disk.makings[0].wait()
        elif what == "room":
            disk.free_bytes = number
        elif what in ("kill", "power", "close"):
            if what == "close":
                bench.log.close()
            assert not bench.fatal
            told = bench.outcomes
            durable = kept + [index for index, how in told.items() if how == "durable"]
            if what == "power":
                seed = data.draw(st.integers(0, 1 << 32))
                disk = disk.after_crash(random.Random(seed), SECTOR_BYTES)
            else:
                disk = disk.after_kill()
            disk.make_late = True
            index = bench.index
            bench = Bench(disk, file_target_bytes=1000)
            bench.index = index
            kept = [record.index for record in bench.replayed]
            assert bench.payloads() == [payloads[index] for index in kept]
            assert kept[: len(durable)] == durable
            assert kept == sorted(kept)
            assert all(told.get(i) in (None, "durable") for i in kept if i not in durable)


def test_a_hole_in_the_last_batch_is_a_torn_tail() -> None:
    """Pages of one unsynced write reach the disk in any order."""
    disk = filled([[b"durable"], [b"a" * 30, b"b" * 30, b"c" * 30]])
    content = disk.written[FIRST]
    at = content.index(b"a" * 30)
    content[at : at + 30] = bytes(30)
    assert Bench(disk).payloads() == [b"durable"]


def test_what_a_torn_batch_left_is_never_joined_to_later_records() -> None:
    disk = filled([[b"durable"], [b"a" * (MARKER_BYTES + 20), b"stale"]], zeros=500)
    content = disk.written[FIRST]
    content[content.index(b"aaaa")] ^= 1
    bench = Bench(disk)
    bench.index = 3
    bench.run_until(bench.append(b"n" * 20))  # ends where the stale record begins
    assert Bench(disk).payloads() == [b"durable", b"n" * 20]


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
    # The last one is only made ahead, and was not begun.
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


def damage_the_file_made_ahead(disk: Disk) -> None:
    disk.written["log/000004.log"][-1] ^= 1


def clear_a_header(disk: Disk) -> None:
    disk.written["log/000004.log"][:FILE_HEADER_BYTES] = bytes(FILE_HEADER_BYTES)


def leave_only_the_file_made_ahead(disk: Disk) -> None:
    for number in (1, 2, 3):
        del disk.written[f"log/00000{number}.log"]


def cover_the_file_made_ahead(disk: Disk) -> None:
    disk.written["log/000005.log"] = Content(encode_file_header(5, 100, TOKEN))


HURTS = [
    damage_middle,
    shorten_middle,
    remove_middle,
    swap,
    damage_the_file_made_ahead,
    clear_a_header,
    leave_only_the_file_made_ahead,
    cover_the_file_made_ahead,
]


@pytest.mark.parametrize("hurt", HURTS)
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
        "53485244424c4f470200000001000000000000004d00000000000000746f6b656e746f6b911ed8e6"
    )
    assert encode_file_header(2, NOT_BEGUN, b"tokentok").hex() == (
        "53485244424c4f47020000000200000000000000ffffffffffffffff746f6b656e746f6b8b2c81a1"
    )


def test_logs_of_version_1_are_read() -> None:
    disk = filled([[b"a", b"b"], [b"c"]])
    header = struct.pack("<8sIQQ8s", b"SHRDBLOG", 1, 1, 0, TOKEN)
    disk.written[FIRST][:FILE_HEADER_BYTES] = header + crc32c(header).to_bytes(4, "little")
    bench = Bench(disk)
    assert bench.payloads() == [b"a", b"b", b"c"]
    bench.index = 3
    bench.run_until(bench.append(b"d"))
    bench.log.close()
    assert Bench(disk).payloads() == [b"a", b"b", b"c", b"d"]


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
