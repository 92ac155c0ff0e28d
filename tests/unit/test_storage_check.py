"""`shardb storage`: a sound directory is called so, every damaged byte is found and named."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from msgspec.structs import replace

from shardb.cli import main
from shardb.datadir import take_lock
from shardb.env import SystemFiles, SystemRng
from shardb.errors import StorageError
from shardb.storage import segmentwriter
from shardb.storage.check import lock_shard
from shardb.storage.edits import Edit, TabletState
from shardb.storage.jobs import Target, segment_path, write_segments
from shardb.storage.log import Log
from shardb.storage.manifest import Manifest
from shardb.storage.segmentcheck import check_segment
from shardb.storage.segmentformat import SegmentColumn, SegmentMeta
from shardb.storage.segmentwriter import segment_schema
from shardb.txn import records
from shardb.txn.records import Section
from shardb.types import TypeCode

COLUMNS = (
    SegmentColumn(1, "a", int(TypeCode.INT8), -1),
    SegmentColumn(2, "b", int(TypeCode.TEXT), -1),
)
TXN = b"t" * 16


class NoLoop:
    """Nobody is told before `close`."""

    def add_reader(self, fd: int, callback: Callable[[], None], /) -> None:
        pass

    def remove_reader(self, fd: int, /) -> None:
        pass

    def call_later(self, delay: float, callback: Callable[[], None], /) -> None:
        pass


FILES = SystemFiles(NoLoop())


def fatal(error: StorageError) -> None:
    raise error


def batch(start: int, rows: int) -> pa.RecordBatch:
    """Keys in pairs: a newer version, and an older one or a tombstone."""
    numbers = range(start, start + rows)
    return pa.record_batch(
        [
            pa.array([b"%08d" % (n // 2) for n in numbers], pa.binary()),
            pa.array([2 - n % 2 for n in numbers], pa.uint64()),
            pa.array([n % 6 == 0 for n in numbers], pa.bool_()),
            pa.array([None if n % 6 == 0 else n for n in numbers], pa.int64()),
            pa.array([None if n % 3 == 0 else f"text {n}" for n in numbers], pa.string()),
        ],
        schema=segment_schema(COLUMNS),
    )


def write(path: Path, number: int, codec: str, batches: list[pa.RecordBatch]) -> SegmentMeta:
    directory = str(path / "segments")
    FILES.make_directory(directory)
    numbers = count(number)
    target = Target(FILES, directory, lambda: next(numbers), 4, 7, number, COLUMNS, 1, codec)
    (meta,) = write_segments(batches, target)
    return meta


def make_shard(path: Path) -> Path:
    """Three segments in the manifest, and one of a transaction that only the log names."""
    path.mkdir(parents=True)
    (path / "FORMAT").write_text("2\n")
    metas = [
        write(path, 1, "", [batch(0, 40), batch(40, 9), batch(49, 1)]),
        write(path, 2, "zstd", [batch(10, 30)]),
        replace(write(path, 3, "lz4", [batch(100, 20)]), link_ts=9, min_ts=9, max_ts=9),
    ]
    manifest = Manifest.open(str(path), FILES, SystemRng(), fatal, new=True)
    state = TabletState(4, 7, b"descriptor", 1, 0)
    manifest.append(Edit(put_tablets=(state,), add_segments=tuple(metas)), lambda error: None)
    manifest.close()
    log = Log(f"{path}/log", FILES, SystemRng(), fatal)
    log.recover(lambda record: None)
    keys, rows = b"\1\0\0\0k", b"\1\0\0\0r"
    put = records.encode_commit(TXN, 5, [Section(7, 1, keys, rows)])
    log.append(4, 1, 1, records.COMMIT, put, lambda error: None)
    links = msgspec.msgpack.encode((write(path, 4, "", [batch(0, 10)]),))
    link = records.encode_commit(TXN, 6, [Section(7, 10, b"", None, links)])
    log.append(4, 1, 2, records.COMMIT, link, lambda error: None)
    log.close()
    return path


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return make_shard(tmp_path / "data" / "node-1")


def contents(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Callable[[Path], tuple[int, list[str]]]:
    def run(path: Path) -> tuple[int, list[str]]:
        """The exit code, and all lines of output but the last one of each shard."""
        code = main(["storage", "verify", str(path)])
        lines = capsys.readouterr().out.splitlines()
        assert lines and ("sound:" in lines[-1]) == (code == 0), lines
        return code, [line for line in lines if line.startswith(("DAMAGE", "note"))]

    return run


def test_a_sound_directory_is_sound_and_left_alone(
    shard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shard / "LOCK").touch()
    before = contents(shard)
    for path in (shard, shard.parent):
        assert main(["storage", "verify", str(path)]) == 0
        out = capsys.readouterr().out
        assert re.fullmatch(
            rf"{shard}: sound: 4 segments with 110 rows, 1 log files with 2 records, "
            r"1\.0 MiB read in \d+\.\d s\n",
            out,
        )
    assert contents(shard) == before


def test_ls_tells_what_is_there(shard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shard / "LOCK").touch()
    before = contents(shard)
    assert main(["storage", "ls", str(shard.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{shard}: 1 tablets in 3 segments of ")
    assert lines[1].startswith("  range 4, table 7: 100 rows, ") and "2 runs" in lines[1]
    rest = "\n".join(lines[2:])
    assert re.search(r"00000001.arrow  50 rows \(9 deleted\), .* plain, 3 groups", rest)
    assert re.search(r"00000003.arrow  20 rows \(3 deleted\), .* lz4, 1 groups", rest)
    assert contents(shard) == before
    path = shard / "segments" / "00000002.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["storage", "ls", str(shard)]) == 0
    assert f"UNREADABLE: segment {path} has" in capsys.readouterr().out


def test_every_damaged_byte_is_found(shard: Path, verify: Any) -> None:
    rng = random.Random(3)
    used = (shard / "log" / "000001.log").read_bytes().rstrip(b"\0")
    for file in sorted([*shard.glob("segments/*"), *shard.glob("MANIFEST*"), *shard.glob("log/*")]):
        good = file.read_bytes()
        size = len(used) if file.suffix == ".log" else len(good)
        for at in {0, size - 1, *rng.sample(range(size), min(size, 60))}:
            bad = bytearray(good)
            bad[at] ^= 1 << rng.randrange(8)
            file.write_bytes(bad)
            code, lines = verify(shard)
            assert any(str(file) in line for line in lines), f"{file} at {at}: {lines}"
            # The last record of log and manifest says only that the end was clean.
            torn = file.suffix != ".arrow" and at >= size - 60
            assert code == 1 or (torn and "of which nobody was told" in "".join(lines))
        file.write_bytes(good)
    assert verify(shard) == (0, [])


def test_a_file_that_is_cut_or_gone_is_found(shard: Path, verify: Any) -> None:
    for file in shard.glob("segments/*"):
        good = file.read_bytes()
        for bad in (good[:-1], good + b"\0", b""):
            file.write_bytes(bad)
            code, lines = verify(shard)
            assert code == 1 and f"segment {file} has {len(bad)} bytes" in lines[0]
        file.unlink()
        code, lines = verify(shard)
        assert code == 1 and lines[0].startswith(f"DAMAGE: segment {file} cannot be read: No such")
        file.write_bytes(good)


def test_a_linked_file_may_go_once_the_manifest_is_past_it(shard: Path, verify: Any) -> None:
    manifest = Manifest.open(str(shard), FILES, SystemRng(), fatal)
    state = TabletState(4, 7, b"descriptor", 2, 0)
    manifest.append(Edit(put_tablets=(state,)), lambda error: None)
    manifest.close()
    (shard / "segments" / "00000004.arrow").unlink()
    assert verify(shard) == (0, [])


def test_what_the_next_start_removes_is_named(shard: Path, verify: Any) -> None:
    (shard / "segments" / "00000005.arrow").touch()
    (shard / "segments" / "notes.txt").touch()
    (shard / "MANIFEST-000002.new").touch()
    (shard / "log" / "000002.log.new").touch()
    assert verify(shard) == (
        0,
        [
            f"note: {shard}/segments/00000005.arrow: nothing names it",
            f"note: {shard}/segments/notes.txt is none of ours",
            f"note: {shard}/MANIFEST-000002.new was being made",
            f"note: {shard}/log/000002.log.new was being made",
        ],
    )
    (shard / "MANIFEST-000001").unlink()
    code, lines = verify(shard)
    assert code == 1
    assert f"DAMAGE: the manifest of {shard} is missing" in lines
    assert f"note: {shard}/segments/00000001.arrow: what names it may be damaged, keep it" in lines


def test_a_missing_log_is_damage(shard: Path, verify: Any) -> None:
    (shard / "log" / "000001.log").rename(shard / "000001.log")
    code, lines = verify(shard)
    assert code == 1 and lines[0] == f"DAMAGE: the log of {shard} is missing"


def test_damage_in_one_shard_does_not_hide_the_other(shard: Path, verify: Any) -> None:
    other = make_shard(shard.parent / "node-2")
    (other / "FORMAT").write_text("x")
    (shard / "segments" / "00000002.arrow").write_bytes(b"")
    assert main(["storage", "verify", str(shard.parent)]) == 1
    (other / "FORMAT").write_text("2")
    assert main(["storage", "verify", str(shard.parent)]) == 1
    assert main(["storage", "verify", str(other)]) == 0


@pytest.mark.parametrize("action", ["ls", "verify"])
def test_a_directory_in_use_is_refused(
    shard: Path, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = take_lock(shard.parent)
    assert main(["storage", action, str(shard.parent)]) == 1
    assert f"in use by process {os.getpid()}: stop the cluster first" in capsys.readouterr().err
    os.close(lock)
    held = lock_shard(str(shard), FILES)
    for path in (shard, shard.parent):
        assert main(["storage", action, str(path)]) == 1
        assert f"{shard} is in use: its shard, or another check" in capsys.readouterr().err
    held.close()
    assert main(["storage", action, str(shard)]) == 0


def test_a_directory_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["storage", "verify", str(tmp_path)]) == 1
    assert f"{tmp_path} holds no shard's data" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- files whose checksums are right and whose index lies


def lies(path: Path) -> list[str]:
    meta = write(path, 1, "", [batch(0, 20), batch(20, 20)])
    return list(check_segment(FILES, str(path / "segments"), meta))


@pytest.mark.parametrize(
    ("name", "lie", "told"),
    [
        ("zone_map", lambda *of: (b"\xff" * 8, b"\xff" * 8), "'a' are not within the bounds"),
        ("zone_map", lambda *of: (b"", b"\0"), "'b' are not within the bounds"),
        ("scan_rows", lambda *of: (0, 1, 2, True, -1), "row group 0: its index says 20 rows"),
        ("scan_rows", lambda *of: (4, 1, 3, True, -1), "row group 1: its index says 20 rows"),
        ("footer_note", lambda *of: b"1 2 3", ""),
    ],
)
def test_a_lying_index_is_found(
    name: str, lie: Any, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentwriter, name, lie)
    found = lies(tmp_path)
    assert any(told in line for line in found) if told else not found
    assert all(segment_path(str(tmp_path / "segments"), 1) in line for line in found)


def test_a_bloom_filter_that_denies_a_key_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Denying:
        def add(self, *of: Any) -> None:
            pass

        def build(self) -> bytes:
            return bytes(32)

    monkeypatch.setattr(segmentwriter, "BloomBuilder", Denying)
    assert any("the Bloom filter has not the key of row 0" in line for line in lies(tmp_path))


def test_rows_out_of_order_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = segmentwriter.scan_rows
    monkeypatch.setattr(segmentwriter, "scan_rows", lambda *of: (*scan(*of)[:4], -1))
    meta = write(tmp_path, 1, "", [batch(20, 20), batch(0, 20)])
    found = list(check_segment(FILES, str(tmp_path / "segments"), meta))
    assert any("row group 1: row 0 is out of order" in line for line in found)
    told = replace(meta, rows=1, min_key=b"a", max_ts=7)
    found = list(check_segment(FILES, str(tmp_path / "segments"), told))
    assert [line.rpartition(": ")[2] for line in found[:3]] == [
        "rows is 40 by its index, 1 by the manifest",
        "first key is x'3030303030303130' by its index, x'61' by the manifest",
        "largest timestamp is 2 by its index, 7 by the manifest",
    ]
