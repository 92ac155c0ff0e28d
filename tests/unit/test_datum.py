"""Text and binary forms, casts and order of values: against PostgreSQL's own and plain oracles."""

from __future__ import annotations

import json
import struct
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardb._core.cast import cast_text
from shardb._core.coreerror import CoreError
from shardb._core.datum import binary_to_text, compare_text, text_to_binary, text_to_text
from shardb.types import TypeCode, numeric_typmod

FIXTURES = Path(__file__).parent.parent / "fixtures" / "types"
FORMS = json.loads((FIXTURES / "forms.json").read_text())
CASTS = json.loads((FIXTURES / "casts.json").read_text())


@pytest.mark.parametrize("code", sorted({case[0] for case in FORMS}))
def test_forms_equal_postgres(code: int) -> None:
    wrong = []
    for case in FORMS:
        if case[0] != code:
            continue
        _, typmod, text, expected, expected_form = case
        found: str | None
        try:
            found = text_to_text(code, typmod, text.encode()).decode()
            form = text_to_binary(code, typmod, text.encode()).hex()
            assert binary_to_text(code, typmod, bytes.fromhex(form)).decode() == found
        except CoreError as error:
            found, form = None, error.sqlstate
        if (found, form) != (expected, expected_form):
            wrong.append((text, typmod, (expected, expected_form), (found, form)))
    assert wrong == []


def test_casts_equal_postgres() -> None:
    wrong = []
    for source, text, target, typmod, expected, state in CASTS:
        found: bytes | None = None
        found_state = None
        try:
            found = cast_text(source, -1, text.encode(), target, typmod)
        except CoreError as error:
            found_state = error.sqlstate
        if (None if found is None else found.decode(), found_state) != (expected, state):
            wrong.append((source, text, target, typmod, (expected, state), (found, found_state)))
    assert wrong == []


@given(st.floats())
def test_float8_reads_back(value: float) -> None:
    text = text_to_text(TypeCode.FLOAT8, -1, repr(value).encode())
    assert struct.pack("d", float(text)) == struct.pack("d", value) or value != value
    assert len(text) <= 24


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_float4_reads_back(value: float) -> None:
    text = text_to_text(TypeCode.FLOAT4, -1, repr(value).encode())
    assert struct.unpack("f", struct.pack("f", float(text)))[0] == value


@given(st.decimals(allow_nan=False, allow_infinity=False, places=16, max_value=10**21))
def test_numeric_reads_back(value: Decimal) -> None:
    if abs(value) >= 10**21:
        return
    form = text_to_binary(TypeCode.NUMERIC, -1, format(value, "f").encode())
    assert Decimal(binary_to_text(TypeCode.NUMERIC, -1, form).decode()) == value


@given(st.integers(-(10**30), 10**30), st.integers(0, 25), st.integers(1, 38), st.integers(0, 38))
def test_numeric_typmod_rounds_half_away(
    unscaled: int, digits: int, precision: int, scale: int
) -> None:
    scale = min(scale, precision)
    value = Decimal(unscaled).scaleb(-digits)
    exact = Decimal(unscaled) * Decimal(10) ** (scale - digits)
    with_context = int(exact.to_integral_value(ROUND_HALF_UP))
    text = format(value, "f").encode()
    typmod = numeric_typmod((precision, scale))
    if abs(with_context) >= 10**precision:
        with pytest.raises(CoreError) as caught:
            text_to_text(TypeCode.NUMERIC, typmod, text)
        assert caught.value.sqlstate == "22003"
        assert caught.value.detail.startswith(f"A field with precision {precision}, scale {scale}")
    else:
        found = text_to_text(TypeCode.NUMERIC, typmod, text).decode()
        assert Decimal(found) == Decimal(with_context).scaleb(-scale)


@given(st.decimals(-(10**15), 10**15, places=10), st.decimals(-(10**15), 10**15, places=3))
def test_numeric_order(left: Decimal, right: Decimal) -> None:
    found = compare_text(TypeCode.NUMERIC, format(left, "f").encode(), format(right, "f").encode())
    assert found == (left > right) - (left < right)


@given(st.floats(), st.floats())
def test_float_order_has_nan_last(left: float, right: float) -> None:
    def rank(value: float) -> tuple[bool, float]:
        return (value != value, 0.0 if value != value else value)

    found = compare_text(TypeCode.FLOAT8, repr(left).encode(), repr(right).encode())
    assert found == (rank(left) > rank(right)) - (rank(left) < rank(right))


def test_order_of_blanks_and_intervals() -> None:
    assert compare_text(TypeCode.BPCHAR, b"ab  ", b"ab") == 0
    assert compare_text(TypeCode.TEXT, b"ab ", b"ab") == 1
    assert compare_text(TypeCode.INTERVAL, b"1 month", b"30 days") == 0
    assert compare_text(TypeCode.INTERVAL, b"-1 day", b"-23:59:59") == -1


@given(st.binary(max_size=40))
def test_invalid_utf8_is_refused(data: bytes) -> None:
    try:
        valid = b"\0" not in data
        data.decode()
    except UnicodeDecodeError:
        valid = False
    if valid:
        assert text_to_text(TypeCode.TEXT, -1, data) == data
    else:
        with pytest.raises(CoreError, match="invalid byte sequence") as caught:
            text_to_text(TypeCode.TEXT, -1, data)
        assert caught.value.sqlstate == "22021"


@given(st.sampled_from(sorted(TypeCode)), st.text(max_size=30))
def test_any_text_is_a_value_or_an_error(code: TypeCode, text: str) -> None:
    if code is TypeCode.UNKNOWN:
        return
    try:
        out = text_to_text(code, -1, text.encode())
    except CoreError as error:
        assert error.sqlstate[:2] in ("22", "0A", "54")
    else:
        assert text_to_text(code, -1, out) == out


@given(st.sampled_from(sorted(TypeCode)), st.binary(max_size=30))
def test_any_bytes_are_a_value_or_an_error(code: TypeCode, data: bytes) -> None:
    try:
        binary_to_text(code, -1, data)
    except CoreError as error:
        assert error.sqlstate[:2] in ("22", "0A", "54")


JSON_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | JSON_TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(JSON_TEXT, inner),
    max_leaves=12,
)


@given(JSON_VALUES)
def test_jsonb_keeps_the_value_and_sorts_keys(value: object) -> None:
    text = json.dumps(value).encode()
    normal = text_to_text(TypeCode.JSONB, -1, text)
    assert json.loads(normal) == value
    assert text_to_text(TypeCode.JSONB, -1, normal) == normal
    assert text_to_text(TypeCode.JSON, -1, text) == text
    if isinstance(value, dict):
        keys = [key.encode() for key in json.loads(normal)]
        assert keys == sorted(keys, key=lambda key: (len(key), key))


def test_json_depth_is_bounded() -> None:
    with pytest.raises(CoreError) as caught:
        text_to_text(TypeCode.JSON, -1, b"[" * 100_000)
    assert caught.value.sqlstate == "54001"
