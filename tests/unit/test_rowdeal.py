"""Rows dealt out to ranges: against keys and ranges found one row at a time."""

from __future__ import annotations

from bisect import bisect_right

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardb._core.coreerror import CoreError
from shardb._core.frames import join_items
from shardb._core.keycodec import KeyCodec
from shardb._core.rowcodec import RowLayout
from shardb._core.rowdeal import RowDealer
from shardb.types import TypeCode

LAYOUT = RowLayout(3, [(TypeCode.TEXT, -1), (TypeCode.INT4, -1), (TypeCode.TEXT, -1)])
KEY_AT = (1, 0)
NO_BOUND = 1 << 40
CODEC = KeyCodec([(TypeCode.INT4, -1, False, False), (TypeCode.TEXT, -1, False, False)])

Row = tuple[str, int, str | None]
rows_of_any_order = st.lists(
    st.tuples(
        st.text("abc", max_size=3), st.integers(-50, 50), st.none() | st.text("xyé", max_size=9)
    ),
    max_size=60,
)


def batch_of(rows: list[Row]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [[], [], []]
    types = (pa.string(), pa.int32(), pa.string())
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    return pa.record_batch(arrays, ["a", "b", "c"])


def dealer(
    starts: list[bytes],
    key_limit: int = 8192,
    row_limit: int = 1 << 20,
    batch_bytes: int = NO_BOUND,
    held_limit: int = NO_BOUND,
) -> RowDealer:
    return RowDealer(LAYOUT, CODEC, KEY_AT, starts, key_limit, row_limit, batch_bytes, held_limit)


@settings(max_examples=200, deadline=None)
@given(rows_of_any_order, st.sets(st.integers(-60, 60), max_size=5), st.booleans())
def test_rows_go_to_their_ranges(rows: list[Row], splits: set[int], ordered: bool) -> None:
    if ordered:
        rows.sort(key=lambda row: (row[1], row[0]))
    starts = [b"", *(CODEC.encode_prefix([split]) for split in sorted(splits))]
    dealing = dealer(starts)
    for part in (rows[:7], rows[7:]):
        assert dealing.deal_arrow(batch_of(part), 0) == len(part)
        expected: dict[int, tuple[list[bytes], list[bytes]]] = {}
        for a, b, c in part:
            key = CODEC.encode((b, a))
            keys, encoded = expected.setdefault(bisect_right(starts, key) - 1, ([], []))
            keys.append(key)
            encoded.append(LAYOUT.encode((a, b, c)))
        assert dealing.held == sum(
            len(item) + 4 for pair in expected.values() for items in pair for item in items
        )
        assert dealing.take() == []
        dealt = dealing.take(True)
        assert [(at, count, bytes(keys), bytes(encoded)) for at, count, keys, encoded in dealt] == [
            (at, len(keys), join_items(keys), join_items(encoded))
            for at, (keys, encoded) in sorted(expected.items())
        ]
        assert [len(keys) for _, _, keys, _ in dealt] == [
            memoryview(k).nbytes for _, _, k, _ in dealt
        ]
    assert dealing.take(True) == []
    assert dealing.held == 0


@pytest.mark.parametrize(
    ("row", "sqlstate", "message"),
    [
        (("a" * 20, 1, ""), "54000", "index row size 26 exceeds maximum of 20 bytes"),
        (("a", 1, "x" * 99), "54000", "row of 115 bytes exceeds maximum of 100 bytes"),
        (("a", None, ""), "23502", "null value in a key column"),
    ],
)
def test_what_cannot_be_stored_is_refused(row: Row, sqlstate: str, message: str) -> None:
    dealing = dealer([b""], 20, 100)
    with pytest.raises(CoreError) as caught:
        dealing.deal_arrow(batch_of([("a", 1, "fits"), row]), 0)
    assert (caught.value.sqlstate, caught.value.message) == (sqlstate, message)
    assert caught.value.row == 1  # type: ignore[attr-defined]


def test_blocks_cannot_be_changed() -> None:
    dealing = dealer([b""])
    dealing.deal_arrow(batch_of([("a", 1, None)]), 0)
    (_, _, keys, _) = dealing.take(True)[0]
    assert memoryview(keys).readonly


def batches(dealing: RowDealer, everything: bool = False) -> list[tuple[int, int]]:
    return [(at, count) for at, count, _, _ in dealing.take(everything)]


def test_a_full_batch_ends_with_the_row_that_filled_it() -> None:
    dealing = dealer([b""], batch_bytes=100)
    batch = batch_of([("a", number, "x" * 30) for number in range(5)])
    assert dealing.deal_arrow(batch, 1) == 3
    assert dealing.full
    assert dealing.deal_arrow(batch, 3) == 3
    assert batches(dealing) == [(0, 2)]
    assert dealing.deal_arrow(batch, 3) == 5
    assert batches(dealing, everything=True) == [(0, 2)]


def test_small_batches_wait_for_more() -> None:
    dealing = dealer([b"", CODEC.encode_prefix([100])], batch_bytes=200)
    batch = batch_of([("a", key, "x" * 30) for key in (100, 0, 1, 2, 3, 4, 5)])
    assert dealing.deal_arrow(batch, 0) == 5
    assert batches(dealing) == [(0, 4)]
    assert batches(dealing) == []
    assert dealing.deal_arrow(batch, 5) == 7
    assert not dealing.full
    assert batches(dealing) == []
    assert batches(dealing, everything=True) == [(0, 2), (1, 1)]


def test_all_together_are_bounded() -> None:
    starts = [b"", *(CODEC.encode_prefix([key]) for key in (100, 200, 300))]
    dealing = dealer(starts, batch_bytes=1000, held_limit=400)
    batch = batch_of([("a", key, "x" * 30) for key in (0, 100, 101, 200, 201, 202, 300, 301)])
    assert dealing.deal_arrow(batch, 0) == 7
    assert dealing.held >= 400
    assert batches(dealing) == [(1, 2), (2, 3)]
    assert dealing.deal_arrow(batch, 7) == 8
    assert batches(dealing, everything=True) == [(0, 1), (3, 2)]
