"""What a shard tells of its locks: who waits for whom (for the detector of deadlocks), pg_locks.

A wait is reported once it has lasted for WAIT_REPORTED_MS; before, most are over. Reports are made
at the ends of intervals of that length for as long as anybody waits.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from itertools import islice

from shardb import limits
from shardb.rpc import messages as m
from shardb.txn.deadlock import deadlock_error
from shardb.txn.locks import LockTable

Reply = Callable[[m.Message], None]


class WaitReports:
    """The waits of one node. `call_later(delay_ms, call)` is the event loop's."""

    def __init__(
        self, locks: LockTable, call_later: Callable[[int, Callable[[], None]], None]
    ) -> None:
        self._locks = locks
        self._call_later = call_later
        self._watchers: dict[Hashable, Reply] = {}
        self._edges: tuple[m.WaitEdge, ...] = ()
        self._number = 1
        self._old = 0  # the newest wait that was there an interval ago
        self._ticking = False
        locks.on_wait = self._start

    def watch(self, owner: Hashable, message: m.WatchWaits, reply: Reply) -> None:
        """Carries out WatchWaits; of one owner (connection) only the newest stays unanswered."""
        self._renew()
        if message.known != self._number:
            reply(m.WaitReport(self._number, self._edges))
        else:
            self._watchers[owner] = reply

    def lose(self, owner: Hashable) -> None:
        """A connection is gone."""
        self._watchers.pop(owner, None)

    def end(self, message: m.BreakWait) -> None:
        """Carries out BreakWait."""
        waiter = self._locks.waits.get(message.wait)
        if waiter is not None:
            waiter.refused(deadlock_error(message.detail))

    def locks(self) -> m.LockList:
        """Carries out ListLocks."""
        return m.LockList(
            tuple(
                m.LockEntry(table_id, key, owner.txn_id, mode, granted)
                for (table_id, key), owner, mode, granted in islice(
                    self._locks.entries(), limits.LOCKS_LISTED_MAX
                )
            )
        )

    def _start(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._call_later(limits.WAIT_REPORTED_MS, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        self._renew()
        self._old = self._locks.last_wait
        if self._locks.waits or self._edges:
            self._start()

    def _renew(self) -> None:
        edges = self._locks.edges(self._old)
        if edges == self._edges:
            return
        self._edges = edges
        self._number += 1
        watchers, self._watchers = self._watchers, {}
        for reply in watchers.values():
            reply(m.WaitReport(self._number, edges))
