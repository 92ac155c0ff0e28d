"""What sessions need of the rest of the coordinator, as protocols.

The session and the executor hold no socket, no loop and no connection to a shard: they are given a
`Shell` (the connection's side of the event loop) and a `Driver` (transactions and shards).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from coordinator.plan.plans import RowPlan, ScanStage
from shardb.errors import SqlError
from shardb.meta.descriptors import Range, Table

if TYPE_CHECKING:
    from typing_extensions import Buffer


class RowResult(Protocol):
    """What a row program gave: DataRow messages and the number of rows selected or changed."""

    @property
    def data(self) -> bytes: ...
    @property
    def rows(self) -> int: ...


Txn = Any  # coordinator.txn_driver.Txn: opaque here

RowDone = Callable[[Any], None]  # called with a RowResult or an SqlError, at most once


class Driver(Protocol):
    """Carries out plans on shards (`coordinator.txn_driver.TxnDriver`)."""

    @property
    def gate(self) -> Any: ...  # coordinator.gate.TableGate

    @property
    def session_locks(self) -> set[Any]: ...  # coordinator.advisory.SessionLocks

    def begin(self, level: str = ..., process_id: int = ...) -> Txn: ...

    def execute_row(
        self,
        txn: Txn | None,
        plan: RowPlan,
        program: Any,
        params: bytes,
        formats: bytes,
        on_done: RowDone,
        process_id: int = ...,
    ) -> Any: ...

    def needs_fallback(self, plan: RowPlan, program: Any, params: bytes) -> bool: ...

    async def snapshot(self, txn: Txn | None) -> int: ...

    async def run_scan(self, txn: Txn | None, stage: ScanStage, read_ts: int = 0) -> pa.Table: ...

    async def has_rows(self, table: Table) -> bool: ...

    async def write_encoded(
        self,
        txn: Txn,
        table_id: int,
        mode: str,
        keys: bytes,
        key_offsets: Any,
        rows: bytes | None,
        row_offsets: Any,
        expected_ts: Sequence[int] = (),
    ) -> Any: ...

    async def lock_keys(
        self,
        txn: Txn,
        table_id: int,
        keys: Sequence[bytes],
        expected_ts: Sequence[int],
        mode: int,
        nowait: int,
    ) -> set[bytes]: ...

    async def unlock_key(self, txn: Txn, table_id: int, key: bytes, mode: int) -> None: ...

    def abandon(self, txn: Txn) -> None: ...

    async def write_dealt(
        self, txn: Txn, table_id: int, item: Range, count: int, keys: Buffer, rows: Buffer
    ) -> None: ...

    def mark(self, txn: Txn) -> int: ...

    async def rollback_to(self, txn: Txn, statement: int) -> None: ...

    async def commit(self, txn: Txn) -> None: ...

    async def rollback(self, txn: Txn) -> None: ...

    async def install_table(self, table_id: int) -> None: ...

    async def install(self, table: Table, ranges: Sequence[Range]) -> None: ...

    async def drop_table(self, table: Table, ranges: Sequence[Range]) -> None: ...


class Cancellable(Protocol):
    """A running task."""

    def cancel(self) -> object: ...


class Waiter(Protocol):
    """A future made by the shell."""

    def done(self) -> bool: ...
    def set_result(self, result: None, /) -> None: ...
    def __await__(self) -> Any: ...


class Shell(Protocol):
    """The connection's side of the event loop."""

    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...
    def spawn(
        self,
        work: Coroutine[Any, Any, None],
        done: Callable[[BaseException | None], None],
    ) -> Cancellable: ...
    def waiter(self) -> Waiter: ...
    def call_soon(self, function: Callable[[], None]) -> object: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def drain(self) -> Awaitable[None]: ...
    def gather(self, works: Sequence[Coroutine[Any, Any, Any]]) -> Awaitable[list[Any]]: ...
    def in_thread(self, function: Callable[..., Any], *args: Any) -> Awaitable[Any]: ...
    def timer(self, seconds: float, function: Callable[[], None]) -> Cancellable: ...


def as_sql_error(error: BaseException) -> SqlError | None:
    """The SqlError that `error` is or carries (errors of `_core` have the same attributes)."""
    if isinstance(error, SqlError):
        return error
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(sqlstate, str) and len(sqlstate) == 5:
        return SqlError(
            sqlstate,
            getattr(error, "message", "") or str(error),
            detail=getattr(error, "detail", "") or "",
            where=getattr(error, "where", "") or "",
        )
    return None
