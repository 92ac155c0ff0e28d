"""Statements on one range: row programs and writes by key, with their waits.

A statement is a generator: it yields where it has to wait for a lock or for an outcome, and its
`resume` is called when that came. Everything runs on the node's loop thread; nothing changes
between two yields but by the statement itself. It ends with one reply.

READ COMMITTED: rows are read again at their newest version once they are locked, so that a filter
or an assignment never works on a version that another transaction has replaced. With a snapshot
(REPEATABLE READ and SERIALIZABLE) rows are found there; who meets a newer version under the lock
fails with 40001.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from typing import Final

import msgspec

from shardb import limits
from shardb._core.frames import join_items
from shardb._core.rowprog import Program
from shardb.checks import RowChecks
from shardb.errors import (
    CONCURRENT_DELETE,
    CONCURRENT_UPDATE,
    SqlError,
    StorageError,
    is_row_changed,
    unsupported,
)
from shardb.meta.descriptors import Table
from shardb.node.bulk import Bulk
from shardb.node.bulkwrites import bulk_of, is_bulk_change, wait_for_others, wait_for_room
from shardb.node.keys import key_positions
from shardb.node.locking import Locking, Waits
from shardb.node.ranges import LocalRange
from shardb.program import ProgramSpec
from shardb.rpc import messages as m
from shardb.rpc.transport import error_failure
from shardb.txn.lockmodes import BY_NAME, UPDATE, update_mode
from shardb.txn.locks import LockTable, Waiter
from shardb.txn.participant import Participant
from shardb.txn.state import ACTIVE, DONE, State

log = logging.getLogger("shardb.node")

TS_MAX: Final = 2**64 - 1
CANCELED: Final = "canceling statement due to user request"

Reply = Callable[[m.Message], None]


class Registered:
    """A program as registered by coordinators."""

    __slots__ = ("checks", "program", "spec", "table")

    def __init__(self, program: Program, spec: ProgramSpec, table: Table) -> None:
        self.checks = RowChecks(table, spec.checks) if spec.checks else None
        self.program = program
        self.spec = spec
        self.table = table


class Statement(Locking):
    """What both kinds of statements share: entering the transaction, waiting, ending."""

    def __init__(
        self,
        local: LocalRange,
        locks: LockTable,
        txn: m.TxnRef,
        commit: bool,
        reply: Reply,
        version: int,
        read_ts: int,
    ) -> None:
        self.local = local
        self.participant: Participant = local.participant
        self.locks = locks
        self.txn = txn
        self.commit = commit
        self.reply = reply
        self.state: State | None = None
        self.fresh = False
        self.over = False
        self.work: Waits | None = None
        self.waiter: Waiter | None = None
        self.version = version  # of the table's schema that rows are read in
        self.read_ts = read_ts  # the transaction's snapshot, or 0

    def start(self, owner: object, work: Callable[[State], Waits]) -> None:
        """Enters the transaction and runs as far as possible without waiting."""
        txn = self.txn
        entered = self.participant.enter(txn, owner)
        if entered is None:
            message = "the transaction was lost by a shard"
            self.participant.refuse(txn.txn_id, txn.txn_ts, message, self.reply)
            return
        if isinstance(entered, m.Failure):
            self.reply(entered)
            return
        state = entered
        if txn.statement in state.statements:
            if txn.statement == state.last_statement and state.last_reply is not None:
                self.reply(state.last_reply)
            else:
                self.reply(m.Failure("40001", "a statement was sent again too late"))
            return
        self.fresh = txn.state_id == 0
        if state.abandon is not None:  # an earlier one waits: they are carried out in order
            state.enqueue(lambda: self._begin(state, work))
        else:
            self._begin(state, work)

    def _begin(self, state: State, work: Callable[[State], Waits]) -> None:
        self.state = state
        if self.read_ts:  # before locks are looked at
            self.participant.read_at(self.read_ts, 0)
        if state.phase != ACTIVE:
            self._abandon()
            return
        state.abandon = self._abandon
        state.cancel = self._cancel
        self.work = work(state)
        self.resume()

    def resume(self) -> None:
        """Goes on after a wait."""
        if self.over or self.work is None:
            return
        state = self.state
        assert state is not None
        try:
            if state.phase != ACTIVE:
                raise SqlError("40001", "the transaction ended while a statement waited")
            next(self.work)
        except StopIteration:
            return
        except Exception as error:  # whatever it is, the client hears of it and locks go
            if not isinstance(error, SqlError | ValueError | MemoryError):
                log.exception("a statement failed")
            self.fail(error)
        self.locks.refuse_victims()

    def _abandon(self) -> None:
        assert self.state is not None
        if not self.over:
            self.over = True
            self.reply(m.Failure("57014", CANCELED, aborted=True))
            self.state.next()

    def _cancel(self, statement: int) -> None:
        """Ends the wait for a lock or an outcome; there is no other way to be half done."""
        if statement == self.txn.statement:
            self._stop(SqlError("57014", CANCELED))

    def _stop(self, error: SqlError) -> None:
        """Fails while it waits."""
        if self.over or self.work is None:
            return
        self.work.close()
        waiter, self.waiter = self.waiter, None
        grants = [] if waiter is None else self.locks.cancel(waiter)
        self.fail(error)
        for granted in grants:
            granted()

    def fail(self, error: BaseException) -> None:
        """Ends with an error: the statement's writes are taken back, its locks stay."""
        self.over = True
        state = self.state
        assert state is not None
        changed = is_row_changed(error)
        failure = error_failure(error, aborted=self.commit)
        if state.phase == ACTIVE:
            state.abandon = state.cancel = None
            if self.commit or (self.fresh and not changed):
                self.participant.drop(state)
            else:
                state.undo(self.txn.statement - 1)
                if changed:  # the statement will be run again, and keeps its locks
                    failure = msgspec.structs.replace(failure, state_id=state.state_id)
        self.reply(failure)
        state.next()

    def finish(self, make: Callable[[int], m.Message]) -> None:
        """Ends well. `make(commit_ts)` is the reply; with `commit` it follows the log record."""
        self.over = True
        state = self.state
        assert state is not None
        state.abandon = state.cancel = None
        state.statements.add(self.txn.statement)
        if not self.commit:
            state.last_statement = self.txn.statement
            state.last_reply = make(0)
            self.reply(state.last_reply)
            state.next()
            return

        def done(commit_ts: int, error: SqlError | None) -> None:
            if error is not None:
                self.reply(error_failure(error, aborted=True))
            else:
                self.reply(make(commit_ts))

        self.participant.commit_one(state, self.floor(), self.participant.known_issued, done)

    def floor(self) -> int:
        """The coordinator's newest seen timestamp, from the request."""
        raise NotImplementedError

    def room(self) -> Waits:
        """Waits while flushes and merges cannot keep up; fails with their error if they fail."""
        engine = self.local.engine
        while engine.maintenance.pressed:
            failure = engine.maintenance.failure
            if failure is not None:
                raise StorageError(failure.sqlstate, failure.message)
            engine.maintenance.when_room(self.resume)
            yield

    def next_turn(self) -> Waits:
        """Lets others have the loop before it goes on."""
        self.local.engine.files.call_later(0, self.resume)
        yield

    def current(self, state: State, table_id: int, key: bytes) -> bytes | None:
        """The row under a lock: the transaction's own write, else the newest version."""
        overlay = state.overlays.get(table_id)
        tablet = self.local.tablets[table_id]
        if overlay is not None and key in overlay:
            row = overlay[key]
            return row if row is None else tablet.as_version(row, self.version)
        bulk = state.bulk.get(table_id)
        if bulk is not None:
            assert isinstance(bulk, Bulk)
            found = bulk.row(key, self.version)
            if found is not None:
                return found[0]
        found = tablet.newest(key, self.version)
        if found is None:
            return None
        if found[1] > state.floor:
            state.floor = found[1]
        return found[0]

    def is_own(self, state: State, table_id: int, key: bytes) -> bool:
        """True if the row under a lock is the transaction's own write."""
        overlay = state.overlays.get(table_id)
        bulk = state.bulk.get(table_id)
        return (overlay is not None and key in overlay) or (bulk is not None and bulk.holds(key))

    def newer_than_snapshot(self, state: State, table_id: int, key: bytes) -> str:
        """40001's message if the snapshot does not see the newest version under a lock, else ""."""
        if self.is_own(state, table_id, key):
            return ""
        found = self.local.tablets[table_id].newest(key)
        if found is None or found[1] <= self.read_ts:
            return ""
        return CONCURRENT_DELETE if found[0] is None else CONCURRENT_UPDATE

    def at_snapshot(self, state: State, table_id: int, key: bytes) -> bytes | None:
        """The row that the snapshot sees: the transaction's own write, or the version then."""
        if self.is_own(state, table_id, key):
            return self.current(state, table_id, key)
        tablet = self.local.tablets[table_id]
        if self.read_ts < tablet.gc_ts:
            raise too_old(self.read_ts)
        found = tablet.runs(self.version).get(key, self.read_ts)
        if found is None:
            return None
        if found[1] > state.floor:
            state.floor = found[1]
        return found[0]

    def put(self, state: State, table_id: int, key: bytes, row: bytes | None) -> None:
        check_size(key, row)
        state.put(self.txn.statement, table_id, key, row)


class RowStatement(Statement):
    """A row program that writes or locks."""

    def __init__(
        self,
        local: LocalRange,
        locks: LockTable,
        message: m.Execute,
        registered: Registered,
        reply: Reply,
    ) -> None:
        assert message.txn is not None
        version = registered.spec.schema_version
        super().__init__(local, locks, message.txn, message.commit, reply, version, message.read_ts)
        self.message = message
        self.registered = registered
        self.data: list[bytes] = []
        self.rows = 0

    def floor(self) -> int:
        return self.message.floor

    def run(self, owner: object) -> None:
        """Begins; the reply comes when it is over."""
        self.start(owner, self._work)

    def _work(self, state: State) -> Waits:
        spec = self.registered.spec
        if spec.kind != "select" and self.local.engine.maintenance.pressed:
            yield from self.room()
        if spec.kind == "insert":
            yield from self._insert(state)
        elif spec.kind == "select":
            yield from self._select_locking(state)
            return
        else:
            yield from self._change(state)
        data = b"".join(self.data)
        rows = self.rows
        self.finish(lambda commit_ts: m.Rows(data, rows, state.state_id, commit_ts, state.floor))

    def _keys(self, state: State) -> Generator[None, None, list[bytes]]:
        """The keys a statement names, or those in its interval that match now."""
        program = self.registered.program
        params = self.message.params
        local = self.local
        if program.is_points:
            return [key for key in program.points(params) if local.holds(key)]
        table_id = self.registered.table.id
        interval = program.interval(params)
        if interval is None:
            return []
        yield from self._settle(table_id, interval)
        if self.read_ts and self.read_ts < local.tablets[table_id].gc_ts:
            raise too_old(self.read_ts)
        runs = local.runs(table_id, self.version, state)
        overlay = state.overlay(table_id)
        ts = self.read_ts or TS_MAX
        return program.candidates(runs, ts, params, overlay, local.low, local.high)

    def _settle(self, table_id: int, interval: tuple[bytes, bytes]) -> Waits:
        """Waits for what is prepared in the interval now; later ones came after the statement."""
        for blocker in self.participant.all_blocking(
            table_id, None, interval, self.read_ts, self.state
        ):
            while blocker.phase != DONE:
                assert self.state is not None
                yield from self.await_end(self.state, blocker)

    def _change(self, state: State) -> Waits:
        """UPDATE and DELETE."""
        program = self.registered.program
        table = self.registered.table
        spec = self.registered.spec
        message = self.message
        params = message.params
        returning = bool(spec.output)
        state.overlay(table.id)
        mode = UPDATE
        if spec.kind == "update":
            mode = update_mode(key_positions(table), (at for at, _ in spec.assignments))
        keys = yield from self._keys(state)
        many = limits.BULK_ROWS_MIN
        if (
            len(keys) >= many
            and is_bulk_change(state, table.id, len(keys), many)
            and not self._moves()
        ):
            yield from self._change_bulk(state, keys)
            return
        for key in keys:
            yield from self.lock(state, table, key, mode, message.nowait)
        for key in keys:
            row = self._found(state, table.id, key)
            if row is None:
                continue
            if spec.kind == "delete":
                if not program.matches(row, params):
                    continue
                self.put(state, table.id, key, None)
            else:
                changed = program.update(row, params)
                if changed is None:
                    continue
                new_key, row = changed
                self._check(row)
                if new_key != key:
                    yield from self._move(state, table, key, new_key, row)
                else:
                    self.put(state, table.id, key, row)
            self.rows += 1
            if returning:
                self.data.append(program.returning(row, params, message.formats))

    def _check(self, row: bytes) -> None:
        """23514 if a CHECK constraint refuses the row."""
        if self.registered.checks is not None:
            self.registered.checks.check(row)

    def _moves(self) -> bool:
        """True if it assigns to the primary key."""
        primary = self.registered.table.primary_key
        return any(at in primary for at, _ in self.registered.spec.assignments)

    def _change_bulk(self, state: State, keys: list[bytes]) -> Waits:
        """UPDATE and DELETE of many rows, a few thousand at a time, each locked and read again."""
        program = self.registered.program
        table_id = self.registered.table.id
        message = self.message
        delete = self.registered.spec.kind == "delete"
        for first in range(0, len(keys), limits.BULK_ROWS_MIN):
            if first:
                yield from self.next_turn()
            some = keys[first : first + limits.BULK_ROWS_MIN]
            yield from wait_for_others(self, state, table_id, join_items(some), len(some))
            bulk = bulk_of(self, state, table_id)
            names: list[bytes] = []
            rows: list[bytes] = []
            for key in some:
                row = self._found(state, table_id, key)
                if row is None:
                    continue
                if delete:
                    if not program.matches(row, message.params):
                        continue
                else:
                    changed = program.update(row, message.params)
                    if changed is None:
                        continue
                    row = changed[1]
                    self._check(row)
                    check_size(key, row)
                    rows.append(row)
                names.append(key)
                if self.registered.spec.output:
                    self.data.append(program.returning(row, message.params, message.formats))
            if names:
                framed = None if delete else join_items(rows)
                bulk.change(self.txn.statement, len(names), join_items(names), framed)
                self.rows += len(names)
            yield from wait_for_room(self, bulk)

    def _found(self, state: State, table_id: int, key: bytes) -> bytes | None:
        """The row under lock as the transaction's level sees it."""
        if self.read_ts:
            return self._still(state, table_id, key)
        return self.current(state, table_id, key)

    def _still(
        self, state: State, table_id: int, key: bytes, deleted: str = CONCURRENT_DELETE
    ) -> bytes | None:
        """The row the snapshot sees, under lock; 40001 if it matches and has changed since."""
        row = self.at_snapshot(state, table_id, key)
        if row is None:
            return None
        changed = self.newer_than_snapshot(state, table_id, key)
        if changed and self.registered.program.matches(row, self.message.params):
            raise SqlError("40001", deleted if changed == CONCURRENT_DELETE else changed)
        return row

    def _move(self, state: State, table: Table, key: bytes, new_key: bytes, row: bytes) -> Waits:
        """An UPDATE that changes the primary key."""
        if not self.local.holds(new_key):
            raise unsupported("moving a row to another range by UPDATE")
        yield from self.lock(state, table, new_key, UPDATE, 0)
        if self.current(state, table.id, new_key) is not None:
            raise duplicate_key(table, self.registered.program, new_key)
        self.put(state, table.id, key, None)
        self.put(state, table.id, new_key, row)

    def _insert(self, state: State) -> Waits:
        program = self.registered.program
        table = self.registered.table
        spec = self.registered.spec
        message = self.message
        params = message.params
        conflict = spec.conflict
        touched: set[bytes] = set()
        state.overlay(table.id)
        for key, row in program.insert(params, self.local.low, self.local.high):
            self._check(row)
            existing: bytes | None = None
            if conflict is None or not conflict.assignments:
                existing = self.undisputed(state, table.id, key)
            if existing is None:
                yield from self.lock(state, table, key, UPDATE, 0)
                existing = self.current(state, table.id, key)
            written: bytes | None = row
            if existing is not None:
                if conflict is None:
                    raise duplicate_key(table, program, key)
                if self.read_ts and self.newer_than_snapshot(state, table.id, key):
                    raise SqlError("40001", CONCURRENT_UPDATE)
                if not conflict.assignments:
                    continue
                if key in touched:
                    raise SqlError(
                        "21000",
                        "ON CONFLICT DO UPDATE command cannot affect row a second time",
                        hint="Ensure that no rows proposed for insertion within the same command "
                        "have duplicate constrained values.",
                    )
                written = program.upsert(existing, row, params)
                if written is None:
                    continue
                self._check(written)
            touched.add(key)
            assert written is not None
            self.put(state, table.id, key, written)
            self.rows += 1
            if spec.output:
                self.data.append(program.returning(written, params, message.formats))

    def _select_locking(self, state: State) -> Waits:
        """SELECT ... FOR UPDATE / SHARE."""
        program = self.registered.program
        table = self.registered.table
        message = self.message
        mode = BY_NAME[self.registered.spec.locking]
        low, high = self.local.low, self.local.high
        keys = yield from self._keys(state)
        locked: set[bytes] = set()
        skipped: set[bytes] = set()
        while True:
            for key in keys:
                yield from self.lock(state, table, key, mode, message.nowait, skipped)
            locked.update(keys)
            overlay: dict[bytes, bytes | None] | None = state.overlay(table.id)
            if skipped:
                overlay = dict(overlay or {})
                overlay.update(dict.fromkeys(skipped))
            runs = self.local.runs(table.id, self.version, state)
            if self.read_ts:
                for key in keys:
                    if key not in skipped:
                        self._still(state, table.id, key, deleted=CONCURRENT_UPDATE)
            if program.is_points:
                break
            # Rows that came to match while others were waited for are to be locked as well, and
            # those that take the places of skipped ones.
            ts = self.read_ts or TS_MAX
            found = program.candidates(runs, ts, message.params, overlay, low, high)
            keys = [key for key in found if key not in locked]
            if not keys:
                break
        data, rows, newest_ts = program.select(
            runs, self.read_ts or TS_MAX, message.params, message.formats, overlay, low, high
        )
        state.floor = max(state.floor, newest_ts)
        self.participant.read_at(0, message.floor)
        self.finish(lambda commit_ts: m.Rows(data, rows, state.state_id, commit_ts, state.floor))


def duplicate_key(table: Table, program: Program | None, key: bytes) -> SqlError:
    """23505 in PostgreSQL's words."""
    from shardb.node.keys import describe_key

    name = table.primary_key_name or f"{table.name}_pkey"
    columns, values = describe_key(table, key)
    return SqlError(
        "23505",
        f'duplicate key value violates unique constraint "{name}"',
        detail=f"Key ({columns})=({values}) already exists.",
        constraint=name,
    )


def check_size(key: bytes, row: bytes | None) -> None:
    """54000 if one is too long."""
    if len(key) > limits.KEY_MAX_BYTES:
        raise SqlError(
            "54000",
            f"index row size {len(key)} exceeds maximum of {limits.KEY_MAX_BYTES} bytes",
        )
    if row is not None and len(row) > limits.ROW_MAX_BYTES:
        raise SqlError("54000", f"row of {len(row)} bytes is too long")


def too_old(read_ts: int) -> SqlError:
    """72000: versions that a snapshot needs are gone."""
    return SqlError(
        "72000",
        "snapshot too old",
        detail=f"Versions of rows at {read_ts} have been removed since.",
        hint="Run the statement again; see --gc-ttl for how long overwritten rows are kept.",
    )
