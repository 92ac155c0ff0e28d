"""What a SERIALIZABLE transaction remembers of its reads: never less than it read."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from coordinator.catalog import Catalog
from coordinator.isolation import Spans, union
from shardb import limits
from shardb.meta.descriptors import Column, Group, Range, Table
from shardb.types import TypeCode

TABLE = Table(1, "t", 2, (Column(1, "id", TypeCode.TEXT, not_null=True),), (0,))
BOUNDS = [(b"", b"h"), (b"h", b"p"), (b"p", b"")]
RANGES = [Range(10 + at, 2, low, high, 1, 1, (1,), (1,)) for at, (low, high) in enumerate(BOUNDS)]
CATALOG = Catalog.build(1, [TABLE], [Group(2, (1,))], RANGES, [])
LETTERS = [bytes([letter]) for letter in range(ord("a"), ord("z") + 1)]
INTERVALS = st.tuples(st.sampled_from([b"", *LETTERS]), st.sampled_from([b"", *LETTERS])).filter(
    lambda pair: not pair[1] or pair[0] < pair[1]
)


def covered(intervals: list[tuple[bytes, bytes]]) -> set[bytes]:
    return {
        key for key in LETTERS for low, high in intervals if low <= key and (not high or key < high)
    }


@given(st.lists(INTERVALS))
def test_a_union_is_disjoint_and_covers_the_same(intervals: list[tuple[bytes, bytes]]) -> None:
    found = union(intervals)
    assert covered(found) == covered(intervals)
    for (_, end), (start, _) in pairwise(found):
        assert end and end < start


@given(st.lists(INTERVALS, min_size=1))
def test_each_range_gets_its_part(intervals: list[tuple[bytes, bytes]]) -> None:
    spans = Spans()
    for low, high in intervals:
        spans.add(1, low, high)
    parts = spans.by_range(CATALOG)
    assert covered([(s.low, s.high) for _, part in parts.values() for s in part]) == covered(
        intervals
    )
    for item, part in parts.values():
        assert part
        for span in part:
            assert span.low >= item.start and (not item.end or span.high <= item.end)


def test_very_many_keys_become_an_interval() -> None:
    spans = Spans()
    keys = [b"k%08d" % (2 * number) for number in range(3 * limits.SPANS_PER_TABLE_MAX)]
    spans.add_keys(1, keys)
    ((_, part),) = spans.by_range(CATALOG).values()
    assert len(part) <= limits.SPANS_PER_TABLE_MAX + 1
    assert all(any(span.low <= key < span.high for span in part) for key in keys)
