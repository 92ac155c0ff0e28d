"""EXPLAIN ANALYZE: runs the statement, throws its rows away, and tells how many and how long."""

from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING, Any, Final

from coordinator.pgwire import messages
from coordinator.plan.cache import Entry
from coordinator.plan.explain import explain_lines
from coordinator.plan.plans import UtilityPlan
from coordinator.rowset import ReadyRows
from coordinator.sql.compiler import CompiledStatement

if TYPE_CHECKING:
    from coordinator.conversation import Conversation
    from coordinator.executor import Executor

_BLOCK: Final = b"T"  # as in ReadyForQuery
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


async def run(executor: Executor, session: Conversation, outer: Entry, params: bytes) -> ReadyRows:
    """The lines of EXPLAIN ANALYZE for the statement of `outer`, as rows."""
    explain = outer.plan
    assert isinstance(explain, UtilityPlan)
    plan: Any = explain.args[0]
    entry = executor.plans.entry_of(
        CompiledStatement(plan, outer.params, plan.columns, bool(plan.columns))
    )
    values = list(outer.layout.decode(params)) if outer.params else []
    for name in entry.extras:
        if name == "now":
            values.append(_EPOCH + datetime.timedelta(microseconds=session.statement_time_us()))
        else:
            values.append(executor.rowids.take(max(plan.rowids, 1)))
    session.check_writable(entry)
    if session.status == _BLOCK and session.txn is None:
        session.begin()
    started = time.perf_counter()
    outcome = await executor.run(session, entry, entry.layout.encode(values), b"", session.txn)
    if outcome.cursor is None:
        tag = outcome.complete[5:-1].decode()
        rows = int(tag.split()[-1]) if tag.split()[-1].isdigit() else 0
    else:
        rows, done = 0, False
        while not done:
            _, count, done = await outcome.cursor.fetch(0)
            rows += count
    spent_ms = (time.perf_counter() - started) * 1000
    lines = explain_lines(plan, executor.catalog)
    lines += [f"Actual Rows: {rows}", f"Execution Time: {spent_ms:.3f} ms"]
    data = [messages.data_row([line.encode()]) for line in lines]
    return ReadyRows(b"".join(data), len(data))
