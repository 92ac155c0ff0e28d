"""What a scan's filter says of single columns: intervals that let shards skip row groups.

Conjuncts that compare a column with a constant (=, <, <=, >, >=, IN) become key programs over that
column alone; with the statement's parameters they yield `[low, high]` in the encoding of keys. The
intervals are hints, the filter stays as it is. Left out is what does not follow the order of keys
exactly: char(n), whose trailing blanks do not count, intervals and JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from coordinator.plan.plans import BoundProgram
from coordinator.plan.rowplan import FLIPPED, POINTS_MAX, Translator, Unfit, is_row_free
from coordinator.sql import typesystem as ts
from coordinator.sql.rules.push_filters import conjuncts
from coordinator.sql.tree import Call, ColumnRef, Expression
from shardb import program as rp
from shardb._core.coreerror import CoreError
from shardb.errors import SqlError
from shardb.limits import SCAN_BOUND_MAX_BYTES, SCAN_BOUNDS_MAX
from shardb.meta.descriptors import Column, Table
from shardb.program import TypeRef
from shardb.rpc.messages import Bound
from shardb.types import TypeCode as T

_ORDERED: Final = frozenset(
    {
        T.BOOL,
        *ts.NUMBERS,
        T.TEXT,
        T.VARCHAR,
        T.BYTEA,
        *ts.MOMENTS,
        T.TIME,
        T.UUID,
    }
)
# Casts of columns under which the order of their values stays, and equal ones stay equal.
_EXACT: Final = frozenset(
    {
        (T.INT2, T.INT4),
        (T.INT2, T.INT8),
        (T.INT4, T.INT8),
        (T.INT2, T.NUMERIC),
        (T.INT4, T.NUMERIC),
        (T.INT8, T.NUMERIC),
        (T.FLOAT4, T.FLOAT8),
        (T.VARCHAR, T.TEXT),
    }
)
# The same, where the constant has to be cast back: that rounds down, which holds for either bound.
_ROUNDED: Final = frozenset(
    {(T.DATE, T.TIMESTAMP), (T.DATE, T.TIMESTAMPTZ), (T.TIMESTAMP, T.TIMESTAMPTZ)}
)


def bound_programs(
    table: Table,
    alias: str,
    filters: Iterable[Expression],
    params: tuple[TypeRef, ...],
    translator: Translator,
) -> tuple[BoundProgram, ...]:
    """The programs for the conjuncts of `filters` (see `bounds`). `params`: of the whole plan."""
    found: list[BoundProgram] = []
    for node in [part for one in filters for part in conjuncts(one)]:
        bound = _column_and_key(table, alias, node, translator)
        if bound is None:
            continue
        position, key = bound
        column = table.columns[position]
        program = rp.ProgramSpec(table.id, table.schema_version, "select", params, key)
        found.append(BoundProgram(position, TypeRef(column.type_code, column.typmod), program))
    return tuple(found[:SCAN_BOUNDS_MAX])


def one_column_table(bound: BoundProgram, name: str = "") -> Table:
    """The table that a bound's program is about."""
    column = Column(1, name, bound.type.code, bound.type.typmod, True)
    return Table(0, "", 0, (column,), (0,), schema_version=bound.program.schema_version)


def bounds(
    programs: Iterable[BoundProgram],
    compiled: Callable[[BoundProgram], Any],
    values: Sequence[Any],
) -> tuple[Bound, ...]:
    """One interval a column, for these parameters. `compiled` gives a bound's `Program`.

    What cannot be evaluated, selects nothing or is too long does not bound.
    """
    found: dict[int, tuple[bytes, bytes]] = {}
    for bound in programs:
        try:
            low, high = _interval(compiled(bound), values)
        except (SqlError, CoreError):
            continue  # the filter itself meets the error, if a row is there to meet it
        if len(low) > SCAN_BOUND_MAX_BYTES:
            low = b""
        if len(high) > SCAN_BOUND_MAX_BYTES:
            high = b""
        before = found.get(bound.column, (b"", b""))
        found[bound.column] = max(low, before[0]), min(high or before[1], before[1] or high)
    return tuple(
        Bound(column, low, high) for column, (low, high) in sorted(found.items()) if low or high
    )


def _interval(program: Any, values: Sequence[Any]) -> tuple[bytes, bytes]:
    params = program.param_layout.encode(values)
    if program.is_points:
        keys = program.points(params)
        return (keys[0], keys[-1]) if keys else (b"", b"")
    return program.interval(params) or (b"", b"")


def _column_and_key(
    table: Table, alias: str, node: Expression, translator: Translator
) -> tuple[int, rp.Key] | None:
    """The column a conjunct is about, and the key of its program."""
    if not isinstance(node, Call):
        return None
    if node.op == "in":
        sides = [(node.args[0], node.args[1:], "=")] if len(node.args) <= POINTS_MAX else []
    elif node.op in FLIPPED:
        left, right = node.args
        sides = [(left, (right,), node.op), (right, (left,), FLIPPED[node.op])]
    else:
        return None
    for column, constants, op in sides:
        found = _column(table, alias, column)
        if found is None or not all(map(is_row_free, constants)):
            continue
        position, cast_to = found
        try:
            translated = [translator.expression(value) for value in constants]
        except Unfit:
            return None
        if cast_to is not None:
            translated = [rp.Call(cast_to, "cast", (value,)) for value in translated]
        return position, _key(op, translated)
    return None


def _key(op: str, constants: list[rp.Expr]) -> rp.Key:
    if op == "=":
        return rp.Key(points=tuple((value,) for value in constants))
    if op in (">", ">="):
        return rp.Key(low=constants[0])
    # An interval of keys ends before `high`; a bound, [low, high], ends with it.
    return rp.Key(high=constants[0], high_inclusive=False)


def _column(table: Table, alias: str, node: Expression) -> tuple[int, TypeRef | None] | None:
    """The position of the column that `node` is, and the type its constants are to be cast to."""
    target: int | None = None
    if isinstance(node, Call) and node.op == "cast":
        target, node = node.type.code, node.args[0]
    if not isinstance(node, ColumnRef) or node.source != alias or node.position < 0:
        return None
    code = table.columns[node.position].type_code
    if code not in _ORDERED:
        return None
    if target is None or target == code or (code, target) in _EXACT:
        return node.position, None
    return (node.position, TypeRef(code)) if (code, target) in _ROUNDED else None
