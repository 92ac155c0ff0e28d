"""The engine: its directory, recovery of tablets, and what survives a killed process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shardb._core.rowcursor import RowCursor
from shardb.env import SystemBackground, SystemFiles, SystemRng
from shardb.errors import StorageError
from shardb.storage.edits import TabletState
from shardb.storage.engine import Engine
from shardb.storage.logfile import LogRecord
from shardb.storage.schema import TabletSchema
from shardb.storage.segmentformat import SegmentColumn
from shardb.storage.tablet import Tablet
from shardb.types import TypeCode

COLUMNS = [SegmentColumn(1, "value", int(TypeCode.INT8), -1)]
SCHEMA = TabletSchema(1, COLUMNS)
LAYOUT = SCHEMA.layout(1)
PUT = 1


class Toy:
    """A node of tables 1 with one column; a payload is a key, its index the value and timestamp."""

    def restore(self, engine: Engine, state: TabletState) -> None:
        engine.install(*state.key, SCHEMA, state.descriptor)

    def replay(self, engine: Engine, record: LogRecord) -> None:
        tablet = engine.install(record.range_id, 1, SCHEMA, b"table")
        if record.index > tablet.settled_index:
            tablet.apply([(record.payload, LAYOUT.encode([record.index]))], record.index)

    def retained(self, range_id: int, needed: int) -> int:
        return needed

    def gc_ts(self) -> int:
        return 0


class NoLoop:
    """Nobody is told before `close`."""

    def add_reader(self, fd: int, callback: Callable[[], None], /) -> None:
        pass

    def remove_reader(self, fd: int, /) -> None:
        pass

    def call_later(self, delay: float, callback: Callable[[], None], /) -> None:
        pass

    def call_soon_threadsafe(self, callback: Callable[[], None], /) -> None:
        pass


def opened(path: Path) -> Engine:
    def fatal(error: StorageError) -> None:
        raise error

    loop = NoLoop()
    background = SystemBackground(loop)
    return Engine(str(path), SystemFiles(loop), SystemRng(), Toy(), fatal, background)


def rows(tablet: Tablet) -> list[tuple[bytes, bytes, int]]:
    return list(RowCursor(tablet.runs(1), b"", b"", 1 << 60, False, None))


def test_tablets_come_back_and_indexes_go_on(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "yet"
    told: list[StorageError | None] = []
    engine = opened(path)
    assert engine.append(4, PUT, b"a", told.append) == 1
    assert engine.append(9, PUT, b"b", told.append) == 1
    assert engine.append(4, PUT, b"c", told.append) == 2
    engine.close()
    assert told == [None] * 3
    engine = opened(path)
    assert {key: rows(tablet) for key, tablet in engine.tablets.items()} == {
        (4, 1): [(b"a", LAYOUT.encode([1]), 1), (b"c", LAYOUT.encode([2]), 2)],
        (9, 1): [(b"b", LAYOUT.encode([1]), 1)],
    }
    assert engine.append(4, PUT, b"d", told.append) == 3
    assert engine.last_index(9) == 1
    assert engine.counters()["rows"] == 3
    engine.drop(4, 1)
    engine.drop(4, 1)
    assert list(engine.tablets) == [(9, 1)]
    engine.close()


def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    engine = opened(tmp_path)
    with pytest.raises(StorageError, match="in use by another process") as caught:
        opened(tmp_path)
    assert caught.value.sqlstate == "55006"
    engine.close()
    opened(tmp_path).close()


def test_a_newer_format_is_refused_and_lets_go(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / "FORMAT").write_text("3\n")
    for _ in range(2):
        with pytest.raises(StorageError, match=r"has format 3, this shardb reads up to 2"):
            opened(tmp_path)
    (tmp_path / "FORMAT").write_text("what\n")
    with pytest.raises(StorageError, match="does not hold a format number"):
        opened(tmp_path)


def test_a_damaged_log_is_refused_by_name_and_offset(tmp_path: Path) -> None:
    engine = opened(tmp_path)
    engine.append(1, PUT, b"k" * 50, lambda error: None)
    engine.close()
    file = tmp_path / "log" / "000001.log"
    content = bytearray(file.read_bytes())
    content[content.index(b"k" * 50)] ^= 1
    file.write_bytes(content)
    for _ in range(2):
        with pytest.raises(StorageError, match=r"000001\.log is damaged at offset \d+") as caught:
            opened(tmp_path)
        assert caught.value.sqlstate == "XX001"


def test_a_directory_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not open data directory"):
        opened(tmp_path / "file" / "data")


WRITER = """
import asyncio, sys
from shardb import limits
from shardb.env import SystemBackground, SystemFiles, SystemRng
from shardb.storage.engine import Engine

limits.LOG_ZEROED_FIRST_BYTES = limits.LOG_ZEROED_MAX_BYTES = 8192  # so that files are many

class Owner:
    def restore(self, engine, state): ...
    def replay(self, engine, record): ...

async def main():
    loop = asyncio.get_running_loop()
    files, background = SystemFiles(loop), SystemBackground(loop)
    engine = Engine(sys.argv[1], files, SystemRng(), Owner(), sys.exit, background)
    index = engine.last_index(1)

    def durable(error, key):
        nonlocal index
        print(key.decode(), flush=True)
        index += 1
        append(index)

    def append(index):
        key = b"%d" % index
        engine.append(1, 1, key, lambda error: durable(error, key))

    for _ in range(7):
        index += 1
        append(index)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
    print(f"SEED={seed}")
    rng = random.Random(seed)
    acknowledged = 0
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(rng.randrange(1, 400)):
            acknowledged = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        for line in child.stdout.read().splitlines():
            acknowledged = int(line)
        child.wait()
        engine = opened(tmp_path)
        assert engine.last_index(1) >= acknowledged
        found = {int(key) for key, _, _ in rows(engine.tablets[1, 1])}
        assert found == set(range(1, engine.last_index(1) + 1))
        engine.close()
    assert len(list((tmp_path / "log").glob("*.log"))) > 1
