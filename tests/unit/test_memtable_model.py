"""The memtable through long lives: a model of versions, and readers without a lock beside it."""

from __future__ import annotations

import random
import struct
import sys
import threading
from array import array
from itertools import accumulate

import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shardb._core.corebench import get_each, insert_each, seek_each, walk, walk_back
from shardb._core.memload import put_framed, put_many
from shardb._core.memscan import scan_batches
from shardb._core.memtable import TS_MAX, MemTable
from shardb._core.rowcodec import RowLayout
from shardb._core.runs import Runs
from shardb.types import TypeCode

# Keys that differ before, at and after their first eight bytes, by zeros at the end, and in length.
KEYS = st.one_of(
    st.binary(max_size=3),
    st.integers(0, 300).map(lambda n: struct.pack(">Q", n)),
    st.tuples(st.sampled_from([b"12345678", b"1234567", b"a" * 200]), st.binary(max_size=2)).map(
        b"".join
    ),
    st.integers(0, 12).map(bytes),
)
ROWS = st.none() | st.binary(max_size=30)
STAMPS = st.integers(0, 30)
ITEMS = st.lists(st.tuples(KEYS, st.binary(max_size=9)), max_size=40)


def framed(items: list[bytes]) -> bytes:
    return b"".join(len(item).to_bytes(4, "little") + item for item in items)


def offsets(items: list[bytes]) -> array[int]:
    return array("I", [0, *accumulate(map(len, items))])


class Model(RuleBasedStateMachine):
    """The oracle: of each key its versions in the order they are found in."""

    @initialize()
    def start(self) -> None:
        self.table = MemTable()
        self.versions: dict[bytes, list[tuple[bytes | None, int]]] = {}

    def note(self, key: bytes, row: bytes | None, ts: int) -> None:
        chain = self.versions.setdefault(key, [])
        above = sum(other > ts for _, other in chain)
        chain.insert(above, (row, ts))

    def at(self, key: bytes, ts: int) -> tuple[bytes | None, int] | None:
        chain = self.versions.get(key, [])
        return next((version for version in chain if version[1] <= ts), None)

    @rule(key=KEYS, row=ROWS, ts=STAMPS)
    def put(self, key: bytes, row: bytes | None, ts: int) -> None:
        self.table.put(key, row, ts)
        self.note(key, row, ts)

    @rule(items=ITEMS, ts=STAMPS, delete=st.booleans(), frames=st.booleans())
    def put_in_bulk(
        self, items: list[tuple[bytes, bytes]], ts: int, delete: bool, frames: bool
    ) -> None:
        keys, rows = [key for key, _ in items], [row for _, row in items]
        if frames:
            framed_rows = None if delete else framed(rows)
            put_framed(self.table, framed(keys), framed_rows, len(items), ts)
        else:
            joined = None if delete else b"".join(rows)
            put_many(self.table, b"".join(keys), offsets(keys), joined, offsets(rows), ts)
        for key, row in items:
            self.note(key, None if delete else row, ts)

    @rule(first=st.integers(0, 1000), step=st.sampled_from([-3, -1, 1, 7]), ts=STAMPS)
    def put_a_run(self, first: int, step: int, ts: int) -> None:
        """Enough to have the hash index grow, and the finger walk in both directions."""
        keys = [struct.pack(">Q", (first + n * step) % 1024) for n in range(90)]
        insert_each(self.table, b"".join(keys), 8, b"run", ts)
        for key in keys:
            self.note(key, b"run", ts)

    @rule(key=KEYS, ts=STAMPS)
    def get(self, key: bytes, ts: int) -> None:
        assert self.table.get(key, ts) == self.at(key, ts)
        assert self.table.newest(key) == self.at(key, TS_MAX)
        assert self.table.versions_of(key) == self.versions.get(key, [])
        for known in list(self.versions)[-20:]:
            assert self.table.get(known, ts) == self.at(known, ts)

    @rule(start=KEYS, end=KEYS, ts=STAMPS)
    def iterate(self, start: bytes, end: bytes, ts: int) -> None:
        expected = [
            (key, *found)
            for key in sorted(self.versions)
            if key >= start
            and (not end or key < end)
            and (found := self.at(key, ts)) is not None
            and found[0] is not None
        ]
        assert list(self.table.cursor(start, end, ts)) == expected
        assert list(self.table.cursor(start, end, ts, reverse=True)) == expected[::-1]

    @invariant()
    def counts(self) -> None:
        chains = self.versions.values()
        assert self.table.entries == len(chains)
        assert self.table.versions == sum(map(len, chains))
        assert self.table.live == sum(chain[0][0] is not None for chain in chains)
        assert self.table.newest_ts == max((chain[0][1] for chain in chains), default=0)
        assert walk(self.table, TS_MAX)[0] == self.table.live
        assert walk_back(self.table) == self.table.entries


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestModel = Model.TestCase


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_readers_of_every_kind_beside_a_writer(seed: int) -> None:
    """Each reads a published timestamp while newer versions come in, and must see exactly it."""
    chosen = random.Random(seed)
    layout = RowLayout(1, [(int(TypeCode.INT8), -1), (int(TypeCode.TEXT), -1)])
    table = MemTable()
    runs = Runs(layout, [(False, [(table, None)])])
    rows: dict[bytes, bytes] = {}
    published: list[tuple[int, int, int]] = [(0, 0, 0)]  # timestamp, rows, the sum of their bytes
    done = threading.Event()
    failures: list[str] = []

    def reads(name: str, ts: int) -> tuple[int, int | None]:
        if name == "walk":
            return walk(table, ts)
        if name == "walk_back":
            walk_back(table)
            return walk(table, ts)
        if name == "seek":
            keys = b"".join(struct.pack(">Q", n) for n in range(4096))
            return seek_each(table, keys, 8, ts), None
        batches = scan_batches(runs, [0, 1], [pa.int64(), pa.string()], ts)
        return sum(batch.num_rows for batch in batches), None

    def reader(name: str) -> None:
        try:
            while not done.is_set():
                ts, count, total = published[-1]
                found = reads(name, ts)
                if found[0] != count or found[1] not in (None, total):
                    failures.append(f"{name} at {ts}: {found}, not {(count, total)}")
                    return
        except BaseException as error:
            failures.append(f"{name}: {error!r}")

    threads = [
        threading.Thread(target=reader, args=(name,))
        for name in ("walk", "walk_back", "seek", "scan")
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for ts in range(1, 60):
            row = layout.encode((ts, "x" * chosen.randrange(200)))
            keys = [struct.pack(">Q", chosen.randrange(4096)) for _ in range(400)]
            gone = keys[: chosen.randrange(100)] if chosen.random() < 0.5 else []
            bulk = b"".join(keys)
            insert_each(table, bulk, 8, row, ts)
            if gone:
                put_framed(table, framed(gone), None, len(gone), ts)
            rows.update(dict.fromkeys(keys, row))
            for key in gone:
                rows.pop(key, None)
            published.append((ts, len(rows), sum(sum(row) for row in rows.values())))
            assert get_each(table, bulk, 8, ts) == sum(key in rows for key in keys)
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert failures == []
