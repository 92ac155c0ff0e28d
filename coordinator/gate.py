"""Who writes which table, and which tables a schema change has shut against new writers.

A schema change that copies or replaces a table shuts it: statements that would begin to write it
wait in their sessions (and are planned again afterwards), while those that have begun, and the
transactions that wrote it before, go on to their ends. Once none is left, what a scan finds is all
there is. This holds for the writers of one coordinator, the only one of this version.

Invariant: nothing is awaited between the look at `shut` and `enter`, or the start of a program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from coordinator.ports import Shell, Waiter
from shardb.errors import SqlError


class Writer(Protocol):
    """A statement on its own, under way (`rowcall.RowCall`)."""

    @property
    def table_id(self) -> int: ...


class Transaction(Protocol):
    """An open transaction and the tables it has written."""

    tables: set[int]


SCHEMA: Final = -1  # stands for the schema itself: changes are made one at a time


class TableGate:
    """The writers of a coordinator by table. All on the event loop's thread."""

    def __init__(self) -> None:
        self.shut: Final[dict[int, list[Waiter]]] = {}  # by table id, with who waits to get in
        self.calls: Final[set[Writer]] = set()
        self._open: set[Any] = set()  # transactions that have written
        self._leaving: list[Waiter] = []  # schema changes that wait for writers to end

    def enter(self, txn: Transaction, table_id: int) -> None:
        """A statement of a transaction begins to write a table."""
        txn.tables.add(table_id)
        self._open.add(txn)

    def left(self, txn: Transaction) -> None:
        """A transaction has ended."""
        self._open.discard(txn)
        if self.shut:
            self.wake()

    def wake(self) -> None:
        """A writer has ended while a table was shut."""
        leaving, self._leaving = self._leaving, []
        _wake(leaving)

    def bars(self, table_id: int, txn: Transaction | None) -> bool:
        """True if a statement that writes this table (0: none) has to wait first."""
        return table_id in self.shut and (txn is None or table_id not in txn.tables)

    async def passed(self, shell: Shell, table_id: int, timeout_s: float) -> None:
        """Waits until a table is open again; 55P03 if that takes too long."""
        await _until(
            shell, lambda: table_id not in self.shut, lambda: self.shut[table_id], timeout_s
        )

    async def close(self, shell: Shell, table_id: int, timeout_s: float) -> None:
        """Shuts a table and waits for its writers; 55P03, and open again, if they do not end."""
        await self.passed(shell, table_id, timeout_s)
        self.shut[table_id] = []
        try:
            await _until(shell, lambda: not self._busy(table_id), lambda: self._leaving, timeout_s)
        except BaseException:
            self.open(table_id)
            raise

    def open(self, table_id: int) -> None:
        """Lets the waiting writers go on."""
        _wake(self.shut.pop(table_id))

    def _busy(self, table_id: int) -> bool:
        return any(call.table_id == table_id for call in self.calls) or any(
            table_id in txn.tables for txn in self._open
        )


def lock_timed_out() -> SqlError:
    """55P03 in PostgreSQL's words."""
    return SqlError("55P03", "canceling statement due to lock timeout")


def _wake(waiters: list[Waiter]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


async def _until(
    shell: Shell,
    reached: Callable[[], bool],
    waiters: Callable[[], list[Waiter]],
    timeout_s: float,
) -> None:
    """Waits, woken over `waiters`, until a condition holds; 55P03 after the timeout."""
    if reached():
        return
    late: list[bool] = []
    waiter = shell.waiter()

    def expire() -> None:
        late.append(True)
        _wake([waiter])

    timer = shell.timer(timeout_s, expire)
    try:
        while not reached():
            if late:
                raise lock_timed_out()
            waiter = shell.waiter()
            waiters().append(waiter)
            await waiter
    finally:
        timer.cancel()
