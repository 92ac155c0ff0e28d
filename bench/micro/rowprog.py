"""Row programs alone: a point select, a point update and an insert against a memtable."""

from __future__ import annotations

from collections.abc import Callable

from bench.micro.harness import measure
from shardb._core.memtable import MemTable
from shardb._core.rowprog import Program
from shardb._core.runs import Runs
from shardb.meta.descriptors import Column, Table
from shardb.program import Call, Col, Key, Param, ProgramSpec, TypeRef
from shardb.types import TypeCode

ROWS = 100_000
NEWEST = 2**64 - 1
INT4 = TypeRef(TypeCode.INT4)
BPCHAR = TypeRef(TypeCode.BPCHAR, 88)

ACCOUNTS = Table(
    id=1,
    name="pgbench_accounts",
    group_id=1,
    columns=(
        Column(1, "aid", TypeCode.INT4, not_null=True),
        Column(2, "bid", TypeCode.INT4),
        Column(3, "abalance", TypeCode.INT4),
        Column(4, "filler", TypeCode.BPCHAR, 88),
    ),
    primary_key=(0,),
)


def program(kind: str, params: int, **fields: object) -> Program:
    """A program on the accounts table with int4 parameters."""
    return Program(ProgramSpec(1, 1, kind, (INT4,) * params, **fields), ACCOUNTS)  # type: ignore[arg-type]


def repeat(name: str, work: Callable[[], object], calls: int = 100_000) -> None:
    def run() -> None:
        for _ in range(calls):
            work()

    measure(name, run, calls)


def main() -> None:
    """Fills a memtable and times each program."""
    memtable = MemTable()
    insert = program(
        "insert",
        1,
        rows=((Param(INT4, 0), Param(INT4, 0), Param(INT4, 0), Param(INT4, 0)),),
    )
    for aid in range(ROWS):
        [(key, row)] = insert.insert(insert.param_layout.encode([aid]))
        memtable.put(key, row, 1)
    point = Key(points=((Param(INT4, 0),),))
    select = program("select", 1, key=point, output=(Col(INT4, 2),))
    update = program(
        "update",
        2,
        key=point,
        assignments=((2, Call(INT4, "+", (Col(INT4, 2), Param(INT4, 1)))),),
    )
    interval = program(
        "select",
        2,
        key=Key(low=Param(INT4, 0), high=Param(INT4, 1)),
        output=(Col(INT4, 0), Col(INT4, 2)),
    )
    one = select.param_layout.encode([4711])
    two = update.param_layout.encode([4711, 10])
    hundred = interval.param_layout.encode([4711, 4810])
    found = memtable.newest(select.points(one)[0])
    assert found is not None
    runs = Runs(insert.row_layout, [(False, [(memtable, None)])])
    held = found[0]
    assert held is not None
    repeat("point select", lambda: select.select(runs, NEWEST, one, b"", None, b"", b""))
    repeat("points", lambda: select.points(one))
    repeat("point update", lambda: update.update(held, two))
    repeat("update: key, row, new row", lambda: (update.points(two), update.update(held, two)))
    repeat("insert", lambda: insert.insert(one))
    repeat("select of 100 rows", lambda: interval.select(runs, NEWEST, hundred, b""), 1_000)
