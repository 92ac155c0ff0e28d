"""What a node does by itself: flushes, merges, garbage, cuts of the log, pressure, closing."""

from __future__ import annotations

import pytest

from shardb import limits
from shardb.rpc import messages as m
from shardb.sim.disk import Disk
from shardb.storage import policy
from shardb.txn import oracle
from tests.support.small_node import (
    FORGET_MS,
    GC_TTL_MS,
    HIGH,
    LAST_TS,
    LOW,
    MAIN,
    SPLIT,
    Life,
    Session,
    SmallBudget,
    begun,
    set_small_limits,
    side_table,
    some,
    ticks,
    with_column,
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    set_small_limits(monkeypatch)


def later(life: Life, ms: int) -> None:
    """Time goes on, and the range below the split hears of it."""
    life.issued += oracle.from_ms(ms)
    life.local(LOW).participant.note(life.issued)


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


def test_a_new_descriptor_takes_nothing_back_while_a_flush_is_being_named() -> None:
    life = begun()
    later(life, 2 * GC_TTL_MS)
    Session(life, 1).write("put", some([1]), commit=True)
    engine = life.node.engine
    tablet = engine.tablets[LOW.id, MAIN.id]
    engine.freeze(tablet)
    engine.maintenance.pump()
    answer = life.ask(m.InstallTable(LOW, with_column(MAIN)))
    assert life.background.step()  # the file is there, and the edit under way
    life.settle()
    assert answer.message == m.Ack()
    state = engine.manifest.current.tablets[tablet.key]
    assert (state.flushed_index, state.gc_ts) == (tablet.settled_index, tablet.gc_ts)
    assert tablet.settled_index and tablet.gc_ts


def test_a_table_that_the_manifest_had_no_room_for_can_be_dropped() -> None:
    life = begun()
    disk, engine = life.disk, life.node.engine
    table = side_table(1)
    disk.failing, disk.failing_paths = {"write"}, "MANIFEST"
    life.ask(m.InstallTable(LOW, table))
    assert life.reply(m.DropTable(LOW.id, table.id)) == m.Ack()
    assert disk.step() and not disk.jobs
    disk.failing = set()
    life.settle()
    assert (LOW.id, table.id) not in engine.manifest.current.tablets
    assert not engine._leaving
    Session(life, 1).write("put", some([1]), commit=True)


@pytest.mark.parametrize("steps", range(16))
def test_a_node_closes_whatever_is_under_way(steps: int) -> None:
    """A flush, a merge, a link, a commit and a drop, each at any of their steps."""
    life = begun()
    side = side_table(1)
    life.install(side)
    tablets = life.node.engine.tablets
    Session(life, 1).write("put", some(range(3), 1), side, commit=True)
    for number in range(2, 5):  # two runs in segments, and a memtable
        Session(life, number).write("put", some(range(500, 510), number), commit=True)
        if number < 4:
            tablets[LOW.id, MAIN.id].freeze(life.node.engine.new_number(), 0)
    session = Session(life, 5)
    for first in range(0, 180, 60):
        session.write("insert", some(range(first, first + 60), 5, "x" * 40))
    dropped = life.ask(m.DropTable(HIGH.id, side.id))
    committed = life.ask(session.commit_message(LOW))
    for step in range(steps):
        life.disk.step() if step % 2 else life.background.step()
        life.disk.step_timers()
    life.node.close()
    assert not life.disk.locks
    assert dropped.message == m.Ack()
    again = Life(life.disk.after_kill(), life.issued)
    wanted = {n: [n, 4, ""] for n in range(500, 510)}
    if isinstance(committed.message, m.Committed):
        wanted |= {n: [n, 5, "x" * 40] for n in range(180)}
    for _ in range(2):
        assert again.rows(LOW, MAIN, LAST_TS) == again.scanned(LOW, MAIN, LAST_TS) == wanted
        assert again.rows(LOW, side, LAST_TS) == {n: [n, 1, ""] for n in range(3)}
        again.settle()
    assert again.files() == again.named()


def test_many_middling_memtables_do_not_stop_writers() -> None:
    """None is large, all together are: the largest is flushed, although others are empty."""
    budget = SmallBudget(memtables=100_000, memtable=1_000_000)
    life = Life(Disk(), next(ticks()), budget)
    for number in range(20):
        life.install(side_table(number))
    for number in range(20):
        rows = some(range(60), 1, "x" * 40)
        Session(life, number).write("put", rows, side_table(number), commit=True)
    assert life.node.engine.maintenance.flushes


def test_open_transactions_with_much_in_memory_do_not_stop_one_another() -> None:
    budget = SmallBudget(memtables=60_000, memtable=1_000_000)
    life = Life(Disk(), next(ticks()), budget)
    life.install(MAIN)
    sessions = [Session(life, number) for number in range(6)]
    for part in range(3):
        for number, session in enumerate(sessions):
            first = 100 * number + 10 * part
            session.write("insert", some(range(first, first + 10), number))
    for session in sessions:
        session.commit()
    assert len(life.rows(LOW, MAIN, LAST_TS)) == 180
    assert not life.node.engine.private_bytes and not life.node.engine.privates
    life.settle()
    assert life.files() == life.named()


def test_the_manifest_knows_of_every_index_that_it_calls_settled() -> None:
    life = begun()
    session = Session(life, 1)
    for first in range(0, 180, 60):
        session.write("insert", some(range(first, first + 60), 1, "x" * 40))
    session.commit()
    life.settle()
    state = life.node.engine.manifest.current
    assert state.tablets[LOW.id, MAIN.id].flushed_index == state.range_indexes[LOW.id] == 2


def test_newest_timestamps_are_known_when_the_log_is_gone() -> None:
    life = begun()
    commit_ts = 0
    for number in range(60):
        later(life, 100)
        reply = Session(life, number).write("put", some([1], number, "x" * 99), commit=True)
        commit_ts = reply.commit_ts
        if number == 9:
            Session(life, 99).write("put", some([SPLIT]), commit=True)
            life.node.engine.freeze(life.node.engine.tablets[HIGH.id, MAIN.id])
            life.settle()
    flushed(life)
    logs = [path for path in life.disk.written if "/log/" in path]
    assert sum(len(life.disk.written[path]) for path in logs) < 12_000  # an idle range keeps none
    life = Life(life.disk.after_kill(), 0)
    for local in life.node.ranges.values():
        newest = max(meta.max_ts for meta in local.tablets[MAIN.id].metas)
        assert local.participant.read_at(0, 0) >= newest
    assert life.local(LOW).participant.newest_commit_ts == commit_ts


def test_an_error_is_not_told_to_writers_once_it_has_passed() -> None:
    life = begun()
    engine = life.node.engine
    work = engine.maintenance
    for number in range(2):
        Session(life, number).write("put", some([1], number), commit=True)
        engine.freeze(engine.tablets[LOW.id, MAIN.id])
        life.until(lambda number=number: work.flushes > number)
    life.disk.failing, life.disk.failing_paths = {"create"}, ".arrow"
    life.until(lambda: work.failure is not None)
    life.disk.failing = set()
    assert not work.merges
    life.settle()
    assert work.merges and work.failure is None


def test_outcomes_outlive_a_restart_as_long_as_they_may_be_asked_for() -> None:
    life = begun()
    Session(life, 1).write("put", some([1]), commit=True)
    aborted = m.QueryOutcome(LOW.id, bytes(16), True)
    assert life.reply(aborted) == m.Outcome("aborted", 0)
    for number in range(2, 40):  # the log goes on to other files
        later(life, FORGET_MS // 50)
        Session(life, number).write("put", some([1], number, "x" * 99), commit=True)
    flushed(life)
    for again in range(2):
        life = Life(life.disk.after_kill(), life.issued)
        query = m.QueryOutcome(LOW.id, (1).to_bytes(16, "big"), False)
        assert isinstance(reply := life.reply(query), m.Outcome) and reply.state == "committed"
        assert life.reply(aborted) == m.Outcome("aborted", 0)
        Session(life, 50 + again).write("put", some([1]), commit=True)
        flushed(life)


def test_writes_after_a_restart_are_newer_than_what_was_linked() -> None:
    life = begun()
    session = Session(life, 1)
    for first in range(0, 180, 60):
        session.write("insert", some(range(first, first + 60), 1, "x" * 40))
    session.commit()
    life.settle()
    life = Life(life.disk.after_kill(), life.issued)
    Session(life, 2).write("put", some([170], 2), commit=True)
    life.node.engine.freeze(life.local(LOW).tablets[MAIN.id])
    life.until(lambda: life.node.engine.maintenance.flushes == 1)  # and nothing is merged
    assert life.rows(LOW, MAIN, LAST_TS)[170] == [170, 2, ""]
    assert life.scanned(LOW, MAIN, LAST_TS)[170] == [170, 2, ""]


@pytest.mark.parametrize("change", ["install", "drop"])
def test_the_log_keeps_tables_that_the_manifest_does_not_know_yet(change: str) -> None:
    life = begun()
    side = side_table(1)
    if change == "drop":
        life.install(side)
        life.settle()
    life.disk.failing, life.disk.failing_paths = {"write"}, "MANIFEST"
    message = m.InstallTable(LOW, side) if change == "install" else m.DropTable(LOW.id, side.id)
    answer = life.ask(message)
    while answer.message is None or life.disk.jobs:
        life.disk.step()
    life.disk.failing = set()
    for number in range(60):  # the change is tried again with the next timer, which does not come
        later(life, 100)
        write = Session(life, number).write_message("put", some([1], 1, "x" * 99), MAIN, True)
        answer = life.ask(write)
        while answer.message is None:
            assert life.disk.step()
    life.node.engine.freeze(life.local(LOW).tablets[MAIN.id])
    life.node.engine.maintenance.pump()
    while life.background.step() or life.disk.step():
        pass
    assert not life.local(LOW).tablets[MAIN.id].unsettled
    life = Life(life.disk.after_kill(), life.issued)
    assert (side.id in life.local(LOW).tablets) == (change == "install")


def test_reads_of_dropped_versions_are_refused() -> None:
    life = begun()
    Session(life, 1).write("put", some([1], 1), commit=True)
    later(life, 2 * GC_TTL_MS)
    flushed(life)
    gc_ts = life.local(LOW).tablets[MAIN.id].gc_ts
    assert gc_ts
    for read in (life.selected, life.scan):
        refused = read(1, gc_ts - 1)
        assert isinstance(refused, m.Failure) and refused.sqlstate == "72000"
        assert not isinstance(read(1, gc_ts), m.Failure)


def test_writers_wait_for_merges_when_there_are_too_many_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    life = begun()
    tablet = life.local(LOW).tablets[MAIN.id]
    with monkeypatch.context() as without_merges:
        without_merges.setattr(policy, "choose", lambda *args, **options: None)
        for number in range(limits.RUNS_STALL_MAX + 1):
            Session(life, number).write("put", some([1], number), commit=True)
            flushed(life)
        waits = life.ask(Session(life, 99).write_message("put", some([1], 99), MAIN, True))
        life.settle()
        assert life.node.engine.maintenance.pressed and waits.message is None
    life.settle()
    assert isinstance(waits.message, m.Written)
    assert len(tablet.shape) <= limits.RUNS_TARGET_MAX
    assert life.rows(LOW, MAIN, LAST_TS) == {1: [1, 99, ""]}
