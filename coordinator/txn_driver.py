"""The shell that carries out what shardb.txn decides: routing, statements on shards, commits.

Signatures first; bodies follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coordinator.catalog import Catalog
from coordinator.plan.plans import RowPlan, ScanStage
from shardb.errors import SqlError
from shardb.rpc.messages import Rows

if TYPE_CHECKING:
    import pyarrow as pa

RowResult = Rows  # .data (ready DataRow messages) and .rows
OnDone = Callable[[RowResult | SqlError], None]


@dataclass(slots=True)
class Txn:
    """One transaction as its coordinator sees it."""

    txn_id: bytes
    statement: int = 0
    floor: int = 0
    failed: bool = False
    ranges: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WriteResult:
    """Rows written, and the indexes of those an `insert_ignore` skipped."""

    count: int
    skipped: tuple[int, ...]


class TxnDriver:
    """Transactions over the shards of one cluster, for all sessions of a coordinator.

    `catalog` gives the newest snapshot; `oracle` timestamps.
    """

    def __init__(self, catalog: Callable[[], Catalog], oracle: Any) -> None: ...

    def begin(self) -> Txn:
        """A new transaction; nothing is sent before its first statement."""
        raise NotImplementedError

    def execute_row(
        self,
        txn: Txn | None,
        plan: RowPlan,
        program: Any,
        params: bytes,
        formats: bytes,
        on_done: OnDone,
    ) -> None:
        """Runs a row program; `on_done` is called once, never before this returns."""
        raise NotImplementedError

    def needs_fallback(self, plan: RowPlan, program: Any, params: bytes) -> bool:
        """True if `plan.fallback` must be used: several ranges, and no concatenating."""
        raise NotImplementedError

    async def snapshot(self, txn: Txn | None) -> int:
        """A timestamp for the scans of one statement."""
        raise NotImplementedError

    async def run_scan(self, txn: Txn | None, stage: ScanStage, read_ts: int = 0) -> pa.Table:
        """Gathers a stage; its interval and filter are final. `read_ts` 0 takes a snapshot."""
        raise NotImplementedError

    async def write(
        self,
        txn: Txn,
        table_id: int,
        mode: str,
        keys: Sequence[bytes],
        rows: Sequence[bytes],
        expected_ts: Sequence[int] = (),
    ) -> WriteResult:
        """Writes rows by key, each to its range, as one statement (see messages.Write)."""
        raise NotImplementedError

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
    ) -> WriteResult:
        """`write` for concatenated keys and rows with n + 1 int64 offsets each (bulk)."""
        raise NotImplementedError

    def mark(self, txn: Txn) -> int:
        """A savepoint: the number of the last statement."""
        return txn.statement

    async def rollback_to(self, txn: Txn, statement: int) -> None:
        """Undoes all statements after `statement` (from `mark`)."""
        raise NotImplementedError

    async def commit(self, txn: Txn) -> None:
        """Commits. Class 40 errors mean certainly aborted; 08007 that the outcome is unknown."""
        raise NotImplementedError

    async def rollback(self, txn: Txn) -> None:
        """Drops everything; never fails."""
        raise NotImplementedError

    async def install_table(self, table_id: int) -> None:
        """Makes a created table's tablets on its shards (after its descriptors are in the store)."""
        raise NotImplementedError

    async def drop_table(self, table: Any, ranges: Sequence[Any]) -> None:
        """Drops a table's tablets (after its descriptors are gone)."""
        raise NotImplementedError

    async def close(self) -> None:
        """Closes the connections."""
        raise NotImplementedError
