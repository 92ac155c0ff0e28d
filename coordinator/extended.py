"""The extended query protocol (manual 55.2.3): Parse, Bind, Describe, Execute, Close, Sync.

A row plan goes straight to the driver with a callback: no task, no coroutine, no exception. What is
left runs in the session's one task.
"""

from __future__ import annotations

from typing import Any, Final

from coordinator import utility
from coordinator.conversation import (
    BLOCK,
    FAILED,
    IDLE,
    Conversation,
    Portal,
    ends_block,
    in_failed_block,
)
from coordinator.executor import Executor
from coordinator.pgwire import messages
from coordinator.pgwire.messages import Frontend
from coordinator.pgwire.state import Event, Phase
from coordinator.plan.cache import Entry
from coordinator.plan.plans import UtilityPlan
from coordinator.ports import Shell, Txn
from coordinator.rowset import ReadyRows
from shardb import limits
from shardb.errors import SqlError

_SYNC: Final = int(Frontend.SYNC)


class ExtendedQuery(Conversation):
    """Named statements and portals."""

    def __init__(self, executor: Executor, shell: Shell, process_id: int, secret: int) -> None:
        super().__init__(executor, shell, process_id, secret)
        self._portal: Portal | None = None  # the one whose row program is under way
        self._limit = 0
        self._execute_row = executor.driver.execute_row
        self._on_row = self._row_done

    def on_parse(self) -> None:
        name, text, oids = self.buffer.parse()
        if name:
            if name in self.prepared:
                raise SqlError("42P05", f'prepared statement "{name.decode()}" already exists')
            if len(self.prepared) >= limits.PREPARED_STATEMENTS_MAX:
                raise SqlError("53400", "too many prepared statements in this session")
        else:
            self.prepared.pop(name, None)
        self.prepared[name] = self.prepare(text, oids)
        self.out.append(messages.PARSE_COMPLETE)

    def on_bind(self) -> None:
        portal_name, name, formats, values, results = self.buffer.bind()
        prepared = self.prepared.get(name)
        if prepared is None:
            raise _no_statement(name)
        entry = prepared.entry
        if entry is not None and entry.catalog_version != self.plans.version:
            entry = self.fresh(prepared)
        if self.status == FAILED and not ends_block(entry):
            raise in_failed_block()
        count = 0 if entry is None else entry.param_count
        if len(values) != count:
            raise SqlError(
                "08P01",
                f"bind message supplies {len(values)} parameters, but prepared statement "
                f'"{name.decode()}" requires {count}',
            )
        if portal_name:
            if portal_name in self.portals:
                raise SqlError("42P03", f'cursor "{portal_name.decode()}" already exists')
            if len(self.portals) >= limits.PORTALS_MAX:
                raise SqlError("53400", "too many portals in this session")
        params = b""
        if entry is not None:
            if len(results) > 1 and len(results) != entry.width:
                raise SqlError(
                    "08P01",
                    f"bind message has {len(results)} result formats but query has "
                    f"{entry.width} columns",
                )
            if entry.arrays:
                values = entry.array_texts(formats, values)
            if entry.extras:
                formats, values = self.with_extras(entry, formats, values)
            params = entry.layout.encode_params(formats, values)
        self.portals[portal_name] = Portal(entry, params, results, prepared)
        self.out.append(messages.BIND_COMPLETE)

    def on_describe(self) -> None:
        kind, name = self.buffer.target()
        if kind == 0x50:
            portal = self.portals.get(name)
            if portal is None:
                raise _no_portal(name)
            entry = portal.entry
            self.out.append(
                messages.NO_DATA if entry is None else entry.description(portal.formats)
            )
            return
        prepared = self.prepared.get(name)
        if prepared is None:
            raise _no_statement(name)
        if self.status == FAILED and prepared.entry is not None and prepared.entry.returns_rows:
            raise in_failed_block()
        if prepared.entry is None:
            self.out.append(messages.parameter_description(()))
            self.out.append(messages.NO_DATA)
        else:
            self.fresh(prepared)
            self.out.append(prepared.entry.param_description)
            self.out.append(prepared.entry.description(b""))

    def on_execute(self) -> None:
        name, limit = self.buffer.execute()
        portal = self.portals.get(name)
        if portal is None:
            raise _no_portal(name)
        entry = portal.entry
        if entry is None:
            self.out.append(messages.EMPTY_QUERY_RESPONSE)
            return
        if self.status == FAILED and not ends_block(entry):
            raise in_failed_block()
        if portal.done:
            raise SqlError("55000", f'portal "{name.decode()}" cannot be run')
        self._portal = portal
        self._limit = limit
        self._simple = False
        if entry.row_plan and portal.cursor is None:
            txn = self._transaction_for(entry)
            if (
                entry.fallback is None
                or not self.driver.needs_fallback(entry.row_plan, entry.program, portal.params)
            ) and not (self._shut and self.barred(entry)):
                self.busy = True
                call = self._execute_row(
                    txn,
                    entry.row_plan,
                    entry.program,
                    portal.params,
                    portal.formats,
                    self._on_row,
                    self.process_id,
                )
                self.call_begun(call)
                return
        elif isinstance(entry.plan, UtilityPlan):
            result = utility.run_now(self, entry.plan)
            if result is not None:
                portal.done = True
                self._put_utility(result)
                return
        self.spawn(self._run_portal(portal, limit))

    def _transaction_for(self, entry: Entry) -> Txn | None:
        """The transaction a statement runs in; None: on its own, committed with its end."""
        if self.txn is not None:
            pass
        elif self.status == BLOCK:
            self.begin()
        elif entry.reads_only:
            return None
        elif self.buffer.peek() == _SYNC and not self.settings.serializable:
            self.check_writable(entry)
            return None
        else:  # several statements before one Sync are one transaction (manual 55.2.3)
            self.begin()
            self.implicit = True
        self.check_writable(entry)
        return self.txn

    def _row_done(self, result: Any) -> None:
        """The end of a row program of the extended protocol; called by the driver."""
        portal = self._portal
        assert portal is not None
        entry = portal.entry
        assert entry is not None
        self.call_ended()
        self.busy = False
        if isinstance(result, SqlError):
            self._statement_failed(result)
        elif self._limit and result.rows >= self._limit and entry.returns_rows:
            portal.cursor = ReadyRows(result.data, result.rows)
            self.spawn(self._run_portal(portal, self._limit))
        else:
            portal.done = True
            if result.data:
                self.out.append(result.data)
            self.out.append(entry.complete(result.rows))
        if not self._running:
            self.run()

    async def _run_portal(self, portal: Portal, limit: int) -> None:
        """Runs or continues a portal in a task."""
        entry = portal.entry
        assert entry is not None
        if portal.cursor is None:
            while self.barred(entry):
                await self.pass_gate(entry.writes)
                entry = self._planned_again(portal)
            txn = None if isinstance(entry.plan, UtilityPlan) else self._transaction_for(entry)
            outcome = await self.executor.run(self, entry, portal.params, portal.formats, txn)
            portal.cursor = outcome.cursor
            if portal.cursor is None:
                portal.done = True
                self.out.append(outcome.complete)
                return
        sent, done = await self.send_rows(portal.cursor, limit)
        portal.total += sent
        if not done:
            self.out.append(messages.PORTAL_SUSPENDED)
            return
        portal.done = True
        self.out.append(entry.complete(portal.total))

    def _planned_again(self, portal: Portal) -> Entry:
        """The plan of a portal after a schema change; its parameters must still fit.

        What the session has added to them (`Entry.extras`) may be less than it was: a table with a
        key needs no row ids.
        """
        before = portal.entry
        assert before is not None
        entry = self.fresh(portal.prepared)
        if entry.params != before.params or not set(entry.extras) <= set(before.extras):
            raise SqlError("0A000", "cached plan must not change parameter types")
        if entry.extras != before.extras:
            values = before.layout.decode(portal.params)
            added = dict(zip(before.extras, values[before.param_count :], strict=True))
            own = values[: before.param_count]
            portal.params = entry.layout.encode([*own, *(added[name] for name in entry.extras)])
        portal.entry = entry
        return entry

    def _put_utility(self, result: utility.UtilityResult, described: bool = False) -> None:
        self.out.extend(result.before)
        if described and result.description:
            self.out.append(result.description)
        self.out.extend(result.rows)
        self.out.append(
            messages.command_complete(result.tag) if result.tag else messages.EMPTY_QUERY_RESPONSE
        )

    def on_close(self) -> None:
        kind, name = self.buffer.target()
        if kind == 0x50:
            self.portals.pop(name, None)
        else:
            self.prepared.pop(name, None)
        self.out.append(messages.CLOSE_COMPLETE)

    def on_flush(self) -> None:
        pass  # everything is written at the end of each turn

    def on_sync(self) -> None:
        if self.phase is not Phase.READY:
            self._enter(Event.SYNCED)
        if self.txn is not None and self.implicit:
            self._simple = False
            self.spawn(self._commit_implicit(), self._sync_done)
            return
        if self.status == IDLE:
            self.portals.clear()
        self.out.append(messages.READY[self.status])

    async def _commit_implicit(self) -> None:
        txn, self.txn = self.txn, None
        self.implicit = False
        if txn is not None:
            await self.driver.commit(txn)

    def _sync_done(self, error: BaseException | None) -> None:
        self._task = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.busy = False
        if error is not None:
            self.out.append(messages.error_response(self._explained(error)))
        self.portals.clear()
        self.out.append(messages.READY[self.status])
        self.run()

    def on_function_call(self) -> None:
        self.out.append(
            messages.error_response(
                SqlError("0A000", "function calls by protocol are not supported")
            )
        )
        self.out.append(messages.READY[self.status])

    def on_ignored(self) -> None:
        pass

    def on_terminate(self) -> None:
        self._close()


def _no_statement(name: bytes) -> SqlError:
    if not name:
        return SqlError("26000", "unnamed prepared statement does not exist")
    return SqlError(
        "26000", f'prepared statement "{name.decode("utf-8", "replace")}" does not exist'
    )


def _no_portal(name: bytes) -> SqlError:
    return SqlError("34000", f'portal "{name.decode("utf-8", "replace")}" does not exist')
