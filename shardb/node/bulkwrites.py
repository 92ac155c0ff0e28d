"""What statements with many rows of one table do alike: they write to the transaction's bulk.

There the presence of a key stands for its row lock, so that a statement takes no more memory than
its bulk's memtables, however many rows it changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardb._core.frames import join_items, split_items
from shardb.errors import SqlError
from shardb.node.bulk import Bulk
from shardb.txn.state import State

if TYPE_CHECKING:
    from shardb.node.statements import Statement, Waits


def is_bulk_change(state: State, table_id: int, rows: int, rows_min: int) -> bool:
    """True if so many updates or deletions are to go to the bulk."""
    if rows < rows_min:
        return False
    overlay = state.overlays.get(table_id)
    if not overlay:
        return True
    # Its writes have to go there first, which is one by one, and a key of it once.
    if len(overlay) > rows_min:
        return False
    return sum(entry[1] == table_id for entry in state.log) == len(overlay)


def bulk_of(statement: Statement, state: State, table_id: int) -> Bulk:
    """The transaction's bulk of a table, made if there is none. Raises what has failed in it.

    REQUIRES: `is_bulk_change`, or there is no overlay.
    """
    bulk = state.bulk.get(table_id)
    if bulk is None:
        bulk = state.bulk[table_id] = statement.local.new_bulk(table_id)
        writers = statement.participant.bulk_writers
        if state not in writers:
            writers.append(state)
    assert isinstance(bulk, Bulk)
    failure = bulk.ingest.failure
    if failure is not None:
        raise SqlError(failure.sqlstate, failure.message)
    for number, key, row in state.take(table_id):
        bulk.change(number, 1, join_items([key]), None if row is None else join_items([row]))
    state.floor = max(state.floor, statement.participant.newest_commit_ts)
    return bulk


def wait_for_others(
    statement: Statement, state: State, table_id: int, framed: bytes, count: int
) -> Waits:
    """Waits until no other transaction holds one of these keys."""
    while True:
        blocker: State | None = None
        for other in statement.participant.bulk_writers:
            held = None if other is state else other.bulk.get(table_id)
            if held is not None and held.first_held(framed, count) >= 0:
                blocker = other
                break
        if blocker is None and len(statement.locks):
            keys = split_items(framed, count)
            blocker = statement.locks.first_holder(table_id, keys, state)
        if blocker is None:
            return
        yield from statement.await_end(state, blocker)


def wait_for_room(statement: Statement, bulk: Bulk) -> Waits:
    """Waits while the bulk's memtables are written more slowly than they fill."""
    while bulk.ingest.pressed:
        bulk.ingest.when_room(statement.resume)
        yield
