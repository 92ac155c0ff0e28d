"""Decisions of two-phase commits that are carried out before their records are durable.

A decision is acknowledged once its record is durable, and not before: whoever has all
acknowledgements forgets the outcome. A record that a full disk refused is owed: it goes before any
other of the range.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from shardb.errors import StorageError
from shardb.rpc import messages as m
from shardb.txn import records
from shardb.txn.state import Reply

Done = Callable[[StorageError | None], None]


class RecordLog(Protocol):
    """See `participant.Host`."""

    def persist(self, kind: int, payload: bytes, done: Done, lazy: bool = False) -> None: ...


class Decisions:
    """Those of one range. Invariant: what is owed or under way is in `_waiting`."""

    def __init__(self, log: RecordLog) -> None:
        self._log = log
        self._waiting: dict[bytes, list[Reply]] = {}
        self._owed: list[tuple[bytes, bytes]] = []  # (transaction, record)

    def log(self, txn_id: bytes, payload: bytes, reply: Reply) -> None:
        """Appends the record; the reply says whether it became durable."""
        self._waiting[txn_id] = [reply]
        self.log_owed()
        self._append(txn_id, payload)

    def answer(self, txn_id: bytes, reply: Reply) -> None:
        """Replies to who tells a decision again."""
        waiting = self._waiting.get(txn_id)
        if waiting is None:
            reply(m.Ack())
            return
        waiting.append(reply)
        self.log_owed()

    def log_owed(self) -> None:
        """Appends the records that did not get through."""
        owed, self._owed = self._owed, []
        for txn_id, payload in owed:
            self._append(txn_id, payload)

    def _append(self, txn_id: bytes, payload: bytes) -> None:
        def durable(error: StorageError | None) -> None:
            waiting = self._waiting.pop(txn_id)
            answer: m.Message = m.Ack()
            if error is not None:
                answer = m.Failure(error.sqlstate, error.message)
                self._waiting[txn_id] = []
                self._owed.append((txn_id, payload))
            for reply in waiting:
                reply(answer)

        self._log.persist(records.DECIDE, payload, durable, lazy=True)
