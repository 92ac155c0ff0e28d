"""What a node does by itself: flushes, merges, garbage, the log's end, back-pressure, shutting down."""

from __future__ import annotations

import pytest

from shardb.rpc import messages as m
from shardb.txn import oracle
from tests.support.crash_disk import Disk
from tests.support.small_node import (
    GC_TTL_MS,
    LAST_TS,
    LOW,
    MAIN,
    Life,
    Session,
    set_small_limits,
    some,
    ticks,
    with_column,
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    set_small_limits(monkeypatch)


def begun() -> Life:
    life = Life(Disk(), next(ticks()))
    life.install(MAIN)
    return life


def later(life: Life, ms: int) -> None:
    """Time goes on, and the node hears of it."""
    life.issued += oracle.from_ms(ms)
    life.ask(m.Hello("test", 1, life.issued))
    for local in life.node.ranges.values():
        local.participant.note(life.issued)


def flushed(life: Life) -> None:
    """Has the main table's rows below the split in segments."""
    engine = life.node.engine
    engine.freeze(engine.tablets[LOW.id, MAIN.id])
    life.settle()
    assert not engine.tablets[LOW.id, MAIN.id].unsettled


@pytest.mark.parametrize("merge", [False, True])
def test_versions_go_only_where_reads_are_refused(merge: bool) -> None:
    life = begun()
    first_ts = Session(life, 1).write("put", some([1], 1), commit=True).commit_ts
    if merge:
        flushed(life)
    later(life, 10)
    Session(life, 2).write("put", some([1], 2), commit=True)
    later(life, 2 * GC_TTL_MS)
    flushed(life)
    flushed(life)
    tablet = life.local(LOW).tablets[MAIN.id]
    assert life.rows(LOW, MAIN, first_ts) == {} and tablet.gc_ts > first_ts
    again = Life(life.disk.after_kill(), life.issued)
    assert again.local(LOW).tablets[MAIN.id].gc_ts == tablet.gc_ts
    assert life.rows(LOW, MAIN, LAST_TS) == {1: [1, 2, ""]}
