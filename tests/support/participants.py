"""A range's participant over a log in memory, for tests of what it promises when."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from shardb.errors import StorageError
from shardb.rpc import messages as m
from shardb.txn import records
from shardb.txn.locks import LockTable
from shardb.txn.oracle import STEP
from shardb.txn.participant import Participant
from shardb.txn.state import State

TXN = bytes(range(16))


class Host:
    """A log in memory whose records become durable when `flush` is called."""

    def __init__(self) -> None:
        self.log: list[tuple[int, bytes]] = []
        self.waiting: deque[Callable[[StorageError | None], None]] = deque()
        self.rows: dict[tuple[int, bytes], list[tuple[int, bytes | None]]] = {}
        self.number = 0

    def persist(
        self, kind: int, payload: bytes, done: Callable[..., None], lazy: bool = False
    ) -> None:
        self.log.append((kind, payload))
        self.waiting.append(done)

    def flush(self, error: StorageError | None = None) -> None:
        while self.waiting:
            self.waiting.popleft()(error)

    def apply(self, table_id: int, overlay: dict[bytes, bytes | None], commit_ts: int) -> None:
        for key, row in overlay.items():
            self.rows.setdefault((table_id, key), []).append((commit_ts, row))

    def apply_section(self, section: records.Section, commit_ts: int) -> None:
        raise NotImplementedError

    def changed_since(self, table_id: int, low: bytes, high: bytes, ts: int) -> bool:
        return any(
            table == table_id and low <= key and (not high or key < high) and versions[-1][0] > ts
            for (table, key), versions in self.rows.items()
        )

    def restore_bulk(self, section: records.Section) -> None:
        raise NotImplementedError

    def new_state_id(self) -> int:
        self.number += 1
        return self.number


def participant() -> tuple[Participant, Host]:
    host = Host()
    found = Participant(1, host, LockTable())  # type: ignore[arg-type]
    found.fence(STEP)
    return found, host


def enter(found: Participant, txn_id: bytes = TXN) -> State:
    state = found.enter(m.TxnRef(txn_id, 0, 2, STEP), None)
    assert isinstance(state, State)
    state.put(2, 7, b"k", b"row")
    state.statements.add(2)
    return state


def prepare(state_id: int, statements: tuple[int, ...] = (2,)) -> m.Prepare:
    return m.Prepare(1, m.TxnRef(TXN, state_id, 2, STEP), statements, (), 0, 4 * STEP)
