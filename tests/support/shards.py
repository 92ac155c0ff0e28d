"""Two shards and a driver in one process, over real sockets and files, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from coordinator.catalog import Catalog
from coordinator.deadlocks import DeadlockWatch
from coordinator.oracle import OracleService
from coordinator.plan.plans import RowPlan
from coordinator.txn_driver import TxnDriver
from shardb._core.rowprog import Program
from shardb.env import SystemClock, SystemRng
from shardb.errors import SqlError
from shardb.meta.descriptors import Column, Group, Node, Range, Table
from shardb.meta.embedded import EmbeddedStore
from shardb.node.keys import key_codec_of
from shardb.node.ranges import schema_of
from shardb.node.server import NodeServer
from shardb.program import Aggregate, Call, Col, Conflict, Const, Key, Param, ProgramSpec, TypeRef
from shardb.rpc.messages import Rows
from shardb.types import TypeCode

INT4 = TypeRef(TypeCode.INT4)
INT8 = TypeRef(TypeCode.INT8)
BOOL = TypeRef(TypeCode.BOOL)
TABLE = Table(
    id=20001,
    name="accounts",
    group_id=20002,
    columns=(
        Column(1, "id", TypeCode.INT4, not_null=True),
        Column(2, "balance", TypeCode.INT4),
    ),
    primary_key=(0,),
)
SPLIT = 100
ID, BALANCE = Col(INT4, 0), Col(INT4, 1)
FIRST, SECOND = Param(INT4, 0), Param(INT4, 1)
BY_ID = Key(points=((FIRST,),))

SELECT = ProgramSpec(TABLE.id, 1, "select", (INT4,), BY_ID, output=(ID, BALANCE))
SELECT_FOR_UPDATE = ProgramSpec(
    TABLE.id, 1, "select", (INT4,), BY_ID, output=(ID, BALANCE), locking="update"
)
SELECT_FROM = ProgramSpec(
    TABLE.id, 1, "select", (INT4, INT4), Key(low=FIRST, high=SECOND), output=(ID, BALANCE)
)
COUNT_FROM = ProgramSpec(
    TABLE.id,
    1,
    "select",
    (INT4, INT4),
    Key(low=FIRST, high=SECOND),
    aggregates=(Aggregate("count_star", None, INT8),),
)
INSERT = ProgramSpec(TABLE.id, 1, "insert", (INT4, INT4), rows=((FIRST, SECOND),))
UPSERT = ProgramSpec(
    TABLE.id,
    1,
    "insert",
    (INT4, INT4),
    rows=((FIRST, SECOND),),
    conflict=Conflict(((1, Call(INT4, "+", (BALANCE, Col(INT4, 3)))),)),
)
INSERT_IGNORE = ProgramSpec(
    TABLE.id, 1, "insert", (INT4, INT4), rows=((FIRST, SECOND),), conflict=Conflict()
)
ADD = ProgramSpec(
    TABLE.id,
    1,
    "update",
    (INT4, INT4),
    BY_ID,
    assignments=((1, Call(INT4, "+", (BALANCE, SECOND))),),
)
ADD_TO_ALL = ProgramSpec(
    TABLE.id,
    1,
    "update",
    (INT4,),
    Key(),
    assignments=((1, Call(INT4, "+", (BALANCE, FIRST))),),
)
DELETE = ProgramSpec(TABLE.id, 1, "delete", (INT4,), BY_ID, output=(BALANCE,))
ONE = Const(INT4, "1")


class Cluster:
    """Nodes 1 and 2 hold the table's ranges below and from SPLIT on."""

    def __init__(self, path: Path, shards: int = 2) -> None:
        self.path = path
        self.shards = shards
        self.deadlocks: DeadlockWatch | None = None
        self.servers: dict[int, NodeServer] = {}
        self.codec = key_codec_of(TABLE)
        self.layout = schema_of(TABLE).layout(TABLE.schema_version)
        split = self.codec.encode((SPLIT,))
        bounds = [(b"", split), (split, b"")] if shards == 2 else [(b"", b"")]
        self.ranges = tuple(
            Range(30001 + i, TABLE.group_id, low, high, 1, i + 1, (i + 1,), (i + 1,))
            for i, (low, high) in enumerate(bounds)
        )
        self.catalog = Catalog.build(
            1,
            [TABLE],
            [Group(TABLE.group_id, (TABLE.id,))],
            self.ranges,
            [Node(i + 1, self._address(i + 1)) for i in range(shards)],
        )
        self._programs: dict[int, tuple[RowPlan, Program]] = {}

    def _address(self, node_id: int) -> str:
        return f"unix:{self.path}/n{node_id}"

    async def start(self) -> None:
        self.store = EmbeddedStore(self.path / "meta")
        for node_id in range(1, self.shards + 1):
            await self.start_node(node_id)
        await self.start_driver()
        await self.driver.install_table(TABLE.id)

    async def start_driver(self) -> None:
        loop = asyncio.get_running_loop()
        self.oracle = OracleService(
            self.store, SystemClock(), loop.create_task, SystemRng().token(8).hex()
        )
        await self.oracle.start()
        self.driver = TxnDriver(lambda: self.catalog, self.oracle, SystemRng())
        if self.deadlocks is not None:
            self.deadlocks.stop()
        self.deadlocks = DeadlockWatch(loop, lambda: self.catalog.nodes, self.driver.client)
        self.deadlocks.start()

    async def start_node(self, node_id: int) -> None:
        server = NodeServer(
            node_id,
            f"{self.path}/data{node_id}",
            self._address(node_id),
            lambda other: self._address(other),
            filter_rows,
        )
        self.servers[node_id] = server
        await server.start()

    async def stop_node(self, node_id: int) -> None:
        await self.servers.pop(node_id).stop()

    async def stop(self) -> None:
        assert self.deadlocks is not None
        self.deadlocks.stop()
        await self.driver.close()
        for node_id in list(self.servers):
            await self.stop_node(node_id)
        await self.store.close()

    def plan(self, spec: ProgramSpec) -> tuple[RowPlan, Program]:
        found = self._programs.get(id(spec))
        if found is None:
            found = RowPlan(spec, id(spec), (), "", 1), Program(spec, TABLE)
            self._programs[id(spec)] = found
        return found

    async def run(self, spec: ProgramSpec, *values: Any, txn: Any = None) -> Rows:
        """Runs a program with values; raises its SqlError."""
        plan, program = self.plan(spec)
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        params = program.param_layout.encode(values)
        self.driver.execute_row(txn, plan, program, params, b"", done.set_result)
        result = await asyncio.wait_for(done, 20)
        if isinstance(result, SqlError):
            raise result
        assert isinstance(result, Rows)
        return result

    async def balance(self, ident: int, txn: Any = None) -> int | None:
        rows = fields((await self.run(SELECT, ident, txn=txn)).data)
        return int(rows[0][1]) if rows else None

    def rows(self, pairs: list[tuple[int, int]]) -> tuple[list[bytes], list[bytes]]:
        """Keys and rows of (id, balance) pairs."""
        keys = [self.codec.encode((ident,)) for ident, _ in pairs]
        return keys, [self.layout.encode(pair) for pair in pairs]


def filter_rows(sql: str, reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """Knows one filter: `SELECT "c0" ... WHERE c1 > <number>`."""
    table = reader.read_all()
    bound = int(sql.rpartition(">")[2])
    table = table.filter(pc.greater(table["c1"], bound))
    return table.select(["c0"]).to_reader()


def fields(data: bytes) -> list[list[bytes]]:
    """The fields of DataRow messages."""
    out = []
    at = 0
    while at < len(data):
        assert data[at : at + 1] == b"D"
        length = int.from_bytes(data[at + 1 : at + 5], "big")
        count = int.from_bytes(data[at + 5 : at + 7], "big")
        end = at + 1 + length
        at += 7
        row = []
        for _ in range(count):
            size = int.from_bytes(data[at : at + 4], "big", signed=True)
            at += 4
            row.append(data[at : at + size])
            at += max(size, 0)
        assert at == end
        out.append(row)
    return out


def with_cluster(path: Path, test: Callable[[Cluster], Any], shards: int = 2) -> None:
    """Runs a test against a fresh cluster."""

    async def main() -> None:
        cluster = Cluster(path, shards)
        await cluster.start()
        try:
            await asyncio.wait_for(test(cluster), 60)
        finally:
            await cluster.stop()

    asyncio.run(main())
