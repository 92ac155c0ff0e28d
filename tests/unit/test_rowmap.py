"""Rows carried from one layout to another against the same done with Python values."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardb._core.coreerror import CoreError
from shardb._core.rowcodec import RowLayout
from shardb._core.rowmap import RowMap
from shardb.types import TypeCode

VALUES: dict[TypeCode, st.SearchStrategy[object]] = {
    TypeCode.BOOL: st.booleans(),
    TypeCode.INT2: st.integers(-(2**15), 2**15 - 1),
    TypeCode.INT8: st.integers(-(2**63), 2**63 - 1),
    TypeCode.FLOAT8: st.floats(allow_nan=False),
    TypeCode.NUMERIC: st.decimals(-1000, 1000, places=2),
    TypeCode.TEXT: st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9),
    TypeCode.BYTEA: st.binary(max_size=9),
    TypeCode.UUID: st.uuids(),
}
COLUMN_TYPES = st.lists(st.sampled_from(list(VALUES)), max_size=40)


def layout(version: int, codes: list[TypeCode]) -> RowLayout:
    return RowLayout(version, [(int(code), -1) for code in codes])


@settings(max_examples=200, deadline=None)
@given(st.data(), COLUMN_TYPES, COLUMN_TYPES, st.booleans())
def test_each_column_comes_from_its_source_or_is_what_is_missing(
    data: st.DataObject, codes: list[TypeCode], added: list[TypeCode], defaults: bool
) -> None:
    kept = data.draw(st.permutations(range(len(codes))))
    kept = kept[: data.draw(st.integers(0, len(codes)))]
    places = data.draw(st.permutations([*kept, *([-1] * len(added))]))
    fresh = iter(added)
    target_codes = [next(fresh) if place < 0 else codes[place] for place in places]
    source, target = layout(1, codes), layout(2, target_codes)
    row = [data.draw(st.one_of(st.none(), VALUES[code])) for code in codes]
    missing = [data.draw(st.one_of(st.none(), VALUES[code])) for code in target_codes]
    if not defaults:
        missing = [None] * len(missing)
    row_map = RowMap(source, target, places, target.encode(missing) if defaults else None)
    expected = [missing[at] if place < 0 else row[place] for at, place in enumerate(places)]
    assert row_map.convert(source.encode(row)) == target.encode(expected)


def test_rows_that_are_not_of_the_source_are_refused() -> None:
    source, target = layout(1, [TypeCode.TEXT]), layout(2, [TypeCode.TEXT])
    with pytest.raises(CoreError, match="XX001"):
        RowMap(source, target, [0]).convert(target.encode(["a"]))
    with pytest.raises(CoreError, match="XX001"):
        RowMap(source, target, [-1], source.encode(["a"]))


@pytest.mark.parametrize(
    ("codes", "places"),
    [
        ([TypeCode.INT4], [0]),
        ([TypeCode.INT8], [1]),
        ([TypeCode.INT8], []),
    ],
)
def test_columns_that_do_not_fit_are_our_own_mistake(
    codes: list[TypeCode], places: list[int]
) -> None:
    with pytest.raises(AssertionError):
        RowMap(layout(1, codes), layout(2, [TypeCode.INT8]), places)
