"""DataRow messages from Arrow batches: framing, formats, and the forms an engine returns."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardb._core.coreerror import CoreError
from shardb._core.datarow import DataRowWriter
from shardb._core.datum import text_to_binary, text_to_text
from shardb.types import TypeCode, arrow_type, numeric_typmod
from tests.unit.test_rowcodec import CODES, VALUES, natural

T = TypeCode


def parse(data: bytes) -> list[list[bytes | None]]:
    """A reader of DataRow messages after the protocol's description."""
    rows = []
    at = 0
    while at < len(data):
        kind, length, columns = struct.unpack_from("!cIH", data, at)
        assert kind == b"D"
        end = at + 1 + length
        at += 7
        row: list[bytes | None] = []
        for _ in range(columns):
            (size,) = struct.unpack_from("!i", data, at)
            at += 4
            row.append(None if size < 0 else data[at : at + size])
            at += max(size, 0)
        assert at == end
        rows.append(row)
    return rows


def column(values: Sequence[Any], form: pa.DataType, code: int, typmod: int = -1) -> list[str]:
    batch = pa.record_batch([pa.array(values, form)], names=["c"])
    rows = parse(DataRowWriter([(code, typmod)]).encode(batch))
    return ["NULL" if row[0] is None else row[0].decode() for row in rows]


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(CODES), min_size=1, max_size=6).flatmap(
        lambda codes: st.tuples(
            st.just(codes),
            st.lists(st.tuples(*(st.none() | VALUES[code] for code in codes)), max_size=10),
        )
    )
)
def test_text_and_binary_agree(table: tuple[list[TypeCode], list[tuple[Any, ...]]]) -> None:
    codes, rows = table
    types = [(code, -1) for code in codes]
    batch = pa.record_batch(
        [
            pa.array([natural(code, row[i]) for row in rows], arrow_type(code))
            for i, code in enumerate(codes)
        ],
        names=[f"c{i}" for i in range(len(codes))],
    )
    texts = parse(DataRowWriter(types).encode(batch))
    binaries = parse(DataRowWriter(types, (1,)).encode(batch))
    assert len(texts) == len(binaries) == len(rows)
    for row, text, binary in zip(rows, texts, binaries, strict=True):
        for code, value, t, b in zip(codes, row, text, binary, strict=True):
            assert (t is None) == (b is None) == (value is None)
            if t is not None:
                assert text_to_text(code, -1, t) == t
                assert text_to_binary(code, -1, t) == b


def test_formats_by_column() -> None:
    batch = pa.record_batch([pa.array([1], pa.int32()), pa.array(["x"])], names=["a", "b"])
    types = [(T.INT4, -1), (T.TEXT, -1)]
    assert parse(DataRowWriter(types, (1, 0)).encode(batch)) == [[b"\0\0\0\1", b"x"]]
    with pytest.raises(CoreError) as caught:
        DataRowWriter(types, (1, 1, 1))
    assert caught.value.sqlstate == "08P01"
    with pytest.raises(CoreError) as caught:
        DataRowWriter(types, (7,))
    assert caught.value.sqlstate == "22023"


def test_numbers_of_other_widths() -> None:
    for form in (pa.int8(), pa.uint8(), pa.int16(), pa.uint32(), pa.int64(), pa.uint64()):
        assert column([1, None, 100], form, T.INT8) == ["1", "NULL", "100"]
    assert column([Decimal("2.5")], pa.decimal128(10, 1), T.NUMERIC) == ["2.5"]
    assert column([Decimal(7)], pa.decimal128(38, 0), T.INT8) == ["7"]
    assert column([Decimal("2.5")], pa.decimal128(10, 1), T.NUMERIC, numeric_typmod((8, 3))) == [
        "2.500"
    ]
    assert column([2**64 - 1], pa.uint64(), T.NUMERIC) == ["18446744073709551615"]
    assert column([1.5], pa.float32(), T.FLOAT8) == ["1.5"]
    assert column([3], pa.int32(), T.NUMERIC) == ["3"]
    with pytest.raises(CoreError, match="integer out of range"):
        column([2**40], pa.int64(), T.INT4)


def test_strings_of_every_layout() -> None:
    words = ["", "short", None, "a string of more than twelve bytes", "é" * 30]
    want = ["NULL" if word is None else word for word in words]
    for form in (pa.string(), pa.large_string(), pa.string_view()):
        assert column(words, form, T.TEXT) == want
        batch = pa.record_batch([pa.array(words, form)], names=["c"]).slice(3)
        rows = parse(DataRowWriter([(T.TEXT, -1)]).encode(batch))
        assert rows == [[want[3].encode()], [want[4].encode()]]
    encoded = pa.array(["b", None, "a", "b"]).dictionary_encode()
    batch = pa.record_batch([encoded], names=["c"])
    rows = parse(DataRowWriter([(T.TEXT, -1)]).encode(batch))
    assert [row[0] for row in rows] == [b"b", None, b"a", b"b"]


def test_moments_of_other_units() -> None:
    moment = datetime(2024, 1, 2, 3, 4, 5)
    for unit in ("s", "ms", "us", "ns"):
        assert column([moment], pa.timestamp(unit), T.TIMESTAMP) == ["2024-01-02 03:04:05"]
        zone = pa.timestamp(unit, tz="UTC")
        assert column([moment.replace(tzinfo=UTC)], zone, T.TIMESTAMPTZ) == [
            "2024-01-02 03:04:05+00"
        ]
    assert column([moment], pa.timestamp("us"), T.DATE) == ["2024-01-02"]
    assert column([date(2024, 1, 2)], pa.date64(), T.DATE) == ["2024-01-02"]
    assert column([time(1, 2, 3)], pa.time32("s"), T.TIME) == ["01:02:03"]
    assert column([-1], pa.timestamp("ns"), T.TIMESTAMP) == ["1969-12-31 23:59:59.999999"]


def test_uuids_and_json() -> None:
    text = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
    assert column([text], pa.string(), T.UUID) == [text]
    assert column([bytes.fromhex(text.replace("-", ""))], pa.binary(16), T.UUID) == [text]
    assert column(['{"b":1,"a":2}'], pa.string(), T.JSONB) == ['{"a": 2, "b": 1}']
    assert column([None, None], pa.null(), T.INT4) == ["NULL", "NULL"]


def test_what_it_cannot_read_is_named() -> None:
    with pytest.raises(CoreError, match=r"Arrow format \+l is not supported"):
        column([[1]], pa.list_(pa.int32()), T.INT4)
