"""Writes by key: what inserts of many rows, COPY and DML by query send a range."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Final

from shardb import limits
from shardb._core.frames import items_within, slice_items, split_items
from shardb.errors import SqlError
from shardb.meta.descriptors import Table
from shardb.node.bulk import Bulk
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
            self._finish(state)
            return
        large = message.count >= BULK_ROWS_MIN or self.table.id in state.bulk
        bulk = message.mode == "insert" and large and not state.overlays.get(self.table.id)
        if bulk:
            yield from self._bulk(state)
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
                        raise SqlError("40001", UPDATED)
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

    def _bulk(self, state: State) -> Waits:
        """A large insert: its rows stay together, and their presence stands for their locks.

        They are taken in by slices, each in a turn of its own: what is checked of one still holds
        when its rows are added.
        """
        message = self.message
        if len(message.rows) > limits.RPC_MESSAGE_MAX_BYTES:
            raise SqlError("54000", "a batch of rows is too long")
        bulk: Bulk | None = None
        for count, keys, rows in slice_items(
            message.keys, message.rows, message.count, limits.BULK_SLICE_BYTES
        ):
            if bulk is not None:
                self.local.engine.files.call_later(0, self.resume)
                yield
            bulk = yield from self._bulk_slice(state, count, keys, rows)
        while bulk is not None and bulk.ingest.pressed:
            bulk.ingest.when_room(self.resume)
            yield

    def _bulk_slice(
        self, state: State, count: int, keys: bytes, rows: bytes
    ) -> Generator[None, None, Bulk]:
        table_id = self.table.id
        yield from self._wait_for_others(state, count, keys)
        existing = self.local.tablets[table_id].runs().first_existing(keys, count)
        if existing >= 0:
            raise self._duplicate(count, keys, existing)
        bulk = state.bulk.get(table_id)
        if bulk is None:
            bulk = state.bulk[table_id] = self.local.new_bulk(table_id)
            if state not in self.participant.bulk_writers:
                self.participant.bulk_writers.append(state)
        assert isinstance(bulk, Bulk)
        if bulk.ingest.failure is not None:
            failure = bulk.ingest.failure
            raise SqlError(failure.sqlstate, failure.message)
        state.floor = max(state.floor, self.participant.newest_commit_ts)
        repeated = bulk.add(self.txn.statement, count, keys, rows)
        if repeated >= 0:
            raise self._duplicate(count, keys, repeated)
        return bulk

    def _duplicate(self, count: int, keys: bytes, number: int) -> SqlError:
        """23505 for one of these keys."""
        return duplicate_key(self.table, None, split_items(keys, count)[number])

    def _wait_for_others(self, state: State, count: int, keys: bytes) -> Waits:
        """Waits until no other transaction holds one of the keys."""
        table_id = self.table.id
        while True:
            blocker: State | None = None
            for other in self.participant.bulk_writers:
                held = None if other is state else other.bulk.get(table_id)
                if held is not None and held.first_held(keys, count) >= 0:
                    blocker = other
                    break
            if blocker is None and len(self.locks):
                each = split_items(keys, count)
                blocker = self.locks.first_holder(table_id, each, state)
            if blocker is None:
                return
            yield from self.await_end(state, blocker)
