"""What a shard does with each message: the node without sockets.

It owns the engine, the ranges and the registered programs. Reads that need not wait are answered
in the call; everything else by a reply later. All on one thread, but for scans, whose batches are
drawn by workers (`scan.py`).

A node serves nothing before the first fresh oracle timestamp has arrived (Hello): it bounds every
read that its former life has served.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

import msgspec

from shardb import limits
from shardb._core.frames import pack_rows
from shardb._core.rowprog import Program
from shardb.env import Background, Files, Rng
from shardb.errors import SqlError, StorageError
from shardb.meta.descriptors import Range
from shardb.node.ranges import LocalRange
from shardb.node.scan import Filter, ScanJob
from shardb.node.statements import (
    TS_MAX,
    Registered,
    RowStatement,
    too_old,
)
from shardb.node.waits import WaitReports
from shardb.node.writes import WriteStatement
from shardb.rpc import framing
from shardb.rpc import messages as m
from shardb.rpc.transport import ServerConnection, error_failure
from shardb.storage.edits import TabletState
from shardb.storage.engine import Engine
from shardb.storage.logfile import LogRecord
from shardb.storage.memory import MemoryBudget
from shardb.txn import oracle, records
from shardb.txn.locks import LockTable
from shardb.txn.replay import replay_commit, replay_outcome, replay_prepare
from shardb.txn.state import State

log = logging.getLogger("shardb.node")

ROWS_MAX_BYTES: Final = limits.RPC_MESSAGE_MAX_BYTES - limits.KIB
UNKNOWN_PROGRAM: Final = m.Failure("SH001", "the program is not registered", aborted=True)
NOT_HERE: Final = m.Failure("SH002", "the range is not on this shard", aborted=True)
STARTING: Final = m.Failure("57P03", "the shard is starting", aborted=True)


class ShardNode:
    """Opens the data directory, replays its log and serves messages.

    `on_fatal` as in `storage.log.Log`; `workers` run scans, `background` flushes and merges;
    `filter_rows` is the fragment engine's filter.
    """

    def __init__(
        self,
        path: str,
        files: Files,
        rng: Rng,
        on_fatal: Callable[[StorageError], None],
        workers: Executor,
        filter_rows: Filter,
        background: Background,
        budget: MemoryBudget | None = None,
        gc_ttl_ms: int = limits.GC_TTL_MS,
    ) -> None:
        self.ranges: dict[int, LocalRange] = {}
        self.locks = LockTable()
        self.programs: dict[int, Registered] = {}
        self.serving = False
        self.statements = 0
        self._connections: set[ServerConnection] = set()
        self._rng = rng
        self._workers = workers
        self._filter_rows = filter_rows
        self._known_issued = 0
        self._gc_ttl_ms = gc_ttl_ms
        self.waits = WaitReports(self.locks, files.call_later)
        self.engine = Engine(path, files, rng, self, on_fatal, background, budget)
        self.engine.start()

    def close(self) -> None:
        """Makes everything appended durable and lets the directory go."""
        self.engine.close()

    def prepared_states(self) -> list[tuple[LocalRange, State]]:
        """The transactions whose outcome is open."""
        return [
            (local, state)
            for local in self.ranges.values()
            for state in local.participant.prepared.values()
        ]

    # --- the engine's owner

    def restore(self, engine: Engine, state: TabletState) -> None:
        """Installs a tablet that the manifest names."""
        install = records.decode_install(state.descriptor)
        self._range(engine, install.range).install(install.table)

    def replay(self, engine: Engine, record: LogRecord) -> None:
        """Carries out a log record again."""
        kind = record.kind
        if kind == records.INSTALL:
            install = records.decode_install(record.payload)
            self._range(engine, install.range).install(install.table)
            return
        local = self.ranges.get(record.range_id)
        if local is None:
            return  # its tables have been dropped, and the record that made it is cut off
        local.applying = record.index
        participant = local.participant
        if kind == records.COMMIT:
            replay_commit(participant, records.decode_commit(record.payload))
        elif kind == records.PREPARE:
            replay_prepare(participant, records.decode_prepare(record.payload))
        elif kind in (records.DECIDE, records.ABORT):
            replay_outcome(participant, records.decode_outcome(record.payload), kind)
        elif kind == records.DROP:
            local.drop(records.decode_drop(record.payload).table_id)
        else:
            raise StorageError("0A000", f"log record of unknown kind {kind}")
        local.note_record(kind, record.payload, record.index)

    def retained(self, range_id: int, needed: int) -> int:
        """The least index of a range's log that is needed."""
        local = self.ranges.get(range_id)
        return needed if local is None else local.retention.retained(needed, self._newest_issued())

    def gc_ts(self) -> int:
        """Overwritten versions are kept for `gc_ttl_ms`."""
        return max(self._newest_issued() - oracle.from_ms(self._gc_ttl_ms), 0)

    def _newest_issued(self) -> int:
        """What time it is, as far as any range has heard."""
        issued = (local.participant.known_issued for local in self.ranges.values())
        return max(issued, default=0)

    def _range(self, engine: Engine, descriptor: Range) -> LocalRange:
        local = self.ranges.get(descriptor.id)
        if local is None:
            local = LocalRange(descriptor, engine, self.locks, self._rng)
            local.participant.fence(self._known_issued)
            self.ranges[descriptor.id] = local
        return local

    # --- the handler of connections

    def drop_connections(self) -> None:
        """Closes every connection."""
        for connection in list(self._connections):
            connection.abort()

    def on_lost(self, connection: ServerConnection) -> None:
        self._connections.discard(connection)
        self.waits.lose(connection)
        for local in self.ranges.values():
            local.participant.lose(connection)

    def on_execute(self, connection: ServerConnection, request_id: int, message: m.Execute) -> None:
        """Runs a row program. A read that waits for nothing is answered at once."""
        local = self.ranges.get(message.range_id)
        registered = self.programs.get(message.program_id)
        if local is None or registered is None or not self.serving:
            self._refuse_execute(connection, request_id, local, registered)
            return
        self.statements += 1
        participant = local.participant
        if message.known_issued > participant.known_issued:
            participant.known_issued = message.known_issued
        tablet = local.tablets.get(registered.spec.table_id)
        if tablet is None:
            connection.reply(request_id, NOT_HERE)
            return
        spec = registered.spec
        if spec.kind == "select" and not spec.locking:
            self._select(connection, request_id, message, local, registered)
            return

        def reply(answer: m.Message) -> None:
            connection.reply(request_id, answer)

        if message.txn is None:
            reply(m.Failure("XX000", "a write came without a transaction", aborted=True))
            return
        RowStatement(local, self.locks, message, registered, reply).run(connection)

    def _refuse_execute(
        self,
        connection: ServerConnection,
        request_id: int,
        local: LocalRange | None,
        registered: Registered | None,
    ) -> None:
        if not self.serving:
            connection.reply(request_id, STARTING)
        elif local is None:
            connection.reply(request_id, NOT_HERE)
        else:
            assert registered is None
            connection.reply(request_id, UNKNOWN_PROGRAM)

    def _select(
        self,
        connection: ServerConnection,
        request_id: int,
        message: m.Execute,
        local: LocalRange,
        registered: Registered,
    ) -> None:
        participant = local.participant
        program = registered.program
        read_ts = message.read_ts
        overlay = None
        state: State | None = None
        state_id = 0
        txn = message.txn
        if txn is not None and txn.state_id:
            state = participant.states.get(txn.txn_id)
            if state is None or state.state_id != txn.state_id:
                connection.reply(
                    request_id, m.Failure("40001", "the transaction was lost by a shard")
                )
                return
            state_id = state.state_id
            overlay = state.overlay(registered.spec.table_id)
        tablet = local.tablets.get(registered.spec.table_id)
        if tablet is None:  # dropped while this waited
            connection.reply(request_id, NOT_HERE)
            return
        try:
            params = message.params
            if participant.prepared:
                participant.read_at(read_ts, message.floor)
                if self._wait(connection, request_id, message, local, registered, state):
                    return
            ts = participant.read_at(read_ts, message.floor)
            if read_ts and read_ts < tablet.gc_ts:
                raise too_old(read_ts)
            version = registered.spec.schema_version
            data, rows, _ = program.select(
                tablet.runs(version)
                if state is None
                else local.runs(tablet.table_id, version, state),
                read_ts or TS_MAX,
                params,
                message.formats,
                overlay,
                local.low,
                local.high,
            )
        except (SqlError, ValueError, MemoryError) as error:
            connection.reply(request_id, error_failure(error))
            return
        if len(data) > ROWS_MAX_BYTES:
            failure = m.Failure("54000", "the result of a statement is too long")
            connection.reply(request_id, failure)
            return
        connection.send(pack_rows(request_id, data, rows, state_id, 0, ts))

    def _wait(
        self,
        connection: ServerConnection,
        request_id: int,
        message: m.Execute,
        local: LocalRange,
        registered: Registered,
        state: State | None,
    ) -> bool:
        """Has a read wait for a prepared transaction in its way; False if there is none."""
        program = registered.program
        participant = local.participant
        keys = program.points(message.params) if program.is_points else None
        interval = None if keys is not None else program.interval(message.params)
        blockers = participant.all_blocking(
            registered.spec.table_id, keys, interval, message.read_ts, state
        )
        if not blockers:
            return False
        left = len(blockers)

        def ended() -> None:
            nonlocal left
            left -= 1
            if left:
                return
            later = message
            if not message.read_ts:
                # All that was prepared on its keys is decided: from here on a snapshot, so that a
                # stream of new commits cannot keep it waiting.
                read_ts = participant.read_at(0, message.floor)
                later = msgspec.structs.replace(message, read_ts=read_ts)
            self._select(connection, request_id, later, local, registered)

        for blocker in blockers:
            blocker.waiters.append(ended)
        return True

    def on_message(self, connection: ServerConnection, request_id: int, message: m.Message) -> None:
        """Everything but Execute."""
        if isinstance(message, m.Hello):
            self._hello(connection, message)
            return

        def reply(answer: m.Message) -> None:
            connection.reply(request_id, answer)

        try:
            self._dispatch(connection, request_id, message, reply)
        except Exception as error:  # our own bug, perhaps: the caller has to hear of it
            if not isinstance(error, SqlError | ValueError | MemoryError):
                log.exception("%s failed", type(message).__name__)
            reply(error_failure(error))

    def _hello(self, connection: ServerConnection, message: m.Hello) -> None:
        if message.protocol != framing.PROTOCOL_VERSION:
            connection.abort()
            return
        connection.peer = message.peer
        self._connections.add(connection)
        if message.issued:
            self._known_issued = max(self._known_issued, message.issued)
            if not self.serving:
                for local in self.ranges.values():
                    local.participant.fence(message.issued)
                self.serving = True

    def _dispatch(
        self,
        connection: ServerConnection,
        request_id: int,
        message: m.Message,
        reply: Callable[[m.Message], None],
    ) -> None:
        if isinstance(message, m.RegisterProgram):
            self._register(message)
            reply(m.Ack())
        elif isinstance(message, m.Status):
            reply(self._status())
        elif isinstance(message, m.InstallTable):
            self._install(message, reply)
        elif isinstance(message, m.QueryOutcome):
            local = self.ranges.get(message.range_id)
            if local is None:
                reply(m.Outcome("unknown", 0))
            else:
                local.participant.query(message, reply)
        elif isinstance(message, m.Decide):
            local = self.ranges.get(message.range_id)
            if local is None:
                reply(m.Ack())
            else:
                local.participant.decide(message.txn_id, message.commit_ts, reply)
        elif isinstance(message, m.WatchWaits):
            self.waits.watch(connection, message, reply)
        elif isinstance(message, m.BreakWait):
            self.waits.end(message)
            reply(m.Ack())
        elif isinstance(message, m.ListLocks):
            reply(self.waits.locks())
        elif not self.serving:
            reply(STARTING)
        else:
            self._serve(connection, request_id, message, reply)

    def _serve(
        self,
        connection: ServerConnection,
        request_id: int,
        message: m.Message,
        reply: Callable[[m.Message], None],
    ) -> None:
        range_id = getattr(message, "range_id", 0)
        local = self.ranges.get(range_id)
        if local is None:
            harmless = isinstance(message, m.DropTable | m.Forget | m.CancelStatement)
            reply(m.Ack() if harmless else NOT_HERE)
            return
        participant = local.participant
        if isinstance(message, m.Write):
            table = local.tables.get(message.table_id)
            if table is None:
                reply(NOT_HERE)
                return
            participant.note(message.known_issued)
            WriteStatement(local, self.locks, message, table, reply).run(connection)
        elif isinstance(message, m.CommitOne):
            participant.commit_message(message, reply)
        elif isinstance(message, m.Prepare):
            participant.prepare(message, reply)
        elif isinstance(message, m.Rollback):
            reply(participant.rollback(message))
        elif isinstance(message, m.CancelStatement):
            participant.cancel(message)
            reply(m.Ack())
        elif isinstance(message, m.Forget):
            participant.forget(message.txn_ids)
            reply(m.Ack())
        elif isinstance(message, m.DropTable):
            self._drop(local, message, reply)
        elif isinstance(message, m.Scan):
            if message.table_id not in local.tablets:
                reply(NOT_HERE)
                return
            stream = connection.open_stream(request_id)
            job = ScanJob(local, message, stream, reply, self._workers, self._filter_rows)
            job.start()
        else:
            reply(m.Failure("08P01", f"unexpected message {type(message).__name__}"))

    # --- programs and tables

    def _register(self, message: m.RegisterProgram) -> None:
        if message.program_id in self.programs:
            return
        program = Program(message.spec, message.table)
        while len(self.programs) >= limits.PROGRAMS_PER_NODE_MAX:
            del self.programs[next(iter(self.programs))]
        self.programs[message.program_id] = Registered(program, message.spec, message.table)

    def _install(self, message: m.InstallTable, reply: Callable[[m.Message], None]) -> None:
        local = self._range(self.engine, message.range)
        if local.tables.get(message.table.id) == message.table:
            reply(m.Ack())
            return
        payload = records.encode_install(message.range, message.table)

        def durable(error: StorageError | None) -> None:
            if error is not None:
                reply(error_failure(error))
                return
            local.install(message.table)
            reply(m.Ack())

        local.persist(records.INSTALL, payload, durable)

    def _drop(
        self, local: LocalRange, message: m.DropTable, reply: Callable[[m.Message], None]
    ) -> None:
        def durable(error: StorageError | None) -> None:
            if error is not None:
                reply(error_failure(error))
                return
            local.drop(message.table_id)
            reply(m.Ack())

        local.persist(records.DROP, records.encode_drop(local.id, message.table_id), durable)

    def _status(self) -> m.StatusReply:
        counters = dict(self.engine.counters())
        counters["statements"] = self.statements
        counters["ranges"] = len(self.ranges)
        counters["transactions"] = sum(len(r.participant.states) for r in self.ranges.values())
        counters["prepared"] = sum(len(r.participant.prepared) for r in self.ranges.values())
        counters["programs"] = len(self.programs)
        ranges = {}
        for local in self.ranges.values():
            tablets = local.tablets.values()
            size = sum(meta.bytes for tablet in tablets for meta in tablet.metas)
            size += sum(tablet.memory_bytes for tablet in tablets)
            ranges[local.id] = (sum(tablet.rows for tablet in tablets), size)
        return m.StatusReply(counters, ranges)
