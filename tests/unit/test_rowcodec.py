"""Rows: encode and decode are inverse, damage is refused, Arrow gives the same rows."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardb._core.coreerror import CoreError
from shardb._core.rowcodec import RowLayout
from shardb.types import TypeCode, arrow_type, numeric_typmod

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
VALUES: dict[TypeCode, st.SearchStrategy[Any]] = {
    TypeCode.BOOL: st.booleans(),
    TypeCode.INT2: st.integers(-(2**15), 2**15 - 1),
    TypeCode.INT4: st.integers(-(2**31), 2**31 - 1),
    TypeCode.INT8: st.integers(-(2**63), 2**63 - 1),
    TypeCode.FLOAT4: st.floats(width=32, allow_nan=False),
    TypeCode.FLOAT8: st.floats(allow_nan=False),
    TypeCode.NUMERIC: st.integers(-(10**38) + 1, 10**38 - 1).map(
        lambda n: Decimal((n < 0, tuple(map(int, str(abs(n)))), -16))
    ),
    TypeCode.TEXT: TEXT,
    TypeCode.VARCHAR: TEXT,
    TypeCode.BPCHAR: TEXT,
    TypeCode.BYTEA: st.binary(max_size=20),
    TypeCode.DATE: st.dates(),
    TypeCode.TIME: st.times(),
    TypeCode.TIMESTAMP: st.datetimes(),
    TypeCode.TIMESTAMPTZ: st.datetimes(timezones=st.just(UTC)),
    TypeCode.INTERVAL: st.tuples(
        st.integers(-(2**31), 2**31 - 1),
        st.integers(-(2**31), 2**31 - 1),
        st.integers(-(2**53), 2**53),
    ),
    TypeCode.UUID: st.uuids(),
    TypeCode.JSON: st.just('{"a": [1]}'),
    TypeCode.JSONB: st.just('{"a": [1]}'),
}
CODES = sorted(VALUES)
ROWS = st.lists(st.sampled_from(CODES), max_size=24).flatmap(
    lambda codes: st.tuples(
        st.just(codes), st.tuples(*(st.none() | VALUES[code] for code in codes))
    )
)


@given(ROWS, st.integers(0, 65535))
def test_decode_is_the_inverse(row: tuple[list[TypeCode], tuple[Any, ...]], version: int) -> None:
    codes, values = row
    layout = RowLayout(version, [(code, -1) for code in codes])
    assert layout.decode(layout.encode(values)) == values


def test_golden_bytes() -> None:
    layout = RowLayout(
        7,
        [
            (TypeCode.INT4, -1),
            (TypeCode.TEXT, -1),
            (TypeCode.INT8, -1),
            (TypeCode.VARCHAR, -1),
            (TypeCode.NUMERIC, numeric_typmod((10, 2))),
        ],
    )
    row = layout.encode((-2, "abc", None, "é", Decimal("1.5")))
    assert row.hex() == (
        "070004feffffff0000000000000000960000000000000000000000000000000300000005000000616263c3a9"
    )
    assert layout.decode(row) == (-2, "abc", None, "é", Decimal("1.50"))


@given(ROWS, st.data())
def test_damaged_rows_are_refused_or_read(
    row: tuple[list[TypeCode], tuple[Any, ...]], data: st.DataObject
) -> None:
    codes, values = row
    layout = RowLayout(1, [(code, -1) for code in codes])
    good = layout.encode(values)
    at = data.draw(st.integers(0, len(good) - 1))
    damaged = good[:at] + bytes([data.draw(st.integers(0, 255))]) + good[at + 1 :]
    for bad in (damaged, good[:at], good + b"x"):
        try:
            layout.check(bad)
        except CoreError as error:
            assert error.sqlstate == "XX001"
    with pytest.raises(CoreError):
        layout.check(good[:at])
    with pytest.raises(CoreError):
        layout.check(good + b"x")


def natural(code: TypeCode, value: Any) -> Any:
    if value is None:
        return None
    if code is TypeCode.UUID:
        return value.bytes
    if code is TypeCode.INTERVAL:
        return pa.MonthDayNano([value[0], value[1], value[2] * 1000])
    return value


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(CODES), min_size=1, max_size=6).flatmap(
        lambda codes: st.tuples(
            st.just(codes),
            st.lists(
                st.tuples(*(st.none() | VALUES[code] for code in codes)), min_size=1, max_size=20
            ),
            st.integers(0, 5),
        )
    )
)
def test_arrow_gives_the_same_rows(
    table: tuple[list[TypeCode], list[tuple[Any, ...]], int],
) -> None:
    codes, rows, skip = table
    layout = RowLayout(3, [(code, -1) for code in codes])
    columns = [
        pa.array([natural(code, row[i]) for row in rows], arrow_type(code))
        for i, code in enumerate(codes)
    ]
    batch = pa.record_batch(columns, names=[f"c{i}" for i in range(len(codes))])
    batch = batch.slice(min(skip, len(rows)))
    data, ends = layout.encode_arrow(batch)
    found = [data[ends[i] : ends[i + 1]] for i in range(len(ends) - 1)]
    assert found == [layout.encode(row) for row in rows[skip:]]


def test_arrow_error_names_the_row() -> None:
    layout = RowLayout(1, [(TypeCode.INT8, -1), (TypeCode.VARCHAR, 4 + 3)])
    batch = pa.record_batch([pa.array([1, 2, 3]), pa.array(["a", "abcd", "b"])], names=["a", "b"])
    with pytest.raises(CoreError) as caught:
        layout.encode_arrow(batch)
    assert (caught.value.sqlstate, caught.value.row, caught.value.column) == ("22001", 1, 1)


def test_binary_columns_hold_checked_text_forms() -> None:
    layout = RowLayout(1, [(TypeCode.INT4, -1), (TypeCode.TEXT, -1), (TypeCode.DATE, -1)])
    batch = pa.record_batch(
        [pa.array([b"5"]), pa.array(["é".encode()]), pa.array([b"2024-01-02"])],
        names=["a", "b", "c"],
    )
    data, _ = layout.encode_arrow(batch)
    assert layout.decode(data) == (5, "é", date(2024, 1, 2))
    batch = batch.set_column(1, "b", pa.array([b"\xff"]))
    with pytest.raises(CoreError) as caught:
        layout.encode_arrow(batch)
    assert caught.value.sqlstate == "22021"


def test_parameters_in_both_formats() -> None:
    layout = RowLayout(0, [(TypeCode.INT4, -1), (TypeCode.TEXT, -1), (TypeCode.NUMERIC, -1)])
    row = layout.encode_params((1, 0, 0), (b"\0\0\0\5", b"x", b"1.25"))
    assert layout.decode(row) == (5, "x", Decimal("1.25"))
    assert layout.encode_text((b"5", b"x", b"1.25")) == row
    assert layout.decode(layout.encode_params((), (None, None, None))) == (None, None, None)
    for formats, values, state in (
        ((1,), (b"\0\0\5", b"x", None), "22P03"),
        ((), (b"five", b"x", None), "22P02"),
        ((2,), (b"5", b"x", None), "22023"),
        ((0, 1), (b"5", b"x", None), "08P01"),
        ((), (b"5", b"x"), "08P01"),
        ((), (b"5", b"\xff", None), "22021"),
        ((), (b"5", b"x", b"1e30"), "22003"),
    ):
        with pytest.raises(CoreError) as caught:
            layout.encode_params(formats, values)
        assert caught.value.sqlstate == state, values


def test_python_values_out_of_reach_come_as_text() -> None:
    layout = RowLayout(0, [(TypeCode.DATE, -1), (TypeCode.TIMESTAMP, -1), (TypeCode.TIME, -1)])
    values = ("infinity", "0044-03-15 00:00:00 BC", "24:00:00")
    assert layout.decode(layout.encode(values)) == values
    plain = (date(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999), time(23, 59))
    assert layout.decode(layout.encode(plain)) == plain
    assert isinstance(UUID(int=0), UUID)


def text_form(code: TypeCode, value: Any) -> bytes | None:
    """PostgreSQL's text of a Python value, in plain Python."""
    if value is None:
        return None
    if code is TypeCode.BOOL:
        return b"t" if value else b"f"
    if code is TypeCode.BYTEA:
        return b"\\x" + value.hex().encode()
    if code is TypeCode.INTERVAL:
        return f"{value[0]} mons {value[1]} days {value[2]} microseconds".encode()
    if code in (TypeCode.TIMESTAMP, TypeCode.TIMESTAMPTZ, TypeCode.DATE):
        return value.isoformat().encode().rjust(10, b"0")
    return str(value).encode()


@given(ROWS)
def test_text_forms_give_the_same_rows(row: tuple[list[TypeCode], tuple[Any, ...]]) -> None:
    codes, values = row
    layout = RowLayout(1, [(code, -1) for code in codes])
    texts = [text_form(code, value) for code, value in zip(codes, values, strict=True)]
    assert layout.encode_text(texts) == layout.encode(values)
    assert layout.encode_params((), texts) == layout.encode(values)


@given(TEXT, st.integers(1, 12), st.sampled_from([TypeCode.VARCHAR, TypeCode.BPCHAR]))
def test_lengths_are_held_but_for_blanks(text: str, limit: int, code: TypeCode) -> None:
    text += " " * (len(text) % 3)
    layout = RowLayout(1, [(code, limit + 4)])
    if len(text.rstrip(" ")) > limit:
        with pytest.raises(CoreError) as caught:
            layout.encode((text,))
        assert caught.value.sqlstate == "22001"
        return
    [found] = layout.decode(layout.encode((text,)))
    assert str(found).rstrip(" ") == text[:limit].rstrip(" ")
    assert len(str(found)) <= limit


@given(st.integers(1, 38), st.data())
def test_numerics_are_rounded_to_their_column(precision: int, data: st.DataObject) -> None:
    scale = data.draw(st.integers(0, precision))
    digits = data.draw(st.integers(-(10**38) + 1, 10**38 - 1))
    value = Decimal((digits < 0, tuple(map(int, str(abs(digits)))), -data.draw(st.integers(0, 38))))
    context = Context(prec=100, rounding=ROUND_HALF_UP)
    expected = value.quantize(Decimal(1).scaleb(-scale), context=context)
    layout = RowLayout(1, [(TypeCode.NUMERIC, numeric_typmod((precision, scale)))])
    if expected.copy_abs() >= Decimal(10) ** (precision - scale):  # abs() rounds to 28 digits
        with pytest.raises(CoreError) as caught:
            layout.encode((value,))
        assert caught.value.sqlstate == "22003"
    else:
        assert layout.decode(layout.encode((value,))) == (expected,)
