"""Large updates and deletes, which stay together in memtables and segments of their transaction."""

from __future__ import annotations

import random
from collections.abc import Iterable

import msgspec
import pytest

from shardb import limits
from shardb.rpc import messages as m
from tests.support.small_node import (
    CODEC,
    LAST_TS,
    LOW,
    MAIN,
    Life,
    Session,
    begun,
    set_small_limits,
    some,
)

Rows = dict[int, list[object]]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    set_small_limits(monkeypatch)


def key_of(ident: int) -> bytes:
    return CODEC.encode((ident,))


def change(
    session: Session, idents: Iterable[int], value: int | None, wrong: int | None = None
) -> m.Message:
    """An update, or with None a deletion, of rows as they are; of `wrong`, as it is not."""
    idents = list(idents)
    tablet = session.life.local(LOW).tablets[MAIN.id]
    found = [tablet.newest(key_of(ident)) for ident in idents]
    expected = tuple(
        0 if version is None or ident == wrong else version[1]
        for ident, version in zip(idents, found, strict=True)
    )
    mode = "delete" if value is None else "update"
    rows = dict.fromkeys(idents) if value is None else some(idents, value, "y" * 30)
    message = session.write_message(mode, rows, MAIN)
    message = msgspec.structs.replace(message, expected_ts=expected)
    reply = session.life.reply(message)
    session.learn(message, reply)
    return reply


def roll_back(session: Session, statement: int) -> None:
    reply = session.life.reply(m.Rollback(LOW.id, session.id, session.states[LOW.id], statement))
    assert reply == m.Ack()
    session.live[LOW.id] = [number for number in session.live[LOW.id] if number <= statement]


def own_rows(session: Session) -> Rows:
    """What a cursor finds in the transaction."""
    local = session.life.local(LOW)
    state = local.participant.states[session.id]
    runs = local.runs(MAIN.id, MAIN.schema_version, state)
    return session.life.rows_of(runs, state.overlay(MAIN.id))


@pytest.mark.parametrize("seed", range(12))
def test_random_large_changes_are_what_a_map_says(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    life = begun()
    committed: Rows = {}
    for number in range(1, 7):
        session = Session(life, number)
        rows = dict(committed)
        marks: list[tuple[int, Rows]] = []
        for _ in range(rng.randrange(1, 8)):
            marks.append((session.statement, dict(rows)))
            step(rng, session, rows)
            if rng.random() < 0.3:
                life.settle()
            if LOW.id in session.states:
                assert own_rows(session) == rows
            if LOW.id in session.states and rng.random() < 0.25:
                statement, rows = rng.choice(marks)
                rows = dict(rows)
                if statement:
                    roll_back(session, statement)
                    assert own_rows(session) == rows
                else:
                    rows = dict(own_rows(session))
        if LOW.id not in session.states:
            continue
        if rng.random() < 0.5:
            session.commit()
        else:
            commit_ts = session.prepare()
            if rng.random() < 0.5:
                life = Life(life.disk.after_kill(), life.issued)
            assert life.reply(m.Decide(LOW.id, session.id, commit_ts)) == m.Ack()
        committed = rows
        assert life.rows(LOW, MAIN, LAST_TS) == life.scanned(LOW, MAIN, LAST_TS) == committed
        if rng.random() < 0.5:
            life = Life(life.disk.after_kill(), life.issued)
            assert life.rows(LOW, MAIN, LAST_TS) == committed
    life.settle()
    assert life.rows(LOW, MAIN, LAST_TS) == life.scanned(LOW, MAIN, LAST_TS) == committed
    assert life.files() == life.named()


def step(rng: random.Random, session: Session, rows: Rows) -> None:
    """One statement, and what it does to `rows`."""
    kind = rng.choice(("insert", "update", "update", "delete", "put"))
    if kind == "insert":
        absent = [ident for ident in range(180) if ident not in rows]
        idents = rng.sample(absent, min(len(absent), rng.choice((10, 60))))
        if idents:
            session.write("insert", some(idents, 1, "x" * 30))
            rows.update({ident: [ident, 1, "x" * 30] for ident in idents})
    elif kind == "put":
        ident, value = rng.randrange(180), rng.randrange(100)
        session.write("put", some([ident], value, "put"))
        rows[ident] = [ident, value, "put"]
    elif rows:
        idents = rng.sample(sorted(rows), min(len(rows), rng.choice((3, 20, 100))))
        value = None if kind == "delete" else rng.randrange(100)
        assert isinstance(change(session, idents, value), m.Written)
        for ident in idents:
            if value is None:
                del rows[ident]
            else:
                rows[ident] = [ident, value, "y" * 30]


def test_rows_that_changed_are_refused_and_stay_locked() -> None:
    life = begun()
    Session(life, 1).write("insert", some(range(60)), commit=True)
    session = Session(life, 2)
    refused = change(session, range(20), 5, wrong=7)
    assert isinstance(refused, m.Failure) and refused.message == "row changed"
    session.states[LOW.id] = refused.state_id
    # Nobody else gets at any of them, in a large statement or a small one.
    others = [Session(life, 3), Session(life, 4)]
    small = life.ask(others[0].write_message("put", some([3], 9), MAIN, commit=True))
    large = life.ask(others[1].write_message("put", some(range(10, 30), 9), MAIN, commit=True))
    life.settle()
    assert small.message is None and large.message is None
    assert isinstance(change(session, range(20), 6), m.Written)
    session.commit()
    life.settle()
    for answer in (small, large):
        assert isinstance(answer.message, m.Written)
    found = life.rows(LOW, MAIN, LAST_TS)
    assert [found[ident][1] for ident in (0, 3, 5, 10, 29, 30)] == [6, 9, 6, 9, 9, 0]


def test_what_is_taken_back_stays_locked_and_unchanged() -> None:
    life = begun()
    Session(life, 1).write("insert", some(range(60)), commit=True)
    session = Session(life, 2)
    session.write("put", some([100], 1))
    assert isinstance(change(session, range(40), 5), m.Written)
    roll_back(session, 1)
    other = life.ask(Session(life, 3).write_message("put", some([3], 9), MAIN, commit=True))
    life.settle()
    assert other.message is None
    session.commit()
    life.settle()
    assert isinstance(other.message, m.Written)
    found = life.rows(LOW, MAIN, LAST_TS)
    assert [found[ident][1] for ident in (2, 3, 100)] == [0, 9, 1]
    assert life.files() == life.named()


def test_rows_written_one_by_one_are_bounded_by_the_budget() -> None:
    life = begun()
    life.local(LOW).participant.txn_max_bytes = 20 * limits.TXN_ROW_BYTES
    session = Session(life, 1)
    for ident in range(18):
        session.write("put", some([ident]))
    message = session.write_message("put", some(range(50, 60)), MAIN)
    reply = life.reply(message)
    assert isinstance(reply, m.Failure) and reply.sqlstate == "53200", reply
    assert "rows one by one" in (reply.detail or "")
    session.commit()
    assert len(life.rows(LOW, MAIN, LAST_TS)) == 18


def test_keys_of_a_batch_may_come_in_any_order() -> None:
    life = begun()
    Session(life, 1).write("insert", some(range(60)), commit=True)
    session = Session(life, 2)
    assert isinstance(change(session, [*range(30, 60), *range(30)], None), m.Written)
    assert own_rows(session) == {}
    session.write("insert", some(range(20), 4))
    session.commit()
    found = life.rows(LOW, MAIN, LAST_TS)
    assert {ident: row[1] for ident, row in found.items()} == dict.fromkeys(range(20), 4)


@pytest.mark.parametrize("written", [False, True])
def test_deletions_stay_when_a_later_statement_is_taken_back(written: bool) -> None:
    life = begun()
    Session(life, 1).write("insert", some(range(60)), commit=True)
    session = Session(life, 2)
    assert isinstance(change(session, range(20), None), m.Written)
    assert isinstance(change(session, range(30, 50), 5), m.Written)
    if written:
        session.write("insert", some(range(100, 180), 1, "x" * 200))
        life.settle()
    roll_back(session, 1)
    assert own_rows(session).keys() == set(range(20, 60))
    session.commit()
    assert {ident: row[1] for ident, row in life.rows(LOW, MAIN, LAST_TS).items()} == dict.fromkeys(
        range(20, 60), 0
    )
