"""One client's session: the simple query protocol and COPY data on top of the extended protocol.

The layers: `conversation` (buffers, state, failures) <- `extended` <- this.
"""

from __future__ import annotations

from typing import Any

from coordinator import utility
from coordinator.conversation import BLOCK, FAILED, IDLE, ends_block, in_failed_block
from coordinator.executor import Executor
from coordinator.extended import ExtendedQuery
from coordinator.pgwire import messages
from coordinator.plan.cache import Entry, decode_text
from coordinator.plan.plans import UtilityPlan
from coordinator.ports import Shell, as_sql_error
from shardb._core.coreerror import CoreError
from shardb.errors import ProtocolError, SqlError


class Session(ExtendedQuery):
    """The conversation with one client after its socket was accepted."""

    def __init__(self, executor: Executor, shell: Shell, process_id: int, secret: int) -> None:
        super().__init__(executor, shell, process_id, secret)
        self._entry: Entry | None = None  # the simple statement whose row program is under way
        self._on_simple_row = self._simple_row_done

    def on_query(self) -> None:
        text = self.buffer.text()
        self._simple = True
        self.prepared.pop(b"", None)
        self.portals.clear() if self.status == IDLE else self.portals.pop(b"", None)
        if self.status != FAILED:
            found = self.plans.simple(text)
            if found is not None:
                entry, literals = found
                if entry.row_plan:
                    formats = b""
                    values: list[bytes | None] = literals  # type: ignore[assignment]
                    if entry.extras:
                        formats, values = self.with_extras(entry, b"", values)
                    try:
                        params = entry.layout.encode_params(formats, values)
                    except CoreError:
                        # A literal that its type does not take: the parser knows where it stands.
                        self.spawn(self._run_simple(text))
                        return
                    if (
                        entry.fallback is None
                        or not self.driver.needs_fallback(entry.row_plan, entry.program, params)
                    ) and not ((self._shut and self.barred(entry)) or self.wants_block(entry)):
                        self._start_simple_row(entry, params)
                        return
                elif isinstance(entry.plan, UtilityPlan):
                    result = utility.run_now(self, entry.plan)
                    if result is not None:
                        self._put_utility(result, described=True)
                        self.out.append(messages.READY[self.status])
                        return
        self.spawn(self._run_simple(text))

    def _start_simple_row(self, entry: Entry, params: bytes) -> None:
        if self.txn is None and self.status == BLOCK:
            self.begin()
        self.check_writable(entry)
        plan = entry.row_plan
        assert plan is not None
        self._entry = entry
        self.busy = True
        call = self._execute_row(
            self.txn, plan, entry.program, params, b"", self._on_simple_row, self.process_id
        )
        self.call_begun(call)

    def _simple_row_done(self, result: Any) -> None:
        """The end of a row program of the simple protocol; called by the driver."""
        entry = self._entry
        assert entry is not None
        self.call_ended()
        self.busy = False
        if isinstance(result, SqlError):
            self._simple = True
            self._statement_failed(result)
        else:
            out = self.out
            if entry.returns_rows:
                out.append(entry.description(b""))
                out.append(result.data)
            out.append(entry.complete(result.rows))
            out.append(messages.READY[self.status])
        if not self._running:
            self.run()

    async def _run_simple(self, text: bytes) -> None:
        """A query string of any number of statements, as one implicit transaction if several."""
        whole = decode_text(text)
        statements = self.plans.compiler.split(whole)
        if not statements:
            self.out.append(messages.EMPTY_QUERY_RESPONSE)
        for index, statement in enumerate(statements):
            try:
                await self._run_one(statement.text, several=len(statements) > 1)
            except Exception as error:
                known = as_sql_error(error)
                if known is not None and known.position and statement.offset:
                    known.position += statement.offset
                raise known or error from None
            if index + 1 < len(statements):
                self.flush()
        if self.implicit:
            await self._commit_implicit()
        self.out.append(messages.READY[self.status])

    async def _run_one(self, text: str, several: bool) -> None:
        entry = self.plans.exact(text.encode())
        if self.status == FAILED and not ends_block(entry):
            raise in_failed_block()
        if isinstance(entry.plan, UtilityPlan):
            result = utility.run_now(self, entry.plan)
            if result is not None:
                self._put_utility(result, described=True)
                return
        entry, bound = await self._what_to_run(entry)
        while self.barred(entry):
            await self.pass_gate(entry.writes)
            entry, bound = await self._what_to_run(self.plans.exact(text.encode()))
        if isinstance(entry.plan, UtilityPlan):
            txn = None
        else:
            if self.txn is None and (self.status == BLOCK or several or self.wants_block(entry)):
                self.begin()
                self.implicit = self.status != BLOCK
            self.check_writable(entry)
            txn = self.txn
        if entry.param_count and bound is None:
            raise SqlError("42P02", "there is no parameter $1")
        params = bound
        if params is None:
            params = entry.layout.encode_params(*self.with_extras(entry, b"", []))
        outcome = await self.executor.run(self, entry, params, b"", txn)
        if outcome.cursor is None:
            self.out.append(outcome.complete)
            return
        self.out.append(entry.description(b""))
        sent, _ = await self.send_rows(outcome.cursor)
        self.out.append(entry.complete(sent))

    async def _what_to_run(self, entry: Entry) -> tuple[Entry, bytes | None]:
        """The statement, or what an EXECUTE stands for, with its parameters."""
        if isinstance(entry.plan, UtilityPlan) and entry.plan.kind == "execute":
            return await utility.bound_execute(self.executor, self, entry.plan)
        return entry, None

    # --- COPY FROM STDIN

    def on_copy_data(self) -> None:
        assert self.inbox is not None
        if not self.inbox.put(self.buffer.payloads()):
            self.busy = True

    def on_copy_done(self) -> None:
        assert self.inbox is not None
        self.busy = True
        self.inbox.finish(None)

    def on_copy_fail(self) -> None:
        assert self.inbox is not None
        reason = self.buffer.text().decode("utf-8", "replace")
        self.busy = True
        self.inbox.finish(SqlError("57014", f"COPY from stdin failed: {reason}"))

    def on_copy_broken(self) -> None:
        raise ProtocolError("unexpected message type during COPY from stdin")
