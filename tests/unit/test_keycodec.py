"""Keys: byte order is SQL order, decode is the inverse, prefixes and their successors."""

from __future__ import annotations

import math
from array import array
from decimal import Decimal
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardb._core.coreerror import CoreError
from shardb._core.keycodec import KeyCodec, prefix_successor
from shardb._core.rowcodec import RowLayout
from shardb.types import TypeCode, numeric_typmod
from tests.unit.test_rowcodec import CODES, VALUES

US_PER_DAY = 86_400_000_000
COLUMNS = st.tuples(st.sampled_from(CODES), st.just(-1), st.booleans(), st.booleans())


def rank(code: TypeCode, value: Any) -> Any:
    """What Python compares as SQL does."""
    if code in (TypeCode.FLOAT4, TypeCode.FLOAT8):
        return value + 0.0
    if code is TypeCode.INTERVAL:
        return (value[0] * 30 + value[1]) * US_PER_DAY + value[2]
    if code is TypeCode.BPCHAR:
        return value.rstrip(" ").encode()
    if isinstance(value, str):
        return value.encode()
    return value


def sql_order(columns: list[Any], left: tuple[Any, ...], right: tuple[Any, ...]) -> int:
    """NULL sorts last, or first in a descending column."""
    for (code, _, desc, _), a, b in zip(columns, left, right, strict=True):
        if a is None or b is None:
            order = (a is None) - (b is None)
        else:
            x, y = rank(code, a), rank(code, b)
            order = (x > y) - (x < y)
        if order:
            return -order if desc else order
    return 0


def vectors(columns: list[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(
        *(VALUES[code] | st.none() if null else VALUES[code] for code, _, _, null in columns)
    )


KEYS = st.lists(COLUMNS, min_size=1, max_size=4).flatmap(
    lambda columns: st.tuples(st.just(columns), vectors(columns), vectors(columns))
)


@given(KEYS)
def test_byte_order_is_sql_order(case: Any) -> None:
    columns, left, right = case
    codec = KeyCodec(columns)
    a, b = codec.encode(left), codec.encode(right)
    assert (a > b) - (a < b) == sql_order(columns, left, right)


@given(KEYS)
def test_decode_is_the_inverse(case: Any) -> None:
    columns, values, _ = case
    codec = KeyCodec(columns)
    found = codec.decode(codec.encode(values))
    assert sql_order(columns, values, found) == 0


@given(KEYS)
def test_prefixes_cover_their_keys(case: Any) -> None:
    columns, left, right = case
    codec = KeyCodec(columns)
    prefix = codec.encode_prefix(left[:1])
    key = codec.encode((*left[:1], *right[1:]))
    assert key.startswith(prefix)
    after = prefix_successor(prefix)
    assert prefix <= key and (after == b"" or key < after)


@given(st.binary(max_size=6), st.binary(max_size=3), st.binary(max_size=6))
def test_successor_is_the_least_bound(prefix: bytes, tail: bytes, other: bytes) -> None:
    after = prefix_successor(prefix)
    if after:
        assert prefix + tail < after
        if prefix <= other < after:
            assert other.startswith(prefix)
    else:
        assert set(prefix) <= {0xFF}


@given(st.lists(COLUMNS, min_size=1, max_size=3), st.binary(max_size=40))
def test_damaged_keys_are_refused(columns: list[Any], data: bytes) -> None:
    codec = KeyCodec(columns)
    try:
        values = codec.decode(data)
    except CoreError as error:
        assert error.sqlstate == "XX001"
    except UnicodeDecodeError:
        pass
    else:
        assert len(values) <= codec.count


def test_golden_bytes() -> None:
    codec = KeyCodec(
        [
            (TypeCode.INT4, -1, False, False),
            (TypeCode.BYTEA, -1, False, True),
            (TypeCode.INT2, -1, True, True),
        ]
    )
    assert codec.encode((-1, b"a\0b", 1)).hex() == "7fffffff016100ff620001fe7ffe"
    assert codec.encode((1, None, None)).hex() == "8000000102fd"
    numeric = KeyCodec([(TypeCode.NUMERIC, -1, False, False)])
    assert numeric.encode((Decimal("-1"),)).hex() == "7fffffffffffffffffdc790d903f0000"


def test_keys_of_rows() -> None:
    layout = RowLayout(2, [(TypeCode.TEXT, -1), (TypeCode.INT8, -1), (TypeCode.UUID, -1)])
    codec = KeyCodec([(TypeCode.INT8, -1, True, False), (TypeCode.TEXT, -1, False, False)])
    rows = [layout.encode((f"r{i}", i * 7 - 30, None)) for i in range(10)]
    ends = array("Q", [0])
    for row in rows:
        ends.append(ends[-1] + len(row))
    keys, key_ends = codec.keys_from_rows(layout, (1, 0), b"".join(rows), ends)
    found = [keys[key_ends[i] : key_ends[i + 1]] for i in range(10)]
    assert found == [codec.encode((i * 7 - 30, f"r{i}")) for i in range(10)]
    assert codec.key_of_row(layout, (1, 0), rows[3]) == found[3]
    null = layout.encode((None, 1, None))
    with pytest.raises(CoreError) as caught:
        codec.key_of_row(layout, (1, 0), null)
    assert caught.value.sqlstate == "23502"
    with pytest.raises(ValueError):
        codec.key_of_row(layout, (0, 1), rows[0])


FLOATS = st.floats() | st.sampled_from([0.0, -0.0, float("nan"), float("inf"), -float("inf")])


@given(FLOATS, FLOATS, st.booleans())
def test_floats_have_one_order_with_nan_last(left: float, right: float, desc: bool) -> None:
    codec = KeyCodec([(TypeCode.FLOAT8, -1, desc, False)])
    a, b = codec.encode((left,)), codec.encode((right,))
    x, y = ((math.isnan(value), 0.0 if math.isnan(value) else value) for value in (left, right))
    order = (x > y) - (x < y)
    assert (a > b) - (a < b) == (-order if desc else order)


@given(st.integers(0, 12), st.data())
def test_numerics_are_ordered_at_the_scale_of_their_column(scale: int, data: st.DataObject) -> None:
    values = st.decimals(-(10**9), 10**9, places=data.draw(st.integers(0, scale)))
    codec = KeyCodec([(TypeCode.NUMERIC, numeric_typmod((30, scale)), False, True)])
    left, right = data.draw(values), data.draw(values)
    a, b = codec.encode((left,)), codec.encode((right,))
    assert (a > b) - (a < b) == (left > right) - (left < right)
    assert codec.decode(a) == (left,)


@given(
    st.lists(COLUMNS, min_size=1, max_size=5).flatmap(
        lambda columns: st.tuples(
            st.just(columns),
            st.lists(vectors(columns), min_size=1, max_size=6),
            st.permutations(range(len(columns))),
        )
    )
)
def test_keys_of_rows_are_those_of_their_values(case: Any) -> None:
    columns, values, order = case
    layout = RowLayout(1, [(code, typmod) for code, typmod, _, _ in columns])
    codec = KeyCodec([columns[position] for position in order])
    rows = [layout.encode(row) for row in values]
    expected = [codec.encode(tuple(row[position] for position in order)) for row in values]
    assert [codec.key_of_row(layout, tuple(order), row) for row in rows] == expected
    ends = array("Q", accumulate(map(len, rows), initial=0))
    keys, key_ends = codec.keys_from_rows(layout, tuple(order), b"".join(rows), ends)
    assert [keys[a:b] for a, b in pairwise(key_ends)] == expected
