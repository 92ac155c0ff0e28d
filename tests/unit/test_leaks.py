"""Nothing in `_core` leaks: over a million operations of each structure memory settles.

A new structure gets one more entry in WORKLOADS. A workload is a function that is given an empty
directory and returns a `Workload`: `round()` does `operations` (calls, rows, records, or as many
bytes), failing ones among them, and leaves nothing behind; `passed` are objects that it hands in.
"""

from __future__ import annotations

import asyncio
import gc
import os
import struct
import sys
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import pyarrow as pa
import pytest

from shardb._core.cast import cast_text
from shardb._core.copytext import CopyReader
from shardb._core.corebench import get_each, insert_each, walk, walk_back
from shardb._core.coreerror import CoreError
from shardb._core.crc32c import crc32c
from shardb._core.datarow import DataRowWriter
from shardb._core.datum import binary_to_text, text_to_binary
from shardb._core.fingerprint import fingerprint
from shardb._core.frames import (
    FrameReader,
    join_items,
    pack_execute,
    pack_frame,
    pack_rows,
    split_by_range,
    split_items,
)
from shardb._core.keycodec import KeyCodec, prefix_successor
from shardb._core.memload import put_framed, put_many
from shardb._core.memscan import scan_batches
from shardb._core.memtable import MemTable
from shardb._core.pgwire import FrontendBuffer
from shardb._core.rowcodec import RowLayout
from shardb._core.rowdeal import RowDealer
from shardb._core.rowprog import Program
from shardb._core.runs import Runs
from shardb._core.syncer import Syncer
from shardb._core.zerofile import ZeroFile
from shardb.env import SystemFiles, SystemRng
from shardb.errors import StorageError
from shardb.meta.descriptors import Column, Table
from shardb.program import Call, Col, Const, Key, Param, ProgramSpec, TypeRef
from shardb.rpc import messages as m
from shardb.storage.log import Log
from shardb.types import TypeCode

OPERATIONS = 1_000_000
RSS_GROWTH_MAX_BYTES = 4 << 20  # 4 bytes an operation
BLOCKS_GROWTH_MAX = 200  # of Python's allocator
REFERENCES_GROWTH_MAX = 50
SINGLETONS = (None, True, False, NotImplemented, b"", "", (), bytes, tuple, CoreError, 0, 1)
ROWS = 10_000
LAYOUT = RowLayout(1, [(int(TypeCode.INT8), -1), (int(TypeCode.TEXT), -1)])
KEYS = struct.pack(f">{ROWS}Q", *(n * 7919 % ROWS for n in range(ROWS)))
KEY_OFFSETS = array("Q", range(0, 8 * ROWS + 1, 8))
ROW = LAYOUT.encode((1, "some text"))
ROW_OFFSETS = array("Q", range(0, len(ROW) * ROWS + 1, len(ROW)))


@dataclass
class Workload:
    operations: int
    round: Callable[[], None]
    passed: tuple[object, ...] = ()


def calls(function: Callable[..., object], *arguments: object) -> None:
    """A thousand calls."""
    deque(map(function, *(repeat(argument, 1000) for argument in arguments)), maxlen=0)


def failing(function: Callable[..., object], *arguments: object) -> None:
    """A hundred calls that raise."""
    for _ in range(100):
        try:
            function(*arguments)
        except (CoreError, ValueError):
            continue
        raise AssertionError(f"{function} did not fail")


def runs_of(table: MemTable, layout: RowLayout = LAYOUT) -> Runs:
    """The memtable as all there is of a tablet."""
    return Runs(layout, [(False, [(table, None)])])


def memtable(directory: Path) -> Workload:
    keys = [KEYS[at : at + 8] for at in range(0, 8 * 1000, 8)]

    def work() -> None:
        table = MemTable()
        for ts in (2, 1, 3):
            insert_each(table, KEYS, 8, ROW if ts < 3 else None, ts)
        get_each(table, KEYS, 8, 2)
        walk(table, 2)
        walk_back(table)
        for key in keys:
            table.put(key, ROW, 4)
            table.get(key, 2)
            table.newest(key)
            table.versions_of(key)
        deque(table.cursor(keys[0], b"", 2), maxlen=0)
        next(table.cursor(reverse=True))

    return Workload(8 * ROWS, work, (keys[0], KEYS, ROW))


def memload(directory: Path) -> Workload:
    rows = ROW * ROWS
    framed_keys = join_items([KEYS[at : at + 8] for at in range(0, 8 * ROWS, 8)])
    framed_rows = join_items([ROW] * ROWS)

    def work() -> None:
        table = MemTable()
        put_many(table, KEYS, KEY_OFFSETS, rows, ROW_OFFSETS, 1)
        put_many(table, KEYS, KEY_OFFSETS, None, None, 2)
        put_framed(table, framed_keys, framed_rows, ROWS, 3)
        failing(put_framed, table, framed_keys, framed_rows, 7, 4)
        failing(put_many, table, b"", KEY_OFFSETS, rows, ROW_OFFSETS, 4)

    return Workload(3 * ROWS, work, (KEYS, KEY_OFFSETS, rows, ROW_OFFSETS, framed_keys))


def memscan(directory: Path) -> Workload:
    table, own = MemTable(), MemTable()
    insert_each(table, KEYS, 8, ROW, 1)
    insert_each(own, KEYS[:800], 8, ROW, 0)
    strange = MemTable()
    strange.put(b"k", b"", 1)
    kinds = [pa.int64(), pa.string()]

    def work() -> None:
        for overlay in (None, own):
            scan = scan_batches(
                runs_of(table), (0, 1), kinds, 1, with_key=True, overlay=overlay, batch_rows=5000
            )
            deque(scan, maxlen=0)
        next(scan_batches(runs_of(table), (1,), [pa.string()], 1, b"\0" * 7, b"", batch_rows=10))
        failing(scan_batches, runs_of(table), (0,), [pa.int8()], 1)
        failing(lambda: next(scan_batches(runs_of(strange), (0,), [pa.int64()], 1)))

    return Workload(2 * ROWS, work, (table, own, LAYOUT, kinds))


def key_codec(directory: Path) -> Workload:
    types = [(TypeCode.INT8, -1, False, False), (TypeCode.TEXT, -1, True, True)]
    rows = ROW * ROWS
    values = (5, "text\0"[:4])

    def work() -> None:
        codec = KeyCodec(types)
        key = codec.encode(values)
        calls(codec.encode, values)
        calls(codec.encode_prefix, values[:1])
        calls(codec.decode, key)
        calls(codec.key_of_row, LAYOUT, (0, 1), ROW)
        calls(prefix_successor, key)
        codec.keys_from_rows(LAYOUT, (0, 1), rows, ROW_OFFSETS)
        failing(codec.encode, ("x", "y"))
        failing(codec.decode, key[:-1])
        failing(codec.key_of_row, LAYOUT, (1, 0), ROW)

    return Workload(ROWS + 5300, work, (types, values, LAYOUT, ROW, rows))


def row_codec(directory: Path) -> Workload:
    types = [(int(TypeCode.INT4), -1), (int(TypeCode.TEXT), -1), (int(TypeCode.NUMERIC), -1)]
    batch = pa.record_batch([pa.array(range(ROWS), pa.int64()), pa.array(["x"] * ROWS)], ["a", "b"])
    too_long = pa.record_batch([pa.array(["abc"])], ["a"])
    text = (b"5", b"text", b"1.25")

    def work() -> None:
        layout = RowLayout(1, types)
        row = layout.encode_text(text)
        values = layout.decode(row)
        calls(layout.encode, values)
        calls(layout.decode, row)
        calls(layout.check, row)
        calls(layout.encode_params, (0,), text)
        calls(layout.encode_text, text)
        LAYOUT.encode_arrow(batch)
        failing(layout.check, row[:-1])
        failing(layout.encode_text, (b"five", b"", None))
        failing(layout.encode, ("x", None, None))
        failing(RowLayout(1, [(int(TypeCode.VARCHAR), 5)]).encode_arrow, too_long)

    return Workload(ROWS + 5400, work, (types, text, batch, LAYOUT))


def row_programs(directory: Path) -> Workload:
    int8, kind = TypeRef(TypeCode.INT8), TypeRef(TypeCode.TEXT)
    columns = (Column(1, "id", TypeCode.INT8, not_null=True), Column(2, "name", TypeCode.TEXT))
    table = Table(1, "t", 1, columns, (0,))
    point = Key(points=((Param(int8, 0),),))
    specs = [
        ProgramSpec(1, 1, "select", (int8,), key=point, output=(Col(kind, 1),)),
        ProgramSpec(
            1, 1, "update", (int8,), key=point,
            assignments=((1, Call(kind, "||", (Col(kind, 1), Const(kind, "+")))),),
        ),
        ProgramSpec(1, 1, "insert", (int8,), rows=((Param(int8, 0), Const(kind, "new")),)),
        ProgramSpec(
            1, 1, "select", (int8, int8), key=Key(low=Param(int8, 0), high=Param(int8, 1)),
            output=(Call(int8, "/", (Col(int8, 0), Param(int8, 1))),),
        ),
    ]  # fmt: skip
    memtable = MemTable()
    insert = Program(specs[2], table)
    for number in range(1000):
        [(key, row)] = insert.insert(insert.param_layout.encode((number,)))
        memtable.put(key, row, 1)
    overlay = {key: row, b"other": None}

    def work() -> None:
        runs = runs_of(memtable)
        select, update, insert, interval = (Program(spec, table) for spec in specs)
        one = select.param_layout.encode((7,))
        calls(select.select, runs, 1, one, b"")
        calls(select.points, one)
        calls(update.update, row, one)
        calls(insert.insert, one)
        wide = interval.param_layout.encode((0, 999))
        for _ in range(5):
            interval.select(runs, 1, wide, b"", overlay)
            interval.candidates(runs, 1, wide, overlay)
        failing(interval.select, runs, 1, interval.param_layout.encode((0, 0)), b"")
        failing(insert.insert, insert.param_layout.encode((None,)))

    return Workload(14_200, work, (table, memtable, overlay, row, *specs))


def frames(directory: Path) -> Workload:
    request = m.Execute(1, 2, 0, 3, 4, m.TxnRef(bytes(16), 5, 6, 7), False, 0, b"params", b"")
    body = bytes(100)
    items = [b"item"] * ROWS
    starts = [b"", KEYS[:8], b"\xff"]

    def work() -> None:
        calls(pack_execute, 1, request)
        calls(pack_frame, 1, 9, body)
        calls(pack_rows, 1, body, 1, 2, 3, 4)
        stream = pack_execute(1, request) + pack_rows(1, body, 1, 2, 3, 4) + pack_frame(1, 9, body)
        reader = FrameReader(m.Execute, m.TxnRef, m.Rows, 10_000)
        calls(reader.feed, stream)
        for at in range(0, len(stream), 3):
            reader.feed(stream[at : at + 3])
        reader.feed(stream[:50])
        split_items(join_items(items), ROWS)
        split_by_range(KEYS, KEY_OFFSETS, KEYS, KEY_OFFSETS, starts)
        failing(split_items, b"\5\0\0\0x", 1)
        short = b"\x09\0\0\0\3\0\0\0\0four"
        failing(FrameReader(m.Execute, m.TxnRef, m.Rows, 10).feed, short)

    return Workload(2 * ROWS + 6000, work, (request, request.txn, body, items[0], starts))


def pgwire(directory: Path) -> Workload:
    def message(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("!I", len(body) + 4) + body

    value = struct.pack("!i", 4) + b"4711" + struct.pack("!i", -1)
    bind = message(b"B", b"p\0s\0" + struct.pack("!HHH", 1, 1, 2) + value + struct.pack("!H", 0))
    parse = message(b"P", b"s\0select 1\0" + struct.pack("!HI", 1, 23))
    stream = parse + bind + message(b"D", b"Pp\0") + message(b"Q", b"select 1\0")
    bad = message(b"B", b"p\0s\0" + b"\xff" * 8)

    def work() -> None:
        buffer = FrontendBuffer(1 << 20)
        for _ in range(1000):
            buffer.feed(stream)
            buffer.next()
            buffer.parse()
            buffer.next()
            buffer.bind()
            buffer.next()
            buffer.target()
            buffer.next()
            buffer.text()
        buffer.feed(bad)
        buffer.next()
        failing(buffer.bind)
        buffer.feed(bytes(3 << 20))

    return Workload(8000, work, (stream, bad))


def copytext(directory: Path) -> Workload:
    data = b"".join(b"%d\tline \\N with \\t text\n" % n for n in range(ROWS))
    defaults = LAYOUT.encode((None, None))
    codec = KeyCodec([(TypeCode.INT8, -1, False, False)])

    def dealing() -> RowDealer:
        return RowDealer(LAYOUT, codec, (0,), (b"",), 8192, 1 << 20, 1 << 16, 1 << 18)

    def reader(dealer: RowDealer) -> CopyReader:
        return CopyReader(dealer, "t", ["a", "b"], (0, 1), (0,), defaults)

    def work() -> None:
        dealer = dealing()
        copy = reader(dealer)
        for at in range(0, len(data), 10_000):
            parts = [data[at : at + 10_000]]
            while not copy.feed(parts):
                dealer.take()
                parts = []
        copy.feed([], final=True)
        dealer.take(True)
        failing(lambda: reader(dealing()).feed([b"1\tx\nfive\tx\n"]))
        failing(lambda: reader(dealing()).feed([b"\\N\tx\n"]))

    return Workload(ROWS, work, (LAYOUT, defaults, data))


def texts(directory: Path) -> Workload:
    statement = b"select a, 'x''y' from t where k = 5 and b > 1.5"
    refused = b"select date '2020-01-01'"
    int4, date = int(TypeCode.INT4), int(TypeCode.DATE)
    jsonb = int(TypeCode.JSONB)
    data = bytes(1000)

    def work() -> None:
        calls(fingerprint, statement)
        calls(fingerprint, refused)
        calls(cast_text, date, -1, b"2024-02-29", int(TypeCode.TIMESTAMP), -1)
        calls(text_to_binary, jsonb, -1, b'{"b": [1, 2], "a": null}')
        calls(binary_to_text, int4, -1, b"\0\0\0\5")
        calls(crc32c, data)
        failing(cast_text, int(TypeCode.TEXT), -1, b"x", int4, -1)
        failing(text_to_binary, jsonb, -1, b'{"b": [1, 2')

    return Workload(6200, work, (statement, refused, data))


def datarow(directory: Path) -> Workload:
    types = [(int(TypeCode.INT8), -1), (int(TypeCode.TEXT), -1)]
    batch = pa.record_batch([pa.array(range(ROWS)), pa.array(["x"] * ROWS)], ["a", "b"])
    narrow = batch.select(["a"])

    def work() -> None:
        DataRowWriter(types).encode(batch)
        DataRowWriter(types, (1,)).encode(batch)
        failing(DataRowWriter(types).encode, narrow)

    return Workload(2 * ROWS, work, (types, batch))


def log(directory: Path) -> Workload:
    payload = bytes(50)
    told: list[StorageError | None] = []

    async def use() -> None:
        files = SystemFiles(asyncio.get_running_loop())
        path = str(directory / "log")
        log = Log(path, files, SystemRng(), told.append, 1 << 20)
        log.recover(lambda record: None)
        for index in range(1, ROWS + 1):
            log.append(1, 1, index, 1, payload, told.append)
        log.close()
        again = Log(path, files, SystemRng(), told.append, 1 << 20)
        again.recover(lambda record: None)
        again.close()
        for name in files.names(path):
            os.unlink(f"{path}/{name}")

    def work() -> None:
        asyncio.run(use())
        assert told == [None] * ROWS
        told.clear()

    return Workload(10 * ROWS, work, (payload,))


def background_files(directory: Path) -> Workload:
    parts = [b"%d" % number for number in range(2000)]
    path = os.fsencode(directory / "f")
    fd = os.open(path, os.O_RDWR | os.O_CREAT)

    def work() -> None:
        for _ in range(5):
            syncer = Syncer()
            syncer.submit(fd, parts, 0)
            assert syncer.take(True) == (0, 0)
            syncer.submit(-1, parts, 0)
            syncer.take(True)
            syncer.submit(fd, parts, 0)
            del syncer
            made = ZeroFile(path + b"1", path + b"2", b"head", 1 << 16)
            assert made.take(True) == 0
            cancelled = ZeroFile(path + b"1", path + b"2", b"head", 1 << 20)
            cancelled.cancel()
            del cancelled

    return Workload(50_000, work, (parts, parts[7], path))


WORKLOADS: list[Callable[[Path], Workload]] = [
    memtable, memload, memscan, key_codec, row_codec, row_programs, frames, pgwire, copytext,
    texts, datarow, log, background_files,
]  # fmt: skip


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def handles() -> int:
    """Open files and threads."""
    return len(os.listdir("/proc/self/fd")) + len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("make", WORKLOADS, ids=lambda make: make.__name__)
def test_memory_settles(make: Callable[[Path], Workload], tmp_path: Path) -> None:
    workload = make(tmp_path)
    watched = [*SINGLETONS, *workload.passed]
    rounds = -(-OPERATIONS // workload.operations)
    gc.collect()
    for _ in range(rounds // 4):
        workload.round()
    gc.collect()
    before = resident_bytes(), sys.getallocatedblocks(), handles()
    references = [sys.getrefcount(watch) for watch in watched]
    for _ in range(rounds):
        workload.round()
    gc.collect()
    now = [sys.getrefcount(watch) for watch in watched]
    grown = {
        repr(watch)[:60]: after - count
        for watch, count, after in zip(watched, references, now, strict=True)
        if abs(after - count) > REFERENCES_GROWTH_MAX
    }
    assert not grown, f"references of {grown}"
    assert sys.getallocatedblocks() - before[1] <= BLOCKS_GROWTH_MAX
    assert handles() <= before[2]
    assert resident_bytes() - before[0] <= RSS_GROWTH_MAX_BYTES


@pytest.mark.parametrize("make", WORKLOADS, ids=lambda make: make.__name__)
def test_what_was_passed_in_is_let_go(make: Callable[[Path], Workload], tmp_path: Path) -> None:
    """One round more or less, to the exact reference."""
    workload = make(tmp_path)
    workload.round()
    gc.collect()
    references = [sys.getrefcount(watch) for watch in workload.passed]
    workload.round()
    gc.collect()
    assert [sys.getrefcount(watch) for watch in workload.passed] == references


@pytest.mark.parametrize(
    "leak",
    [
        lambda: [MemTable() for _ in range(9)],
        lambda: None,
        lambda: os.open("/dev/null", os.O_RDONLY),
    ],
    ids=["memory", "references", "handles"],
)
def test_a_leak_would_be_seen(leak: Callable[[], object], tmp_path: Path) -> None:
    kept: list[object] = []
    with pytest.raises(AssertionError):
        test_memory_settles(lambda _: Workload(ROWS, lambda: kept.append(leak())), tmp_path)
    for handle in kept:
        if isinstance(handle, int):
            os.close(handle)
