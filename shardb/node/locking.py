"""How a statement locks rows: in which order it looks, and for whom it waits.

Bulk writers hold the keys of their rows without entries in the lock table; a transaction that is
past its decision is waited for even where the statement would not wait (PROTOCOL 14).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from shardb.errors import SqlError
from shardb.meta.descriptors import Table
from shardb.txn.lockmodes import KEY_SHARE
from shardb.txn.locks import Key, LockTable, Waiter
from shardb.txn.participant import Participant
from shardb.txn.state import ACTIVE, DONE, State

NOWAIT: Final = 1
SKIP_LOCKED: Final = 2

Waits = Generator[None, None, None]


class Locking:
    """The part of a statement that locks; what it waits for calls `resume`, or `_stop`."""

    participant: Participant
    locks: LockTable
    waiter: Waiter | None

    def resume(self) -> None:
        """Goes on after a wait."""
        raise NotImplementedError

    def _stop(self, error: SqlError) -> None:
        """Fails while it waits."""
        raise NotImplementedError

    def floor(self) -> int:
        """The coordinator's newest seen timestamp, from the request."""
        raise NotImplementedError

    def current(self, state: State, table_id: int, key: bytes) -> bytes | None:
        """The row under a lock: the transaction's own write, else the newest version."""
        raise NotImplementedError

    def lock(
        self,
        state: State,
        table: Table,
        key: bytes,
        mode: int,
        nowait: int,
        skipped: set[bytes] | None = None,
    ) -> Waits:
        """Locks one row, waiting if need be; with SKIP LOCKED adds it to `skipped` instead."""
        lock_key = (table.id, key)
        while True:
            blocker = self._bulk_holder(state, table.id, key)
            if blocker is None and self.locks.try_acquire(state, lock_key, mode):
                break
            ending = self._ending(state, lock_key, mode, blocker) if nowait else None
            if ending is not None:
                yield from self.await_end(state, ending)
            elif nowait == NOWAIT:
                raise SqlError("55P03", f'could not obtain lock on row in relation "{table.name}"')
            elif nowait == SKIP_LOCKED and skipped is not None:
                skipped.add(key)
                return
            elif blocker is not None:
                yield from self.await_end(state, blocker)
            else:
                self.waiter = self.locks.wait(state, lock_key, mode, self.resume, self._stop)
                yield
        if mode == KEY_SHARE and self.participant.prepared:
            # Beside an update that may be acknowledged already: the row is what it makes of it.
            for writer in self.participant.all_blocking(table.id, [key], None, 0, state):
                while writer.phase != DONE:
                    yield from self.await_end(state, writer)

    def _ending(self, state: State, key: Key, mode: int, blocker: State | None) -> State | None:
        """One of those in the way, if all are past their decision (PROTOCOL 14)."""
        others = [blocker] if blocker is not None else self.locks.obstacles(state, key, mode)
        if any(other.phase == ACTIVE for other in others):
            return None
        return others[0] if others else None

    def undisputed(self, state: State, table_id: int, key: bytes) -> bytes | None:
        """A row that others have locked but not changed: an INSERT of its key need not wait."""
        holders = self.locks.holders((table_id, key))
        if not holders or self._bulk_holder(state, table_id, key) is not None:
            return None
        for holder in holders:
            if holder is state or holder.abandon is not None or holder.writes_key(table_id, key):
                return None
        self.participant.read_at(0, self.floor())
        return self.current(state, table_id, key)

    def await_end(self, state: State, other: State) -> Waits:
        """Waits until another transaction has ended here; a circle of such waits is a deadlock."""
        waiter = self.locks.await_end(state, other, self._stop)
        other.waiters.append(self.resume)
        try:
            yield
        finally:
            self.locks.cancel(waiter)

    def _bulk_holder(self, state: State, table_id: int, key: bytes) -> State | None:
        for other in self.participant.bulk_writers:
            if other is not state and other.phase != DONE:
                bulk = other.bulk.get(table_id)
                if bulk is not None and bulk.locks(key):
                    return other
        return None
