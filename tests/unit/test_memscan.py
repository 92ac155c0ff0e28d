"""Scans to Arrow against the rows decoded one by one in Python."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardb._core.coreerror import CoreError
from shardb._core.memscan import scan_batches
from shardb._core.memtable import MemTable
from shardb._core.rowcodec import RowLayout
from shardb._core.runs import Runs
from shardb.types import TypeCode

NUMERIC_10_2 = (10 << 16 | 2) + 4
UTC = dt.UTC
COLUMNS: list[tuple[TypeCode, int, pa.DataType, st.SearchStrategy[object]]] = [
    (TypeCode.INT8, -1, pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (
        TypeCode.TEXT,
        -1,
        pa.string(),
        st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    ),
    (TypeCode.BOOL, -1, pa.bool_(), st.booleans()),
    (TypeCode.INT2, -1, pa.int16(), st.integers(-(2**15), 2**15 - 1)),
    (TypeCode.BYTEA, -1, pa.binary(), st.binary(max_size=30)),
    (TypeCode.INT4, -1, pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    (TypeCode.FLOAT8, -1, pa.float64(), st.floats(allow_nan=False)),
    (TypeCode.FLOAT4, -1, pa.float32(), st.floats(allow_nan=False, width=32)),
    (
        TypeCode.NUMERIC,
        NUMERIC_10_2,
        pa.decimal128(10, 2),
        st.integers(-(10**10) + 1, 10**10 - 1).map(lambda n: Decimal(n).scaleb(-2)),
    ),
    (TypeCode.DATE, -1, pa.date32(), st.dates()),
    (TypeCode.TIME, -1, pa.time64("us"), st.times()),
    (TypeCode.TIMESTAMP, -1, pa.timestamp("us"), st.datetimes()),
    (
        TypeCode.TIMESTAMPTZ,
        -1,
        pa.timestamp("us", "UTC"),
        st.datetimes(min_value=dt.datetime(1900, 1, 1), timezones=st.just(UTC)),
    ),
    (TypeCode.UUID, -1, pa.binary(16), st.uuids()),
    (TypeCode.JSONB, -1, pa.string(), st.sampled_from(["{}", '{"a": 1}', "[1, 2]"])),
]
LAYOUT = RowLayout(1, [(int(code), typmod) for code, typmod, _, _ in COLUMNS])
TYPES = [arrow for _, _, arrow, _ in COLUMNS]
ROW = st.tuples(*[st.one_of(st.none(), values) for *_, values in COLUMNS])
ALL = list(range(len(COLUMNS)))


def runs_of(table: MemTable, layout: RowLayout = LAYOUT) -> Runs:
    return Runs(layout, [(False, [(table, None)])])


def plain(value: object) -> object:
    """A Python value as Arrow's `to_pylist` gives it."""
    return value.bytes if isinstance(value, uuid.UUID) else value


def scanned(batches: list[pa.RecordBatch]) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for batch in batches:
        batch.validate(full=True)
        assert batch.num_rows > 0
        found += zip(*[column.to_pylist() for column in batch.columns], strict=True)
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.binary(max_size=2), st.one_of(st.none(), ROW)), max_size=40),
    st.dictionaries(st.binary(max_size=2), st.one_of(st.none(), ROW), max_size=8),
    st.lists(st.sampled_from(ALL), max_size=6),
    st.integers(0, 45),
    st.binary(max_size=1),
    st.binary(max_size=1),
    st.integers(1, 20),
)
def test_equals_the_rows_decoded_one_by_one(
    puts: list[tuple[bytes, tuple[object, ...] | None]],
    own: dict[bytes, tuple[object, ...] | None],
    columns: list[int],
    ts: int,
    start: bytes,
    end: bytes,
    batch_rows: int,
) -> None:
    table, overlay = MemTable(), MemTable()
    below: dict[bytes, tuple[tuple[object, ...] | None, int]] = {}
    for number, (key, row) in enumerate(puts, 1):
        table.put(key, None if row is None else LAYOUT.encode(row), number)
        if number <= ts:
            below[key] = (row, number)
    for key, row in own.items():
        overlay.put(key, None if row is None else LAYOUT.encode(row), 0)
    expected = []
    for key in sorted({*below, *own}):
        row = own[key] if key in own else below[key][0]
        if row is not None and key >= start and (not end or key < end):
            stamp = 0 if key in own else below[key][1]
            expected.append((*(plain(row[c]) for c in columns), key, stamp))
    batches = scan_batches(
        runs_of(table),
        columns,
        [TYPES[c] for c in columns],
        ts,
        start,
        end,
        with_key=True,
        overlay=overlay,
        batch_rows=batch_rows,
    )
    assert batches.schema.names == [*(f"c{c}" for c in columns), "_key", "_ts"]
    assert scanned(list(batches)) == expected


def test_no_columns_still_count_the_rows() -> None:
    table = MemTable()
    for number in range(10):
        table.put(b"%d" % number, LAYOUT.encode([None] * len(COLUMNS)), 1)
    batches = list(scan_batches(runs_of(table), [], [], 1, batch_rows=4))
    assert [batch.num_rows for batch in batches] == [4, 4, 2]
    assert list(scan_batches(runs_of(table), [], [], 0)) == []


def test_intervals_become_nanoseconds() -> None:
    layout = RowLayout(1, [(int(TypeCode.INTERVAL), -1)])
    table = MemTable()
    row = bytearray(layout.encode([None]))
    row[2] = 0
    row[3:19] = (1).to_bytes(4, "little") + (2).to_bytes(4, "little") + (3).to_bytes(8, "little")
    table.put(b"k", bytes(row), 1)
    (batch,) = scan_batches(runs_of(table, layout), [0], [pa.month_day_nano_interval()], 1)
    assert batch.column(0).to_pylist() == [pa.MonthDayNano([1, 2, 3000])]


@pytest.mark.parametrize(
    ("column", "arrow"),
    [
        (0, pa.int32()),
        (1, pa.large_string()),
        (8, pa.decimal128(10, 3)),
        (2, pa.int8()),
        (99, pa.int64()),
    ],
)
def test_an_arrow_type_of_another_layout_is_refused(column: int, arrow: pa.DataType) -> None:
    with pytest.raises(ValueError):
        scan_batches(runs_of(MemTable()), [column], [arrow], 1)


def test_a_batch_larger_than_memory_is_refused() -> None:
    with pytest.raises(MemoryError):
        scan_batches(runs_of(MemTable()), [0], [pa.int64()], 1, batch_rows=2**59 + 1)


@pytest.mark.parametrize(
    "row", [RowLayout(2, [(int(TypeCode.INT8), -1)]).encode([1]), b"", b"\1", b"\1\0\0"]
)
def test_a_row_of_an_unknown_schema_version_is_an_error(row: bytes) -> None:
    table = MemTable()
    table.put(b"k", row, 1)
    layout = RowLayout(1, [(int(TypeCode.INT8), -1)])
    with pytest.raises(CoreError) as caught:
        list(scan_batches(runs_of(table, layout), [0], [pa.int64()], 1))
    assert caught.value.sqlstate == "XX001"


def test_scans_beside_a_writer_see_exactly_their_snapshot() -> None:
    layout = RowLayout(1, [(int(TypeCode.INT8), -1), (int(TypeCode.TEXT), -1)])
    table = MemTable()
    rounds, keys = 60, 300
    published = 0
    failures: list[str] = []

    def read() -> None:
        while published < rounds:
            ts = published
            batches = scan_batches(runs_of(table, layout), [0, 1], [pa.int64(), pa.string()], ts)
            found = scanned(list(batches))
            if found != [(ts, f"at {ts}")] * (keys if ts else 0):
                failures.append(f"{len(found)} rows at {ts}")

    thread = threading.Thread(target=read)
    thread.start()
    for ts in range(1, rounds + 1):
        row = layout.encode([ts, f"at {ts}"])
        for number in range(keys):
            table.put(b"%d" % (number * 7919), row, ts)
        published = ts
    thread.join()
    assert failures == []
