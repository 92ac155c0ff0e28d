"""Writes by key: what inserts of many rows, COPY and DML by query send a range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shardb._core.frames import items_within, split_items
from shardb.errors import SqlError
from shardb.meta.descriptors import Table
from shardb.node.bulk import Bulk
from shardb.node.bulkwrites import bulk_of, is_bulk_change, wait_for_others, wait_for_room
from shardb.node.ranges import LocalRange
from shardb.node.statements import (
    ROW_CHANGED,
    UPDATED,
    Reply,
    Statement,
    Waits,
    duplicate_key,
)
from shardb.rpc import messages as m
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
        if self._is_bulk(state):
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
        count = message.count - len(self.skipped)
        skipped = tuple(self.skipped)
        self.finish(
            lambda commit_ts: m.Written(count, skipped, state.state_id, commit_ts, state.floor)
        )

    def _by_row(self, state: State, keys: list[bytes], rows: Sequence[bytes | None]) -> Waits:
        message = self.message
        mode = message.mode
        table = self.table
        versioned = mode in ("update", "delete") and bool(message.expected_ts)
        if versioned:  # all locks first: a statement that is run again finds its rows unchanged
            for key in keys:
                yield from self.lock(state, table, key, True, 0)
        for index, (key, row) in enumerate(zip(keys, rows, strict=True)):
            if not versioned:
                yield from self.lock(state, table, key, True, 0)
            existing = self.current(state, table.id, key)
            if mode == "insert":
                if existing is not None:
                    raise duplicate_key(table, None, key)
            elif mode == "insert_ignore":
                if existing is not None:
                    if self.read_ts and self.newer_than_snapshot(state, table.id, key):
                        raise SqlError("40001", UPDATED)
                    self.skipped.append(index)
                    continue
            elif versioned:
                self._check_version(state, key, existing, message.expected_ts[index])
            self.put(state, table.id, key, row)

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
        """A large insert: its rows stay together, and their presence stands for their locks."""
        message = self.message
        yield from wait_for_others(self, state, self.table.id, message.keys, message.count)
        runs = self.local.runs(self.table.id, self.version, state)
        existing = runs.first_existing(message.keys, message.count)
        if existing >= 0:
            raise self._duplicate(existing)
        bulk = bulk_of(self, state, self.table.id)
        repeated = bulk.add(self.txn.statement, message.count, message.keys, message.rows)
        if repeated >= 0:
            raise self._duplicate(repeated)
        yield from wait_for_room(self, bulk)

    def _change_bulk(self, state: State) -> Waits:
        """A large update or delete by query. Its presence locks it, even if it is taken back."""
        message = self.message
        yield from wait_for_others(self, state, self.table.id, message.keys, message.count)
        bulk = bulk_of(self, state, self.table.id)
        changed: SqlError | None = None
        try:
            self._check_versions(bulk)
        except SqlError as error:
            changed = error
        rows = None if message.mode == "delete" else message.rows
        bulk.change(self.txn.statement, message.count, message.keys, rows)
        if changed is not None:  # locked now: a statement that is run again finds them unchanged
            raise changed
        yield from wait_for_room(self, bulk)

    def _check_versions(self, bulk: Bulk) -> None:
        """As `_check_version` for all of the message's rows."""
        message = self.message
        tablet = self.local.tablets[self.table.id]
        own = bulk.ingest.own_runs(self.version)
        runs = tablet.runs(self.version)
        keys = split_items(message.keys, message.count)
        for key, expected_ts in zip(keys, message.expected_ts, strict=True):
            found = own.newest(key)
            if found is None:
                found = runs.newest(key)
                if found is None or found[0] is None or found[1] != expected_ts:
                    raise SqlError("40001", ROW_CHANGED)
            elif found[0] is None:
                raise SqlError("40001", ROW_CHANGED)

    def _duplicate(self, number: int) -> SqlError:
        """23505 for one of the batch's keys."""
        key = split_items(self.message.keys, self.message.count)[number]
        return duplicate_key(self.table, None, key)
