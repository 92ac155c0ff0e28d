"""Merged runs against the same versions sorted and collected in Python."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardb._core.coreerror import CoreError
from shardb._core.memtable import MemTable
from shardb._core.rowcodec import RowLayout
from shardb._core.rowmap import RowMap
from shardb._core.runmerge import RunMerge
from shardb._core.segment import Segment
from shardb.types import TypeCode, arrow_type
from tests.support.segments import segment_of

VALUES: dict[TypeCode, st.SearchStrategy[object]] = {
    TypeCode.BOOL: st.booleans(),
    TypeCode.INT2: st.integers(-(2**15), 2**15 - 1),
    TypeCode.INT4: st.integers(-(2**31), 2**31 - 1),
    TypeCode.INT8: st.integers(-(2**63), 2**63 - 1),
    TypeCode.NUMERIC: st.decimals(-1000, 1000, places=2),
    TypeCode.TEXT: st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9),
    TypeCode.BYTEA: st.binary(max_size=9),
}
Values = tuple[object, ...]
Row = tuple[object, ...]  # key, timestamp, deleted, values


@dataclass(frozen=True)
class Shape:
    """A table's columns at some time: their numbers and types, and what old rows have there."""

    version: int
    columns: tuple[tuple[int, TypeCode, object], ...]

    @property
    def layout(self) -> RowLayout:
        return RowLayout(self.version, [(int(code), -1) for _, code, _ in self.columns])

    def map_to(self, target: Shape) -> RowMap:
        numbers = [number for number, _, _ in self.columns]
        places = [numbers.index(n) if n in numbers else -1 for n, _, _ in target.columns]
        missing = target.layout.encode([value for _, _, value in target.columns])
        return RowMap(self.layout, target.layout, places, missing)

    def convert(self, row: Values, target: Shape) -> Values:
        by_number = {number: value for (number, _, _), value in zip(self.columns, row, strict=True)}
        return tuple(by_number.get(number, default) for number, _, default in target.columns)


def merged(
    sources: list[tuple[MemTable | Segment, RowMap | None]], shape: Shape, **options: object
) -> RunMerge:
    return RunMerge(
        sources,
        shape.layout,
        [f"c{number}" for number, _, _ in shape.columns],
        [arrow_type(int(code)) for _, code, _ in shape.columns],
        **options,  # type: ignore[arg-type]
    )


def rows_of(batches: RunMerge | list[pa.RecordBatch], group_rows: int = 65536) -> list[Row]:
    found: list[Row] = []
    for batch in batches:
        batch.validate(full=True)
        assert 0 < batch.num_rows <= group_rows
        found += zip(*[column.to_pylist() for column in batch.columns], strict=True)
    return found


KEYS = st.binary(max_size=2) | st.sampled_from([b"a-long-key-%d" % n for n in range(9)])


@st.composite
def shapes(draw: st.DrawFn) -> list[Shape]:
    """A table's shapes, newest first: columns come and go, a number is never used again."""
    columns: list[tuple[int, TypeCode, object]] = []
    found: list[Shape] = []
    number = 0
    for version in range(draw(st.integers(1, 3))):
        columns = [column for column in columns if draw(st.integers(0, 3))]
        for code in draw(st.lists(st.sampled_from(list(VALUES)), max_size=4)):
            columns.insert(
                draw(st.integers(0, len(columns))),
                (number, code, draw(st.none() | VALUES[code])),
            )
            number += 1
        found.insert(0, Shape(version, tuple(columns)))
    return found


def memtable_of(versions: dict[tuple[bytes, int], Values | None], shape: Shape) -> MemTable:
    table = MemTable()
    for (key, ts), row in sorted(versions.items(), key=lambda item: item[0][1]):
        table.put(key, None if row is None else shape.layout.encode(row), ts)
    return table


def draw_run(
    draw: st.DrawFn, shape: Shape, first_ts: int
) -> tuple[MemTable | Segment, dict[tuple[bytes, int], Values | None]]:
    """A run with some versions at timestamps from `first_ts` on."""
    row = st.tuples(*[st.none() | VALUES[code] for _, code, _ in shape.columns])
    kind = draw(st.sampled_from(["memtable", "segment", "lz4", "linked"]))
    places = st.tuples(KEYS, st.integers(first_ts, first_ts + 3))
    versions = draw(st.dictionaries(places, st.none() | row, max_size=30))
    table = memtable_of(versions, shape)
    if kind == "memtable" or not versions:
        return table, versions
    batches = list(merged([(table, None)], shape, group_rows=draw(st.integers(1, 12))))
    if kind != "linked":
        codec = "lz4" if kind == "lz4" else ""
        return segment_of(batches, shape.layout, codec=codec), versions
    # Its timestamps are numbers of statements; the transaction's last ones count.
    link_ts = first_ts + 1
    linked = {(key, link_ts): versions[key, ts] for key, ts in sorted(versions)}
    return segment_of(batches, shape.layout, link_ts=link_ts), linked


def expected_rows(
    history: dict[bytes, dict[int, Values | None]], width: int, gc_ts: int, drop: bool
) -> list[Row]:
    found: list[Row] = []
    for key in sorted(history):
        settled = False
        for ts in sorted(history[key], reverse=True):
            row = history[key][ts]
            if settled:
                break
            settled = 0 < ts <= gc_ts
            if not (settled and drop and row is None):
                found.append((key, ts, row is None, *(row or (None,) * width)))
    return found


@settings(max_examples=400, deadline=None)
@given(st.data(), shapes(), st.integers(0, 30), st.booleans(), st.integers(1, 20), KEYS, KEYS)
def test_equals_versions_sorted_and_collected_in_python(
    data: st.DataObject,
    history_of_shapes: list[Shape],
    gc_ts: int,
    drop: bool,
    group_rows: int,
    start: bytes,
    end: bytes,
) -> None:
    target = history_of_shapes[0]
    sources: list[tuple[MemTable | Segment, RowMap | None]] = []
    history: dict[bytes, dict[int, Values | None]] = {}
    count = data.draw(st.integers(0, 6))
    for rank in range(count):
        shape = history_of_shapes[rank * len(history_of_shapes) // count]
        # Each run's versions are newer than the next one's, but for one timestamp that both have.
        run, versions = draw_run(data.draw, shape, 3 * (count - rank))
        sources.append((run, None if shape is target else shape.map_to(target)))
        for (key, ts), row in versions.items():
            if start <= key and (not end or key < end):
                value = None if row is None else shape.convert(row, target)
                history.setdefault(key, {}).setdefault(ts, value)
    batches = merged(
        sources,
        target,
        gc_ts=gc_ts,
        drop_tombstones=drop,
        start=start,
        end=end,
        group_rows=group_rows,
        group_bytes=data.draw(st.sampled_from([1, 200, 1 << 20])),
    )
    expected = expected_rows(history, len(target.columns), gc_ts, drop)
    assert rows_of(batches, group_rows) == expected
    assert next(batches, None) is None


INT = Shape(1, ((0, TypeCode.INT8, None),))


def numbered(numbers: range, ts: int = 1) -> MemTable:
    return memtable_of({(n.to_bytes(4, "big"), ts): (n,) for n in numbers}, INT)


def test_runs_that_hardly_overlap_come_out_in_order() -> None:
    runs = [numbered(range(low, low + 5000)) for low in (0, 4990, 20_000, 15_005)]
    segments = [segment_of(merged([(run, None)], INT, group_rows=700), INT.layout) for run in runs]
    expected = [
        (n.to_bytes(4, "big"), 1, False, n)
        for n in [*range(9990), *range(15_005, 20_005), *range(20_005, 25_000)]
    ]
    for sources in (runs, segments, [runs[0], *segments[1:]]):
        assert rows_of(merged([(run, None) for run in sources], INT, group_rows=900)) == expected


def test_batches_hold_to_their_bytes() -> None:
    shape = Shape(1, ((0, TypeCode.TEXT, None),))
    versions = {(n.to_bytes(4, "big"), 1): ("x" * (n % 1000),) for n in range(3000)}
    table = memtable_of(versions, shape)
    segment = segment_of(merged([(table, None)], shape), shape.layout)
    for run in (table, segment):
        batches = list(merged([(run, None)], shape, group_bytes=100_000))
        assert max(batch.nbytes for batch in batches) < 101_100
        assert 10 < len(batches) < 40
        assert sum(batch.num_rows for batch in batches) == 3000


def test_defaults_of_added_columns_count_as_bytes() -> None:
    target = Shape(2, ((0, TypeCode.INT8, None), (1, TypeCode.TEXT, "d" * 50_000)))
    table = numbered(range(500))
    for run in (table, segment_of(merged([(table, None)], INT), INT.layout)):
        batches = list(merged([(run, INT.map_to(target))], target, group_bytes=1 << 20))
        assert max(batch.nbytes for batch in batches) < (1 << 20) + 60_000
        assert sum(batch.num_rows for batch in batches) == 500
        assert batches[0]["c1"][0].as_py() == "d" * 50_000


def test_trimmed_columns_stay_while_they_are_merged() -> None:
    segment = segment_of(
        merged([(numbered(range(5000)), None)], INT, group_rows=1000), INT.layout, codec="zstd"
    )
    found: list[Row] = []
    for batch in merged([(segment, None)], INT, group_rows=300):
        segment.trim()
        found += rows_of([batch])
    assert [row[3] for row in found] == list(range(5000))


def test_a_merge_can_be_cancelled_from_another_thread() -> None:
    batches = merged([(numbered(range(50_000)), None)], INT, group_rows=10)
    next(batches)
    thread = threading.Thread(target=batches.cancel)
    thread.start()
    with pytest.raises(CoreError) as caught:
        for _ in batches:
            pass
    thread.join()
    assert caught.value.sqlstate == "57014"
    with pytest.raises(AssertionError):
        next(batches)


def test_rows_of_another_layout_are_damage() -> None:
    other = Shape(2, INT.columns)
    with pytest.raises(CoreError) as caught:
        list(merged([(numbered(range(3)), None)], other))
    assert caught.value.sqlstate == "XX001"


def test_damage_in_a_segment_is_found() -> None:
    batches = list(merged([(numbered(range(5000)), None)], INT, group_rows=1000))
    good = segment_of(batches, INT.layout)
    data = bytearray(good.array(0, 3, pa.int64()).buffers()[1].parent.to_pybytes())
    data[good.index.groups[3].chunks[3].values_at + 8] ^= 1
    bad = Segment(good.meta, good.index, pa.py_buffer(bytes(data)), "bad.arrow")
    with pytest.raises(CoreError, match=r"bad\.arrow") as caught:
        list(merged([(bad, None)], INT))
    assert caught.value.sqlstate == "XX001"
