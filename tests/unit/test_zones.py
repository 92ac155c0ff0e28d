"""Zone maps: the least and the largest key encoding of a column, by KeyCodec."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardb._core.keycodec import KeyCodec, prefix_successor
from shardb._core.zones import STRING_MAX_BYTES, scan_rows, zone_map
from shardb.types import TypeCode, arrow_type
from tests.unit.test_rowcodec import CODES, VALUES, natural

STRINGS = (TypeCode.TEXT, TypeCode.VARCHAR, TypeCode.BPCHAR, TypeCode.BYTEA)
UNORDERED = (TypeCode.INTERVAL, TypeCode.JSON, TypeCode.JSONB)
LONG = st.lists(st.sampled_from("a ~\x1f\x7fé"), min_size=20, max_size=36).map("".join)
LONG_BYTES = st.builds(
    bytes.__add__, st.sampled_from((b"a" * 30, b"\xff" * 30)), st.binary(max_size=4)
)


def column_of(code: TypeCode) -> st.SearchStrategy[Any]:
    values = VALUES[code]
    if code is TypeCode.BYTEA:
        values |= LONG_BYTES
    elif code in STRINGS:
        values |= LONG
    return st.tuples(st.just(code), st.lists(st.none() | values, max_size=12))


def zone_of(code: TypeCode, values: list[Any], typmod: int = -1) -> tuple[bytes, bytes]:
    array = pa.array([natural(code, value) for value in values], arrow_type(code, typmod))
    validity, *rest = array.buffers()
    offsets = rest[0] if len(rest) == 2 else None
    return zone_map(code, typmod, len(values), validity, offsets, rest[-1])


def encode(code: TypeCode, value: Any) -> bytes:
    return KeyCodec([(code, -1, False, False)]).encode([value])


def raw(code: TypeCode, value: Any) -> bytes:
    if code is TypeCode.BPCHAR:
        value = value.rstrip(" ")
    return value if code is TypeCode.BYTEA else value.encode()


def expected_zone(code: TypeCode, values: list[Any]) -> tuple[bytes, bytes]:
    present = [value for value in values if value is not None]
    if not present or code in UNORDERED:
        return b"", b""
    if code not in STRINGS:
        keys = [encode(code, value) for value in present]
        return min(keys), max(keys)
    strings = [raw(code, value) for value in present]
    low, high = min(strings)[:STRING_MAX_BYTES], max(strings)
    if len(high) > STRING_MAX_BYTES:
        high = prefix_successor(high[:STRING_MAX_BYTES])
        if not high:
            return encode(TypeCode.BYTEA, low), b""
    return encode(TypeCode.BYTEA, low), encode(TypeCode.BYTEA, high)


@given(st.sampled_from(CODES).flatmap(column_of))
def test_zone_is_that_of_the_keys(case: Any) -> None:
    code, values = case
    low, high = zone_of(code, values)
    assert (low, high) == expected_zone(code, values)
    if low:
        keys = [encode(code, value) for value in values if value is not None]
        assert all(low <= key for key in keys)
        assert not high or all(key <= high for key in keys)


def test_long_strings_without_a_bound_above() -> None:
    low, high = zone_of(TypeCode.BYTEA, [b"\xff" * 40, b"\xff" * 33])
    assert low == encode(TypeCode.BYTEA, b"\xff" * 32)
    assert high == b""


@pytest.mark.parametrize("code", [TypeCode.FLOAT4, TypeCode.FLOAT8])
def test_not_a_number_leaves_the_zone_unknown(code: TypeCode) -> None:
    assert zone_of(code, [1.0, math.nan, 2.0]) == (b"", b"")
    assert zone_of(code, [math.nan]) == (b"", b"")
    assert zone_of(code, [-math.inf, -0.0]) == (encode(code, -math.inf), encode(code, 0.0))


def test_buffers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="too short"):
        zone_map(TypeCode.INT4, -1, 3, None, None, bytes(11))
    with pytest.raises(ValueError, match="validity"):
        zone_map(TypeCode.INT4, -1, 9, b"\1", None, bytes(36))
    with pytest.raises(ValueError, match="offsets"):
        zone_map(TypeCode.TEXT, -1, 1, None, b"\0\0\0\0\1\0\0\0", b"")


ROWS = st.lists(st.tuples(st.binary(max_size=2), st.integers(0, 3), st.booleans()), max_size=20)


@given(ROWS, st.booleans(), st.none() | st.tuples(st.binary(max_size=2), st.integers(0, 3)))
def test_scan_of_system_columns(
    rows: list[tuple[bytes, int, bool]], in_order: bool, before: tuple[bytes, int] | None
) -> None:
    if in_order:
        rows = sorted({row[:2]: row for row in rows}.values(), key=lambda row: (row[0], -row[1]))
    keys = pa.array([row[0] for row in rows], pa.binary())
    ts = pa.array([row[1] for row in rows], pa.uint64())
    deleted = pa.array([row[2] for row in rows], pa.bool_())
    _, offsets, values = keys.buffers()
    if not rows:
        offsets = bytes(4)
    last_key, last_ts = before or (None, 0)
    found = scan_rows(
        len(rows), offsets, values, ts.buffers()[1], deleted.buffers()[1], last_key, last_ts
    )
    chain = ([before] if before else []) + [row[:2] for row in rows]
    pairs = list(pairwise(chain))
    wrong = [
        index + 1 - bool(before)
        for index, (a, b) in enumerate(pairs)
        if (a[0], -a[1]) >= (b[0], -b[1])
    ]
    stamps = [row[1] for row in rows]
    assert found == (
        sum(row[2] for row in rows),
        min(stamps, default=0),
        max(stamps, default=0),
        any(a[0] == b[0] for a, b in pairs),
        wrong[0] if wrong else -1,
    )
