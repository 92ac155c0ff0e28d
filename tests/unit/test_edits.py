"""Edits of the live file set: what each does, what contradicts, their bytes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardb.storage.edits import Edit, FileSet, TabletState, decode_edits, encode_edits
from shardb.storage.segmentformat import SegmentMeta


def segment(number: int, range_id: int = 4, table_id: int = 7, order: int = 0) -> SegmentMeta:
    return SegmentMeta(
        number, order or number, range_id, table_id, 100, 5, 50, 20, 6, 10, 2, b"a", b"z", 3, 9
    )


def tablet(range_id: int = 4, table_id: int = 7, flushed_index: int = 3) -> TabletState:
    return TabletState(range_id, table_id, b"descriptor", flushed_index, 0)


START = FileSet().apply(
    Edit(
        put_tablets=(tablet(), tablet(4, 8), tablet(5, 7)),
        add_segments=(segment(1), segment(2, 4, 8), segment(3), segment(4, 5)),
        range_indexes=((4, 30), (5, 40)),
    )
)


def test_segments_follow_their_tablets() -> None:
    assert START.next_number == 5
    assert START.runs(4, 7) == [segment(3), segment(1)]
    after = START.apply(Edit(drop_tablets=((4, 7),)))
    assert list(after.segments) == [2, 4] and list(after.tablets) == [(4, 8), (5, 7)]
    assert after.next_number == 5, "numbers are never used again"
    assert list(START.segments) == [1, 2, 3, 4], "a change is a new value"


def test_a_merge_and_a_flush() -> None:
    edit = Edit(
        put_tablets=(tablet(flushed_index=31),),
        remove_segments=(1, 3),
        add_segments=(segment(5, order=3), segment(6)),
        range_indexes=((4, 31),),
    )
    after = START.apply(edit)
    assert [meta.number for meta in after.runs(4, 7)] == [6, 5]
    assert after.tablets[4, 7].flushed_index == 31
    assert after.range_indexes == {4: 31, 5: 40}
    assert after.next_number == 7


def test_what_is_said_of_a_segment_may_change() -> None:
    linked = msgspec.structs.replace(segment(1), link_ts=77)
    after = START.apply(Edit(remove_segments=(1,), add_segments=(linked,)))
    assert after.segments[1].link_ts == 77


def test_numbers_are_taken_and_ranges_forgotten() -> None:
    after = START.apply(Edit(next_number=9, range_indexes=((5, 0), (6, 0))))
    assert after.next_number == 9 and after.range_indexes == {4: 30}
    assert after.apply(Edit()) == after


@pytest.mark.parametrize(
    "edit",
    [
        Edit(drop_tablets=((9, 9),)),
        Edit(remove_segments=(9,)),
        Edit(remove_segments=(1, 1)),
        Edit(drop_tablets=((4, 7),), remove_segments=(1,)),
        Edit(add_segments=(segment(1),)),
        Edit(add_segments=(segment(9, 9),)),
        Edit(put_tablets=(tablet(flushed_index=2),)),
        Edit(range_indexes=((4, 29),)),
    ],
)
def test_an_edit_must_not_contradict_the_file_set(edit: Edit) -> None:
    with pytest.raises(AssertionError):
        START.apply(edit)


def test_a_file_set_is_one_edit() -> None:
    assert FileSet().apply(START.as_edit()) == START
    assert FileSet().apply(FileSet().as_edit()) == FileSet()


IDS = st.integers(0, 1 << 63)


@given(IDS, IDS, IDS, st.binary(), st.binary())
def test_edits_come_back(a: int, b: int, c: int, data: bytes, key: bytes) -> None:
    meta = SegmentMeta(a, b, c, a, b, c, a, b, c, a, b, key, data, c, a, b)
    edit = Edit(((a, b),), (TabletState(a, b, data, c, a),), (a, b), (meta,), c, ((a, b), (b, c)))
    assert decode_edits(encode_edits((edit, Edit()))) == (edit, Edit())


def test_golden_bytes() -> None:
    """The format on disk (docs/formats/manifest.md); a change needs a new version."""
    edit = Edit(((4, 8),), (tablet(),), (2,), (segment(3),), 9, ((4, 30),))
    assert encode_edits((edit,)).hex() == (
        "9196919204089195040"
        "7c40a64657363726970746f720300910291dc001003030407640532140"
        "60a02c40161c4017a030900099192041e"
    )
    with pytest.raises(msgspec.DecodeError):
        decode_edits(b"\x91\x91\x01")
