"""Changes of columns as a shard meets them: late decisions, old readers, changes that fail.

A shard learns of a table's next version before it is published, and perhaps it never is: then rows
go on in the present one, and another version may come with the same number.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shardb.meta.descriptors import Table
from shardb.rpc import messages as m
from shardb.sim.loop import Crash
from tests.support.small_node import (
    LAST_TS,
    LOW,
    MAIN,
    Life,
    Session,
    begun,
    cells,
    set_small_limits,
    some,
    with_column,
    without_column,
)

Rows = dict[int, dict[int, object]]  # values by key and column id
ADDED = with_column(MAIN)
DROPPED = without_column(MAIN)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    set_small_limits(monkeypatch)


def restarted(life: Life) -> Life:
    return Life(life.disk.after_kill(), life.issued)


def assert_rows(life: Life, table: Table, wanted: Rows) -> None:
    """The rows, given by column id, as a version of the table has them, read in both ways."""
    expected = {ident: cells(table, values) for ident, values in wanted.items()}
    assert life.rows(LOW, table, LAST_TS) == expected
    assert life.scanned(LOW, table, LAST_TS) == expected


def assert_rows_for_ever(life: Life, tables: tuple[Table, ...], wanted: Rows) -> None:
    """The same before and after flushes, merges and a restart."""
    for step in (lambda: life, lambda: flushed(life), lambda: flushed(restarted(life))):
        now = step()
        for table in tables:
            assert_rows(now, table, wanted)


def flushed(life: Life) -> Life:
    engine = life.node.engine
    for tablet in list(engine.tablets.values()):
        engine.freeze(tablet)
    engine.maintenance.pump()
    life.settle()
    return life


@pytest.mark.parametrize("count", [3, 180], ids=["few", "segments"])
@pytest.mark.parametrize("again", [flushed, restarted, lambda life: life])
def test_a_prepared_transaction_is_decided_under_a_newer_layout(
    count: int, again: Callable[[Life], Life]
) -> None:
    life = begun()
    Session(life, 1).write("put", some([800], 1), commit=True)
    session = Session(life, 2)
    session.write("insert", some(range(count), 2, "x" * 40))
    session.write("delete", {800: None})
    commit_ts = session.prepare()
    life.install(ADDED)
    life = again(life)
    Session(life, 3).write("put", {900: {1: 900, 4: 44}}, ADDED, commit=True)
    life = again(life)
    assert life.reply(m.Decide(LOW.id, session.id, commit_ts)) == m.Ack()
    wanted: Rows = {900: {1: 900, 4: 44}}
    wanted |= {ident: {1: ident, 2: 2, 3: "x" * 40} for ident in range(count)}
    assert_rows_for_ever(life, (MAIN, ADDED), wanted)


@pytest.mark.parametrize("again", [flushed, restarted, lambda life: life])
def test_a_version_that_was_not_published_gives_way_to_another(
    again: Callable[[Life], Life],
) -> None:
    life = begun()
    life.install(ADDED)  # from here on published
    Session(life, 1).write("put", some(range(5), 1, "first"), commit=True)
    life = again(life)
    Session(life, 2).write("put", {7: {1: 7, 2: 2, 4: None}}, ADDED, commit=True)
    life.install(without_column(ADDED))  # is not published
    life = again(life)
    wanted: Rows = {n: {1: n, 2: 1, 3: "first"} for n in range(5)}
    wanted[7] = {1: 7, 2: 2, 4: None}
    assert_rows(flushed(life), ADDED, wanted)
    Session(life, 3).write("put", {8: {1: 8, 4: 8}}, ADDED, commit=True)
    wanted[8] = {1: 8, 4: 8}
    other = with_column(ADDED)
    life.install(other)
    life = again(life)
    Session(life, 4).write("put", {9: {1: 9, 4: 9, 5: 9}}, other, commit=True)
    wanted[9] = {1: 9, 4: 9, 5: 9}
    assert_rows_for_ever(life, (ADDED, other), wanted)


def test_readers_of_all_versions_find_their_columns() -> None:
    life = begun()
    tables = [MAIN]
    for number in range(6):
        Session(life, number + 1).write(
            "put", {number: {1: number, 2: number, 4: number}}, tables[-1], commit=True
        )
        change = with_column if number % 2 == 0 else without_column
        tables.append(change(tables[-1]))
        life.install(tables[-1])
    life = restarted(flushed(life))
    for table in tables:
        for number in range(6):
            had = {column.id for column in tables[number].columns}
            row: dict[int, object] = {1: number, 2: number, 4: number}
            values = {column: value for column, value in row.items() if column in had}
            assert life.rows(LOW, table, LAST_TS)[number] == cells(table, values)


@pytest.mark.parametrize("how", ["before", "after", "torn"])
def test_a_crash_anywhere_in_a_change_leaves_a_table_that_can_be_changed(how: str) -> None:
    for number in range(1, 200):
        life = begun()
        Session(life, 1).write("put", some(range(30), 1, "y" * 30), commit=True)
        disk = life.disk
        disk.crash_at, disk.crash_how = len(disk.points) + number, how
        acknowledged = False
        try:
            life.install(ADDED)
            Session(life, 2).write("put", {50: {1: 50, 4: 5}}, ADDED, commit=True)
            acknowledged = True
            flushed(life)
        except Crash:
            life = restarted(life)
        else:
            return
        wanted: Rows = {n: {1: n, 2: 1, 3: "y" * 30} for n in range(30)}
        known = life.local(LOW).tables[MAIN.id]
        if acknowledged or 50 in life.rows(LOW, known, LAST_TS):
            assert known == ADDED
            wanted[50] = {1: 50, 4: 5}
        assert_rows(life, MAIN, wanted)
        other = with_column(ADDED) if 50 in wanted else DROPPED
        life.install(other)
        Session(life, 3).write("put", {51: {1: 51, 2: 6}}, other, commit=True)
        wanted[51] = {1: 51, 2: 6}
        assert_rows(flushed(life), other, wanted)
    raise AssertionError("there is no end to the change")
