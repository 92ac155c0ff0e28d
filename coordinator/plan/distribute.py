"""Bound queries to plans of stages: scans beside the data, then the final stage over their rows.

This is the first rung of the distribution ladder: filters, key intervals and column lists go to the
shards; everything else runs in the final stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from coordinator.plan.bounds import bound_programs
from coordinator.plan.checks import checks_of
from coordinator.plan.plans import LockPlan, QueryPlan, ScanStage, TableLock, WritePlan
from coordinator.plan.rowplan import Translator, key_of, out_columns
from coordinator.sql import typesystem as ts
from coordinator.sql.context import Context
from coordinator.sql.printer import Printer
from coordinator.sql.rules.needed_columns import needed_columns
from coordinator.sql.rules.push_filters import push_filters
from coordinator.sql.tree import (
    Call,
    CatalogScan,
    ColumnRef,
    CteScan,
    DeleteStatement,
    Derived,
    Expression,
    GivenRows,
    InsertStatement,
    Join,
    Literal,
    Output,
    Query,
    Relation,
    Scan,
    SelectQuery,
    SubqueryCall,
    UpdateStatement,
    ValuesQuery,
)
from coordinator.sql.walk import all_expressions, expressions, queries, relations, scans
from shardb import limits
from shardb import program as rp
from shardb.errors import unsupported
from shardb.meta.descriptors import Table
from shardb.program import TypeRef
from shardb.txn.lockmodes import BY_NAME
from shardb.types import TypeCode as T

SKIP_LOCKED = 2
KEY_POSITION = -1
TS_POSITION = -2


def plan_query(query: Query, context: Context) -> QueryPlan:
    """The plan of a query that locks nothing but in subqueries."""
    locked = _locked_subqueries(query, context)
    sql, stages, virtual, extras = _stages(query, context, _final_sql)
    return QueryPlan(
        sql=sql,
        scans=stages,
        catalog_tables=virtual,
        params=_own_params(context) + tuple(ts.TIMESTAMPTZ for _ in extras),
        columns=out_columns(query.outputs),
        tag="SELECT {}",
        catalog_version=context.catalog.version,
        extras=extras,
        locked=locked,
    )


def plan_select(query: Query, context: Context) -> QueryPlan | LockPlan:
    """The plan of a query by the engine, that locks its rows if it says so."""
    if isinstance(query, SelectQuery) and query.locks:
        return plan_locking(query, context)
    return plan_query(query, context)


def _own_params(context: Context) -> tuple[TypeRef, ...]:
    return tuple(ts.TEXT if ref.code == T.UNKNOWN else ref for ref in context.parameters.types)


def _stages(
    query: Query, context: Context, finish: Callable[[Printer, Query], str]
) -> tuple[str, tuple[ScanStage, ...], tuple[str, ...], tuple[str, ...]]:
    filters: dict[str, list[Expression]] = {}
    push_filters(query, filters)
    needed = needed_columns(query, filters)
    own = len(context.parameters.types)

    def parameter(index: int) -> int:
        return own if index < 0 else index

    stages = tuple(
        _stage(
            scan,
            filters.get(scan.alias, []),
            needed.get(scan.alias, set()),
            context,
            Printer(parameter, bare=True),
        )
        for scan in scans(query)
    )
    virtual = {
        relation.name
        for one in queries(query)
        if isinstance(one, SelectQuery) and one.source is not None
        for relation in relations(one.source)
        if isinstance(relation, CatalogScan)
    }
    sql = finish(Printer(parameter), query)
    extras = ("now",) if context.uses_now else ()
    return sql, stages, tuple(sorted(virtual)), extras


def _stage(
    scan: Scan, filters: list[Expression], needed: set[int], context: Context, printer: Printer
) -> ScanStage:
    table = scan.table
    positions = sorted(needed) or [table.primary_key[0]]
    extra = (ts.TIMESTAMPTZ,) if context.uses_now else ()
    params = _own_params(context) + extra
    translator = Translator(len(context.parameters.types), {scan.alias: 0})
    return ScanStage(
        alias=scan.alias,
        table_id=table.id,
        columns=tuple(positions),
        key_low=b"",
        key_high=b"",
        filter=" AND ".join(map(printer.expression, filters)),
        with_key=scan.with_key,
        key_program=_key_program(table, scan.alias, filters, params, translator),
        schema_version=table.schema_version,
        bound_programs=bound_programs(table, scan.alias, filters, params, translator),
    )


def _key_program(
    table: Table,
    alias: str,
    filters: list[Expression],
    params: tuple[TypeRef, ...],
    translator: Translator,
) -> rp.ProgramSpec | None:
    key, _ = key_of(table, alias, filters, translator)
    if not key.points and not key.prefix and key.low is None and key.high is None:
        return None
    return rp.ProgramSpec(
        table_id=table.id,
        schema_version=table.schema_version,
        kind="select",
        params=params,
        key=key,
    )


def _final_sql(printer: Printer, query: Query) -> str:
    """The final stage's text; derived numerics get exactly the digits the columns announce."""
    casts = {
        at: ts.engine_type(output.value.type)
        for at, output in enumerate(query.outputs)
        if output.value.type.code == T.NUMERIC and not isinstance(output.value, ColumnRef)
    }
    text = printer.query(query)
    if not casts:
        return text
    ordered = bool(query.order)
    items = ", ".join(
        f"CAST(c{at} AS {casts[at]}) AS c{at}" if at in casts else f"c{at}"
        for at in range(len(query.outputs))
    )
    if not ordered:
        return f"SELECT {items} FROM ({text}) AS final"
    if isinstance(query, SelectQuery):
        # An outer SELECT would not promise the order, so the casts go into the select list.
        query.outputs = [
            Output(o.name, Call(o.value.type, "shape", (o.value,)), o.table_id, o.attnum)
            if at in casts and not _in_order(query, o)
            else o
            for at, o in enumerate(query.outputs)
        ]
        return printer.query(query)
    return text


def _in_order(query: SelectQuery, output: Output) -> bool:
    return any(key.value == output.value for key in query.order)


# --- queries that lock rows


def plan_locking(query: SelectQuery, context: Context) -> LockPlan:
    """SELECT ... FOR UPDATE by query. `query` is changed."""
    columns = out_columns(query.outputs)
    strength = query.locks[0].strength
    locks: list[TableLock] = []
    by_alias = {scan.alias: scan for scan in scans(query)}
    for lock in query.locks:
        by_alias[lock.alias].with_key = True
        key = ColumnRef(ts.BYTEA, lock.alias, KEY_POSITION, "_key")
        version = ColumnRef(ts.INT8, lock.alias, TS_POSITION, "_ts")
        at = len(query.outputs)
        query.outputs += [Output("_key", key), Output("_ts", version)]
        skipped = f"skipped_{lock.alias}" if lock.nowait == SKIP_LOCKED else ""
        if skipped:
            query.where.append(_not_among(key, skipped, context))
        mode = BY_NAME[lock.strength]
        locks.append(TableLock(lock.table.id, mode, lock.nowait, at, at + 1, skipped))
    query.locks = []
    limited = query.limit is not None or query.offset is not None
    spare = limits.LOCK_SPARE_ROWS if any(lock.skipped for lock in locks) and limited else 0
    if limited:
        _with_limits(query, spare)
    return LockPlan(
        query=plan_query(query, context),
        locks=tuple(locks),
        limited=limited,
        spare=spare,
        columns=columns,
        tag="SELECT {}",
        strength=strength,
    )


def _not_among(key: ColumnRef, given: str, context: Context) -> Expression:
    """The condition that a key is none of those of a given table."""
    alias = context.alias()
    column = Output("key", ColumnRef(ts.BYTEA, alias, 0, "key"))
    keys = SelectQuery([column], GivenRows(alias, given))
    return SubqueryCall(ts.BOOL, "in", keys, (key,), negated=True)


def _with_limits(query: SelectQuery, spare: int) -> None:
    """Has the engine give the rows of LIMIT and OFFSET, both in columns, and `spare` more."""
    nothing = Literal(ts.INT8, None)
    limit, offset = query.limit or nothing, query.offset or nothing
    start = Call(ts.INT8, "coalesce", (offset, Literal(ts.INT8, "0")))
    wanted = Call(ts.INT8, "+", (limit, start))
    query.outputs += [Output("wanted", wanted), Output("start", start)]
    query.offset = None
    query.limit = None
    if limit is not nothing:
        query.limit = Call(ts.INT8, "+", (wanted, Literal(ts.INT8, str(spare))))


def _locked_subqueries(query: Query, context: Context) -> tuple[tuple[str, LockPlan], ...]:
    """Takes the subqueries that lock rows out: they are run first, and their rows are given."""
    plans: list[tuple[str, LockPlan]] = []
    for block in list(queries(query)):
        if block is query or not isinstance(block, SelectQuery) or not block.locks:
            continue
        _check_closed(block)
        columns = [(output.name, output.value.type) for output in block.outputs]
        inner = replace(block)
        inner.outputs = list(block.outputs)
        name = f"locked_{len(plans)}_{context.alias()}"
        plans.append((name, plan_locking(inner, context)))
        alias = context.alias()
        block.source = GivenRows(alias, name)
        block.outputs[:] = [
            Output(label, ColumnRef(ref, alias, at, label))
            for at, (label, ref) in enumerate(columns)
        ]
        block.where, block.order, block.ctes, block.locks = [], [], [], []
        block.limit = block.offset = None
    return tuple(plans)


def _check_closed(block: SelectQuery) -> None:
    """0A000 if a subquery that locks rows depends on the query around it."""
    inside = {cte.name for one in queries(block) for cte in one.ctes}
    sources: set[str] = set()
    for one in queries(block):
        if isinstance(one, SelectQuery) and one.source is not None:
            for relation in relations(one.source):
                if isinstance(relation, CteScan) and relation.cte not in inside:
                    raise unsupported("a WITH query in a subquery that locks rows")
                if not isinstance(relation, Join):
                    sources.add(relation.alias)
    for node in all_expressions(block):
        if isinstance(node, ColumnRef) and node.source not in sources:
            raise unsupported("a correlated subquery that locks rows")


# --- DML by query


def plan_insert_query(statement: InsertStatement, context: Context) -> WritePlan:
    """INSERT whose rows come from a query or need functions that row programs do not have."""
    if statement.conflict:
        raise unsupported("ON CONFLICT DO UPDATE with rows from a query")
    table = statement.table
    query = statement.query
    if query is None:
        outputs = [
            Output(c.name, ColumnRef(TypeRef(c.type_code, c.typmod), "", at, c.name))
            for at, c in enumerate(table.columns)
        ]
        query = ValuesQuery(statement.rows, outputs)
    elif isinstance(query, SelectQuery) and query.locks:
        alias = context.alias()
        outputs = [
            Output(o.name, ColumnRef(o.value.type, alias, at, o.name))
            for at, o in enumerate(query.outputs)
        ]
        query = SelectQuery(outputs, Derived(alias, query))
    types = [TypeRef(c.type_code, c.typmod) for c in table.columns]
    plan = _write_query(query, context, [f"c{at}" for at in range(len(types))], types)
    conflict = "nothing" if statement.conflict is not None else ""
    return WritePlan(
        kind="insert",
        table_id=table.id,
        query=plan,
        conflict=conflict,
        returning=_returning(statement.returning, statement.alias, context),
        columns=out_columns(statement.returning),
        tag="INSERT 0 {}",
        checks=checks_of(table, context.catalog),
    )


def plan_change_query(statement: UpdateStatement | DeleteStatement, context: Context) -> WritePlan:
    """UPDATE or DELETE that joins, has subqueries or needs functions of the engine."""
    scan = statement.scan
    table = scan.table
    scan.with_key = True
    outputs = [
        Output("_key", ColumnRef(ts.BYTEA, scan.alias, KEY_POSITION, "_key")),
        Output("_ts", ColumnRef(ts.INT8, scan.alias, TS_POSITION, "_ts")),
    ]
    types: list[TypeRef] = []
    updating = isinstance(statement, UpdateStatement)
    if updating or statement.returning:
        assigned = dict(statement.assignments) if isinstance(statement, UpdateStatement) else {}
        for at, column in enumerate(table.columns):
            ref = TypeRef(column.type_code, column.typmod)
            types.append(ref)
            value = assigned.get(at, ColumnRef(ref, scan.alias, at, column.name))
            outputs.append(Output(column.name, value))
    source: Relation = scan
    if statement.source is not None:
        source = Join("cross", scan, statement.source, None)
    query = SelectQuery(outputs, source, list(statement.where), ctes=statement.ctes)
    if statement.source is not None:
        query.distinct_on = [outputs[0].value]
    names = ["_key", "_ts", *(f"c{at}" for at in range(len(types)))]
    plan = _write_query(query, context, names, [ts.BYTEA, ts.INT8, *types])
    kind = "update" if updating else "delete"
    return WritePlan(
        kind=kind,
        table_id=table.id,
        query=plan,
        conflict="",
        returning=_returning(statement.returning, scan.alias, context),
        columns=out_columns(statement.returning),
        tag=f"{kind.upper()} {{}}",
        checks=checks_of(table, context.catalog) if updating else (),
    )


def _write_query(
    query: Query, context: Context, names: list[str], types: list[TypeRef]
) -> QueryPlan:
    def finish(printer: Printer, bound: Query) -> str:
        items = ", ".join(
            f"c{at} AS {name}"
            if name == "_ts" or ref.code == T.BYTEA
            else f"CAST(c{at} AS {ts.engine_type(ref)}) AS {name}"
            for at, (name, ref) in enumerate(zip(names, types, strict=True))
        )
        return f"SELECT {items} FROM ({printer.query(bound)}) AS final"

    columns = out_columns(query.outputs)
    locked = _locked_subqueries(query, context)
    sql, stages, virtual, extras = _stages(query, context, finish)
    return QueryPlan(
        sql=sql,
        scans=stages,
        catalog_tables=virtual,
        params=_own_params(context) + tuple(ts.TIMESTAMPTZ for _ in extras),
        columns=columns,
        tag="",
        catalog_version=context.catalog.version,
        extras=extras,
        locked=locked,
    )


def _returning(outputs: list[Output], alias: str, context: Context) -> str:
    if not outputs:
        return ""
    for output in outputs:
        for node in expressions(output.value):
            if isinstance(node, ColumnRef) and node.source != alias:
                raise unsupported("RETURNING of another table's columns")
    own = len(context.parameters.types)
    printer = Printer(lambda index: own if index < 0 else index)
    items = ", ".join(
        f"{printer.output(output.value)} AS c{at}" for at, output in enumerate(outputs)
    )
    return f"SELECT {items} FROM written AS {alias}"
