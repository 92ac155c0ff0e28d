"""The manifest: durable edits, torn tails, damage, full disks, and a crash at every point."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from shardb import limits
from shardb._core.crc32c import crc32c
from shardb.env import SystemFiles, SystemRng
from shardb.errors import StorageError
from shardb.sim.disk import Content, Disk
from shardb.sim.loop import Crash
from shardb.storage.edits import Edit, FileSet
from shardb.storage.failures import Run, run_now
from shardb.storage.manifest import Manifest, encode_file_header, encode_record
from tests.support.stepped import SteppedBackground
from tests.unit.test_edits import segment, tablet

FIRST = "data/MANIFEST-000001"
SECOND = "data/MANIFEST-000002"
STATES = [FileSet()]  # after so many of EDITS
EDITS = [
    Edit(put_tablets=(tablet(),), range_indexes=((4, 3),)),
    *(
        Edit(add_segments=(segment(n),), remove_segments=(n - 4,) if n > 4 else ())
        for n in range(1, 30)
    ),
]
for edit in EDITS:
    STATES.append(STATES[-1].apply(edit))


class Rng:
    """Tokens from a seed."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)

    def token(self, size: int) -> bytes:
        return self._random.randbytes(size)


class Bench:
    """A manifest on a disk, and what its callbacks said of EDITS."""

    def __init__(self, disk: Disk, run: Run = run_now) -> None:
        self.disk = disk
        self.fatal: list[StorageError] = []
        self.outcomes: list[str] = []
        self.manifest = Manifest.open("data", disk, Rng(), self.fatal.append, True, run)
        self.found = STATES.index(self.manifest.current)

    def append(self, edit: Edit) -> None:
        self.manifest.append(edit, self.note)

    def note(self, error: StorageError | None) -> None:
        self.outcomes.append("durable" if error is None else error.sqlstate)

    def put(self, edit: Edit) -> str:
        before = len(self.outcomes)
        self.append(edit)
        while len(self.outcomes) == before:
            assert self.disk.step()
        return self.outcomes[-1]


def filled(count: int, close: bool = False) -> Disk:
    """A disk with so many of EDITS, each in a record of its own, killed or closed at the end."""
    disk = Disk()
    bench = Bench(disk)
    for edit in EDITS[:count]:
        assert bench.put(edit) == "durable"
    if close:
        bench.manifest.close()
    return disk.after_kill()


def test_edits_come_back() -> None:
    bench = Bench(Disk())
    assert bench.found == 0
    for edit in EDITS:
        assert bench.put(edit) == "durable"
    assert bench.manifest.current == STATES[-1]
    bench.manifest.close()
    bench = Bench(bench.disk)
    assert bench.found == len(EDITS)
    assert list(bench.disk.written) == [SECOND], "begun anew at the start"
    bench.manifest.close()
    assert Bench(bench.disk).found == len(EDITS)


def test_nothing_is_current_before_it_is_synced_and_what_waits_goes_together() -> None:
    bench = Bench(Disk())
    for edit in EDITS[:5]:
        bench.append(edit)
    assert bench.outcomes == [] and bench.manifest.current == STATES[0]
    syncs = bench.disk.syncs
    bench.disk.step()
    assert bench.outcomes == ["durable"] and bench.manifest.current == STATES[1]
    bench.disk.step()
    assert bench.outcomes == ["durable"] * 5 and bench.manifest.current == STATES[5]
    assert bench.disk.syncs - syncs == 2


def test_closing_writes_what_waits() -> None:
    bench = Bench(Disk())
    for edit in EDITS:
        bench.append(edit)
    bench.manifest.close()
    bench.manifest.close()
    assert bench.outcomes == ["durable"] * len(EDITS)
    assert Bench(bench.disk).found == len(EDITS)


def test_callbacks_may_append() -> None:
    bench = Bench(Disk())

    def again(error: StorageError | None) -> None:
        assert error is None
        at = STATES.index(bench.manifest.current)
        if at < 5:
            bench.manifest.append(EDITS[at], again)

    again(None)
    bench.manifest.close()
    assert Bench(bench.disk).found == 5


def test_an_edit_that_contradicts_those_queued_is_our_mistake() -> None:
    bench = Bench(Disk())
    bench.append(EDITS[0])
    with pytest.raises(AssertionError):
        bench.append(Edit(remove_segments=(1,)))
    bench.append(EDITS[1])
    bench.manifest.close()
    assert bench.outcomes == ["durable"] * 2 and bench.manifest.current == STATES[2]


def test_a_full_disk_fails_what_waits_and_the_manifest_goes_on() -> None:
    bench = Bench(Disk())
    bench.put(EDITS[0])
    bench.disk.free_bytes = 20
    bench.append(EDITS[1])
    bench.append(EDITS[2])
    bench.disk.step()
    assert bench.outcomes == ["durable", "53100", "53100"]
    assert bench.manifest.current == STATES[1]
    assert Bench(bench.disk.after_kill()).found == 1
    bench.disk.free_bytes = 1 << 20
    for edit in EDITS[1:5]:
        assert bench.put(edit) == "durable"
    assert bench.fatal == []
    assert Bench(bench.disk.after_kill()).found == 5


@pytest.mark.parametrize("fault", ["sync", "truncate"])
def test_a_disk_that_cannot_be_trusted_is_fatal(fault: str) -> None:
    bench = Bench(Disk())
    bench.disk.free_bytes = 20 if fault == "truncate" else 1 << 20
    bench.disk.failing.add(fault)
    bench.append(EDITS[0])
    bench.disk.step()
    bench.append(EDITS[1])
    bench.manifest.close()
    assert [error.sqlstate for error in bench.fatal] == ["58030"]
    assert bench.outcomes == []


def test_a_long_file_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MANIFEST_REWRITE_BYTES", 300)
    bench = Bench(Disk())
    sizes = []
    for edit in EDITS:
        bench.put(edit)
        assert len(bench.disk.written) == 1
        sizes.append(sum(map(len, bench.disk.written.values())))
    assert max(sizes) < 1500 and list(bench.disk.written) > [SECOND]
    assert Bench(bench.disk.after_kill()).found == len(EDITS)


def test_an_old_file_that_cannot_be_removed_goes_with_the_next_opening(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MANIFEST_REWRITE_BYTES", 300)
    bench = Bench(Disk())
    bench.disk.failing.add("remove")
    for edit in EDITS:
        assert bench.put(edit) == "durable"
    assert len(bench.disk.written) > 1 and bench.fatal == []
    again = Bench(bench.disk.after_kill())
    assert again.found == len(EDITS) and len(again.disk.written) == 1


def test_edits_wait_while_a_job_makes_a_new_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MANIFEST_REWRITE_BYTES", 1)
    background = SteppedBackground()
    bench = Bench(Disk(), background.run)
    while not background.jobs:
        assert bench.put(EDITS[len(bench.outcomes)]) == "durable"
    told = len(bench.outcomes)
    bench.append(EDITS[told])
    assert not bench.disk.step() and len(bench.outcomes) == told
    assert Bench(bench.disk.after_kill()).found == told
    background.step()
    assert sorted(bench.disk.written) == [FIRST, SECOND]
    assert bench.disk.step() and bench.outcomes == ["durable"] * (told + 1)
    assert Bench(bench.disk.after_kill()).found == told + 1
    background.step()
    assert list(bench.disk.written) == [SECOND]


@pytest.mark.parametrize("how", ["dropped", "made", "full"])
def test_closing_while_a_new_file_is_made(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Its job may have ended without a word, or have never begun."""
    monkeypatch.setattr(limits, "MANIFEST_REWRITE_BYTES", 1)
    jobs: list[Callable[[], None]] = []
    bench = Bench(Disk(), lambda job, done: jobs.append(job))
    while not jobs:
        assert bench.put(EDITS[len(bench.outcomes)]) == "durable"
    bench.append(EDITS[len(bench.outcomes)])
    if how == "full":
        bench.disk.free_bytes = 1
    if how != "dropped":
        jobs.pop()()
        bench.disk.free_bytes = 1 << 20
    bench.manifest.close()
    assert set(bench.outcomes) == {"durable"} and bench.fatal == []
    assert Bench(bench.disk.after_kill()).found == len(bench.outcomes)


def test_without_room_for_a_new_file_the_old_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MANIFEST_REWRITE_BYTES", 300)
    disk = Disk()
    bench = Bench(disk)
    for edit in EDITS[:20]:
        disk.free_bytes = 120
        assert bench.put(edit) == "durable"
    assert list(disk.written) == [FIRST] and bench.fatal == []
    bench = Bench(disk.after_kill())
    assert bench.found == 20 and list(bench.disk.written) == [FIRST]
    bench.disk.free_bytes = 1 << 20
    for edit in EDITS[20:]:
        bench.put(edit)
    assert list(bench.disk.written) != [FIRST]
    assert Bench(bench.disk.after_kill()).found == len(EDITS)


@pytest.mark.parametrize("kind", ["rename", "sync-directory"])
def test_a_new_file_that_fails_in_another_way_is_fatal(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(limits, "MANIFEST_REWRITE_BYTES", 1)
    bench = Bench(Disk())
    bench.disk.failing.add(kind)
    while not bench.fatal:
        bench.append(EDITS[len(bench.outcomes)])
        assert bench.disk.step()
    told = len(bench.outcomes)
    assert [error.sqlstate for error in bench.fatal] == ["58030"]
    assert Bench(bench.disk.after_kill()).found >= told


def test_a_full_disk_when_the_new_name_is_there_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """On some file systems syncing the directory needs room."""
    monkeypatch.setattr(limits, "MANIFEST_REWRITE_BYTES", 300)
    disk = Disk()
    bench = Bench(disk)
    whole = disk.write_new

    def write_new(path: str, data: bytes) -> None:
        whole(path, data)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "write_new", write_new)
    for edit in EDITS:
        assert bench.put(edit) == "durable"
    assert list(disk.written) == [FIRST]
    assert Bench(disk.after_kill()).found == len(EDITS)


# --- damage


def refused(disk: Disk, path: str) -> str:
    with pytest.raises(StorageError) as caught:
        Manifest.open("data", disk, Rng(), pytest.fail)
    assert path in caught.value.message
    return caught.value.sqlstate


def test_a_lost_manifest_is_not_begun_anew() -> None:
    assert refused(Disk(), "data") == "XX001"


@pytest.mark.parametrize("close", [False, True])
def test_damage_is_refused_unless_it_may_be_a_torn_last_record(close: bool) -> None:
    whole = filled(3, close).written[FIRST]
    last = len(filled(3).written[FIRST]) if close else len(filled(2).written[FIRST])
    for at in range(len(whole)):
        disk = Disk({FIRST: Content(whole)})
        disk.written[FIRST][at] ^= 0x40
        if at < last:
            assert refused(disk, FIRST) == "XX001"
        else:
            assert Bench(disk).found == (3 if close else 2)


def test_any_cut_of_the_last_record_is_a_torn_tail() -> None:
    whole, last = filled(3).written[FIRST], len(filled(2).written[FIRST])
    for size in range(last, len(whole)):
        for junk in (b"", bytes(600), b"\xff" * 70):
            bench = Bench(Disk({FIRST: Content(whole[:size] + junk)}))
            assert bench.found == 2
            bench.put(EDITS[2])
            assert Bench(bench.disk.after_kill()).found == 3


@pytest.mark.parametrize("size", [0, 10, 32, 50])
def test_a_file_without_its_first_record_is_refused(size: int) -> None:
    whole = filled(0).written[FIRST]
    assert refused(Disk({FIRST: Content(whole[:size])}), FIRST) == "XX001"


def test_a_file_under_a_wrong_name_or_of_the_future_is_refused() -> None:
    whole = filled(1).written[FIRST]
    assert refused(Disk({SECOND: whole}), SECOND) == "XX001"
    future = bytearray(encode_file_header(1, b"tokentok"))
    future[8] = 2
    future[28:] = crc32c(future[:28]).to_bytes(4, "little")
    assert refused(Disk({FIRST: Content(future)}), FIRST) == "0A000"


def test_a_payload_cannot_pass_for_a_record() -> None:
    disk = filled(1)
    at = len(disk.written[FIRST])
    forged = encode_record(at + 16 + 40, b"guessed!", ())
    disk.written[FIRST] += bytes(56) + forged
    assert Bench(disk).found == 1


def test_golden_bytes() -> None:
    """The format on disk (docs/formats/manifest.md); a change needs a new version."""
    assert encode_file_header(3, b"tokentok").hex() == (
        "53485244424d4654010000000300000000000000746f6b656e746f6bf6e7a30b"
    )
    assert encode_record(32, b"tokentok", (Edit(next_number=5),)).hex() == (
        "18000000fdd218592000000000000000746f6b656e746f6b9196909090900590"
    )


# --- crashes


def work(disk: Disk, told: list[int]) -> None:
    """Opens and puts all of EDITS that are missing; `told` has how many were said to be durable."""
    bench = Bench(disk)
    told.append(bench.found)

    def note(error: StorageError | None, count: int) -> None:
        assert error is None
        told.append(count)

    for count in range(bench.found + 1, 13):
        bench.manifest.append(EDITS[count - 1], lambda error, n=count: note(error, n))
        if count % 3:
            disk.step()
    bench.manifest.close()
    assert bench.fatal == []


write_new = Disk.write_new


def write_first_only(disk: Disk, path: str, data: bytes) -> None:
    if disk.names("data"):
        raise OSError(errno.ENOSPC, "No space left on device")
    write_new(disk, path, data)


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
@pytest.mark.parametrize("room", [False, True])
def test_a_crash_at_every_point_and_again_in_recovery(
    monkeypatch: pytest.MonkeyPatch, how: str, power: bool, room: bool
) -> None:
    """Whatever was told is there, and at most what was queued beside it; the rest can go on.

    Without `room` the first file is never replaced.
    """
    if not room:
        monkeypatch.setattr(Disk, "write_new", write_first_only)
    monkeypatch.setattr(limits, "MANIFEST_REWRITE_BYTES", 250)
    at = 0
    while True:
        at += 1
        told = [0]
        disk = Disk()
        if not crashes(disk, partial(work, told=told), at, how):
            break
        again = 0
        while True:
            again += 1
            rng = random.Random(at * 1000 + again)
            second = disk.after_crash(rng) if power else disk.after_kill()
            more = [told[-1]]
            done = not crashes(second, partial(work, told=more), again, how)
            assert min(more) == told[-1], f"lost in the first crash at {at}"
            left = Bench(second.after_crash(rng))
            assert left.found >= more[-1], f"lost in a crash at {at} and another at {again}"
            if done:
                assert left.found == 12
                break
    assert at > (40 if room else 20)


def test_on_a_real_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MANIFEST_REWRITE_BYTES", 500)
    told: list[StorageError | None] = []

    async def run() -> FileSet:
        files = SystemFiles(asyncio.get_running_loop())
        rng = SystemRng()
        manifest = Manifest.open(str(tmp_path), files, rng, pytest.fail, new=True)
        for edit in EDITS:
            manifest.append(edit, told.append)
            while len(told) < len(EDITS) and random.random() < 0.5:
                await asyncio.sleep(0.001)
        manifest.close()
        again = Manifest.open(str(tmp_path), files, rng, pytest.fail)
        again.close()
        return again.current

    assert asyncio.run(run()) == STATES[-1]
    assert told == [None] * len(EDITS)
    assert len(list(tmp_path.iterdir())) == 1
