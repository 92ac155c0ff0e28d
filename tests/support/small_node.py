"""A shard node on a disk in memory with limits so small that a few rows flush, merge and ingest.

Nothing happens in the background before a test says so: the same steps change the disk at the same
points, so that a crash can be put at any of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import pytest

from shardb import limits
from shardb._core.frames import join_items
from shardb._core.keycodec import KeyCodec
from shardb._core.rowcursor import RowCursor
from shardb._core.rowprog import Program
from shardb._core.runs import Runs
from shardb.errors import StorageError
from shardb.meta.descriptors import Column, Range, Table
from shardb.node import retention, writes
from shardb.node.bulk import Bulk
from shardb.node.node import ShardNode
from shardb.node.ranges import LocalRange, schema_of
from shardb.program import Col, Key, Param, ProgramSpec, TypeRef
from shardb.rpc import framing
from shardb.rpc import messages as m
from shardb.rpc.transport import ServerConnection
from shardb.sim.disk import Disk
from shardb.storage import jobs
from shardb.storage.ingest import Ingest
from shardb.storage.log import Log
from shardb.storage.memory import MemoryBudget
from shardb.storage.scan import scan_runs
from shardb.txn import oracle, participant
from shardb.types import TypeCode, arrow_type
from tests.support.stepped import SteppedBackground

Values = Mapping[int, Any]  # a row by column id

PATH = "data"
SPLIT = 100_000
LAST_TS = 2**64 - 1
GC_TTL_MS = 600
FORGET_MS = 900
CODEC = KeyCodec([(int(TypeCode.INT8), -1, False, False)])
LOW = Range(301, 300, b"", CODEC.encode((SPLIT,)), 1, 1, (1,), (1,))
HIGH = Range(302, 300, CODEC.encode((SPLIT,)), b"", 1, 1, (1,), (1,))
MAIN = Table(
    id=200,
    name="main",
    group_id=300,
    columns=(
        Column(1, "id", TypeCode.INT8, not_null=True),
        Column(2, "value", TypeCode.INT8),
        Column(3, "note", TypeCode.TEXT),
    ),
    primary_key=(0,),
    next_column_id=4,
)


def side_table(number: int) -> Table:
    """A table beside the main one, with the same columns."""
    return msgspec.structs.replace(MAIN, id=MAIN.id + number, name=f"side{number}")


def with_column(table: Table) -> Table:
    """The table after ADD COLUMN; rows that are there have the column's id in it."""
    number = table.next_column_id
    column = Column(number, f"added{number}", TypeCode.INT8, missing=str(number))
    return _altered(table, (*table.columns, column), number + 1)


def without_column(table: Table) -> Table:
    """The table after DROP COLUMN of the last one that is no key."""
    return _altered(table, table.columns[:-1], table.next_column_id)


def _altered(table: Table, columns: tuple[Column, ...], next_column_id: int) -> Table:
    return msgspec.structs.replace(
        table,
        columns=columns,
        version=table.version + 1,
        schema_version=table.schema_version + 1,
        next_column_id=next_column_id,
        history=(*table.history, table.layout),
    )


def encoded(table: Table, values: Values) -> bytes:
    """A row of the table's present layout."""
    layout = schema_of(table).layout(table.schema_version)
    return layout.encode(cells(table, values))


def cells(table: Table, values: Values) -> list[Any]:
    """A row as the table's present version has it."""
    return [values.get(column.id, _missing(column)) for column in table.columns]


def _missing(column: Column) -> int | None:
    return None if column.missing is None else int(column.missing)


def range_of(ident: int) -> Range:
    return LOW if ident < SPLIT else HIGH


@dataclass(frozen=True, slots=True)
class SmallBudget(MemoryBudget):
    """A memtable takes 17 KiB before it has a row, and is frozen after some forty of ours."""

    memtables: int = 400_000
    memtable: int = 17_500

    @property
    def memtables_bytes(self) -> int:
        return self.memtables

    @property
    def memtable_bytes(self) -> int:
        return self.memtable


def set_small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that has a threshold reaches it within a few statements."""
    for name, value in {
        "LOG_ZEROED_FIRST_BYTES": 3000,
        "LOG_ZEROED_MAX_BYTES": 3000,
        "LOG_ZEROED_BATCH_MAX_BYTES": 1500,
        "LOG_UNSETTLED_MAX_BYTES": 12_000,
        "MANIFEST_REWRITE_BYTES": 3000,
        "INGEST_MIN_BYTES": 3000,
        "RUNS_MERGE_MIN": 2,
        "RUNS_TARGET_MAX": 3,
        "RUNS_STALL_MAX": 6,
        "MAINTENANCE_RETRY_MS": 2 * limits.MAINTENANCE_TICK_MS,
    }.items():
        monkeypatch.setattr(limits, name, value)
    monkeypatch.setattr(writes, "BULK_ROWS_MIN", 8)
    monkeypatch.setattr(jobs.write_segments, "__defaults__", (6000,))
    monkeypatch.setattr(Log.__init__, "__defaults__", (6000,))
    for module in (retention, participant):
        monkeypatch.setattr(module, "FORGET_AFTER", oracle.from_ms(FORGET_MS))
    monkeypatch.setattr(retention, "STEP", oracle.from_ms(40))


class Connection:
    """Keeps what is answered, by request."""

    def __init__(self) -> None:
        self.answers: dict[int, m.Message] = {}

    def reply(self, request_id: int, message: m.Message) -> None:
        assert request_id not in self.answers, "two answers"
        self.answers[request_id] = message

    def abort(self) -> None:
        raise AssertionError("the connection was aborted")

    def send(self, frame: bytes) -> None:
        """Rows of a program, ready to be sent."""

    def open_stream(self, request_id: int) -> Stream:
        return Stream(self, request_id)


class Stream:
    """Of a scan, which is refused or begins."""

    def __init__(self, connection: Connection, request_id: int) -> None:
        self._connection = connection
        self._request_id = request_id

    def end(self, message: m.Message) -> None:
        self._connection.reply(self._request_id, message)


class Answer:
    """What a request was answered, once it was."""

    def __init__(self, connection: Connection, request_id: int) -> None:
        self._connection = connection
        self._request_id = request_id

    @property
    def message(self) -> m.Message | None:
        return self._connection.answers.get(self._request_id)


class NoWorkers:
    """Scans that are not refused never begin."""

    def submit(self, *work: object) -> None:
        pass


class SmallRng:
    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def token(self, size: int) -> bytes:
        return self._rng.randbytes(size)


class Life:
    """A process of the node, from start to crash; `Crash` passes through everything."""

    def __init__(
        self,
        disk: Disk,
        issued: int,
        budget: MemoryBudget | None = None,
        gc_ttl_ms: int = GC_TTL_MS,
    ) -> None:
        self.disk = disk
        self.background = SteppedBackground()
        self.connection = Connection()
        self.issued = issued
        self._requests = 0
        self.node = ShardNode(
            PATH,
            disk,
            SmallRng(issued),
            self._fatal,
            cast(Executor, NoWorkers()),
            cast(Any, None),
            self.background,
            budget or SmallBudget(),
            gc_ttl_ms,
        )
        self.ask(m.Hello("test", framing.PROTOCOL_VERSION, issued))

    @staticmethod
    def _fatal(error: StorageError) -> None:
        raise AssertionError(f"fatal: {error}")

    def ask(self, message: m.Message) -> Answer:
        """Sends a request."""
        self._requests += 1
        connection = cast(ServerConnection, self.connection)
        self.node.on_message(connection, self._requests, message)
        return Answer(self.connection, self._requests)

    def reply(self, message: m.Message) -> m.Message:
        """The answer to a request, with all that has to happen for it."""
        answer = self.ask(message)
        for _ in range(500):
            if answer.message is not None:
                return answer.message
            self.turn()
        raise AssertionError(f"no answer to {message}")

    def turn(self) -> bool:
        """One of each thing that happens in the background; False if there was none."""
        worked = self.disk.step()
        worked = self.background.step() or worked
        self.disk.step_timers()
        return worked

    def until(self, condition: Callable[[], bool]) -> None:
        """One thing after the other, as far as need be."""
        for _ in range(500):
            if condition():
                return
            if not self.disk.step() and not self.background.step():
                self.disk.step_timers()
        raise AssertionError("it does not come to that")

    def settle(self) -> None:
        """Everything that is due is done."""
        idle = 0
        for _ in range(2000):
            idle = 0 if self.turn() else idle + 1
            if idle > 4:  # more turns than MAINTENANCE_RETRY_MS
                return
        raise AssertionError("there is no end to it")

    # --- tables and rows

    def install(self, table: Table) -> None:
        for range_ in (LOW, HIGH):
            assert self.reply(m.InstallTable(range_, table)) == m.Ack()

    def write(
        self,
        range_: Range,
        table: Table,
        mode: str,
        rows: Mapping[int, Values | None],
        txn: m.TxnRef,
        commit: bool = False,
    ) -> m.Write:
        """The message; a deletion has None for rows."""
        return m.Write(
            range_.id,
            table.id,
            0,
            0,
            self.issued,
            txn,
            commit,
            mode,
            len(rows),
            join_items([CODEC.encode((ident,)) for ident in rows]),
            b""
            if mode == "delete"
            else join_items([encoded(table, v) for v in rows.values() if v is not None]),
        )

    def local(self, range_: Range) -> LocalRange:
        return self.node.ranges[range_.id]

    # --- reading

    def selected(self, ident: int, read_ts: int) -> m.Message | None:
        """The answer to a row program that reads one row of the main table, but for rows."""
        type_ = TypeRef(TypeCode.INT8)
        key = Key(points=((Param(type_, 0),),))
        spec = ProgramSpec(MAIN.id, 1, "select", (type_,), key, output=(Col(type_, 1),))
        self.ask(m.RegisterProgram(1, spec, MAIN))
        params = Program(spec, MAIN).param_layout.encode([ident])
        self._requests += 1
        execute = m.Execute(
            range_of(ident).id, 1, read_ts, 0, self.issued, None, False, 0, params, b""
        )
        connection = cast(ServerConnection, self.connection)
        self.node.on_execute(connection, self._requests, execute)
        return Answer(self.connection, self._requests).message

    def scan(self, ident: int, read_ts: int) -> m.Message | None:
        """The answer to a scan of the main table, if it is refused."""
        range_id = range_of(ident).id
        return self.ask(m.Scan(range_id, MAIN.id, read_ts, b"", b"", (0,), True, "", None)).message

    def rows(self, range_: Range, table: Table, ts: int) -> dict[int, list[Any]]:
        """What a row by row read of all keys finds."""
        return self.rows_of(self.local(range_).runs(table.id, table.schema_version, None), ts=ts)

    def rows_of(
        self, runs: Runs, overlay: Mapping[bytes, bytes | None] | None = None, ts: int = LAST_TS
    ) -> dict[int, list[Any]]:
        """The same of some runs, with a transaction's own writes."""
        found = {}
        for key, row, _ in RowCursor(runs, b"", b"", ts, False, overlay):
            (ident,) = CODEC.decode(key)
            found[cast(int, ident)] = list(runs.layout.decode(row))
        return found

    def scanned(self, range_: Range, table: Table, ts: int) -> dict[int, list[Any]]:
        """What a scan finds, each key once."""
        local = self.local(range_)
        runs = local.runs(table.id, table.schema_version, None)
        positions = list(range(len(table.columns)))
        batches = scan_runs(
            runs,
            positions,
            [arrow_type(*runs.layout.types[position]) for position in positions],
            ts,
            with_key=True,
            shadows=local.tablets[table.id].shadows,
        )
        found: dict[int, list[Any]] = {}
        for batch in batches:
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                (ident,) = CODEC.decode(row[-2])
                assert ident not in found, f"{ident} came twice"
                found[cast(int, ident)] = list(row[:-2])
        return found

    def ingest(self, session: Session, range_: Range) -> Ingest:
        """A transaction's large insert into the main table."""
        bulk = self.local(range_).participant.states[session.id].bulk[MAIN.id]
        assert isinstance(bulk, Bulk)
        return bulk.ingest

    def files(self) -> set[int]:
        """The numbers of the files in the directory of segments."""
        names = self.disk.names(f"{PATH}/segments")
        return {int(name.removesuffix(".arrow")) for name in names}

    def named(self) -> set[int]:
        """The numbers of the segments that the manifest or an open transaction names."""
        found = set(self.node.engine.manifest.current.segments)
        for _, state in self.node.prepared_states():
            for bulk in state.bulk.values():
                assert isinstance(bulk, Bulk)
                found |= {meta.number for meta in bulk.ingest.metas()}
        return found


def begun(disk: Disk | None = None) -> Life:
    """A fresh node with the main table."""
    life = Life(disk or Disk(), next(ticks()))
    life.install(MAIN)
    return life


class Session:
    """One transaction as a coordinator drives it: its states on the ranges and its statements."""

    def __init__(self, life: Life, number: int) -> None:
        self.life = life
        self.id = number.to_bytes(16, "big")
        self.statement = 0
        self.states: dict[int, int] = {}  # by range
        self.live: dict[int, list[int]] = {}  # numbers of statements, by range

    def ref(self, range_: Range, statement: int = 0) -> m.TxnRef:
        return m.TxnRef(self.id, self.states.get(range_.id, 0), statement, self.life.issued)

    def write_message(
        self, mode: str, rows: Mapping[int, Values | None], table: Table, commit: bool = False
    ) -> m.Write:
        """The next statement, on the range of its first row."""
        self.statement += 1
        range_ = range_of(next(iter(rows)))
        txn = self.ref(range_, self.statement)
        return self.life.write(range_, table, mode, rows, txn, commit)

    def learn(self, message: m.Write, reply: m.Message) -> None:
        """Takes the answer to a statement."""
        if isinstance(reply, m.Written):
            self.states[message.range_id] = reply.state_id
            self.live.setdefault(message.range_id, []).append(message.txn.statement)

    def commit_message(self, range_: Range) -> m.CommitOne:
        live = tuple(self.live[range_.id])
        return m.CommitOne(range_.id, self.ref(range_), live, 0, self.life.issued)

    def prepare_message(self, range_: Range) -> m.Prepare:
        participants = tuple(m.Participant(id, 1, b"", state) for id, state in self.states.items())
        live = tuple(self.live[range_.id])
        return m.Prepare(range_.id, self.ref(range_), live, participants, 0, self.life.issued)

    # --- one after the other

    def write(
        self,
        mode: str,
        rows: Mapping[int, Values | None],
        table: Table = MAIN,
        commit: bool = False,
    ) -> m.Written:
        message = self.write_message(mode, rows, table, commit)
        reply = self.life.reply(message)
        assert isinstance(reply, m.Written), reply
        self.learn(message, reply)
        return reply

    def commit(self, range_: Range = LOW) -> int:
        reply = self.life.reply(self.commit_message(range_))
        assert isinstance(reply, m.Committed), reply
        return reply.commit_ts

    def prepare(self, range_: Range = LOW) -> int:
        reply = self.life.reply(self.prepare_message(range_))
        assert isinstance(reply, m.Prepared), reply
        return reply.min_commit_ts


def some(idents: Iterable[int], value: int = 0, note: str = "") -> dict[int, Values]:
    """Rows of the main table."""
    return {ident: {1: ident, 2: value, 3: note} for ident in idents}


def ticks(start: int = 1_000, step_ms: int = 20) -> Iterator[int]:
    """Timestamps of an oracle."""
    now = start
    while True:
        yield oracle.from_ms(now)
        now += step_ms
