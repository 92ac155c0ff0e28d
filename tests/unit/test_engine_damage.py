"""Damage and errors of the disk: what is hit says so by file and place, everything else goes on."""

from __future__ import annotations

import pyarrow as pa
import pytest

from shardb import limits
from shardb._core.coreerror import CoreError
from shardb._core.shadow import Shadows
from shardb.errors import StorageError
from shardb.rpc import messages as m
from shardb.storage.scan import scan_runs
from shardb.storage.segmentformat import SegmentIndex
from tests.support.small_node import (
    HIGH,
    LAST_TS,
    LOW,
    MAIN,
    PATH,
    SPLIT,
    Life,
    Session,
    begun,
    set_small_limits,
    some,
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    set_small_limits(monkeypatch)


def flushed(life: Life) -> None:
    """Has all rows in segments."""
    for tablet in life.node.engine.tablets.values():
        life.node.engine.freeze(tablet)
    life.settle()


def damaged(life: Life, number: int, where: str) -> Life:
    """The next life, with one byte of a segment changed."""
    meta = life.node.engine.manifest.current.segments[number]
    index = life.node.engine.open_segment(meta).index
    assert isinstance(index, SegmentIndex)
    at = meta.index_at if where == "index" else index.groups[0].chunks[-1].values_at
    disk = life.disk.after_kill()
    disk.written[f"{PATH}/segments/{number:08d}.arrow"][at + 5] ^= 1
    return Life(disk, life.issued)


def only_segment(life: Life) -> int:
    (meta,) = life.local(LOW).tablets[MAIN.id].metas
    return meta.number


def with_old_segment() -> Life:
    """One in the range below the split; a second begins at 300 and shares none of its keys."""
    life = begun()
    Session(life, 1).write("put", some(range(20), 0, "note"), commit=True)
    flushed(life)
    return life


@pytest.mark.parametrize("where", ["data", "index"])
def test_a_damaged_segment_stops_neither_flushes_nor_other_tablets(where: str) -> None:
    life = with_old_segment()
    number = only_segment(life)
    life = damaged(life, number, where)
    name = f"{number:08d}.arrow"
    for count in range(4 * limits.RUNS_STALL_MAX):
        # Written without a look at the damaged file: a bulk of fresh keys would read it, too.
        overlay: dict[bytes, bytes | None] = {}
        overlay.update({b"\x80" + n.to_bytes(7, "big"): None for n in range(900, 904)})
        local = life.local(LOW)
        local.applying = life.node.engine.append(LOW.id, 4, bytes(25), lambda error: None)
        local.apply(MAIN.id, overlay, life.issued + count)
        Session(life, 10 + count).write("put", some([SPLIT + count % 5], count), commit=True)
        flushed(life)
    tablet = life.local(LOW).tablets[MAIN.id]
    assert number in {meta.number for meta in tablet.metas}
    assert len(tablet.shape) <= limits.RUNS_STALL_MAX
    assert not life.node.engine.maintenance.pressed
    assert life.rows(HIGH, MAIN, LAST_TS).keys() == {SPLIT + n for n in range(5)}
    for read in (life.rows, life.scanned):
        with pytest.raises((CoreError, StorageError), match=name) as caught:
            read(LOW, MAIN, LAST_TS)
        assert caught.value.sqlstate == "XX001" and "at offset" in caught.value.message
    answer = life.reply(Session(life, 5).write_message("put", some([7]), MAIN, commit=True))
    assert isinstance(answer, m.Failure) and answer.sqlstate == "XX001" and name in answer.message


def test_untouched_columns_and_row_groups_of_a_damaged_segment_are_read() -> None:
    life = with_old_segment()
    local = damaged(life, only_segment(life), "data").local(LOW)
    (segment,) = (local.tablets[MAIN.id].segment(meta) for meta in local.tablets[MAIN.id].metas)
    with pytest.raises(CoreError, match="'note' of row group 0"):
        segment.check(0, 5)
    segment.check(0, 4)
    batches = scan_runs(
        local.tablets[MAIN.id].runs(1), [0, 1], [pa.int64()] * 2, LAST_TS, shadows=Shadows(0)
    )
    assert pa.Table.from_batches(batches)["c0"].to_pylist() == list(range(20))


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_a_node_starts_although_a_prepared_transactions_file_is_damaged(how: str) -> None:
    life = begun()
    session = Session(life, 1)
    for first in range(0, 180, 60):
        session.write("insert", some(range(first, first + 60), 1, "x" * 40))
    commit_ts = session.prepare()
    life.settle()
    meta = life.ingest(session, LOW).metas()[0]
    disk = life.disk.after_kill()
    path = f"{PATH}/segments/{meta.number:08d}.arrow"
    if how == "damaged":
        disk.written[path][meta.index_at] ^= 1
    else:
        del disk.written[path]
    life = Life(disk, life.issued)
    Session(life, 2).write("put", some([SPLIT]), commit=True)  # another tablet
    answer = life.reply(Session(life, 3).write_message("put", some([7]), MAIN, commit=True))
    assert isinstance(answer, m.Failure) and path in answer.message
    assert answer.sqlstate == ("XX001" if how == "damaged" else "58030")
    assert life.reply(m.Decide(LOW.id, session.id, commit_ts)) == m.Ack()
    life.settle()
    with pytest.raises(StorageError, match=path):
        life.rows(LOW, MAIN, LAST_TS)


def test_an_error_of_the_disk_on_opening_a_segment_is_told_to_who_reads() -> None:
    life = with_old_segment()
    life = Life(life.disk.after_kill(), life.issued)
    life.disk.failing = {"map"}
    answer = life.reply(Session(life, 3).write_message("put", some([7]), MAIN, commit=True))
    assert isinstance(answer, m.Failure) and answer.sqlstate == "58030"
    assert "could not open segment" in answer.message
    Session(life, 2).write("put", some([SPLIT]), commit=True)
    life.disk.failing = set()
    Session(life, 4).write("put", some([7]), commit=True)


@pytest.mark.parametrize("kind", ["log", "MANIFEST"])
def test_a_changed_byte_of_log_or_manifest_is_refused_by_name_and_place(kind: str) -> None:
    life = with_old_segment()
    Session(life, 2).write("delete", dict.fromkeys([3]), commit=True)
    wanted = life.rows(LOW, MAIN, LAST_TS)
    life.node.close()
    paths = [path for path in life.disk.written if kind in path]
    assert paths
    refused = 0
    for path in paths:
        for at in range(0, len(life.disk.written[path]), 7):
            disk = life.disk.after_kill()
            disk.written[path][at] ^= 0x10
            try:
                again = Life(disk, life.issued)
            except StorageError as error:
                refused += 1
                assert error.sqlstate in ("XX001", "0A000"), error
                assert path in error.message, error
                assert "at offset" in error.message or "not" in error.message, error
            else:
                assert again.rows(LOW, MAIN, LAST_TS) == wanted, (path, at)
    assert refused > 50
