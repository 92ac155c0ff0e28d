"""Bound statements to row programs, where they fit: one table, rows named by key, plain operators.

What does not fit gives None, and the caller plans a query instead.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from coordinator.catalog import Catalog
from coordinator.plan.plans import OutColumn, RowPlan
from coordinator.sql import typesystem as ts
from coordinator.sql.context import Context
from coordinator.sql.functions import PROGRAM_OPERATORS
from coordinator.sql.tree import (
    AggregateCall,
    Call,
    ColumnRef,
    DeleteStatement,
    Expression,
    InsertStatement,
    Literal,
    Output,
    Parameter,
    Scan,
    SelectQuery,
    UpdateStatement,
)
from shardb import program as rp
from shardb.meta.descriptors import Table
from shardb.program import TypeRef
from shardb.types import TypeCode as T

POINTS_MAX: Final = 1_000
FLIPPED: Final = {"=": "=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_INT_BOUNDS: Final = {T.INT2: 1 << 15, T.INT4: 1 << 31, T.INT8: 1 << 63}


class Unfit(Exception):
    """The statement cannot be a row program."""


@dataclass(slots=True)
class Translator:
    """Turns bound expressions over one table into program expressions.

    `extras` are the parameters after the statement's own, in the order they were first needed.
    """

    own_params: int
    sources: dict[str, int]
    extras: list[str] = field(default_factory=list)

    def extra(self, name: str) -> rp.Param:
        """The parameter the session fills in for `name`."""
        if name not in self.extras:
            self.extras.append(name)
        ref = ts.TIMESTAMPTZ if name == "now" else ts.INT8
        return rp.Param(ref, self.own_params + self.extras.index(name))

    def expression(self, node: Expression) -> rp.Expr:
        """The program's form of `node`; raises `Unfit`."""
        if isinstance(node, Literal):
            return rp.Const(node.type, node.text)
        if isinstance(node, Parameter):
            return self.extra("now") if node.index < 0 else rp.Param(node.type, node.index)
        if isinstance(node, ColumnRef):
            base = self.sources.get(node.source)
            if base is None:
                raise Unfit
            return rp.Col(node.type, base + node.position)
        if isinstance(node, Call):
            return self._call(node)
        raise Unfit

    def _call(self, node: Call) -> rp.Expr:
        if node.op == "store":
            return rp.Call(node.type, "cast", (self.expression(node.args[0]),))
        if node.op not in PROGRAM_OPERATORS:
            raise Unfit
        source = node.args[0].type if node.args else ts.UNKNOWN
        if node.op == "cast" and node.type.code in (T.VARCHAR, T.BPCHAR) and node.type.typmod > 0:
            raise Unfit  # an explicit cast truncates, the programs' cast refuses
        if node.op == "cast" and {source.code, node.type.code} & {T.JSON, T.JSONB, T.UNKNOWN}:
            raise Unfit
        if any(arg.type.code in (T.INTERVAL, T.TIME) for arg in node.args) and node.op in (
            "*",
            "/",
            "cast",
        ):
            raise Unfit
        args = [self.expression(arg) for arg in node.args]
        if node.op in ("and", "or"):
            return _balanced(node.op, args)
        return rp.Call(node.type, node.op, tuple(args))


def _balanced(op: str, args: list[rp.Expr]) -> rp.Expr:
    """A chain of AND or OR as a shallow tree of two-sided calls."""
    if len(args) == 1:
        return args[0]
    middle = len(args) // 2
    return rp.Call(ts.BOOL, op, (_balanced(op, args[:middle]), _balanced(op, args[middle:])))


# --- keys


@dataclass(slots=True)
class _Bounds:
    equal: rp.Expr | None = None
    choices: list[rp.Expr] | None = None
    low: tuple[rp.Expr, bool] | None = None
    high: tuple[rp.Expr, bool] | None = None


def key_of(
    table: Table, alias: str, where: list[Expression], translator: Translator
) -> tuple[rp.Key, list[Expression]]:
    """The key interval or points that `where` (a conjunction) implies, and what is left to filter.

    Every conjunct that is not fully expressed by the key stays in the rest.
    """
    bounds: dict[int, _Bounds] = {}
    used: dict[int, list[Expression]] = {}
    rest: list[Expression] = []
    for node in _flat(where):
        position = _note(table, alias, node, bounds, translator)
        if position is None:
            rest.append(node)
        else:
            used.setdefault(position, []).append(node)
    key = table.primary_key
    prefix: list[rp.Expr] = []
    for at, position in enumerate(key):
        found = bounds.get(position)
        if found is None:
            break
        if found.equal is not None:
            prefix.append(found.equal)
            rest += [n for n in used.pop(position) if _is_range(n)]
            continue
        if found.choices is not None and at == len(key) - 1:
            used.pop(position)
            points = tuple((*prefix, choice) for choice in found.choices)
            return rp.Key(points=points), rest + _all(used)
        if found.low or found.high:
            low, high = found.low, found.high
            used.pop(position)
            return rp.Key(
                prefix=tuple(prefix),
                low=low[0] if low else None,
                low_inclusive=low[1] if low else True,
                high=high[0] if high else None,
                high_inclusive=high[1] if high else True,
            ), rest + _all(used)
        break
    rest += _all(used)
    if prefix and len(prefix) == len(key):
        return rp.Key(points=(tuple(prefix),)), rest
    return rp.Key(prefix=tuple(prefix)), rest


def _all(used: dict[int, list[Expression]]) -> list[Expression]:
    return [node for nodes in used.values() for node in nodes]


def _flat(nodes: list[Expression]) -> list[Expression]:
    found: list[Expression] = []
    for node in nodes:
        if isinstance(node, Call) and node.op == "and":
            found += _flat(list(node.args))
        else:
            found.append(node)
    return found


def _is_range(node: Expression) -> bool:
    return isinstance(node, Call) and node.op != "="


def _note(
    table: Table,
    alias: str,
    node: Expression,
    bounds: dict[int, _Bounds],
    translator: Translator,
) -> int | None:
    """Notes what `node` says about a key column; that column's position if it says all of it."""
    if not isinstance(node, Call):
        return None
    if node.op == "in":
        return _note_choices(table, alias, node, bounds, translator)
    if node.op not in FLIPPED:
        return None
    for column, value, op in (
        (node.args[0], node.args[1], node.op),
        (node.args[1], node.args[0], FLIPPED[node.op]),
    ):
        position = _key_column(table, alias, column)
        if position is None or not is_row_free(value):
            continue
        wanted = table.columns[position].type_code
        converted = _as_key(value, wanted, op, translator)
        if converted is None:
            return None
        found = bounds.setdefault(position, _Bounds())
        if op == "=":
            if found.equal is not None:
                return None
            found.equal = converted
        elif op in (">", ">="):
            if found.low is not None:
                return None
            found.low = (converted, op == ">=")
        else:
            if found.high is not None:
                return None
            found.high = (converted, op == "<=")
        return position
    return None


def _note_choices(
    table: Table, alias: str, node: Call, bounds: dict[int, _Bounds], translator: Translator
) -> int | None:
    position = _key_column(table, alias, node.args[0])
    if position is None or len(node.args) > POINTS_MAX:
        return None
    wanted = table.columns[position].type_code
    choices = []
    for value in node.args[1:]:
        converted = _as_key(value, wanted, "=", translator) if is_row_free(value) else None
        if converted is None:
            return None
        choices.append(converted)
    found = bounds.setdefault(position, _Bounds())
    if found.choices is not None:
        return None
    found.choices = choices
    return position


def _key_column(table: Table, alias: str, node: Expression) -> int | None:
    """The key column that `node` is, also under a cast that keeps order and equality."""
    if isinstance(node, Call) and node.op == "cast" and _widens(node):
        node = node.args[0]
    if not isinstance(node, ColumnRef) or node.source != alias:
        return None
    return node.position if node.position in table.primary_key else None


def _widens(node: Call) -> bool:
    source, target = node.args[0].type.code, node.type.code
    if source in ts.INTEGERS and target in ts.INTEGERS:
        return ts.INTEGERS.index(T(source)) < ts.INTEGERS.index(T(target))
    return source == T.VARCHAR and target == T.TEXT


def is_row_free(node: Expression) -> bool:
    """True if the value is the same for all rows."""
    if isinstance(node, Call):
        return all(map(is_row_free, node.args))
    return isinstance(node, (Literal, Parameter))


def _as_key(value: Expression, wanted: int, op: str, translator: Translator) -> rp.Expr | None:
    """`value` as the key column's type; None if that would lose something."""
    try:
        translated = translator.expression(value)
    except Unfit:
        return None
    have = value.type.code
    if have == wanted or (have in (T.TEXT, T.VARCHAR) and wanted in (T.TEXT, T.VARCHAR)):
        return translated
    if have not in ts.INTEGERS or wanted not in ts.INTEGERS:
        return None
    bound = _INT_BOUNDS[T(wanted)]
    ref = TypeRef(wanted)
    if isinstance(translated, rp.Const) and translated.text is not None:
        fits = -bound <= int(translated.text) < bound
        if fits:
            return rp.Const(ref, translated.text)
        return rp.Const(ref, None) if op == "=" else None
    if ts.INTEGERS.index(T(have)) < ts.INTEGERS.index(T(wanted)):
        return rp.Call(ref, "cast", (translated,))
    inner = value.args[0] if isinstance(value, Call) and value.op == "cast" else None
    if inner is not None and inner.type.code == wanted:
        return translator.expression(inner)
    if op != "=":
        return None
    # A wider value selects nothing unless it fits the column.
    low, high = rp.Const(value.type, str(-bound)), rp.Const(value.type, str(bound - 1))
    fits_test = rp.Call(
        ts.BOOL,
        "and",
        (rp.Call(ts.BOOL, ">=", (translated, low)), rp.Call(ts.BOOL, "<=", (translated, high))),
    )
    return rp.Call(
        ref, "case", (fits_test, rp.Call(ref, "cast", (translated,)), rp.Const(ref, None))
    )


# --- statements


def plan_select(query: SelectQuery, context: Context) -> RowPlan | None:
    """A row program for a SELECT by key; None if it is another kind of query."""
    if not isinstance(query.source, Scan) or query.ctes or query.distinct or query.distinct_on:
        return None
    if query.group or query.having is not None:
        return None
    table, alias = query.source.table, query.source.alias
    translator = Translator(len(context.parameters.types), {alias: 0})
    try:
        key, rest = key_of(table, alias, query.where, translator)
        if not key.points and not key.prefix and key.low is None and key.high is None:
            return None
        filter_ = _filter(rest, translator)
        single = len(key.points) == 1
        reverse = _direction(query, table, alias, single)
        outputs: tuple[rp.Expr, ...] = ()
        aggregates: tuple[rp.Aggregate, ...] = ()
        if query.grouped:
            aggregates = tuple(_aggregate(o.value, translator) for o in query.outputs)
        else:
            outputs = tuple(translator.expression(o.value) for o in query.outputs)
        limit = translator.expression(query.limit) if query.limit is not None else None
        offset = translator.expression(query.offset) if query.offset is not None else None
    except Unfit:
        return None
    spec = rp.ProgramSpec(
        table_id=table.id,
        schema_version=table.schema_version,
        kind="select",
        params=_params(context, translator),
        key=key,
        filter=filter_,
        output=outputs,
        aggregates=aggregates,
        reverse=reverse,
        limit=limit,
        offset=offset,
        locking=query.locks[0].strength if query.locks else "",
    )
    plan = _plan(spec, out_columns(query.outputs), "SELECT {}", context.catalog, translator)
    return replace(plan, nowait=query.locks[0].nowait) if query.locks else plan


def needs_fallback(plan: RowPlan) -> bool:
    """True if results of several ranges cannot be concatenated."""
    spec = plan.program
    if spec.kind != "select" or len(spec.key.points) == 1:
        return False
    return bool(spec.aggregates) or spec.limit is not None or spec.offset is not None


def plan_insert(statement: InsertStatement, context: Context) -> RowPlan | None:
    """A row program for INSERT ... VALUES."""
    if statement.query is not None:
        return None
    table = statement.table
    translator = Translator(len(context.parameters.types), {statement.alias: 0})
    upsert = Translator(
        len(context.parameters.types),
        {statement.alias: 0, "excluded": len(table.columns)},
        translator.extras,
    )
    try:
        rows = []
        for number, row in enumerate(statement.rows):
            values = [translator.expression(value) for value in row]
            if table.has_hidden_key:
                values[table.primary_key[0]] = _rowid(translator, number)
            rows.append(tuple(values))
        conflict = None
        if statement.conflict is not None:
            conflict = rp.Conflict(
                tuple((at, upsert.expression(value)) for at, value in statement.conflict),
                None
                if statement.conflict_filter is None
                else upsert.expression(statement.conflict_filter),
            )
        output = tuple(translator.expression(o.value) for o in statement.returning)
    except Unfit:
        return None
    spec = rp.ProgramSpec(
        table_id=table.id,
        schema_version=table.schema_version,
        kind="insert",
        params=_params(context, translator),
        output=output,
        rows=tuple(rows),
        conflict=conflict,
    )
    rowids = len(rows) if table.has_hidden_key else 0
    return _plan(
        spec, out_columns(statement.returning), "INSERT 0 {}", context.catalog, translator, rowids
    )


def _rowid(translator: Translator, number: int) -> rp.Expr:
    first = translator.extra("rowid")
    if number == 0:
        return first
    return rp.Call(ts.INT8, "+", (first, rp.Const(ts.INT8, str(number))))


def plan_change(statement: UpdateStatement | DeleteStatement, context: Context) -> RowPlan | None:
    """A row program for an UPDATE or DELETE of one table."""
    if statement.source is not None or statement.ctes:
        return None
    table, alias = statement.scan.table, statement.scan.alias
    translator = Translator(len(context.parameters.types), {alias: 0})
    updating = isinstance(statement, UpdateStatement)
    try:
        key, rest = key_of(table, alias, statement.where, translator)
        filter_ = _filter(rest, translator)
        assignments: tuple[tuple[int, rp.Expr], ...] = ()
        if isinstance(statement, UpdateStatement):
            if any(at in table.primary_key for at, _ in statement.assignments):
                return None  # the row may move to another range
            assignments = tuple(
                (at, translator.expression(value)) for at, value in statement.assignments
            )
        output = tuple(translator.expression(o.value) for o in statement.returning)
    except Unfit:
        return None
    spec = rp.ProgramSpec(
        table_id=table.id,
        schema_version=table.schema_version,
        kind="update" if updating else "delete",
        params=_params(context, translator),
        key=key,
        filter=filter_,
        output=output,
        assignments=assignments,
    )
    tag = "UPDATE {}" if updating else "DELETE {}"
    return _plan(spec, out_columns(statement.returning), tag, context.catalog, translator)


def _filter(rest: list[Expression], translator: Translator) -> rp.Expr | None:
    if not rest:
        return None
    return _balanced("and", [translator.expression(node) for node in rest])


def _direction(query: SelectQuery, table: Table, alias: str, single: bool) -> bool:
    """True for reverse key order; raises `Unfit` for an order that is not the key's."""
    if not query.order or single or query.grouped:
        return False
    equal = {
        position
        for node in _flat(query.where)
        if isinstance(node, Call) and node.op == "="
        for side in node.args
        if (position := _key_column(table, alias, side)) is not None
        and all(is_row_free(other) for other in node.args if other is not side)
    }
    wanted = [position for position in table.primary_key if position not in equal]
    directions = set()
    for item, position in zip(query.order, wanted, strict=False):
        if not isinstance(item.value, ColumnRef) or item.value.position != position:
            raise Unfit
        directions.add(item.descending)
    if len(query.order) > len(wanted) or len(directions) > 1:
        raise Unfit
    return True in directions


def _aggregate(node: Expression, translator: Translator) -> rp.Aggregate:
    if not isinstance(node, AggregateCall) or node.distinct or node.filter is not None:
        raise Unfit
    if node.function == "count_star":
        return rp.Aggregate("count_star", None, node.type)
    if node.function not in ("count", "sum", "min", "max"):
        raise Unfit
    return rp.Aggregate(node.function, translator.expression(node.args[0]), node.type)


def out_columns(outputs: list[Output]) -> tuple[OutColumn, ...]:
    """Result columns for RowDescription."""
    return tuple(
        OutColumn(
            o.name,
            ts.TEXT if o.value.type.code == T.UNKNOWN else o.value.type,
            o.table_id,
            o.attnum,
        )
        for o in outputs
    )


def _params(context: Context, translator: Translator) -> tuple[TypeRef, ...]:
    own = tuple(ts.TEXT if ref.code == T.UNKNOWN else ref for ref in context.parameters.types)
    extra = tuple(ts.TIMESTAMPTZ if name == "now" else ts.INT8 for name in translator.extras)
    return own + extra


def program_id(spec: rp.ProgramSpec) -> int:
    """A stable positive 63-bit hash of the program."""
    digest = hashlib.blake2b(msgspec.msgpack.encode(spec), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _plan(
    spec: rp.ProgramSpec,
    columns: tuple[OutColumn, ...],
    tag: str,
    catalog: Catalog,
    translator: Translator,
    rowids: int = 0,
) -> RowPlan:
    return RowPlan(
        program=spec,
        program_id=program_id(spec),
        columns=columns,
        tag=tag,
        catalog_version=catalog.version,
        extras=tuple(translator.extras),
        rowids=rowids,
    )
