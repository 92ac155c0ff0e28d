"""Scans over memtables and segment files give what plain Python says is visible."""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardb._core.coreerror import CoreError
from shardb._core.keycodec import KeyCodec
from shardb._core.memtable import MemTable
from shardb._core.runs import Runs
from shardb._core.segment import Segment
from shardb._core.shadow import Shadows
from shardb.storage.scan import TabletScan, scan_runs
from shardb.storage.segmentformat import SegmentIndex, SegmentMeta
from shardb.types import TypeCode
from tests.support.tablet_model import (
    LAYOUTS,
    VERSIONS,
    TabletModel,
    Values,
    Version,
    arrow_types,
    cells,
    make_memtable,
    open_segment,
    row_map,
    segment_bytes,
    write_segment,
)

if TYPE_CHECKING:
    from shardb._core.runs import Run

INT8_KEY = KeyCodec([(int(TypeCode.INT8), -1, False, False)])
KEYS = st.sampled_from([b"", b"a", b"a\0", b"ab", b"b", b"ba", b"bb", b"c", b"ca", b"\xff"])
VALUES = st.fixed_dictionaries(
    {
        1: st.none() | st.integers(-3, 3),
        2: st.none() | st.text("ab€", max_size=3),
        3: st.none() | st.booleans(),
        4: st.none() | st.integers(-999, 999).map(lambda n: Decimal(n).scaleb(-2)),
        5: st.none() | st.integers(-3, 3),
        6: st.none() | st.text("xy", max_size=12),
        7: st.none() | st.floats(allow_nan=False),
    }
)
WRITES = st.dictionaries(KEYS, st.none() | VALUES, min_size=1, max_size=6)
STEPS = st.lists(
    st.sampled_from(
        [*["put"] * 4, *["flush"] * 2, "freeze", "again", "link", "compact", "alter", "clear"]
    ),
    min_size=3,
    max_size=25,
)


def only_of(version: int, values: Values | None) -> Values | None:
    """What is left of a row in a version of the table."""
    return None if values is None else {c: values[c] for c in VERSIONS[version] if c in values}


def step(data: st.DataObject, model: TabletModel, name: str) -> None:
    if name == "put":
        rows = data.draw(WRITES)
        model.put({key: only_of(model.version, values) for key, values in rows.items()})
    elif name == "again":
        newest = {
            key: versions[-1][1]
            for key, versions in model.history.items()
            if versions[-1][0] == model.ts
        }
        before = model.runs[min(1, len(model.runs) - 1)]
        if not before.link_ts and before.version == model.version:
            model.put(newest, again=True)
    elif name == "freeze":
        model.freeze()
    elif name == "clear":
        model.shadows.clear()
    elif name == "alter":
        model.alter(data.draw(st.sampled_from([v for v in VERSIONS if v >= model.version])))
    elif name == "link":
        rows = data.draw(WRITES)
        model.link([(k, 1, only_of(model.version, v)) for k, v in rows.items()], data.draw(KEYS))
    else:
        if name == "flush":
            model.freeze()
            able = [at for at, run in enumerate(model.runs) if at and run.is_memtable]
        else:
            flags = [run.is_memtable for run in model.runs]
            able = [at for at in range(1, len(flags) - 1) if not (flags[at] or flags[at + 1])]
        if able:
            call = model.flush if name == "flush" else model.compact
            call(data.draw(st.sampled_from(able)), data.draw(KEYS), data.draw(st.booleans()))


def own_runs(
    data: st.DataObject, model: TabletModel, target: int
) -> tuple[list[Run], dict[bytes, Values | None]]:
    """A transaction's own memtable and segments, newest first, and what they say together."""
    runs: list[Run] = []
    own: dict[bytes, Values | None] = {}
    for number in range(data.draw(st.integers(0, 2))):
        version = data.draw(st.sampled_from(list(VERSIONS)))
        writes: list[dict[bytes, Values | None]] = data.draw(
            st.lists(WRITES, min_size=1, max_size=2)
        )
        rows: list[Version] = [
            (key, statement, only_of(version, values))
            for statement, of in enumerate(writes, 1)
            for key, values in of.items()
        ]
        own.update({key: values for key, _, values in rows})
        sources: list[Any] = [make_memtable(rows, version)]
        if data.draw(st.booleans()):
            model.number += 1000 + number
            sources = model.segments(rows, version, data.draw(KEYS))
        runs.insert(0, (True, [(source, row_map(version, target)) for source in sources]))
    return runs, own


def drawn(scan: TabletScan, batch_rows: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for batch in scan:
        batch.validate(full=True)
        assert batch.schema == scan.schema
        assert 0 < batch.num_rows <= batch_rows
        rows += batch.to_pylist()
    return rows


def is_within(values: Values, version: int, bounds: list[tuple[int, Any, Any]]) -> bool:
    row = cells(values, version)
    return all(
        row[at] is not None
        and (low is None or row[at] >= low)
        and (high is None or row[at] <= high)
        for at, low, high in bounds
        if low is not None or high is not None
    )


def encoded(value: int | None) -> bytes:
    return b"" if value is None else INT8_KEY.encode([value])


def check_scan(data: st.DataObject, model: TabletModel) -> None:
    target = data.draw(st.sampled_from(list(VERSIONS)))
    runs, own = own_runs(data, model, target) if data.draw(st.booleans()) else ([], {})
    overlay: dict[bytes, bytes | None] = {}
    for key, values in data.draw(st.dictionaries(KEYS, st.none() | VALUES, max_size=3)).items():
        own[key] = only_of(target, values)
        row = None if values is None else LAYOUTS[target].encode(cells(values, target))
        overlay[key] = row
    columns = data.draw(st.lists(st.integers(0, 3), max_size=4, unique=True))
    ts = data.draw(st.integers(0, model.ts) | st.just(model.ts))
    start, end = data.draw(KEYS), data.draw(KEYS)
    batch_rows = data.draw(st.integers(1, 9))
    numbers = [at for at, c in enumerate(VERSIONS[target]) if c in (1, 5)]
    limit = st.none() | st.integers(-3, 3)
    bounds = data.draw(
        st.just([])
        | st.lists(st.tuples(st.sampled_from(numbers), limit, limit), min_size=1, max_size=2)
    )
    ordered = data.draw(st.booleans())
    with_key = data.draw(st.booleans()) or bool(bounds)
    scan = scan_runs(
        model.view(target, runs),
        columns,
        arrow_types(target, columns),
        ts,
        start,
        end,
        with_key,
        overlay,
        batch_rows,
        [(at, encoded(low), encoded(high)) for at, low, high in bounds],
        ordered,
        shadows=model.shadows,
    )
    found = drawn(scan, batch_rows)
    visible = {
        key: of
        for key, of in model.visible(ts, own).items()
        if key >= start and (not end or key < end)
    }
    expected = []
    for key, (values, stamp) in visible.items():
        row = {f"c{c}": cells(values, target)[c] for c in columns}
        if with_key:
            row |= {"_key": key, "_ts": stamp}
        expected.append(row or {"_rows": None})
    if bounds:
        keys = [row["_key"] for row in found]
        assert len(set(keys)) == len(keys)
        expected = [
            row
            for row in expected
            if row["_key"] in keys or is_within(visible[row["_key"]][0], target, bounds)
        ]
    if not ordered:
        found.sort(key=lambda row: repr(row) if not with_key else row["_key"])
        expected.sort(key=lambda row: repr(row) if not with_key else row["_key"])
    assert found == expected


@settings(max_examples=300, deadline=None)
@given(st.data(), STEPS, st.integers(1, 5), st.sampled_from(["", "", "lz4"]))
def test_scans_give_what_is_visible_whatever_the_runs(
    data: st.DataObject, steps: list[str], group_rows: int, codec: str
) -> None:
    model = TabletModel(group_rows, codec)
    for name in steps:
        step(data, model, name)
        if data.draw(st.booleans()):
            check_scan(data, model)
    check_scan(data, model)


# --- beside a writer


def test_scans_beside_a_writer_see_exactly_their_snapshot() -> None:
    """Each commit overwrites some keys of a segment and adds others; its rows say its number."""
    model = TabletModel(group_rows=64, codec="")
    keys = [b"%04d" % number for number in range(0, 1000, 2)]
    model.put({key: {1: 1} for key in keys})
    model.flush_all()
    runs, memtable = model.view(1), model.runs[0].sources[0]
    assert isinstance(memtable, MemTable)
    written: list[dict[bytes, int]] = [{}, dict.fromkeys(keys, 1)]
    failures: list[str] = []
    rounds = 120

    def read() -> None:
        while len(written) <= rounds:
            ts = len(written) - 1
            expected = written[ts]
            scan = scan_runs(
                runs,
                [0],
                [pa.int64()],
                ts,
                with_key=True,
                shadows=model.shadows,
                ordered=ts % 2 == 0,
            )
            found = {row["_key"]: row["c0"] for row in drawn(scan, 65536)}
            if found != expected:
                failures.append(f"{len(found)} rows at {ts}, {len(expected)} expected")

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for ts in range(2, rounds + 1):
        rows = {b"%04d" % (number * ts * 7919 % 1000): ts for number in range(20)}
        for key in rows:
            memtable.put(key, LAYOUTS[1].encode(cells({1: ts}, 1)), ts)
        written.append(written[-1] | rows)
    written.append(written[-1])
    for thread in threads:
        thread.join()
    assert failures == []


# --- what a scan reads, and what it says of damage


ROWS: list[Version] = [(b"%02d" % n, 1, {1: n, 2: f"row {n}"}) for n in range(16)]


def scan_one(segment: Segment, columns: list[int], **more: Any) -> list[dict[str, Any]]:
    runs = Runs(LAYOUTS[1], [(False, [(MemTable(), None)]), (False, [(segment, None)])])
    types = arrow_types(1, columns)
    return drawn(scan_runs(runs, columns, types, 5, shadows=Shadows(1 << 20), **more), 65536)


def damaged(group: int, column: int) -> Segment:
    """A segment of ROWS in groups of four with a flipped bit in a column of a row group."""
    whole = write_segment(ROWS, 1, 1, 4)
    assert isinstance(whole.meta, SegmentMeta)
    assert isinstance(whole.index, SegmentIndex)
    data = bytearray(segment_bytes(ROWS, 1, 1, 4)[1])
    data[whole.index.groups[group].chunks[column].values_at] ^= 1
    return open_segment(whole.meta, bytes(data))


def test_a_damaged_column_fails_the_scans_that_read_it_and_no_others() -> None:
    segment = damaged(2, 4)  # the text
    assert [row["c0"] for row in scan_one(segment, [0])] == list(range(16))
    assert len(scan_one(segment, [1], start=b"12")) == 4
    for more in ({}, {"ordered": True}, {"start": b"08", "end": b"09"}):
        with pytest.raises(CoreError, match=r"XX001.*segment 1.*column2.*row group 2"):
            scan_one(segment, [0, 1], **more)


def test_bounds_leave_groups_unread_that_cannot_satisfy_them() -> None:
    segment = damaged(2, 3)  # the integer
    low, high = INT8_KEY.encode([12]), INT8_KEY.encode([7])
    assert [row["c0"] for row in scan_one(segment, [0], bounds=[(0, low, b"")])] == [12, 13, 14, 15]
    assert [row["c0"] for row in scan_one(segment, [0], bounds=[(0, b"", high)])] == list(range(8))
    assert scan_one(segment, [1], bounds=[(3, low, b"")]) == []  # all NULL
    with pytest.raises(CoreError, match="XX001"):
        scan_one(segment, [0], bounds=[(0, INT8_KEY.encode([11]), b"")])


def test_what_is_not_overwritten_is_not_copied() -> None:
    segment = write_segment(ROWS, 1, 1, 4)
    memtable = make_memtable([(b"05", 3, {1: 55, 2: None})], 1)
    runs = Runs(LAYOUTS[1], [(False, [(memtable, None)]), (False, [(segment, None)])])
    index = segment.index
    assert isinstance(index, SegmentIndex)
    places = {group.chunks[3].values_at for group in index.groups}
    file = (
        segment.array(0, 3, pa.int64()).buffers()[1].address - index.groups[0].chunks[3].values_at
    )
    scan = scan_runs(runs, [0], [pa.int64()], 5, shadows=Shadows(1 << 20))
    batches = list(scan)
    assert [batch.num_rows for batch in batches] == [1, 4, 3, 4, 4]
    shared = [batch.column(0).buffers()[1].address - file in places for batch in batches]
    assert shared == [False, True, False, True, True]


def test_what_is_known_of_a_memtable_is_taken_over_when_it_is_flushed() -> None:
    model = TabletModel(4, "")
    model.put({key: values for key, _, values in ROWS})
    model.flush_all()
    model.put({b"03": {1: 33}})

    def count() -> int:
        scan = scan_runs(model.view(1), [0], [pa.int64()], model.ts, shadows=model.shadows)
        return len(drawn(scan, 65536))

    assert count() == 16
    assert model.shadows.marks == 1
    model.put({b"04": None, b"99": {1: 99}})
    model.freeze()
    model.flush(1, b"", True)
    assert count() == 16
    assert model.shadows.marks == 2
    model.shadows.clear()
    assert model.shadows.marks == model.shadows.memory_bytes == 0
    assert count() == 16
    assert model.shadows.marks == 2


def test_what_is_remembered_is_bounded() -> None:
    model = TabletModel(4, "")
    model.shadows = Shadows(1)
    for number in range(3):
        model.put({key: {1: number} for key, _, _ in ROWS})
        model.flush_all()
    for shadows in (model.shadows, unbounded := Shadows(1 << 20)):
        scan = scan_runs(model.view(1), [0], [pa.int64()], 3, shadows=shadows)
        assert {row["c0"] for row in drawn(scan, 65536)} == {2}
    assert model.shadows.memory_bytes < unbounded.memory_bytes


def test_what_is_remembered_of_rows_that_change_again_and_again_is_no_more_than_of_others() -> None:
    model = TabletModel(1000, "")
    keys = [b"%03d" % number for number in range(200)]
    model.put({key: {1: 0} for key in keys})
    model.flush_all()
    for number in range(1, 60):
        model.put({keys[number * at % 200]: {1: number} for at in range(1, 9)})
        if number % 5 == 0:
            model.freeze()
        for ts in (model.ts, max(model.ts - 7, 0)):
            scan = scan_runs(
                model.view(1), [0], [pa.int64()], ts, with_key=True, shadows=model.shadows
            )
            found = {row["_key"]: (row["c0"], row["_ts"]) for row in drawn(scan, 65536)}
            visible = model.visible(ts, {}).items()
            assert found == {key: (values[1], stamp) for key, (values, stamp) in visible}
    assert model.shadows.marks <= 200


def test_long_pieces_are_merged_in_order() -> None:
    model = TabletModel(20_000, "")
    model.put({b"%05d" % number: {1: number} for number in range(30_000)})
    model.flush_all()
    model.put({b"%05d" % number: {1: -number} for number in (0, 3, 11_000, 29_999)})
    model.put({b"2%04dx" % number: {1: 7} for number in range(0, 9_000, 3)})
    for with_key in (False, True):
        scan = scan_runs(
            model.view(1),
            [0],
            [pa.int64()],
            model.ts,
            b"00001",
            with_key=with_key,
            ordered=True,
            shadows=model.shadows,
        )
        visible = list(model.visible(model.ts, {}).items())[1:]
        found = drawn(scan, 65536)
        assert [row["c0"] for row in found] == [values[1] for _, (values, _) in visible]
        if with_key:
            assert [(row["_key"], row["_ts"]) for row in found] == [
                (key, stamp) for key, (_, stamp) in visible
            ]
