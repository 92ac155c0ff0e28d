"""The loops of benchmarks and stress tests do what they say, against a dictionary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardb._core.corebench import (
    cursor_each,
    get_each,
    insert_each,
    lookup_each,
    seek_each,
    walk,
    walk_back,
)
from shardb._core.memtable import MemTable
from shardb._core.rowcodec import RowLayout
from shardb._core.runs import Runs

KEYS = st.lists(st.binary(min_size=2, max_size=2), max_size=40)


@given(KEYS, KEYS, KEYS)
def test_loops_equal_single_calls(
    first: list[bytes], gone: list[bytes], asked: list[bytes]
) -> None:
    table = MemTable()
    insert_each(table, b"".join(first), 2, b"\3\4", 1)
    insert_each(table, b"".join(gone), 2, None, 2)
    runs = Runs(RowLayout(1, []), [(False, [(table, None)])])
    for ts, visible in ((0, set()), (1, set(first)), (2, set(first) - set(gone))):
        found = sum(key in visible for key in asked)
        assert get_each(table, b"".join(asked), 2, ts) == found
        assert seek_each(table, b"".join(asked), 2, ts) == found
        assert lookup_each(runs, b"".join(asked), 2, ts) == found
        above = sum(min(sum(key >= low for key in visible), 3) for low in asked)
        assert cursor_each(runs, asked, 3, ts) == above
        below = sum(min(sum(key < high for key in visible), 3) for high in asked if high)
        assert cursor_each(runs, asked, 3, ts, reverse=True) == below
        assert walk(table, ts) == (len(visible), 7 * len(visible))
    assert walk_back(table) == len({*first, *gone})


@pytest.mark.parametrize(("keys", "width"), [(b"abc", 2), (b"abc", 0), (b"abc", -3)])
def test_keys_of_another_width_are_refused(keys: bytes, width: int) -> None:
    with pytest.raises(ValueError):
        insert_each(MemTable(), keys, width, b"", 1)
