"""One client's session: messages in, replies out, in order.

The session walks over the messages in its buffer and appends replies to `out`, which is written once
per turn. It is `busy` while a statement is under way elsewhere: then nothing more is read from the
buffer, so that replies keep their order. Two ways to run a statement:

- a row plan goes straight to the driver with a callback: no task, no coroutine, no exception;
- everything else is one task, made by the shell, that runs `coordinator.executor`.

Invariants: at most one statement is under way; `txn` is set only within a block (`status` T) or an
implicit transaction; whatever fails inside one rolls all of it back. No I/O and no asyncio here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from coordinator import utility
from coordinator.copy_in import CopyInbox
from coordinator.executor import Executor, extra_values
from coordinator.pgwire import messages
from coordinator.pgwire.messages import Frontend
from coordinator.pgwire.state import TRANSITIONS, Event, Phase, action_of, after
from coordinator.plan.cache import Entry, PlanCache, decode_text
from coordinator.plan.plans import UtilityPlan
from coordinator.ports import Cancellable, Shell, Txn, as_sql_error
from coordinator.rowset import Cursor, ReadyRows
from coordinator.settings import Settings
from shardb import limits
from shardb._core.pgwire import FrontendBuffer
from shardb.errors import ProtocolError, SqlError, internal

log = logging.getLogger("coordinator.session")

_IDLE: Final = b"I"
_BLOCK: Final = b"T"
_FAILED: Final = b"E"
_SYNC: Final = int(Frontend.SYNC)
_EXTENDED: Final = frozenset("PBDECHS".encode())
_READ_AHEAD_MAX_BYTES: Final = limits.MIB  # received and not yet wanted: above it reading pauses


def in_failed_block() -> SqlError:
    """What every statement gets between an error in a transaction block and its end."""
    return SqlError(
        "25P02",
        "current transaction is aborted, commands ignored until end of transaction block",
    )


class Prepared:
    """A prepared statement: its text, the types its client gave, and its present plan."""

    __slots__ = ("entry", "oids", "text")

    def __init__(self, text: bytes, oids: tuple[int, ...], entry: Entry | None) -> None:
        self.text = text
        self.oids = oids
        self.entry = entry  # None: an empty statement


class Portal:
    """A statement with its parameters, ready to run or partly run."""

    __slots__ = ("cursor", "done", "entry", "formats", "params", "text", "total")

    def __init__(self, entry: Entry | None, params: bytes, formats: bytes, text: bytes) -> None:
        self.entry = entry
        self.params = params
        self.formats = formats
        self.text = text
        self.cursor: Cursor | None = None
        self.done = False
        self.total = 0


class Session:
    """The conversation with one client after its socket was accepted."""

    def __init__(self, executor: Executor, shell: Shell, process_id: int, secret: int) -> None:
        self.executor = executor
        self.driver = executor.driver
        self.plans: PlanCache = executor.plans
        self.shell = shell
        self.process_id = process_id
        self.secret = secret
        self.settings = Settings()
        self.user = ""
        self.database = ""
        self.phase = Phase.STARTUP
        self.status = _IDLE
        self.txn: Txn | None = None
        self.implicit = False
        self.read_only = False
        self.txn_start_us = 0
        self.savepoints: list[tuple[str, int]] = []  # name, the driver's mark
        self.prepared: dict[bytes, Prepared] = {}
        self.portals: dict[bytes, Portal] = {}
        self.buffer = FrontendBuffer(limits.CLIENT_MESSAGE_MAX_BYTES)
        self.out: list[bytes] = []
        self.busy = False
        self.inbox: CopyInbox | None = None
        self._running = False
        self._paused = False
        self._write_paused = False
        self._simple = False
        self._task: Cancellable | None = None
        self._timer: Cancellable | None = None
        self._cancel_reason = ""
        self._portal: Portal | None = None
        self._limit = 0
        self._entry: Entry | None = None
        self._tables = {phase: self._handlers(phase) for phase in Phase}
        self._table = self._tables[Phase.STARTUP]
        self._execute_row = executor.driver.execute_row
        self._on_row = self._row_done
        self._on_simple_row = self._simple_row_done

    def _handlers(self, phase: Phase) -> dict[int, Callable[[], None]]:
        return {
            int(kind): getattr(self, action.value) for kind, action in TRANSITIONS[phase].items()
        }

    # --- bytes in, bytes out

    def data_received(self, data: bytes) -> None:
        """Takes bytes from the socket and answers what can be answered."""
        self.buffer.feed(data)
        if self.busy or self._write_paused:
            if not self._paused and self.buffer.pending > _READ_AHEAD_MAX_BYTES:
                self._paused = True
                self.shell.pause_reading()
            return
        self.run()

    def run(self) -> None:
        """Handles messages until none is complete or a statement is under way elsewhere."""
        if self._running or self._write_paused:
            return
        self._running = True
        buffer = self.buffer
        kind = 0
        try:
            if self.phase is Phase.STARTUP:
                self._run_startup()
            while not self.busy:
                kind = buffer.next()
                if not kind:
                    break
                handler = self._table.get(kind)
                if handler is None:
                    action_of(self.phase, kind)
                    raise ProtocolError(f"invalid frontend message type {kind}")
                try:
                    handler()
                except ProtocolError:
                    raise
                except Exception as error:
                    if self.phase is not Phase.COPY_IN:
                        self._simple = kind == Frontend.QUERY
                    self._statement_failed(error)
        except Exception as error:
            self._fatal(error)
        finally:
            self._running = False
        if self.out and not self.busy:
            self.flush()
        if self._paused and not self.busy and not self._write_paused:
            self._paused = False
            self.shell.resume_reading()

    def flush(self) -> None:
        """Writes what has been gathered."""
        out = self.out
        if len(out) == 1:
            data = out[0]
        else:
            data = b"".join(out)
        out.clear()
        if data:
            self.shell.write(data)

    def writing_paused(self) -> None:
        """The socket's buffer is full: take no more statements until it drains."""
        self._write_paused = True
        if not self._paused:
            self._paused = True
            self.shell.pause_reading()

    def writing_resumed(self) -> None:
        """The socket's buffer has drained."""
        self._write_paused = False
        if not self.busy:
            self.run()

    # --- start-up

    def _run_startup(self) -> None:
        while self.phase is Phase.STARTUP:
            packet = self.buffer.next_startup(limits.STARTUP_PACKET_MAX_BYTES)
            if packet is None:
                return
            code = int.from_bytes(packet[:4], "big")
            if code in (messages.SSL_REQUEST, messages.GSSENC_REQUEST):
                if self.buffer.pending:
                    raise ProtocolError("received unencrypted data after SSL request")
                self.out.append(messages.ENCRYPTION_REFUSED)
            elif code == messages.CANCEL_REQUEST:
                process_id = int.from_bytes(packet[4:8], "big")
                secret = int.from_bytes(packet[8:12], "big")
                self.executor.cancel(process_id, secret)
                self._close()
            elif code >> 16 == 3:
                self._start(packet[4:], code & 0xFFFF)
            else:
                raise SqlError(
                    "0A000",
                    f"unsupported frontend protocol {code >> 16}.{code & 0xFFFF}: "
                    "server supports 3.0 to 3.0",
                )

    def _start(self, body: bytes, minor: int) -> None:
        parts = body.split(b"\0")
        if len(parts) < 2 or parts[-1] or parts[-2] or len(parts) % 2:
            raise ProtocolError("invalid startup packet layout: expected terminator as last byte")
        options = {decode_text(k): decode_text(v) for k, v in zip(parts[:-2:2], parts[1:-1:2])}
        self.user = options.pop("user", "")
        if not self.user:
            raise SqlError("28000", "no PostgreSQL user name specified in startup packet")
        self.database = options.pop("database", "") or self.user
        self.executor.admit(self)
        unknown = sorted(name for name in options if name.startswith("_pq_."))
        if minor or unknown:
            self.out.append(messages.negotiate_protocol_version(0, unknown))
        self.settings.identify(self.user)
        for name, value in _start_options(options):
            self.settings.start(name, value)
        self._enter(Event.STARTED)
        self.out.append(messages.AUTHENTICATION_OK)
        for name, value in self.settings.reported():
            self.out.append(messages.parameter_status(name, value))
        self.out.append(messages.backend_key_data(self.process_id, self.secret))
        self.out.append(messages.READY[_IDLE])

    def _enter(self, event: Event) -> None:
        self.phase = after(self.phase, event)
        self._table = self._tables[self.phase]

    # --- the extended protocol

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

    def prepare(self, text: bytes, oids: tuple[int, ...]) -> Prepared:
        """Compiles one statement; more than one is 42601."""
        entry = self.plans.cached(text, oids)
        if entry is None:
            statements = self.plans.compiler.split(decode_text(text))
            if len(statements) > 1:
                raise SqlError("42601", "cannot insert multiple commands into a prepared statement")
            entry = self.plans.exact(text, oids) if statements else None
        if self.status == _FAILED and not _ends_block(entry):
            raise in_failed_block()
        return Prepared(text, oids, entry)

    def on_bind(self) -> None:
        portal_name, name, formats, values, results = self.buffer.bind()
        prepared = self.prepared.get(name)
        if prepared is None:
            raise _no_statement(name)
        entry = prepared.entry
        if entry is not None and entry.catalog_version != self.plans.version:
            entry = self._replan(prepared)
        if self.status == _FAILED and not _ends_block(entry):
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
            if entry.extras:
                formats, values = self._with_extras(entry, formats, values)
            params = entry.layout.encode_params(formats, values)
        self.portals[portal_name] = Portal(entry, params, results, prepared.text)
        self.out.append(messages.BIND_COMPLETE)

    def _replan(self, prepared: Prepared) -> Entry:
        assert prepared.entry is not None
        fresh = self.plans.exact(prepared.text, prepared.oids)
        if [c.type for c in fresh.columns] != [c.type for c in prepared.entry.columns]:
            raise SqlError("0A000", "cached plan must not change result type")
        prepared.entry = fresh
        return fresh

    def _with_extras(
        self, entry: Entry, formats: bytes, values: list[bytes | None]
    ) -> tuple[bytes, list[bytes | None]]:
        if len(formats) == 1:
            formats = formats * len(values)
        elif not formats:
            formats = b"\0" * len(values)
        extras = extra_values(entry, self.executor, self.statement_time_us())
        return formats + b"\1" * len(extras), values + extras

    def statement_time_us(self) -> int:
        """What now() is: the start of the transaction, in microseconds since 1970."""
        if self.txn_start_us and self.status != _IDLE:
            return self.txn_start_us
        return self.executor.now_us()

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
        if self.status == _FAILED and prepared.entry is not None and prepared.entry.returns_rows:
            raise in_failed_block()
        if prepared.entry is None:
            self.out.append(messages.parameter_description(()))
            self.out.append(messages.NO_DATA)
        else:
            if prepared.entry.catalog_version != self.plans.version:
                self._replan(prepared)
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
        if self.status == _FAILED and not _ends_block(entry):
            raise in_failed_block()
        if portal.done:
            raise SqlError("55000", f'portal "{name.decode()}" cannot be run')
        self._portal = portal
        self._limit = limit
        self._simple = False
        if entry.row_plan and portal.cursor is None:
            txn = self._transaction_for(entry)
            if entry.fallback is None or not self.driver.needs_fallback(
                entry.plan, entry.program, portal.params
            ):
                self.busy = True
                self._execute_row(
                    txn, entry.plan, entry.program, portal.params, portal.formats, self._on_row
                )
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
        elif self.status == _BLOCK:
            self.txn = self.driver.begin()
        elif entry.reads_only or self.buffer.peek() == _SYNC:
            return None
        else:  # several statements before one Sync are one transaction (manual 55.2.3)
            self.txn = self.driver.begin()
            self.implicit = True
        if self.read_only and not entry.reads_only:
            raise SqlError("25006", "cannot execute this statement in a read-only transaction")
        return self.txn

    def _row_done(self, result: Any) -> None:
        """The end of a row program of the extended protocol; called by the driver."""
        portal = self._portal
        assert portal is not None
        entry = portal.entry
        assert entry is not None
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

    async def send_rows(self, cursor: Cursor, limit: int = 0) -> tuple[int, bool]:
        """Sends up to `limit` rows (0: all), slowed by the client; (rows sent, nothing is left)."""
        sent = 0
        while True:
            data, rows, done = await cursor.fetch(limit - sent if limit else 0)
            if data:
                self.out.append(data)
            sent += rows
            if done:
                return sent, True
            if limit and sent >= limit:
                return sent, False
            self.flush()
            await self.shell.drain()

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
        if self.status == _IDLE:
            self.portals.clear()
        self.out.append(messages.READY[self.status])

    async def _commit_implicit(self) -> None:
        txn, self.txn = self.txn, None
        self.implicit = False
        if txn is not None:
            await self.driver.commit(txn)

    def _sync_done(self, error: BaseException | None) -> None:
        self._task = None
        self.busy = False
        if error is not None:
            self.out.append(messages.error_response(self._explained(error)))
        self.portals.clear()
        self.out.append(messages.READY[self.status])
        self.run()

    def on_function_call(self) -> None:
        self.out.append(
            messages.error_response(SqlError("0A000", "function calls by protocol are not supported"))
        )
        self.out.append(messages.READY[self.status])

    def on_ignored(self) -> None:
        pass

    def on_terminate(self) -> None:
        self._close()

    # --- the simple protocol

    def on_query(self) -> None:
        text = self.buffer.text()
        self._simple = True
        self.prepared.pop(b"", None)
        self.portals.clear() if self.status == _IDLE else self.portals.pop(b"", None)
        if self.status != _FAILED:
            found = self.plans.simple(text)
            if found is not None:
                entry, literals = found
                if entry.row_plan:
                    formats = b""
                    values: list[bytes | None] = literals  # type: ignore[assignment]
                    if entry.extras:
                        formats, values = self._with_extras(entry, b"", values)
                    params = entry.layout.encode_params(formats, values)
                    if entry.fallback is None or not self.driver.needs_fallback(
                        entry.plan, entry.program, params
                    ):
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
        if self.txn is None and self.status == _BLOCK:
            self.txn = self.driver.begin()
        if self.read_only and self.status == _BLOCK and not entry.reads_only:
            raise SqlError("25006", "cannot execute this statement in a read-only transaction")
        self._entry = entry
        self.busy = True
        self._execute_row(self.txn, entry.plan, entry.program, params, b"", self._on_simple_row)

    def _simple_row_done(self, result: Any) -> None:
        """The end of a row program of the simple protocol; called by the driver."""
        entry = self._entry
        assert entry is not None
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
        if self.status == _FAILED and not _ends_block(entry):
            raise in_failed_block()
        if isinstance(entry.plan, UtilityPlan):
            result = utility.run_now(self, entry.plan)
            if result is not None:
                self._put_utility(result, described=True)
                return
            txn = None
        else:
            if self.txn is None and (self.status == _BLOCK or several):
                self.txn = self.driver.begin()
                self.implicit = self.status != _BLOCK
            if self.read_only and self.status == _BLOCK and not entry.reads_only:
                raise SqlError("25006", "cannot execute this statement in a read-only transaction")
            txn = self.txn
        if entry.param_count:
            raise SqlError("42P02", "there is no parameter $1")
        params = b""
        if entry.extras:
            formats, values = self._with_extras(entry, b"", [])
            params = entry.layout.encode_params(formats, values)
        elif entry.layout is not None:
            params = entry.layout.encode_params(b"", [])
        outcome = await self.executor.run(self, entry, params, b"", txn)
        if outcome.cursor is None:
            self.out.append(outcome.complete)
            return
        self.out.append(entry.description(b""))
        sent, _ = await self.send_rows(outcome.cursor)
        self.out.append(entry.complete(sent))

    def _put_utility(self, result: utility.UtilityResult, described: bool = False) -> None:
        self.out.extend(result.before)
        if described and result.description:
            self.out.append(result.description)
        self.out.extend(result.rows)
        self.out.append(messages.command_complete(result.tag) if result.tag else
                        messages.EMPTY_QUERY_RESPONSE)

    # --- COPY FROM STDIN

    def copy_begin(self, columns: int) -> CopyInbox:
        """Asks the client for data; called by the COPY that runs in this session's task."""
        self._enter(Event.COPY_BEGUN)
        self.inbox = CopyInbox(self.shell, self._copy_wants)
        self.out.append(messages.copy_in_response(columns))
        self.flush()
        self.busy = False
        self.shell.call_soon(self.run)
        return self.inbox

    def copy_end(self) -> None:
        """The COPY has all its data or has failed; the task goes on alone."""
        self.busy = True
        self.inbox = None
        if self.phase is Phase.COPY_IN:
            self._enter(Event.COPY_ENDED)

    def _copy_wants(self) -> None:
        if self.inbox is not None and self.busy:
            self.busy = False
            self.shell.call_soon(self.run)

    def on_copy_data(self) -> None:
        assert self.inbox is not None
        if not self.inbox.put(self.buffer.payload()):
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

    # --- tasks and failures

    def spawn(
        self,
        work: Coroutine[Any, Any, None],
        done: Callable[[BaseException | None], None] | None = None,
    ) -> None:
        """Runs `work` as this session's one task; nothing is read until it ends."""
        self.busy = True
        self._cancel_reason = ""
        timeout = self.settings.statement_timeout_s
        if timeout:
            self._timer = self.shell.timer(timeout, self._timed_out)
        self._task = self.shell.spawn(work, done or self._task_done)

    def _timed_out(self) -> None:
        self.cancel("canceling statement due to statement timeout")

    def cancel(self, reason: str = "canceling statement due to user request") -> None:
        """Cancels the task under way, if any."""
        if self._task is not None:
            self._cancel_reason = reason
            self._task.cancel()

    def _task_done(self, error: BaseException | None) -> None:
        self._task = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.busy = False
        if self.phase is Phase.CLOSED:
            return
        if error is not None:
            self._statement_failed(error)
        self.run()

    def _statement_failed(self, error: BaseException) -> None:
        """Reports an error and leaves the session where the protocol wants it."""
        if self.phase is Phase.COPY_IN:
            self.inbox = None
            self._enter(Event.COPY_ENDED)
        self.out.append(messages.error_response(self._explained(error)))
        if self.status != _BLOCK or not self.savepoints:
            self.abandon()
        if self.status == _BLOCK:
            self.status = _FAILED
        if self._simple:
            self.out.append(messages.READY[self.status])
        elif self.phase is Phase.READY:
            self._enter(Event.FAILED)

    def abandon(self) -> None:
        """Rolls the transaction back without waiting for it."""
        txn, self.txn = self.txn, None
        self.implicit = False
        if txn is not None:
            self.executor.roll_back_later(txn)

    def savepoint_index(self, name: str) -> int:
        """Where the newest savepoint of this name is; 3B001 if there is none."""
        for at in range(len(self.savepoints) - 1, -1, -1):
            if self.savepoints[at][0] == name:
                return at
        raise SqlError("3B001", f'savepoint "{name}" does not exist')

    def _explained(self, error: BaseException) -> SqlError:
        if self._cancel_reason and not isinstance(error, Exception):
            reason, self._cancel_reason = self._cancel_reason, ""
            return SqlError("57014", reason)
        known = as_sql_error(error)
        if known is not None:
            return known
        if not isinstance(error, Exception):
            return SqlError("57014", "canceling statement due to user request")
        log.error("statement failed unexpectedly", exc_info=error)
        return internal(f"{type(error).__name__}: {error}")

    def _fatal(self, error: BaseException) -> None:
        self.out.append(messages.error_response(self._explained(error), "FATAL"))
        self._close()

    def _close(self) -> None:
        if self.phase is not Phase.CLOSED:
            self._enter(Event.CLOSED)
        if self.out:
            self.flush()
        self.busy = True
        self.shell.close()

    def terminate(self, error: SqlError) -> None:
        """Tells the client why and closes (shutdown)."""
        if self.phase is not Phase.CLOSED:
            self._fatal(error)

    def connection_lost(self) -> None:
        """The socket is gone: whatever was under way is cancelled and rolled back."""
        if self.phase is not Phase.CLOSED:
            self._enter(Event.CLOSED)
        self.busy = True
        if self.inbox is not None:
            self.inbox.finish(SqlError("08006", "connection to client lost"))
        elif self._task is not None:
            self._task.cancel()
        self.abandon()
        self.executor.leave(self)


def _no_statement(name: bytes) -> SqlError:
    if not name:
        return SqlError("26000", "unnamed prepared statement does not exist")
    return SqlError("26000", f'prepared statement "{name.decode("utf-8", "replace")}" does not exist')


def _no_portal(name: bytes) -> SqlError:
    return SqlError("34000", f'portal "{name.decode("utf-8", "replace")}" does not exist')


def _ends_block(entry: Entry | None) -> bool:
    return (
        entry is not None
        and isinstance(entry.plan, UtilityPlan)
        and entry.plan.kind in ("commit", "rollback", "rollback_to")
    )


def _start_options(options: dict[str, str]) -> list[tuple[str, str]]:
    """The settings of a start-up packet; `options` holds `-c name=value` as on a command line."""
    found = []
    for name, value in options.items():
        if name == "replication":
            if value not in ("false", "off", "no", "0"):
                raise SqlError("0A000", "replication connections are not supported")
        elif name == "options":
            words = value.split()
            for index, word in enumerate(words):
                if word == "-c" and index + 1 < len(words):
                    word = "-c" + words[index + 1]
                if word.startswith(("-c", "--")) and "=" in word:
                    key, _, setting = word[2:].partition("=")
                    found.append((key.replace("-", "_"), setting))
        elif not name.startswith("_pq_."):
            found.append((name, value))
    return found
