"""One row program on its way: to one range or several, and back as one result.

The usual way, one range and a good answer, takes one message each way and no task. The rest (a lost
connection, a program unknown to a restarted shard, several ranges) goes the slow way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from coordinator.isolation import READ_COMMITTED, SERIALIZABLE, Spans
from coordinator.plan.plans import RowPlan
from shardb.errors import SqlError
from shardb.meta.descriptors import Range
from shardb.rpc import messages as m
from shardb.rpc.transport import LOST, failure_error

if TYPE_CHECKING:
    from coordinator.txn_driver import TxnDriver

UNKNOWN_PROGRAM: Final = "SH001"
NOT_HERE: Final = "SH002"
CANCELED: Final = "57014"
LOCK_TIMEOUT: Final = "55P03"
RETRY_NOW: Final = frozenset({"40001", "40P01"})
RETRY_LATER: Final = frozenset({"57P03", NOT_HERE})
ATTEMPTS_MAX: Final = 20
RETRY_PAUSE_S: Final = 0.05
RETRY_LATER_S: Final = 5.0


class Part:
    """A transaction on one range, as that range answered.

    `spans`: what it has read there under SERIALIZABLE, filled in when it commits.
    """

    __slots__ = ("range", "spans", "state_id", "statements")

    def __init__(self, item: Range, state_id: int) -> None:
        self.range = item
        self.state_id = state_id
        self.statements: list[int] = []
        self.spans: tuple[m.Span, ...] = ()


class Txn:
    """One transaction as its coordinator sees it.

    `doomed`: it certainly cannot commit any more. `entering`: ranges with a statement under way and
    no state known yet. Statements count from 2, so that every savepoint has a number above 0.
    `snapshot_ts`: what all statements read at, from the first on, under the levels that keep one.
    """

    __slots__ = (
        "doomed",
        "ended",
        "entering",
        "floor",
        "level",
        "lock_timeout_s",
        "parts",
        "process_id",
        "snapshot_ts",
        "spans",
        "statement",
        "tables",
        "txn_id",
    )

    def __init__(self, txn_id: bytes, level: str = READ_COMMITTED, process_id: int = 0) -> None:
        self.txn_id = txn_id
        self.process_id = process_id
        self.level = level
        self.snapshot_ts = 0
        self.spans = Spans() if level == SERIALIZABLE else None
        self.statement = 1
        self.floor = 0
        self.doomed = False
        self.ended = False
        self.parts: dict[int, Part] = {}
        self.entering: dict[int, Range] = {}
        self.tables: set[int] = set()  # that it has written: see gate.TableGate
        self.lock_timeout_s = 0.0  # for its writes by key; 0 is none

    def joined(self, item: Range, state_id: int, failed: bool = False, statement: int = 0) -> None:
        """A statement (0: the present one) has succeeded on a range, or left its locks there."""
        self.entering.pop(item.id, None)
        part = self.parts.get(item.id)
        if part is None:
            part = self.parts[item.id] = Part(item, state_id)
        if not failed:
            part.statements.append(statement or self.statement)


def as_error(error: BaseException) -> SqlError:
    """An error for the session; internal codes become what a client may see."""
    if not isinstance(error, SqlError):
        sqlstate = getattr(error, "sqlstate", "XX000")
        message = getattr(error, "message", None) or str(error)
        return SqlError(sqlstate, message, detail=getattr(error, "detail", "") or "")
    if error.sqlstate in (UNKNOWN_PROGRAM, NOT_HERE):
        return SqlError("57P03", f"{error.message}; try again")
    return error


class RowCall:
    """Runs once: `start`, and later one call of `on_done`."""

    __slots__ = (
        "attempts",
        "begin_ts",
        "cancelled",
        "commit",
        "deadline",
        "driver",
        "error",
        "formats",
        "implicit",
        "on_done",
        "params",
        "plan",
        "process_id",
        "program",
        "ranges",
        "read_ts",
        "results",
        "single",
        "txn",
        "txn_id",
        "waiting",
        "writes",
    )

    def __init__(
        self,
        driver: TxnDriver,
        txn: Txn | None,
        plan: RowPlan,
        program: Any,
        params: bytes,
        formats: bytes,
        on_done: Callable[[Any], None],
        process_id: int = 0,
    ) -> None:
        self.driver = driver
        self.process_id = process_id
        self.begin_ts = 0  # of the first attempt: so that it is the older one at last
        self.txn = txn
        self.plan = plan
        self.program = program
        self.params = params
        self.formats = formats
        self.on_done = on_done
        self.implicit = txn is None
        self.attempts = 0
        self.deadline = 0.0
        self.cancelled: SqlError | None = None
        self.txn_id = b""
        self.ranges: Sequence[Range] = ()
        spec = plan.program
        self.writes = spec.kind != "select" or spec.locking != ""

    @property
    def table_id(self) -> int:
        """The table it is about."""
        return self.plan.program.table_id

    def start(self) -> None:
        """Routes and sends."""
        driver = self.driver
        spec = self.plan.program
        try:
            ranges = driver.route(spec, self.program, self.params)
            if self.txn is not None:
                driver.check(self.txn)
            if self.cancelled is not None and self._is_over():
                raise self.cancelled
            self.ranges = ranges
            self.error: SqlError | None = None
            self.read_ts = 0
            if self.txn is not None and self.txn.level != READ_COMMITTED and not self.implicit:
                self._take_snapshot(self.txn)
            self.txn_id = b""
            self.commit = False
            self.single = len(ranges) == 1
            if self.implicit:
                self.txn = None
            if self.single:
                if self.writes:
                    if self.implicit:
                        self.commit = True
                        self.begin_ts = self.begin_ts or driver.oracle.issued
                        self.txn_id = driver.new_id(self.process_id, self.begin_ts)
                    else:
                        assert self.txn is not None
                        self.txn.statement += 1
                self._send(0)
                return
            self._start_many(ranges)
        except (SqlError, ValueError) as error:
            if self.implicit and self.txn is not None:
                driver.abandon(self.txn)
            driver.loop.call_soon(self._end, as_error(error))

    def _take_snapshot(self, txn: Txn) -> None:
        """Reads at the transaction's snapshot, and remembers under SERIALIZABLE what."""
        self.read_ts = self.driver.read_ts_of(txn)
        spec = self.plan.program
        if txn.spans is None or spec.kind == "insert":
            return
        if self.program.is_points:
            txn.spans.add_keys(spec.table_id, self.program.points(self.params))
        else:
            interval = self.program.interval(self.params)
            if interval is not None:
                txn.spans.add(spec.table_id, interval[0] or b"", interval[1] or b"")

    def _start_many(self, ranges: Sequence[Range]) -> None:
        spec = self.plan.program
        if spec.aggregates or spec.limit is not None or spec.offset is not None:
            raise SqlError("XX000", "a row program over several ranges cannot be concatenated")
        if self.writes:
            if self.txn is None:
                self.txn = self.driver.begin(process_id=self.process_id)
            self.txn.statement += 1
        else:
            self.read_ts = self.read_ts or self.driver.oracle.issue()
        self.results: list[m.Rows | None] = [None] * len(ranges)
        self.waiting = len(ranges)
        for index in range(len(ranges)):
            self._send(index)

    def _send(self, index: int) -> None:
        driver = self.driver
        item = self.ranges[index]
        client = driver.client(item.primary)
        if not client.connected:
            driver.spawn(self._send_later(index))
            return
        plan = self.plan
        if plan.program_id not in client.known_programs:
            client.known_programs.add(plan.program_id)
            # The plan may be older than the catalog: its program reads the columns there were.
            table = driver.catalog().table(plan.program.table_id).at(plan.program.schema_version)
            register = m.RegisterProgram(plan.program_id, plan.program, table)
            client.call(register, self._registered)
        txn = self.txn
        ref = None
        floor = driver.newest_seen
        if self.writes:
            issued = driver.oracle.issue()
            if txn is None:
                ref = m.TxnRef(self.txn_id, 0, 1, issued)
            else:
                part = txn.parts.get(item.id)
                state_id = 0
                if part is None:
                    txn.entering[item.id] = item
                else:
                    state_id = part.state_id
                ref = m.TxnRef(txn.txn_id, state_id, txn.statement, issued)
                if txn.floor > floor:
                    floor = txn.floor
        else:
            issued = driver.oracle.issued
            if txn is not None:
                part = txn.parts.get(item.id)
                if part is not None:
                    ref = m.TxnRef(txn.txn_id, part.state_id, txn.statement, issued)
        message = m.Execute(
            item.id,
            plan.program_id,
            self.read_ts,
            floor,
            issued,
            ref,
            self.commit,
            plan.nowait,
            self.params,
            self.formats,
        )
        if self.single:
            client.call(message, self._reply)
        else:
            client.call(message, lambda reply: self._reply_of(index, reply))

    async def _send_later(self, index: int) -> None:
        try:
            await self.driver.wait_for(self.ranges[index])
        except SqlError as error:
            self._cannot_send(index, error)
            return
        self._send_if_open(index)

    def _cannot_send(self, index: int, error: SqlError) -> None:
        if self.single:
            self._end(as_error(error))
        else:
            self._reply_of(index, m.Failure(error.sqlstate, error.message))

    def _registered(self, reply: m.Message) -> None:
        """A program that a shard cannot take fails its Execute too, with a poorer message."""
        if isinstance(reply, m.Failure) and reply is not LOST:
            self.error = failure_error(reply)

    # --- one range

    def _reply(self, reply: m.Message) -> None:
        if type(reply) is m.Rows:
            driver = self.driver
            seen = reply.commit_ts or reply.newest_ts
            if seen > driver.newest_seen:
                driver.newest_seen = seen
            if self.writes and self.txn is not None:
                driver.joined(self.txn, self.ranges[0], reply.state_id)
                if reply.newest_ts > self.txn.floor:
                    self.txn.floor = reply.newest_ts
            self._end(reply)
            return
        assert isinstance(reply, m.Failure), reply
        self._failed(reply)

    def _failed(self, failure: m.Failure) -> None:
        driver = self.driver
        state = failure.sqlstate
        if state == UNKNOWN_PROGRAM:
            if self.error is not None:
                self._end(as_error(self.error))
                return
            self._forget_program()
            if self._again():
                self._send(0)
                return
        elif self.txn is not None:
            self._fail_in_txn(failure)
            return
        elif failure is LOST:
            if self.commit:
                driver.spawn(self._resolve())
            elif self._again():
                driver.loop.call_later(RETRY_PAUSE_S, self.start)
            else:
                self._end(failure_error(failure))
            return
        elif state in RETRY_LATER:
            now = driver.loop.time()
            self.deadline = self.deadline or now + RETRY_LATER_S
            if now < self.deadline:
                driver.loop.call_later(RETRY_PAUSE_S, self.start)
                return
        elif state in RETRY_NOW and failure.aborted and self._again():
            self.start()
            return
        self._end(as_error(failure_error(failure)))

    def cancel(self, error: SqlError) -> None:
        """Asks for an end with `error`; one that only waits for a lock gets it.

        A statement that is not held up goes on, as does one whose commit has begun. A read has
        nothing to lose, so that it ends at once (57014 only: it takes no locks to wait for).
        """
        self.cancelled = error
        if not self.writes:
            if self._is_over():
                on_done, self.on_done = self.on_done, ignore_result
                on_done(error)
            return
        self._stop_waits()

    def _stop_waits(self) -> None:
        txn = self.txn
        txn_id, statement = (self.txn_id, 1) if txn is None else (txn.txn_id, txn.statement)
        for item in self.ranges:
            client = self.driver.client(item.primary)
            if client.connected:
                client.call(m.CancelStatement(item.id, txn_id, statement), ignore)

    def _is_over(self) -> bool:
        """True if it is to be tried no more: a lock timeout only ends waits."""
        return self.cancelled is not None and self.cancelled.sqlstate != LOCK_TIMEOUT

    def _end(self, result: Any) -> None:
        """The one way out."""
        driver = self.driver
        if self.writes and self.implicit:
            driver.gate.calls.discard(self)
            if driver.gate.shut:
                driver.gate.wake()
        cancelled = self.cancelled
        if cancelled is not None and isinstance(result, SqlError) and result.sqlstate == CANCELED:
            result = cancelled
        self.on_done(result)

    def _fail_in_txn(self, failure: m.Failure) -> None:
        txn = self.txn
        assert txn is not None
        txn.entering.pop(self.ranges[0].id, None)
        if failure is LOST:
            if self.writes or txn.parts:
                txn.doomed = True
                self._end(SqlError("40001", "a shard lost the transaction"))
            elif self._again():
                self.driver.loop.call_later(RETRY_PAUSE_S, self.start)
            else:
                self._end(failure_error(failure))
            return
        if failure.sqlstate in RETRY_LATER and not txn.parts and self._again():
            self.driver.loop.call_later(RETRY_PAUSE_S, lambda: self._send_if_open(0))
            return
        if failure.aborted:
            txn.doomed = True
        self._end(as_error(failure_error(failure)))

    def _send_if_open(self, index: int) -> None:
        try:
            if self.cancelled is not None and self._is_over():
                raise self.cancelled
            self._send(index)
        except SqlError as error:
            self._cannot_send(index, error)

    async def _resolve(self) -> None:
        """The answer to a statement that was to commit has been lost."""
        outcome = await self.driver.outcome_of(self.ranges[0], self.txn_id)
        if outcome is not None and outcome.state == "aborted" and self._again():
            self.start()
            return
        self._end(unknown_outcome())

    def _again(self) -> bool:
        self.attempts += 1
        return self.attempts <= ATTEMPTS_MAX and not self._is_over()

    def _forget_program(self) -> None:
        for item in self.ranges:
            self.driver.client(item.primary).known_programs.discard(self.plan.program_id)

    # --- several ranges

    def _reply_of(self, index: int, reply: m.Message) -> None:
        if isinstance(reply, m.Rows):
            self.results[index] = reply
            self.driver.saw(reply.newest_ts)
            if self.writes and self.txn is not None:
                self.driver.joined(self.txn, self.ranges[index], reply.state_id)
                self.txn.floor = max(self.txn.floor, reply.newest_ts)
        else:
            assert isinstance(reply, m.Failure), reply
            if reply.sqlstate == UNKNOWN_PROGRAM and self._again():
                self._forget_program()
                self._send_if_open(index)
                return
            if self.txn is not None:
                self.txn.entering.pop(self.ranges[index].id, None)
            if self.txn is not None and self.writes and (reply is LOST or reply.aborted):
                self.txn.doomed = True
            if self.error is None:
                self.error = failure_error(reply)
                if self.writes and self.waiting > 1:
                    self._stop_waits()  # the others', for nothing
        self.waiting -= 1
        if not self.waiting:
            self._all_answered()

    def _all_answered(self) -> None:
        driver = self.driver
        error = self.error
        if error is None:
            if self.implicit and self.writes:
                driver.spawn(self._commit())
            else:
                self._end(self._combined())
            return
        if not self.implicit:
            self._end(as_error(error))
            return
        if self.writes and self.txn is not None:
            driver.abandon(self.txn)  # nothing was prepared: certainly aborted
        if error.sqlstate in RETRY_NOW | RETRY_LATER | {"08006"} and self._again():
            driver.loop.call_later(RETRY_PAUSE_S, self.start)
            return
        self._end(as_error(error))

    async def _commit(self) -> None:
        assert self.txn is not None
        try:
            await self.driver.commit(self.txn)
        except SqlError as error:
            if error.sqlstate in RETRY_NOW and self._again():
                self.start()
            else:
                self._end(error)
            return
        self._end(self._combined())

    def _combined(self) -> m.Rows:
        results = [result for result in self.results if result is not None]
        if self.plan.program.reverse:
            results.reverse()
        data = b"".join(result.data for result in results)
        rows = sum(result.rows for result in results)
        return m.Rows(data, rows, 0, 0, max(result.newest_ts for result in results))


def ignore(_: m.Message) -> None:
    """For answers that nobody waits for."""


def ignore_result(_: Any) -> None:
    """For the result of a statement that has been cancelled."""


def unknown_outcome() -> SqlError:
    """The error for a commit whose answer cannot be had."""
    return SqlError(
        "08007",
        "the outcome of the transaction is not known: a shard could not be reached",
        hint="Look whether its changes are there before running it again.",
    )
