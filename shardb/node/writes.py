"""Writes by key: what inserts of many rows, COPY and DML by query send a range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shardb import limits
from shardb._core.frames import items_within, slice_items, split_items
from shardb.errors import CONCURRENT_UPDATE, ROW_CHANGED, SqlError
from shardb.meta.descriptors import Table
from shardb.node.bulk import Bulk
from shardb.node.bulkwrites import bulk_of, is_bulk_change, wait_for_others, wait_for_room
from shardb.node.locking import Waits
from shardb.node.ranges import LocalRange
from shardb.node.statements import (
    Reply,
    Statement,
    duplicate_key,
)
from shardb.rpc import messages as m
from shardb.txn.lockmodes import NO_KEY_UPDATE, UPDATE
from shardb.txn.locks import LockTable
from shardb.txn.state import State

BULK_ROWS_MIN: Final = 512  # an insert of so many rows is kept as it came


class WriteStatement(Statement):
    """Writes by key."""

    def __init__(
        self, local: LocalRange, locks: LockTable, message: m.Write, table: Table, reply: Reply
    ) -> None:
        version = table.schema_version
        super().__init__(local, locks, message.txn, message.commit, reply, version, message.read_ts)
        self.message = message
        self.table = table
        self.skipped: list[int] = []

    def floor(self) -> int:
        return self.message.floor

    def run(self, owner: object) -> None:
        """Begins; the reply comes when it is over."""
        self.start(owner, self._work)

    def _work(self, state: State) -> Waits:
        yield from self.room()
        message = self.message
        local = self.local
        if not items_within(message.keys, message.count, local.low, local.high):
            raise SqlError("57P03", "a row was sent to a range that does not hold it")
        if message.mode in ("lock", "unlock"):
            yield from self._locks_only(state, split_items(message.keys, message.count))
        elif self._is_bulk(state):
            yield from self._insert_bulk(state)
        elif self._is_bulk_change(state):
            yield from self._change_bulk(state)
        else:
            keys = split_items(message.keys, message.count)
            rows: Sequence[bytes | None] = (
                [None] * len(keys)
                if message.mode == "delete"
                else split_items(message.rows, message.count)
            )
            yield from self._by_row(state, keys, rows)
        self._finish(state)

    def _finish(self, state: State) -> None:
        count = self.message.count - len(self.skipped)
        skipped = tuple(self.skipped)
        self.finish(
            lambda commit_ts: m.Written(count, skipped, state.state_id, commit_ts, state.floor)
        )

    def _by_row(self, state: State, keys: list[bytes], rows: Sequence[bytes | None]) -> Waits:
        message = self.message
        mode = message.mode
        table = self.table
        lock = message.lock or (NO_KEY_UPDATE if mode == "update" else UPDATE)
        versioned = mode in ("update", "delete") and bool(message.expected_ts)
        if versioned:  # all locks first: a statement that is run again finds its rows unchanged
            for key in keys:
                yield from self.lock(state, table, key, lock, 0)
        for index, (key, row) in enumerate(zip(keys, rows, strict=True)):
            existing = None
            if mode in ("insert", "insert_ignore"):
                existing = self.undisputed(state, table.id, key)
            if existing is None:
                if not versioned:
                    yield from self.lock(state, table, key, lock, 0)
                existing = self.current(state, table.id, key)
            if mode == "insert":
                if existing is not None:
                    raise duplicate_key(table, None, key)
            elif mode == "insert_ignore":
                if existing is not None:
                    if self.read_ts and self.newer_than_snapshot(state, table.id, key):
                        raise SqlError("40001", CONCURRENT_UPDATE)
                    self.skipped.append(index)
                    continue
            elif versioned:
                self._check_version(state, key, existing, message.expected_ts[index])
            self.put(state, table.id, key, row)

    def _locks_only(self, state: State, keys: list[bytes]) -> Waits:
        """Locks rows, all of them before the first is looked at; or weakens locks."""
        message = self.message
        table = self.table
        if message.mode == "unlock":
            for key in keys:
                for granted in self.locks.weaken(state, (table.id, key), message.lock):
                    self.local.engine.files.call_later(0, granted)
            return
        busy: set[bytes] = set()
        for key in keys:
            yield from self.lock(state, table, key, message.lock, message.nowait, busy)
        self.skipped = [index for index, key in enumerate(keys) if key in busy]
        for index, expected_ts in enumerate(message.expected_ts):
            if keys[index] not in busy:
                existing = self.current(state, table.id, keys[index])
                self._check_version(state, keys[index], existing, expected_ts)

    def _check_version(
        self, state: State, key: bytes, existing: bytes | None, expected_ts: int
    ) -> None:
        """The row must be the one its new value came from. Own writes cannot have changed."""
        table_id = self.table.id
        if existing is not None and self.is_own(state, table_id, key):
            return
        version = self.local.tablets[table_id].newest(key)
        if existing is None or version is None or version[1] != expected_ts:
            raise SqlError("40001", ROW_CHANGED)

    def _is_bulk(self, state: State) -> bool:
        """True for rows to be inserted that stay together."""
        if self.message.mode != "insert" or state.overlays.get(self.table.id):
            return False
        return self.message.count >= BULK_ROWS_MIN or self.table.id in state.bulk

    def _is_bulk_change(self, state: State) -> bool:
        """The same for updates and deletions by query."""
        message = self.message
        if message.mode not in ("update", "delete") or not message.expected_ts:
            return False
        return is_bulk_change(state, self.table.id, message.count, BULK_ROWS_MIN)

    def _insert_bulk(self, state: State) -> Waits:
        """A large insert: its rows stay together, and their presence stands for their locks.

        They are taken in by slices, each in a turn of its own: what is checked of one still holds
        when its rows are added.
        """
        message = self.message
        table_id = self.table.id
        bulk: Bulk | None = None
        for count, keys, rows in slice_items(
            message.keys, message.rows, message.count, limits.BULK_SLICE_BYTES
        ):
            if bulk is not None:
                yield from self.next_turn()
            yield from wait_for_others(self, state, table_id, keys, count)
            existing = self.local.runs(table_id, self.version, state).first_existing(keys, count)
            if existing >= 0:
                raise self._duplicate(count, keys, existing)
            bulk = bulk_of(self, state, table_id)
            repeated = bulk.add(self.txn.statement, count, keys, rows)
            if repeated >= 0:
                raise self._duplicate(count, keys, repeated)
        if bulk is not None:
            yield from wait_for_room(self, bulk)

    def _change_bulk(self, state: State) -> Waits:
        """A large update or delete by query. Its presence locks it, even if it is taken back.

        By slices, too. All of them are locked before it is told that a row has changed: a statement
        that is run again finds them unchanged.
        """
        message = self.message
        delete = message.mode == "delete"
        bulk: Bulk | None = None
        changed: SqlError | None = None
        at = 0
        for count, keys, rows in slice_items(
            message.keys,
            message.keys if delete else message.rows,
            message.count,
            limits.BULK_SLICE_BYTES,
        ):
            if bulk is not None:
                yield from self.next_turn()
            yield from wait_for_others(self, state, self.table.id, keys, count)
            bulk = bulk_of(self, state, self.table.id)
            if changed is None and not self._unchanged(bulk, keys, count, at):
                changed = SqlError("40001", ROW_CHANGED)
            bulk.change(self.txn.statement, count, keys, None if delete else rows)
            at += count
        if changed is not None:
            raise changed
        if bulk is not None:
            yield from wait_for_room(self, bulk)

    def _unchanged(self, bulk: Bulk, keys: bytes, count: int, first: int) -> bool:
        """As `_check_version` for these keys, the message's from number `first` on."""
        tablet = self.local.tablets[self.table.id]
        own = bulk.ingest.own_runs(self.version)
        runs = tablet.runs(self.version)
        expected = self.message.expected_ts[first : first + count]
        for key, expected_ts in zip(split_items(keys, count), expected, strict=True):
            found = own.newest(key)
            if found is None:
                found = runs.newest(key)
                if found is None or found[0] is None or found[1] != expected_ts:
                    return False
            elif found[0] is None:
                return False
        return True

    def _duplicate(self, count: int, keys: bytes, number: int) -> SqlError:
        """23505 for one of these keys."""
        return duplicate_key(self.table, None, split_items(keys, count)[number])
