"""Large inserts: what a transaction does to its own rows later, and links beside other commits."""

from __future__ import annotations

import pytest

from shardb.rpc import messages as m
from tests.support.small_node import (
    LAST_TS,
    LOW,
    MAIN,
    Life,
    Session,
    begun,
    set_small_limits,
    some,
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    set_small_limits(monkeypatch)


def large(session: Session, begin: int = 0) -> None:
    """An insert that goes to several segments."""
    for first in range(begin, begin + 180, 60):
        session.write("insert", some(range(first, first + 60), 1, "x" * 40))


def test_rows_of_a_large_insert_are_changed_in_its_own_transaction() -> None:
    life = begun()
    session = Session(life, 1)
    large(session)
    session.write("put", some([5], 7, "changed"))
    session.write("delete", dict.fromkeys([6, 179]))
    session.commit()
    wanted = {n: [n, 1, "x" * 40] for n in range(179) if n != 6} | {5: [5, 7, "changed"]}
    assert life.rows(LOW, MAIN, LAST_TS) == wanted
    life.settle()  # named by the manifest
    assert life.rows(LOW, MAIN, LAST_TS) == life.scanned(LOW, MAIN, LAST_TS) == wanted
    again = Life(life.disk.after_kill(), life.issued)
    assert again.rows(LOW, MAIN, LAST_TS) == wanted


def test_a_link_does_not_settle_commits_that_were_under_way() -> None:
    life = begun()
    session = Session(life, 1)
    large(session)
    commit_ts = session.prepare()
    life.settle()
    other = life.ask(Session(life, 2).write_message("put", some([500]), MAIN, commit=True))
    life.ask(m.Decide(LOW.id, session.id, commit_ts))
    while other.message is None:
        life.disk.step()
    life.disk.step()  # the edit of the manifest, if there is one
    again = Life(life.disk.after_kill(), life.issued)
    assert again.reply(m.Decide(LOW.id, session.id, commit_ts)) == m.Ack()
    assert again.rows(LOW, MAIN, LAST_TS).keys() == {*range(180), 500}


def test_a_decision_that_is_not_durable_leaves_the_next_index_free() -> None:
    life = begun()
    session = Session(life, 1)
    large(session)
    commit_ts = session.prepare()
    life.settle()
    life.ask(m.Decide(LOW.id, session.id, commit_ts))
    life.disk.step()
    life = Life(life.disk.after_kill(), life.issued)
    Session(life, 2).write("put", some([500]), commit=True)
    life = Life(life.disk.after_kill(), life.issued)
    assert life.reply(m.Decide(LOW.id, session.id, commit_ts)) == m.Ack()
    assert life.rows(LOW, MAIN, LAST_TS).keys() == {*range(180), 500}
    life.settle()
    assert life.scanned(LOW, MAIN, LAST_TS).keys() == {*range(180), 500}


def test_numbers_in_the_log_are_not_given_to_other_files() -> None:
    life = begun()
    session = Session(life, 1)
    large(session)
    session.prepare()
    life.settle()
    private = life.files()
    assert life.reply(m.Decide(LOW.id, session.id, 0)) == m.Ack()
    life.settle()
    assert not life.files()
    life = Life(life.disk.after_kill(), life.issued)
    other = Session(life, 2)
    large(other)
    other.commit()
    life.settle()
    assert not private & life.files()
    for _ in range(2):
        life = Life(life.disk.after_kill(), life.issued)
        life.settle()
        assert len(life.rows(LOW, MAIN, LAST_TS)) == 180


def test_files_that_were_linked_and_merged_go_at_the_next_start() -> None:
    life = begun()
    session = Session(life, 1)
    large(session)
    commit_ts = session.prepare()
    life.settle()
    assert life.reply(m.Decide(LOW.id, session.id, commit_ts)) == m.Ack()
    before = life.disk.after_kill()
    for number in range(2, 20):  # until a merge takes them
        Session(life, number).write("put", some(range(0, 180, 4), number), commit=True)
        life.settle()
    gone = before.written.keys() - life.disk.written.keys()
    again = life.disk.after_kill()
    for path in gone:  # the crash came before they were removed
        if "segments" in path:
            again.written[path] = before.written[path]
    life = Life(again, life.issued)
    assert life.files() == life.named()


def test_a_commit_links_the_segments_that_the_transaction_has_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    life = begun()
    session = Session(life, 1)
    large(session)
    opened: list[object] = []
    real = life.node.engine.open_segment
    monkeypatch.setattr(
        life.node.engine, "open_segment", lambda meta: opened.append(meta) or real(meta)
    )
    tablet = life.local(LOW).tablets[MAIN.id]
    monkeypatch.setattr(tablet, "_opener", life.node.engine.open_segment)
    session.commit()
    assert len(life.rows(LOW, MAIN, LAST_TS)) == 180
    assert len(tablet.metas) > 1 and opened == []
