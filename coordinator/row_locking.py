"""SELECT ... FOR UPDATE by query: finds rows at a snapshot, then locks them by key.

A row is the result's only if it is, under its lock, what the query saw. Under READ COMMITTED the
query is run again at a fresh snapshot if one is not, and keeps its locks; the other levels fail
(40001). With SKIP LOCKED and a LIMIT rows are locked in their order until there are enough.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from coordinator.isolation import SNAPSHOT_LEVELS
from coordinator.plan.plans import LockPlan, QueryPlan
from coordinator.ports import Txn
from shardb.errors import CONCURRENT_UPDATE, SqlError, is_row_changed

if TYPE_CHECKING:
    from coordinator.conversation import Conversation
    from coordinator.executor import Executor

RUNS_MAX: Final = 100  # of one statement: after that 40001


async def run_locking(
    executor: Executor,
    session: Conversation,
    plan: LockPlan | QueryPlan,
    values: Sequence[Any],
    txn: Txn | None,
) -> pa.Table | pa.RecordBatchReader:
    """A query that locks rows, in a transaction of its own if there is none."""
    inside = txn or executor.driver.begin(process_id=session.process_id)
    try:
        if isinstance(plan, LockPlan):
            rows: Any = await lock_rows(executor, session, plan, values, inside)
        else:
            rows = await executor.query(session, plan, values, inside)
        if txn is None:
            await executor.driver.commit(inside)
    except BaseException:
        if txn is None:
            executor.roll_back_later(inside)
        raise
    return rows


async def lock_rows(
    executor: Executor, session: Conversation, plan: LockPlan, values: Sequence[Any], txn: Txn
) -> pa.Table:
    """The rows of a query, locked, in its own columns."""
    txn.lock_timeout_s = session.settings.lock_timeout_s
    skipped: dict[str, set[bytes]] = {lock.skipped: set() for lock in plan.locks if lock.skipped}
    for lock in plan.locks:
        executor.driver.gate.enter(txn, lock.table_id)
    for attempt in itertools.count(1):
        given = {
            name: pa.table({"c0": pa.array(sorted(keys), pa.binary())})
            for name, keys in skipped.items()
        }
        found = await executor.query(session, plan.query, values, txn, given)
        if not isinstance(found, pa.Table):
            found = await session.shell.in_thread(found.read_all)
        try:
            rows, short = await _lock(executor, plan, found, txn, skipped)
        except SqlError as error:
            if not is_row_changed(error) or attempt >= RUNS_MAX:
                raise
            if txn.level in SNAPSHOT_LEVELS:
                raise SqlError("40001", CONCURRENT_UPDATE) from error
            continue
        if not short or attempt >= RUNS_MAX:
            return rows.select(range(len(plan.columns)))
    raise AssertionError("unreachable")


async def _lock(
    executor: Executor, plan: LockPlan, found: pa.Table, txn: Txn, skipped: dict[str, set[bytes]]
) -> tuple[pa.Table, bool]:
    """Locks rows in their order until there are enough.

    Those kept, and whether there may be more in the place of those skipped.
    """
    wanted, start = None, 0
    if plan.limited and found.num_rows:
        wanted = found.column(found.num_columns - 2)[0].as_py()
        start = found.column(found.num_columns - 1)[0].as_py()
    keys = [found.column(lock.key_at).to_pylist() for lock in plan.locks]
    versions = [found.column(lock.ts_at).to_pylist() for lock in plan.locks]
    kept: list[int] = []
    at = 0
    while at < found.num_rows and (wanted is None or len(kept) < wanted):
        end = found.num_rows if wanted is None else at + wanted - len(kept)
        rows = list(range(at, min(end, found.num_rows)))
        at = end
        for lock, column, version in zip(plan.locks, keys, versions, strict=True):
            distinct = {column[row]: version[row] for row in rows}
            if not distinct:
                break
            busy = await executor.driver.lock_keys(
                txn, lock.table_id, list(distinct), list(distinct.values()), lock.mode, lock.nowait
            )
            if busy:
                skipped[lock.skipped] |= busy
                rows = [row for row in rows if column[row] not in busy]
        kept += rows
    short = wanted is not None and len(kept) < wanted and found.num_rows >= wanted + plan.spare
    return found.take(pa.array(kept[start:], pa.int64())), short and any(skipped.values())
