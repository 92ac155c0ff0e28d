"""One shard in this process, without sockets, and clients that write and read through it.

Everything is as in a shard process (`shardb.node.server`): the loop, worker threads, the log, real
files; only the messages come by calls. Of one range and one table, `ITEMS`.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NoReturn, cast

import pyarrow as pa

from shardb import limits
from shardb._core.rowprog import Program
from shardb.env import SystemBackground, SystemFiles, SystemRng, switch_threads_fast
from shardb.errors import StorageError
from shardb.meta.descriptors import Column, Range, Table
from shardb.node.keys import key_codec_of
from shardb.node.node import ShardNode
from shardb.node.ranges import schema_of
from shardb.program import Call, Col, Key, Param, ProgramSpec, TypeRef
from shardb.rpc import framing
from shardb.rpc import messages as m
from shardb.rpc.transport import ServerConnection
from shardb.storage.memory import MemoryBudget, tame_allocators
from shardb.txn import oracle
from shardb.types import TypeCode

SCAN_THREADS: Final = 4
RANGE_ID: Final = 1
PAYLOAD: Final = "payload" * 14
SIGN: Final = 1 << 63  # keys of int8 begin with the sign bit turned
SOME_ID: Final = 0x0123456789ABCDEF
BULK_ROWS: Final = 14_000  # about BULK_BATCH_BYTES
INT8: Final = TypeRef(TypeCode.INT8)
INT4: Final = TypeRef(TypeCode.INT4)
ITEMS: Final = Table(
    id=2,
    name="items",
    group_id=3,
    columns=(
        Column(1, "id", TypeCode.INT8, not_null=True),
        Column(2, "number", TypeCode.INT4),
        Column(3, "payload", TypeCode.TEXT),
    ),
    primary_key=(0,),
)
RANGE: Final = Range(RANGE_ID, ITEMS.group_id, b"", b"", 1, 1, (1,), (1,))
CODEC: Final = key_codec_of(ITEMS)
LAYOUT: Final = schema_of(ITEMS).layout(ITEMS.schema_version)
_ID, _MORE = Param(INT8, 0), Param(INT4, 1)
_BY_ID: Final = Key(points=((_ID,),))
SELECT: Final = ProgramSpec(2, 1, "select", (INT8,), _BY_ID, output=(Col(INT4, 1),))
ADD: Final = ProgramSpec(
    2, 1, "update", (INT8, INT4), _BY_ID, assignments=((1, Call(INT4, "+", (Col(INT4, 1), _MORE))),)
)
SPECS: Final = (SELECT, ADD)

Batch = tuple[int, bytes, bytes]  # rows, their keys and themselves, framed
OnReply = Callable[[m.Message | None], None]  # None: rows, or the reply of a select


def batches_of(ids: range) -> Iterator[Batch]:
    """New rows as COPY sends them."""
    row = LAYOUT.encode((SOME_ID, 0, PAYLOAD))
    at = row.index(struct.pack("<q", SOME_ID))
    begin, end = struct.pack("<I", len(row)) + row[:at], row[at + 8 :]
    for first in range(0, len(ids), BULK_ROWS):
        some = ids[first : first + BULK_ROWS]
        keys = b"".join([b"\x08\0\0\0" + struct.pack(">Q", number + SIGN) for number in some])
        rows = b"".join([begin + struct.pack("<q", number) + end for number in some])
        yield len(some), keys, rows


class Connection:
    """What the node takes for a coordinator's connection."""

    def __init__(self) -> None:
        self.peer = ""
        self.calls: dict[int, OnReply] = {}
        self.stream: Stream | None = None
        self._last_id = 0

    def take(self, call: OnReply) -> int:
        """A request's id; `call` gets its reply."""
        self._last_id += 1
        self.calls[self._last_id] = call
        return self._last_id

    def reply(self, request_id: int, message: m.Message) -> None:
        if request_id in self.calls:
            self.calls.pop(request_id)(message)

    def send(self, frame: bytes) -> None:
        """Rows, packed; their request's id is in the frame after its length and kind."""
        self.calls.pop(int.from_bytes(frame[5:9], "little"))(None)

    def open_stream(self, request_id: int) -> Stream:
        assert self.stream is not None
        return self.stream

    def abort(self) -> None:
        pass


class Stream:
    """Counts what a scan sends."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.rows = 0
        self.bytes = 0
        self.first_at = 0.0
        self.over: asyncio.Future[m.Message] = loop.create_future()

    def send(self, message: m.Message) -> bool:
        """Called by workers."""
        assert isinstance(message, m.Chunk)
        if not self.rows:
            self.first_at = time.perf_counter()
        self.rows += message.rows
        self.bytes += len(message.data)
        return True

    def end(self, message: m.Message) -> None:
        self._loop.call_soon_threadsafe(self.over.set_result, message)


def fatal(error: StorageError) -> NoReturn:
    print(f"fatal: {error.message}", flush=True)
    os._exit(70)


def no_filter(sql: str, reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
    raise AssertionError("no scan here has a filter")


class Shard:
    """REQUIRES: a running loop. `install` makes the table.

    Its oracle's time passes `clock_speed` times as fast as it does, so that what is kept for ten
    minutes (the log, for outcomes; versions, for snapshots) goes while a bench runs.
    """

    def __init__(
        self,
        path: Path,
        memory_bytes: int = limits.MEMORY_DEFAULT_BYTES,
        clock_speed: int = 1,
    ) -> None:
        switch_threads_fast()
        self.loop = asyncio.get_running_loop()
        self.budget = MemoryBudget(memory_bytes)
        tame_allocators(self.budget)
        self._workers = ThreadPoolExecutor(SCAN_THREADS, thread_name_prefix="scan")
        self.node = ShardNode(
            str(path),
            SystemFiles(self.loop),
            SystemRng(),
            fatal,
            self._workers,
            no_filter,
            SystemBackground(self.loop),
            self.budget,
        )
        self.connection = Connection()
        self.programs = {id(spec): Program(spec, ITEMS) for spec in SPECS}
        self._issued = 0
        self._began_ms = time.time_ns() // 1_000_000
        self._clock_speed = clock_speed
        self._txn = int.from_bytes(os.urandom(8), "little") << 32
        self._start()

    def _start(self) -> None:
        hello = m.Hello("bench", framing.PROTOCOL_VERSION, self.issue())
        self._post(hello, lambda reply: None)
        for spec in SPECS:
            self._post(m.RegisterProgram(id(spec), spec, ITEMS), lambda reply: None)

    @property
    def counters(self) -> dict[str, int]:
        """Figures of the engine."""
        return self.node.engine.counters()

    @property
    def log_files(self) -> int:
        """How many files the log has."""
        return len(os.listdir(f"{self.node.engine.path}/log"))

    def issue(self) -> int:
        """An oracle's timestamp."""
        passed_ms = time.time_ns() // 1_000_000 - self._began_ms
        now = oracle.from_ms(self._began_ms + passed_ms * self._clock_speed)
        self._issued = max(self._issued + oracle.STEP, now)
        return self._issued

    def close(self) -> None:
        self.node.close()
        self._workers.shutdown(wait=True)

    def _post(self, message: m.Message, call: OnReply) -> None:
        connection = cast(ServerConnection, self.connection)
        self.node.on_message(connection, self.connection.take(call), message)

    async def request(self, message: m.Message) -> m.Message:
        """The reply; a Failure raises. Comes in a turn of its own, as from a socket."""
        done: asyncio.Future[m.Message | None] = self.loop.create_future()
        self.loop.call_soon(self._post, message, done.set_result)
        reply = await done
        assert reply is not None and not isinstance(reply, m.Failure), reply
        return reply

    async def install(self) -> None:
        """Makes the table."""
        await self.request(m.InstallTable(RANGE, ITEMS))

    def txn(self) -> m.TxnRef:
        """A new transaction's first statement."""
        self._txn += 1
        return m.TxnRef(self._txn.to_bytes(16, "little"), 0, 1, self._issued)

    def add(self, number: int, more: int, call: OnReply) -> None:
        """An UPDATE that commits: `call` once it is durable."""
        params = self.programs[id(ADD)].param_layout.encode((number, more))
        self._execute(ADD, params, self.txn(), True, call)

    def get(self, number: int, call: OnReply) -> None:
        """A point SELECT of the newest version."""
        params = self.programs[id(SELECT)].param_layout.encode((number,))
        self._execute(SELECT, params, None, False, call)

    def _execute(
        self, spec: ProgramSpec, params: bytes, txn: m.TxnRef | None, commit: bool, call: OnReply
    ) -> None:
        issued = self.issue()
        message = m.Execute(RANGE_ID, id(spec), 0, 0, issued, txn, commit, 0, params, b"")
        connection = cast(ServerConnection, self.connection)
        self.node.on_execute(connection, self.connection.take(call), message)

    async def insert(self, batches: Iterable[Batch | Awaitable[Batch]]) -> None:
        """Rows of new ids in a transaction of their own, sent as COPY sends them.

        Batches that are to be awaited are made one at a time.
        """
        txn = self.txn()
        state_id = 0
        statements: list[int] = []
        for batch in batches:
            count, keys, rows = batch if isinstance(batch, tuple) else await batch
            ref = m.TxnRef(txn.txn_id, state_id, len(statements) + 1, txn.txn_ts)
            statements.append(ref.statement)
            message = m.Write(
                RANGE_ID, ITEMS.id, 0, 0, self.issue(), ref, False, "insert", count, keys, rows
            )
            reply = await self.request(message)
            assert isinstance(reply, m.Written)
            state_id = reply.state_id
        ref = m.TxnRef(txn.txn_id, state_id, len(statements), txn.txn_ts)
        await self.request(m.CommitOne(RANGE_ID, ref, tuple(statements), 0, self.issue()))

    async def scan(self, columns: tuple[int, ...], start: bytes = b"", end: bytes = b"") -> Stream:
        """A snapshot scan, drawn to its end."""
        stream = self.connection.stream = Stream(self.loop)
        message = m.Scan(RANGE_ID, ITEMS.id, self.issue(), start, end, columns, False, "", None)
        self._post(message, lambda reply: None)
        reply = await stream.over
        assert isinstance(reply, m.StreamEnd), reply
        return stream
