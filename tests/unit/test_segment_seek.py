"""Where a segment finds keys, however they are distributed, held to Python's bisection."""

from __future__ import annotations

from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st

from shardb._core.memtable import MemTable
from shardb._core.rowcodec import RowLayout
from shardb._core.runmerge import RunMerge
from tests.support.segments import segment_of

LAYOUT = RowLayout(1, [])
ROW = LAYOUT.encode([])
NUMBERS = st.integers(0, 2**64 - 1).map(lambda number: number.to_bytes(8, "big"))
SMALL = st.integers(0, 3000).map(lambda number: number.to_bytes(8, "big"))
SKEWED = st.integers(0, 63).map(lambda power: (1 << power).to_bytes(8, "big"))
TEXTS = st.binary(max_size=12)
KEYS = st.one_of(NUMBERS, SMALL, SKEWED, TEXTS)


@given(
    st.lists(KEYS, min_size=1, max_size=400),
    st.lists(KEYS, max_size=30),
    st.sampled_from((7, 100, 65_536)),
)
def test_a_key_is_found_where_it_is_or_would_be(
    keys: list[bytes], asked: list[bytes], group_rows: int
) -> None:
    memtable = MemTable()
    for key in keys:
        memtable.put(key, ROW, 1)
    merge = RunMerge([(memtable, None)], LAYOUT, [], [], group_rows=group_rows)
    segment = segment_of(merge, LAYOUT)
    ordered = sorted(set(keys))
    for key in (*ordered, *asked):
        assert segment.position(key) == bisect_left(ordered, key)
        assert (segment.get(key, 1) is not None) == (key in ordered)


def test_keys_in_long_even_and_uneven_groups() -> None:
    numbers = [*range(0, 50_000, 5), *range(10**9, 10**9 + 300), *(1 << n for n in range(33, 63))]
    memtable = MemTable()
    for number in numbers:
        memtable.put(number.to_bytes(8, "big"), ROW, 1)
    segment = segment_of(RunMerge([(memtable, None)], LAYOUT, [], []), LAYOUT)
    for number in (*numbers[::7], *range(40_000, 40_100), 10**9 - 1, 2**40 + 1, 2**64 - 1):
        assert segment.position(number.to_bytes(8, "big")) == bisect_left(numbers, number)
