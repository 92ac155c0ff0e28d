"""The ground a session stands on: its buffers, its state, its one task, and what failing means.

`Conversation` walks over the messages in its buffer and appends replies to `out`, which is written
once per turn. It is `busy` while a statement is under way elsewhere: then nothing more is read from
the buffer, so that replies keep their order.

Invariants: at most one statement is under way; `txn` is set only within a block (`status` T, or E
while savepoints are kept) or an implicit transaction. No I/O and no asyncio here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from coordinator.advisory import SessionLocks
from coordinator.copy_in import CopyInbox
from coordinator.executor import Executor, extra_values
from coordinator.gate import lock_timed_out
from coordinator.isolation import READ_COMMITTED, in_read_only
from coordinator.pgwire import messages
from coordinator.pgwire.messages import Frontend
from coordinator.pgwire.state import TRANSITIONS, Event, Phase, action_of, after
from coordinator.plan.cache import Entry, PlanCache, decode_text
from coordinator.plan.plans import UtilityPlan
from coordinator.ports import Cancellable, Shell, Txn, as_sql_error
from coordinator.rowset import Cursor
from coordinator.settings import Settings
from shardb import limits
from shardb._core.pgwire import FrontendBuffer
from shardb.errors import ProtocolError, SqlError, internal

log = logging.getLogger("coordinator.session")

IDLE: Final = b"I"
BLOCK: Final = b"T"
FAILED: Final = b"E"
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

    __slots__ = ("cursor", "done", "entry", "formats", "params", "prepared", "total")

    def __init__(
        self, entry: Entry | None, params: bytes, formats: bytes, prepared: Prepared
    ) -> None:
        self.entry = entry
        self.params = params
        self.formats = formats
        self.prepared = prepared
        self.cursor: Cursor | None = None
        self.done = False
        self.total = 0


class Conversation:
    """What every part of a session uses; `Session` adds the protocols' messages."""

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
        self.status = IDLE
        self.txn: Txn | None = None
        self.implicit = False
        self.read_only = False  # of the block, and its isolation level
        self.level = READ_COMMITTED
        self.txn_start_us = 0
        self.advisory = SessionLocks(self.driver, process_id, self._locks_lost)
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
        self._call: Any = None  # the row program under way (rowcall.RowCall)
        self._lock_timer: Cancellable | None = None
        self._idle_timer: Cancellable | None = None
        self._cancel_reason = ""
        self._shut = executor.driver.gate.shut
        self._tables = {phase: self._handlers(phase) for phase in Phase}
        self._table = self._tables[Phase.STARTUP]

    def _handlers(self, phase: Phase) -> dict[int, Callable[[], None]]:
        return {
            int(kind): getattr(self, action.value) for kind, action in TRANSITIONS[phase].items()
        }

    # --- bytes in, bytes out

    def data_received(self, data: bytes) -> None:
        """Takes bytes from the socket and answers what can be answered."""
        self.buffer.feed(data)
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
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
        if self.status != IDLE and self.settings.idle_in_transaction_s and not self.busy:
            self._expect_client()

    def _expect_client(self) -> None:
        """Gives a client with an open transaction its time to go on."""
        if self._idle_timer is None and self.phase is not Phase.CLOSED:
            self._idle_timer = self.shell.timer(
                self.settings.idle_in_transaction_s,
                lambda: self.terminate(
                    SqlError("25P03", "terminating connection due to idle-in-transaction timeout")
                ),
            )

    def flush(self) -> None:
        """Writes what has been gathered."""
        out = self.out
        data = out[0] if len(out) == 1 else b"".join(out)
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
        pairs = zip(parts[:-2:2], parts[1:-1:2], strict=False)
        options = {decode_text(name): decode_text(value) for name, value in pairs}
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
        self.out.append(messages.READY[IDLE])

    def _enter(self, event: Event) -> None:
        self.phase = after(self.phase, event)
        self._table = self._tables[self.phase]

    # --- statements

    def prepare(self, text: bytes, oids: tuple[int, ...]) -> Prepared:
        """Compiles one statement; more than one is 42601."""
        entry = self.plans.cached(text, oids)
        if entry is None:
            statements = self.plans.compiler.split(decode_text(text))
            if len(statements) > 1:
                raise SqlError("42601", "cannot insert multiple commands into a prepared statement")
            entry = self.plans.exact(text, oids) if statements else None
        if self.status == FAILED and not ends_block(entry):
            raise in_failed_block()
        return Prepared(text, oids, entry)

    def fresh(self, prepared: Prepared) -> Entry:
        """The plan of a prepared statement for the present catalog."""
        assert prepared.entry is not None
        if prepared.entry.catalog_version == self.plans.version:
            return prepared.entry
        fresh = self.plans.exact(prepared.text, prepared.oids)
        before = [(c.name, c.type) for c in prepared.entry.columns]
        if [(c.name, c.type) for c in fresh.columns] != before:
            raise SqlError("0A000", "cached plan must not change result type")
        prepared.entry = fresh
        return fresh

    def with_extras(
        self, entry: Entry, formats: bytes, values: list[bytes | None]
    ) -> tuple[bytes, list[bytes | None]]:
        """The parameters with those that the session fills in."""
        if not entry.extras:
            return formats, values
        if len(formats) == 1:
            formats = formats * len(values)
        elif not formats:
            formats = b"\0" * len(values)
        extras = extra_values(entry, self.executor, self.statement_time_us())
        return formats + b"\1" * len(extras), values + extras

    # --- transactions

    def begin(self) -> Txn:
        """Begins the block's transaction, or an implicit one at the session's level."""
        level = self.level if self.status == BLOCK else self.settings.default_level
        self.txn = self.driver.begin(level, self.process_id)
        return self.txn

    def wants_block(self, entry: Entry) -> bool:
        """True for a statement on its own whose reads have to hold until it commits."""
        return self.settings.serializable and self.status != BLOCK and not entry.reads_only

    @property
    def forbids_writes(self) -> bool:
        """True in a read-only transaction."""
        return self.read_only if self.status == BLOCK else self.settings.default_read_only

    def check_writable(self, entry: Entry) -> None:
        """25006 for what writes or locks in a read-only transaction."""
        if not entry.reads_only and self.forbids_writes:
            raise in_read_only(entry.command)

    # --- tables that are shut by a schema change

    def barred(self, entry: Entry) -> bool:
        """True if the statement has to wait until a schema change is over."""
        return bool(self._shut) and self.driver.gate.bars(entry.writes, self.txn)

    async def pass_gate(self, table_id: int) -> None:
        """Waits for the end of a schema change; what was planned before is to be planned again."""
        bound = limits.SCHEMA_CHANGE_WAIT_MS / 1000
        limit = self.settings.lock_timeout_s or bound
        await self.driver.gate.passed(self.shell, table_id, limit)

    # --- replies that take more than a line

    def statement_time_us(self) -> int:
        """What now() is: the start of the transaction, in microseconds since 1970."""
        if self.txn_start_us and self.status != IDLE:
            return self.txn_start_us
        return self.executor.now_us()

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
        """Cancels the task or the row program under way, if any."""
        if self._task is not None:
            self._cancel_reason = reason
            self._task.cancel()
        elif self._call is not None:
            self._call.cancel(SqlError("57014", reason))

    def call_begun(self, call: Any) -> None:
        """A row program is under way: it can be cancelled, and has its time limits."""
        self._call = call
        settings = self.settings
        if settings.limited:
            if settings.statement_timeout_s and self._task is None:
                self._timer = self.shell.timer(settings.statement_timeout_s, self._timed_out)
            if settings.lock_timeout_s:
                self._limit_locks()

    def _limit_locks(self) -> None:
        """Ends a wait for a lock when the timer comes; else looks again later."""

        def late() -> None:
            if self._call is not None:
                self._limit_locks()
                self._call.cancel(lock_timed_out())

        self._lock_timer = self.shell.timer(self.settings.lock_timeout_s, late)

    def call_ended(self) -> None:
        """The row program is over."""
        self._call = None
        if self._lock_timer is not None:
            self._lock_timer.cancel()
            self._lock_timer = None
        if self._timer is not None and self._task is None:
            self._timer.cancel()
            self._timer = None

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
        if self.status == IDLE or not self.savepoints:
            self.abandon()
        if self.status == BLOCK:
            self.status = FAILED
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

    def _locks_lost(self) -> None:
        text = "terminating connection because its advisory locks were lost by a shard"
        hint = (
            "In a moment you should be able to reconnect to the database and repeat your command."
        )
        self.terminate(SqlError("57P02", text, hint=hint))

    def connection_lost(self) -> None:
        """The socket is gone: whatever was under way is cancelled and rolled back."""
        if self.phase is not Phase.CLOSED:
            self._enter(Event.CLOSED)
        self.busy = True
        if self.inbox is not None:
            self.inbox.finish(SqlError("08006", "connection to client lost"))
        elif self._task is not None:
            self._task.cancel()
        elif self._call is not None:
            self._call.cancel(SqlError("57014", "connection to client lost"))
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self.abandon()
        self.advisory.release_all()
        self.executor.leave(self)


def ends_block(entry: Entry | None) -> bool:
    """True for what a failed block still accepts."""
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
