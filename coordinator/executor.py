"""Carries out plans for sessions: row programs, engine queries, DML by query, utility statements.

One executor a coordinator; it holds what sessions share. A row plan of a session does not come
through here on the hot path (the session calls the driver itself). asyncio stays in the shells: the
executor awaits the driver and has threads from the session's shell.
"""

from __future__ import annotations

import itertools
import logging
import struct
import time
from array import array
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

import pyarrow as pa

from coordinator import activity
from coordinator.catalog import Catalog
from coordinator.isolation import SNAPSHOT_LEVELS
from coordinator.pgwire import messages
from coordinator.plan.bounds import bounds
from coordinator.plan.cache import Entry, PlanCache
from coordinator.plan.plans import (
    AdvisoryPlan,
    LockPlan,
    QueryPlan,
    RowPlan,
    UtilityPlan,
    WritePlan,
)
from coordinator.ports import Driver, Txn
from coordinator.row_locking import lock_rows, run_locking
from coordinator.rowset import BatchRows, Cursor, ReadyRows, values_of
from coordinator.sql.literals import fill_parameters
from coordinator.writes import BulkInsert, write_changes
from shardb import limits, types
from shardb._core.datarow import DataRowWriter
from shardb._core.keycodec import KeyCodec
from shardb._core.rowcodec import RowLayout
from shardb.checks import RowChecks, failing_row
from shardb.errors import CONCURRENT_UPDATE, SqlError, is_row_changed
from shardb.meta.descriptors import Table
from shardb.program import NamedCheck, TypeRef

if TYPE_CHECKING:
    from coordinator.conversation import Conversation
    from coordinator.ddl.edits import Edit

log = logging.getLogger("coordinator.executor")

STATEMENT_RETRIES_MAX: Final = 10  # re-runs of DML by query whose rows changed under it
_PG_EPOCH_US: Final = 946_684_800_000_000  # 2000-01-01, where binary timestamps begin
_ROWID_EPOCH_US: Final = 1_735_689_600_000_000  # 2025-01-01
_INT8: Final = struct.Struct("!q")


class Engine(Protocol):
    """The fenced engine (`shardb.engine`): generated SQL over Arrow tables."""

    def cancellation(self) -> Any: ...  # of one run; its `cancel` may come from another thread

    def run(
        self, sql: str, tables: Mapping[str, Any], params: Sequence[Any], cancellation: Any
    ) -> Any: ...


class Ddl(Protocol):
    """Schema changes (`coordinator.ddl_exec`)."""

    async def run(self, session: Conversation, plan: UtilityPlan) -> str: ...

    async def make_internal(
        self, session: Conversation, table_id: int, make: Callable[[Catalog, int], Edit]
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a statement gave: rows to fetch, or (cursor None) its CommandComplete."""

    cursor: Cursor | None
    complete: bytes = b""


class RowIds:
    """Fresh keys for tables without one: microseconds << 10 | coordinator, always growing.

    Unique as long as coordinator ids are and the clock does not go back over a restart.
    """

    def __init__(self, coordinator_id: int, now_us: Callable[[], int]) -> None:
        self._low = coordinator_id & 1023
        self._now_us = now_us
        self._last = 0

    def take(self, count: int) -> int:
        """The first of `count` consecutive ids."""
        base = (self._now_us() - _ROWID_EPOCH_US) << 10 | self._low
        first = max(base, self._last + 1)
        self._last = first + count - 1
        return first


class Executor:
    """What the sessions of one coordinator share."""

    def __init__(
        self,
        driver: Driver,
        plans: PlanCache,
        engine: Engine,
        ddl: Ddl,
        catalog_table: Callable[[str, Catalog], pa.Table],
        background: Callable[[Coroutine[Any, Any, None]], object],
        coordinator_id: int = 1,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self.driver = driver
        self.plans = plans
        self.engine = engine
        self.ddl = ddl
        self.now_us = now_us
        self.rowids = RowIds(coordinator_id, now_us)
        self.sessions: dict[int, Conversation] = {}
        self._catalog_table = catalog_table
        self._background = background
        self._ids = itertools.count(1)

    @property
    def catalog(self) -> Catalog:
        """The present snapshot."""
        return self.plans.compiler.catalog

    # --- sessions

    def new_process_id(self) -> int:
        """What the client calls our process id."""
        return next(self._ids) & 0x7FFFFFFF

    def admit(self, session: Conversation) -> None:
        """Counts a session in; 53300 if there are too many."""
        if len(self.sessions) >= limits.CONNECTIONS_MAX:
            raise SqlError("53300", "sorry, too many clients already")
        self.sessions[session.process_id] = session

    def leave(self, session: Conversation) -> None:
        """Counts a session out."""
        self.sessions.pop(session.process_id, None)

    def cancel(self, process_id: int, secret: int) -> None:
        """A CancelRequest; a wrong secret is ignored without a word."""
        session = self.sessions.get(process_id)
        if session is not None and session.secret == secret:
            session.cancel()

    def roll_back_later(self, txn: Txn) -> None:
        """Rolls back in the background."""
        self._background(self._roll_back(txn))

    async def _roll_back(self, txn: Txn) -> None:
        try:
            await self.driver.rollback(txn)
        except SqlError as error:  # the participants expire it themselves
            log.info("rollback was not acknowledged: %s", error)

    # --- statements

    async def run(
        self, session: Conversation, entry: Entry, params: bytes, formats: bytes, txn: Txn | None
    ) -> Outcome:
        """Runs a statement that is not on the hot path. `txn` None: on its own."""
        plan = entry.plan
        if isinstance(plan, UtilityPlan):
            from coordinator import analyze, utility

            if plan.kind == "explain":
                return Outcome(await analyze.run(self, session, entry, params))
            return await utility.run(self, session, plan)
        if isinstance(plan, RowPlan):
            if plan.fallback is None or not self.driver.needs_fallback(plan, entry.program, params):
                return await self._run_row(session, entry, params, formats, txn)
            plan = plan.fallback
        values = entry.layout.decode(params) if entry.layout.types else ()
        if isinstance(plan, LockPlan) or (isinstance(plan, QueryPlan) and plan.locked):
            table = await run_locking(self, session, plan, values, txn)
            return Outcome(BatchRows(table, [c.type for c in plan.columns], formats))
        if isinstance(plan, AdvisoryPlan):
            from coordinator import advisory

            row = await advisory.run(self, session, plan, values, txn)
            return Outcome(BatchRows(row, [c.type for c in plan.columns], formats))
        if isinstance(plan, QueryPlan):
            table = await self.query(session, plan, values, txn)
            return Outcome(BatchRows(table, [c.type for c in plan.columns], formats))
        return await self._run_write(session, entry, plan, values, formats, txn)

    async def _run_row(
        self, session: Conversation, entry: Entry, params: bytes, formats: bytes, txn: Txn | None
    ) -> Outcome:
        assert isinstance(entry.plan, RowPlan)
        result = await self.row(session, entry.plan, entry.program, params, formats, txn)
        if entry.returns_rows:
            return Outcome(ReadyRows(result.data, result.rows))
        return Outcome(None, entry.complete(result.rows))

    async def row(
        self,
        session: Conversation,
        plan: RowPlan,
        program: Any,
        params: bytes,
        formats: bytes,
        txn: Txn | None,
    ) -> Any:
        """Runs a row program and waits for it; a cancel that comes too late changes nothing."""
        waiter = session.shell.waiter()
        results: list[Any] = []

        def done(result: Any) -> None:
            results.append(result)
            if not waiter.done():
                waiter.set_result(None)

        call = self.driver.execute_row(
            txn, plan, program, params, formats, done, session.process_id
        )
        session.call_begun(call)
        try:
            await waiter
        except BaseException:
            call.cancel(SqlError("57014", "canceling statement due to user request"))
            waiter = session.shell.waiter()
            if not results:
                await waiter
            if isinstance(results[0], SqlError):
                raise
        finally:
            session.call_ended()
        if isinstance(results[0], SqlError):
            raise results[0]
        return results[0]

    async def query(
        self,
        session: Conversation,
        plan: QueryPlan,
        values: Sequence[Any],
        txn: Txn | None,
        given: Mapping[str, pa.Table] | None = None,
    ) -> pa.Table | pa.RecordBatchReader:
        """Gathers a query's tables at one snapshot and runs its final stage in a thread.

        Subqueries that lock rows come first, so that the snapshot sees what they have locked.
        """
        tables: dict[str, Any] = dict(given or {})
        for name, locked in plan.locked:
            rows = await lock_rows(self, session, locked, values, txn)
            tables[name] = rows.rename_columns([f"c{at}" for at in range(rows.num_columns)])
        catalog = self.catalog
        for name in plan.catalog_tables:
            if name in activity.TABLES:
                tables[name] = await activity.table_of(self, session, name)
            else:
                tables[name] = self._catalog_table(name, catalog)
        if plan.scans:
            stages = [self._bound(stage, plan, values) for stage in plan.scans]
            read_ts = await self.driver.snapshot(txn)
            scanned = await session.shell.gather(
                [self.driver.run_scan(txn, stage, read_ts) for stage in stages]
            )
            tables.update(zip((stage.alias for stage in stages), scanned, strict=True))
        return await self._in_engine(session, plan.sql, tables, values)

    async def _in_engine(
        self, session: Conversation, sql: str, tables: Mapping[str, Any], values: Sequence[Any]
    ) -> Any:
        """Runs a stage in a thread; it stops with the statement."""
        stop = self.engine.cancellation()
        try:
            return await session.shell.in_thread(self.engine.run, sql, tables, list(values), stop)
        except BaseException:
            stop.cancel()
            raise

    def _bound(self, stage: Any, plan: QueryPlan, values: Sequence[Any]) -> Any:
        """The scan with its parameters filled in, its key interval and columns narrowed."""
        if stage.filter and values:
            stage = replace(stage, filter=fill_parameters(stage.filter, values))
        if stage.key_program is not None:
            program = self.plans.program_of(stage.key_program)
            low, high = self._narrowed(program, plan.params, values)
            stage = replace(stage, key_low=low, key_high=high, key_program=None)
        if stage.bound_programs:
            found = bounds(stage.bound_programs, self.plans.bound_program_of, values)
            stage = replace(stage, bounds=found, bound_programs=())
        return stage

    def _narrowed(
        self, program: Any, refs: Sequence[TypeRef], values: Sequence[Any]
    ) -> tuple[bytes, bytes]:
        params = program.param_layout.encode(values)
        if program.is_points:
            keys = program.points(params)
            return (keys[0], keys[-1] + b"\0") if keys else (b"\0", b"\0")
        interval = program.interval(params)
        if interval is None:
            return b"\0", b"\0"
        return interval[0] or b"", interval[1] or b""

    async def evaluate(
        self, session: Conversation, expression: str, type_code: int, typmod: int
    ) -> bytes | None:
        """The value of a stored expression (a column default) in text form."""
        text = f"SELECT CAST(({expression}) AS {types.format_type(type_code, typmod)})"
        entry = self.plans.exact(text.encode())
        values = extra_values(entry, self, session.statement_time_us())
        params = entry.layout.encode_params(b"\1", values)
        outcome = await self.run(session, entry, params, b"", None)
        assert outcome.cursor is not None
        row, rows, _ = await outcome.cursor.fetch(0)
        assert rows == 1, rows
        length = int.from_bytes(row[7:11], "big", signed=True)
        return None if length < 0 else row[11 : 11 + length]

    # --- DML by query

    async def _run_write(
        self,
        session: Conversation,
        entry: Entry,
        plan: WritePlan,
        values: Sequence[Any],
        formats: bytes,
        txn: Txn | None,
    ) -> Outcome:
        inside = txn or self.driver.begin(process_id=session.process_id)
        mark = self.driver.mark(inside)
        for attempt in itertools.count(1):
            self.driver.gate.enter(inside, plan.table_id)
            inside.lock_timeout_s = session.settings.lock_timeout_s
            try:
                written = await self._write(session, plan, values, inside)
                if txn is None:
                    await self.driver.commit(inside)
                break
            except BaseException as error:
                changed = is_row_changed(error)
                if changed and inside.level in SNAPSHOT_LEVELS:
                    raise SqlError("40001", CONCURRENT_UPDATE) from error
                again = changed and attempt < STATEMENT_RETRIES_MAX
                try:
                    if not again:
                        raise
                    # Its locks stay, so that those rows do not change again.
                    await self.driver.rollback_to(inside, mark)
                except BaseException:
                    if txn is None:
                        self.roll_back_later(inside)
                    raise
        if plan.returning:
            rows = await self._in_engine(session, plan.returning, {"written": written}, values)
            return Outcome(BatchRows(rows, [c.type for c in plan.columns], formats))
        return Outcome(None, entry.complete(written.num_rows))

    async def _write(
        self, session: Conversation, plan: WritePlan, values: Sequence[Any], txn: Txn
    ) -> pa.Table:
        """Runs the query and writes what it gives; the rows written (with their columns)."""
        table = self.catalog.table(plan.table_id)
        found = await self.query(session, plan.query, values, txn)
        if not isinstance(found, pa.Table):
            found = await session.shell.in_thread(found.read_all)
        writer = TableWriter(table)
        names = [f"c{at}" for at in range(len(table.columns))]
        if plan.kind == "delete":
            if found.num_rows:
                keys, offsets = pack(found.column("_key").to_pylist())
                expected = found.column("_ts").to_pylist()
                await self._change(txn, table, "delete", keys, offsets, None, None, expected)
            return found
        rows_in = found.select(range(found.num_columns - len(names), found.num_columns))
        rows_in = rows_in.rename_columns(names)
        if plan.kind == "insert" and table.has_hidden_key:
            rows_in = self._with_rowids(table, rows_in)
        if not rows_in.num_rows:
            return rows_in
        writer.check_not_null(rows_in)
        if plan.kind == "insert" and not plan.conflict and rows_in.num_rows >= limits.BULK_ROWS_MIN:
            await self._insert_bulk(session, writer, rows_in, txn, plan.checks)
            return rows_in
        rows, row_offsets, keys, key_offsets = writer.encode(rows_in)
        if plan.checks:
            await session.shell.in_thread(
                RowChecks(table, plan.checks).check_all, unpack(rows, row_offsets)
            )
        if plan.kind == "insert":
            mode = "insert_ignore" if plan.conflict == "nothing" else "insert"
            written = await self.driver.write_encoded(
                txn, table.id, mode, keys, key_offsets, rows, row_offsets
            )
            skipped = set(written.skipped)
            if skipped:
                kept = [at for at in range(rows_in.num_rows) if at not in skipped]
                rows_in = rows_in.take(pa.array(kept, pa.int64()))
            return rows_in
        await self._write_update(txn, table, found, rows, row_offsets, keys, key_offsets)
        return rows_in

    async def _insert_bulk(
        self,
        session: Conversation,
        writer: TableWriter,
        rows: pa.Table,
        txn: Txn,
        checks: Sequence[NamedCheck],
    ) -> None:
        """Inserts many rows in batches, each dealt out in a thread while others are sent."""
        bulk = self.bulk_insert(session, writer, txn, checks)
        try:
            for batch in rows.to_batches():
                at = 0
                while at < batch.num_rows:
                    at = await session.shell.in_thread(bulk.dealer.deal_arrow, batch, at)
                    await bulk.put()
            await bulk.finish()
        except BaseException:
            await bulk.stop()
            raise

    def bulk_insert(
        self,
        session: Conversation,
        writer: TableWriter,
        txn: Txn,
        checks: Sequence[NamedCheck],
    ) -> BulkInsert:
        """A large insert into a table, to its ranges of now; every row has to pass `checks`."""
        table = writer.table
        ranges = self.catalog.range_maps[table.group_id]
        passed = RowChecks(table, checks) if checks else None
        return BulkInsert(
            self.driver, session.shell, txn, table, ranges, writer.layout, writer.codec, passed
        )

    async def _write_update(
        self,
        txn: Txn,
        table: Table,
        found: pa.Table,
        rows: bytes,
        row_offsets: array[int],
        keys: bytes,
        key_offsets: array[int],
    ) -> None:
        old_keys = found.column("_key").to_pylist()
        expected = found.column("_ts").to_pylist()
        new_keys = unpack(keys, key_offsets)
        if old_keys == new_keys:
            await self._change(txn, table, "update", keys, key_offsets, rows, row_offsets, expected)
            return
        new_rows = unpack(rows, row_offsets)
        moved = [at for at, old in enumerate(old_keys) if old != new_keys[at]]
        stayed = [at for at, old in enumerate(old_keys) if old == new_keys[at]]
        for mode, which, names in (
            ("delete", moved, old_keys),
            ("update", stayed, new_keys),
            ("insert", moved, new_keys),
        ):
            if which:
                keys_out, keys_at = pack([names[at] for at in which])
                rows_out, rows_at = pack([new_rows[at] for at in which])
                if mode == "insert":
                    await self.driver.write_encoded(
                        txn, table.id, mode, keys_out, keys_at, rows_out, rows_at
                    )
                    continue
                await self._change(
                    txn,
                    table,
                    mode,
                    keys_out,
                    keys_at,
                    None if mode == "delete" else rows_out,
                    None if mode == "delete" else rows_at,
                    [expected[at] for at in which],
                )

    async def _change(
        self,
        txn: Txn,
        table: Table,
        mode: str,
        keys: bytes,
        key_offsets: Any,
        rows: bytes | None,
        row_offsets: Any,
        expected_ts: Sequence[int],
    ) -> None:
        ranges = len(self.catalog.range_maps[table.group_id].ranges)
        await write_changes(
            self.driver,
            txn,
            table.id,
            ranges,
            mode,
            keys,
            key_offsets,
            rows,
            row_offsets,
            expected_ts,
        )

    def _with_rowids(self, table: Table, rows: pa.Table) -> pa.Table:
        at = table.primary_key[0]
        first = self.rowids.take(max(rows.num_rows, 1))
        ids = pa.array(range(first, first + rows.num_rows), pa.int64())
        return rows.set_column(at, f"c{at}", ids)


class TableWriter:
    """Turns Arrow columns of one table into rows and keys."""

    def __init__(self, table: Table) -> None:
        types = [(column.type_code, column.typmod) for column in table.columns]
        self.table = table
        self.layout = RowLayout(table.schema_version, types)
        self.codec = KeyCodec([(*types[at], False, False) for at in table.primary_key])

    def check_not_null(self, rows: pa.Table, existing: str = "") -> None:
        """23502 if a column that must not be NULL is; `existing`: the words for a stored column."""
        for at, column in enumerate(self.table.columns):
            if (column.not_null or at in self.table.primary_key) and rows.column(at).null_count:
                if existing:
                    raise SqlError(
                        "23502",
                        f'column "{column.name}" of relation "{self.table.name}" {existing}',
                    )
                raise SqlError(
                    "23502",
                    f'null value in column "{column.name}" of relation "{self.table.name}" '
                    "violates not-null constraint",
                    detail=self._failing_row(rows, at),
                )

    def _failing_row(self, rows: pa.Table, null_at: int) -> str:
        """The first row with a NULL at a column, as PostgreSQL shows it."""
        first = rows.column(null_at).is_null().index(True).as_py()
        batch = rows.slice(first, 1).combine_chunks().to_batches()[0]
        writer = DataRowWriter([(c.type_code, c.typmod) for c in self.table.columns], b"")
        values = zip(values_of(writer.encode(batch)), self.table.columns, strict=True)
        return failing_row(value for value, column in values if not column.hidden)

    def keys(self, rows: bytes, offsets: array[int]) -> tuple[bytes, array[int]]:
        """The keys of encoded rows."""
        return self.codec.keys_from_rows(self.layout, self.table.primary_key, rows, offsets)

    def encode(self, rows: pa.Table) -> tuple[bytes, array[int], bytes, array[int]]:
        """Rows and keys of a table of Arrow columns, each with offsets (one more than rows)."""
        batches = rows.combine_chunks().to_batches()
        assert len(batches) == 1, len(batches)
        data, offsets = self.layout.encode_arrow(batches[0])
        return data, offsets, *self.keys(data, offsets)


def pack(items: Sequence[bytes]) -> tuple[bytes, array[int]]:
    """Items as one run of bytes with offsets."""
    return b"".join(items), array("Q", itertools.accumulate(map(len, items), initial=0))


def unpack(data: bytes, offsets: array[int]) -> list[bytes]:
    """The items of a run of bytes."""
    return [data[a:b] for a, b in itertools.pairwise(offsets)]


def extra_values(entry: Entry, executor: Executor, time_us: int) -> list[bytes | None]:
    """The parameters that the session adds, in binary form (see RowPlan.extras)."""
    values: list[bytes | None] = []
    for name in entry.extras:
        if name == "now":
            values.append(_INT8.pack(time_us - _PG_EPOCH_US))
        else:
            assert name == "rowid", name
            assert isinstance(entry.plan, RowPlan)
            values.append(_INT8.pack(executor.rowids.take(max(entry.plan.rowids, 1))))
    return values


def complete(tag: str) -> bytes:
    """CommandComplete."""
    return messages.command_complete(tag)
