"""Row programs against a plain Python table: keys, selects, own writes, changes, constraints."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardb._core.coreerror import CoreError
from shardb._core.memtable import MemTable
from shardb._core.rowprog import Program
from shardb._core.runs import Runs
from shardb.meta.descriptors import Column, Table
from shardb.program import (
    Aggregate,
    Call,
    Col,
    Conflict,
    Const,
    Expr,
    Key,
    Param,
    ProgramSpec,
    TypeRef,
)
from shardb.types import TypeCode

NEWEST = 2**64 - 1
INT2 = TypeRef(TypeCode.INT2)
INT4 = TypeRef(TypeCode.INT4)
INT8 = TypeRef(TypeCode.INT8)
TEXT = TypeRef(TypeCode.TEXT)
BOOL = TypeRef(TypeCode.BOOL)
NUMERIC = TypeRef(TypeCode.NUMERIC)
MONEY = TypeRef(TypeCode.NUMERIC, (10 << 16 | 2) + 4)
SHORT = TypeRef(TypeCode.VARCHAR, 3 + 4)
FIXED = TypeRef(TypeCode.BPCHAR, 3 + 4)

# (a, b) is the key; v, s and m are data.
TABLE = Table(
    id=1,
    name="things",
    group_id=1,
    columns=(
        Column(1, "v", INT4.code),
        Column(2, "a", INT4.code, not_null=True),
        Column(3, "s", SHORT.code, SHORT.typmod),
        Column(4, "b", TEXT.code, not_null=True),
        Column(5, "m", MONEY.code, MONEY.typmod),
    ),
    primary_key=(1, 3),
)
V, A, S, B, M = Col(INT4, 0), Col(INT4, 1), Col(SHORT, 2), Col(TEXT, 3), Col(MONEY, 4)
TYPES = (INT4, INT4, SHORT, TEXT, MONEY)
ALL = tuple(Param(t, k) for k, t in enumerate(TYPES))


def program(kind: str, params: tuple[TypeRef, ...] = (), **fields: Any) -> Program:
    return Program(ProgramSpec(1, 1, kind, params, **fields), TABLE)


INSERT = program("insert", TYPES, rows=(ALL,))


def make(row: tuple[Any, ...]) -> tuple[bytes, bytes]:
    """Key and row bytes of (v, a, s, b, m)."""
    [made] = INSERT.insert(INSERT.param_layout.encode(row))
    return made


def messages(data: bytes) -> list[tuple[str | None, ...]]:
    """Text columns of each DataRow message."""
    rows = []
    at = 0
    while at < len(data):
        assert data[at : at + 1] == b"D"
        length, count = struct.unpack_from("!IH", data, at + 1)
        end = at + 1 + length
        at += 7
        row: list[str | None] = []
        for _ in range(count):
            (size,) = struct.unpack_from("!i", data, at)
            at += 4
            row.append(None if size < 0 else data[at : at + size].decode())
            at += max(size, 0)
        assert at == end
        rows.append(tuple(row))
    return rows


def call(op: str, *args: Expr, type: TypeRef = BOOL) -> Call:
    return Call(type, op, args)


def fill(rows: list[tuple[Any, ...]], ts: int = 1) -> MemTable:
    memtable = MemTable()
    for row in rows:
        memtable.put(*make(row), ts)
    return memtable


def runs(memtable: MemTable) -> Runs:
    return Runs(INSERT.row_layout, [(False, [(memtable, None)])])


ROWS = [(10 * a + k, a, "s", b, Decimal(a)) for a in range(4) for k, b in enumerate("xyz")]


def test_point_select() -> None:
    """One row by its full key, in text and binary, with the version's timestamp."""
    memtable = fill(ROWS, ts=7)
    p = program(
        "select",
        (INT4, TEXT),
        key=Key(points=((Param(INT4, 0), Param(TEXT, 1)),)),
        output=(V, B, M),
    )
    params = p.param_layout.encode([2, "y"])
    assert p.is_points and not p.has_limit and p.output_count == 3
    assert p.points(params) == [make(ROWS[7])[0]]
    data, rows, newest = p.select(runs(memtable), NEWEST, params, b"")
    assert (messages(data), rows, newest) == ([("21", "y", "2.00")], 1, 7)
    data, rows, _ = p.select(runs(memtable), NEWEST, params, b"\x01\x00\x00")
    assert data[11:15] == struct.pack("!i", 21)
    assert p.select(runs(memtable), 6, params, b"") == (b"", 0, 0)
    assert p.select(runs(memtable), NEWEST, p.param_layout.encode([9, "y"]), b"") == (b"", 0, 0)
    assert p.points(p.param_layout.encode([None, "y"])) == []
    with pytest.raises(CoreError):
        p.select(runs(memtable), NEWEST, params, b"\x01\x00")


def test_deleted_rows_report_their_timestamp() -> None:
    """A deletion is not a row, but its timestamp was read."""
    memtable = fill(ROWS)
    memtable.put(make(ROWS[0])[0], None, 9)
    p = program("select", (), key=Key(points=((Const(INT4, "0"), Const(TEXT, "x")),)), output=(V,))
    assert p.select(runs(memtable), NEWEST, p.param_layout.encode([]), b"") == (b"", 0, 9)
    p = program("select", (), key=Key(prefix=(Const(INT4, "0"),)), output=(V,))
    data, rows, newest = p.select(runs(memtable), NEWEST, p.param_layout.encode([]), b"")
    assert (messages(data), rows, newest) == ([("1",), ("2",)], 2, 9)


def test_points_are_sorted_and_distinct() -> None:
    """IN lists name keys once, ascending; out-of-range and inexact values name none."""
    table = Table(1, "t", 1, (Column(1, "id", INT2.code, not_null=True),), (0,))
    spec = ProgramSpec(
        1,
        1,
        "select",
        (INT8, INT8, NUMERIC),
        output=(Col(INT2, 0),),
        key=Key(points=((Param(INT8, 0),), (Param(INT8, 1),), (Param(NUMERIC, 2),))),
    )
    p = Program(spec, table)
    keys = p.points(p.param_layout.encode([5, 2, Decimal(5)]))
    assert keys == sorted(set(keys)) and len(keys) == 2
    assert p.points(p.param_layout.encode([70000, 2, Decimal("2.5")])) == keys[:1]


bound = st.none() | st.integers(-2, 6)


@given(
    low=bound,
    high=bound,
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    limit=st.none() | st.integers(0, 5),
    offset=st.none() | st.integers(0, 5),
    own=st.dictionaries(
        st.tuples(st.integers(-1, 5), st.sampled_from("wxyz")), st.none() | st.integers(0, 99)
    ),
    cut=st.tuples(st.integers(-1, 5), st.integers(-1, 5)),
    wanted=st.integers(0, 40),
)
def test_interval_select(
    low: int | None,
    high: int | None,
    flags: tuple[bool, bool, bool],
    limit: int | None,
    offset: int | None,
    own: dict[tuple[int, str], int | None],
    cut: tuple[int, int],
    wanted: int,
) -> None:
    """Interval, filter, order, limit, own writes and range bounds, against a list comprehension."""
    low_inclusive, high_inclusive, reverse = flags
    table = {(row[1], row[3]): row[0] for row in ROWS}
    memtable = fill(ROWS)
    overlay = {}
    for (a, b), v in own.items():
        key, row = make((v or 0, a, None, b, None))
        overlay[key] = None if v is None else row
        if v is None:
            table.pop((a, b), None)
        else:
            table[a, b] = v
    p = program(
        "select",
        (INT4, INT4, INT8, INT8, INT4),
        key=Key(
            low=None if low is None else Param(INT4, 0),
            high=None if high is None else Param(INT4, 1),
            low_inclusive=low_inclusive,
            high_inclusive=high_inclusive,
        ),
        filter=call(">=", V, Param(INT4, 4)),
        output=(A, B, V),
        reverse=reverse,
        limit=Param(INT8, 2),
        offset=Param(INT8, 3),
    )
    params = p.param_layout.encode([low, high, limit, offset, wanted])
    start, end = make((0, cut[0], None, "", None))[0], make((0, cut[1], None, "", None))[0]
    expected = [
        (a, b, v)
        for (a, b), v in sorted(table.items())
        if (low is None or (a >= low if low_inclusive else a > low))
        and (high is None or (a <= high if high_inclusive else a < high))
        and v >= wanted
        and cut[0] <= a < cut[1]
    ]
    if reverse:
        expected.reverse()
    expected = expected[offset or 0 :]
    if limit is not None:
        expected = expected[:limit]
    data, rows, _ = p.select(runs(memtable), NEWEST, params, b"", overlay, start, end)
    assert messages(data) == [(str(a), b, str(v)) for a, b, v in expected]
    assert rows == len(expected)
    keys = p.candidates(runs(memtable), NEWEST, params, overlay, start, end)
    assert keys == [make((v, a, None, b, None))[0] for a, b, v in expected]


@given(
    st.decimals(-40000, 40000, places=2) | st.integers(-40000, 40000).map(Decimal),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(-32768, 32767), max_size=20),
)
def test_interval_of_another_type(
    value: Decimal, low: bool, inclusive: bool, ids: list[int]
) -> None:
    """A numeric bound on a smallint key selects what the comparison selects."""
    table = Table(1, "t", 1, (Column(1, "id", INT2.code, not_null=True),), (0,))
    memtable = MemTable()
    insert = Program(ProgramSpec(1, 1, "insert", (INT2,), rows=((Param(INT2, 0),),)), table)
    ids = [*ids, max(-32768, min(32767, int(value)))]
    for number in ids:
        [(key, row)] = insert.insert(insert.param_layout.encode([number]))
        memtable.put(key, row, 1)
    if low:
        interval = Key(low=Param(NUMERIC, 0), low_inclusive=inclusive)
    else:
        interval = Key(high=Param(NUMERIC, 0), high_inclusive=inclusive)
    p = Program(
        ProgramSpec(1, 1, "select", (NUMERIC,), key=interval, output=(Col(INT2, 0),)), table
    )
    data, _, _ = p.select(runs(memtable), NEWEST, p.param_layout.encode([value]), b"")
    chosen = [
        n
        for n in sorted(set(ids))
        if (n > value if low else n < value) or (inclusive and n == value)
    ]
    assert messages(data) == [(str(n),) for n in chosen]


def test_prefix_interval() -> None:
    """Equal leading columns and a bound on the next; NULL selects nothing."""
    memtable = fill(ROWS)
    p = program(
        "select",
        (INT4, TEXT),
        output=(V,),
        key=Key(prefix=(Param(INT4, 0),), low=Param(TEXT, 1), low_inclusive=False),
    )
    data, rows, _ = p.select(runs(memtable), NEWEST, p.param_layout.encode([1, "x"]), b"")
    assert (messages(data), rows) == ([("11",), ("12",)], 2)
    assert p.interval(p.param_layout.encode([1, None])) is None
    assert p.interval(p.param_layout.encode([None, "x"])) is None
    found = p.interval(p.param_layout.encode([1, "x"]))
    assert found is not None and found[0] < make(ROWS[4])[0] < found[1]
    everything = program("select", (), output=(V,))
    assert everything.interval(everything.param_layout.encode([])) == (b"", b"")


def test_aggregates() -> None:
    """Counts, sums and extremes; over no rows NULL and 0."""
    memtable = fill([*ROWS, (None, 9, None, "n", None)])
    outputs = (
        Aggregate("count_star", None, INT8),
        Aggregate("count", V, INT8),
        Aggregate("sum", V, INT8),
        Aggregate("min", B, TEXT),
        Aggregate("max", B, TEXT),
        Aggregate("sum", M, NUMERIC),
    )
    p = program("select", (INT4,), key=Key(low=Param(INT4, 0)), aggregates=outputs)
    assert p.has_aggregates and p.output_count == 6
    data, rows, _ = p.select(runs(memtable), NEWEST, p.param_layout.encode([2]), b"")
    assert (messages(data), rows) == ([("7", "6", "156", "n", "z", "15")], 1)
    data, rows, _ = p.select(runs(memtable), NEWEST, p.param_layout.encode([100]), b"")
    assert (messages(data), rows) == ([("0", "0", None, None, None, None)], 1)


def test_negative_limits() -> None:
    """2201W and 2201X, as PostgreSQL has them."""
    for field, state in (("limit", "2201W"), ("offset", "2201X")):
        p = program("select", (), output=(V,), **{field: Const(INT8, "-1")})
        with pytest.raises(CoreError) as caught:
            p.select(runs(MemTable()), NEWEST, p.param_layout.encode([]), b"")
        assert caught.value.sqlstate == state


def test_update() -> None:
    """Assignments read the old row; the filter is looked at again; the key may change."""
    _, row = make((1, 2, "abc", "x", Decimal("1.50")))
    p = program(
        "update",
        (INT4,),
        filter=call(">", V, Const(INT4, "0")),
        assignments=((0, call("+", V, Param(INT4, 0), type=INT4)), (4, V)),
    )
    key, changed = p.update(row, p.param_layout.encode([5])) or (b"", b"")
    assert (key, changed) == make((6, 2, "abc", "x", Decimal(1)))
    again = p.update(changed, p.param_layout.encode([-6]))
    assert again is not None and again[1] == make((0, 2, "abc", "x", Decimal(6)))[1]
    assert p.update(again[1], p.param_layout.encode([1])) is None
    assert p.matches(changed, p.param_layout.encode([1]))
    assert not p.matches(again[1], p.param_layout.encode([1]))
    move = program("update", (), assignments=((3, Const(TEXT, "q")), (1, V)))
    assert move.update(row, move.param_layout.encode([])) == make(
        (1, 1, "abc", "q", Decimal("1.50"))
    )


@pytest.mark.parametrize(
    ("column", "value", "state", "message"),
    [
        (0, Const(INT8, "3000000000"), "22003", "integer out of range"),
        (2, Const(TEXT, "abcd"), "22001", "value too long for type character varying(3)"),
        (3, Const(TEXT, None), "23502",
         'null value in column "b" of relation "things" violates not-null constraint'),
        (4, Const(NUMERIC, "123456789"), "22003", "numeric field overflow"),
        (0, Call(INT4, "/", (Const(INT4, "1"), Const(INT4, "0"))), "22012", "division by zero"),
        (2, Call(SHORT, "cast", (Const(TEXT, "abcd"),)), "22001",
         "value too long for type character varying(3)"),
    ],
)  # fmt: skip
def test_bad_values(column: int, value: Expr, state: str, message: str) -> None:
    """Updates and inserts refuse what does not fit, in PostgreSQL's words."""
    _, row = make((1, 2, "abc", "x", None))
    update = program("update", (), assignments=((column, value),))
    values: list[Expr] = [Const(t, "1") for t in TYPES]
    values[column] = value
    insert = program("insert", (), rows=(tuple(values),))
    for run in (
        lambda: update.update(row, update.param_layout.encode([])),
        lambda: insert.insert(insert.param_layout.encode([])),
    ):
        with pytest.raises(CoreError) as caught:
            run()
        assert (caught.value.sqlstate, caught.value.message) == (state, message)
        if state == "23502":
            assert caught.value.detail.startswith("Failing row contains (1, ")


def test_string_assignment() -> None:
    """Trailing blanks beyond the length go silently; char(n) is padded."""
    key, row = make((1, 2, "abc  ", "x", None))
    assert INSERT.row_layout.decode(row)[2] == "abc"
    table = Table(1, "t", 1, (Column(1, "c", FIXED.code, FIXED.typmod, not_null=True),), (0,))
    insert = Program(ProgramSpec(1, 1, "insert", (TEXT,), rows=((Param(TEXT, 0),),)), table)
    [(key, row)] = insert.insert(insert.param_layout.encode(["a"]))
    assert insert.row_layout.decode(row) == ("a  ",)
    select = Program(
        ProgramSpec(
            1, 1, "select", (TEXT,), output=(Col(FIXED, 0),), key=Key(points=((Param(TEXT, 0),),))
        ),
        table,
    )
    for text in ("a", "a ", "a     "):
        assert select.points(select.param_layout.encode([text])) == [key]


def test_insert_many_and_bounds() -> None:
    """Rows come in their order, only those of the range; points are their keys, sorted."""
    rows = tuple(
        (
            Const(INT4, "1"),
            Const(INT4, str(a)),
            Const(SHORT, None),
            Const(TEXT, "x"),
            Param(MONEY, 0),
        )
        for a in (5, 3, 4)
    )
    p = program("insert", (MONEY,), rows=rows, output=(A, M))
    params = p.param_layout.encode([Decimal("2.5")])
    made = p.insert(params)
    assert [p.row_layout.decode(row)[1] for _, row in made] == [5, 3, 4]
    assert p.points(params) == sorted(key for key, _ in made)
    middle = p.insert(params, made[2][0], made[0][0])
    assert middle == [made[2]]
    assert messages(p.returning(made[1][1], params, b"")) == [("3", "2.50")]


def test_hidden_row_ids() -> None:
    """Row i of an insert into a table without a key gets the last parameter plus i."""
    table = Table(
        1,
        "t",
        1,
        (Column(1, "x", INT4.code), Column(2, "rowid", INT8.code, hidden=True, not_null=True)),
        (1,),
    )
    stamp = TypeRef(TypeCode.TIMESTAMPTZ)
    now = Call(stamp, "now", ())
    first = (Call(INT4, "length", (Call(TEXT, "cast", (now,)),)), Param(INT8, 0))
    p = Program(ProgramSpec(1, 1, "insert", (INT8, stamp), rows=(first,)), table)
    made = p.insert(p.param_layout.encode([7, datetime(2024, 1, 2, tzinfo=UTC)]))
    assert p.row_layout.decode(made[0][1]) == (len("2024-01-02 00:00:00+00"), 7)
    for extra in ((), (Param(INT8, 1),)):
        rows = ((Param(INT4, 0), *extra), (Const(INT4, "2"), *extra))
        p = Program(ProgramSpec(1, 1, "insert", (INT4, INT8), rows=rows), table)
        made = p.insert(p.param_layout.encode([1, 100]))
        assert [p.row_layout.decode(row) for _, row in made] == [(1, 100), (2, 101)]


def test_upsert() -> None:
    """DO UPDATE sees the old row and EXCLUDED; its filter may leave the row alone."""
    excluded = tuple(Col(t, k + len(TYPES)) for k, t in enumerate(TYPES))
    conflict = Conflict(
        assignments=((0, call("+", V, excluded[0], type=INT4)), (2, excluded[2])),
        filter=call("is_not_null", V),
    )
    p = program("insert", TYPES, rows=(ALL,), conflict=conflict)
    params = p.param_layout.encode([5, 1, "new", "x", None])
    [(key, fresh)] = p.insert(params)
    old = make((2, 1, "old", "x", Decimal(1)))
    assert old[0] == key
    assert p.upsert(old[1], fresh, params) == make((7, 1, "new", "x", Decimal(1)))[1]
    assert p.upsert(make((None, 1, None, "x", None))[1], fresh, params) is None
    nothing = program("insert", TYPES, rows=(ALL,), conflict=Conflict())
    assert nothing.upsert(old[1], fresh, params) is None
    with pytest.raises(CoreError) as caught:
        program("insert", TYPES, rows=(ALL,), conflict=Conflict(assignments=((1, V),)))
    assert caught.value.sqlstate == "0A000"


def test_malformed_input() -> None:
    """Bad parameters and specs are errors, never memory faults."""
    p = program("select", (INT4, TEXT), output=(Param(TEXT, 1),))
    for params in (b"", b"\0", b"\0\0\0\0\0\0\0\xff\xff\xff\xff"):
        with pytest.raises(CoreError):
            p.select(runs(MemTable()), NEWEST, params, b"")
    for fields in (
        {"output": (Col(INT4, 99),)},
        {"output": (Param(INT4, 1),)},
        {"key": Key(points=((Const(INT4, "1"),),))},
        {"key": Key(prefix=(Const(TEXT, "1"),))},
        {"key": Key(prefix=(Const(INT4, "1"), Const(TEXT, "x")), low=Const(TEXT, "x"))},
    ):
        with pytest.raises(CoreError):
            program("select", (), **fields)
