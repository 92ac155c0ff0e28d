"""Binds queries: FROM clauses, select lists, grouping, ordering, WITH and set operations."""

from __future__ import annotations

from typing import Final

from sqlglot import exp

from coordinator.sql import typesystem as ts
from coordinator.sql.bind_expr import ExpressionBinder, name_of
from coordinator.sql.bind_from import FromBinder
from coordinator.sql.bind_locks import bind_locks, strength_of
from coordinator.sql.coerce import cast_node
from coordinator.sql.context import Context
from coordinator.sql.grouping import check_grouping
from coordinator.sql.naming import output_name
from coordinator.sql.parse import position_of
from coordinator.sql.scope import RelationScope, Scope, ScopeColumn
from coordinator.sql.tree import (
    ColumnRef,
    Cte,
    Derived,
    Expression,
    Literal,
    Output,
    Query,
    SelectQuery,
    SetQuery,
    SortKey,
    ValuesQuery,
)
from shardb.errors import SqlError, unsupported
from shardb.limits import STATEMENT_DEPTH_MAX
from shardb.program import TypeRef
from shardb.types import TypeCode as T

_REFUSED: Final = (
    "laterals",
    "connect",
    "sample",
    "qualify",
    "cluster",
    "match",
    "into",
    "pivots",
    "prewhere",
    "settings",
    "format",
    "kind",
    "hint",
    "operation_modifiers",
)


class QueryBinder(FromBinder):
    """Binds one query level; subqueries get binders of their own with `parent` scopes."""

    def __init__(self, context: Context, ctes: dict[str, tuple[str, list[Output]]]) -> None:
        self.context = context
        self.ctes = ctes
        self.saw_aggregate = False

    # --- entrances

    def nested(self, node: exp.Expression, scope: Scope | None) -> Query:
        """A subquery in FROM."""
        return QueryBinder(self.context, self.ctes).query(node, scope)

    def _query_binder(self) -> QueryBinder:
        return self

    def query(
        self, node: exp.Expression, parent: Scope | None = None, settle: bool = True
    ) -> Query:
        """A SELECT, VALUES, set operation or a parenthesized one.

        Without `settle` output columns may stay of unknown type, for a caller that knows better.
        """
        self.context.depth += 1
        if self.context.depth > STATEMENT_DEPTH_MAX:
            raise SqlError("54001", "stack depth limit exceeded")
        try:
            query = self._query(node, parent)
        finally:
            self.context.depth -= 1
        if settle:
            for at, output in enumerate(query.outputs):
                if output.value.type.code == T.UNKNOWN:
                    query = self.converted(query, at, ts.TEXT)
        return query

    def subquery(self, node: exp.Expression, scope: Scope) -> Query:
        """A subquery of an expression in `scope`."""
        return QueryBinder(self.context, self.ctes).query(node, scope)

    def converted(self, query: Query, index: int, target: TypeRef) -> Query:
        """`query` with output `index` cast to `target`; a constant takes the type in place."""
        value = query.outputs[index].value
        if value.type.code == T.UNKNOWN and isinstance(query, SelectQuery):
            typed = self.context.coercer.coerce(value, target, "implicit")
            if typed is not None:
                query.outputs[index].value = typed
                for at, key in enumerate(query.order):
                    if key.value == value:
                        query.order[at] = SortKey(typed, key.descending, key.nulls_first)
                return query
        source = self.context.alias()
        outputs = [
            Output(out.name, ColumnRef(out.value.type, source, at, out.name))
            for at, out in enumerate(query.outputs)
        ]
        outputs[index].value = cast_node(outputs[index].value, target)
        return SelectQuery(outputs, Derived(source, query))

    def _query(self, node: exp.Expression, parent: Scope | None) -> Query:
        with_ = node.args.get("with_")
        ctes: list[Cte] = []
        if with_ is not None:
            self.ctes = dict(self.ctes)
            ctes = [
                self.cte(cte, bool(with_.args.get("recursive")), parent)
                for cte in with_.expressions
            ]
        bound: Query
        if isinstance(node, (exp.Subquery, exp.Paren)):
            bound = self._parenthesized(node, parent)
        elif isinstance(node, exp.Select):
            bound = self._select(node, parent)
        elif isinstance(node, exp.SetOperation):
            bound = self._set_operation(node, parent)
        elif isinstance(node, exp.Values):
            bound = self._values(node, parent)
        elif isinstance(node, exp.Table):
            bound = self._select(exp.select("*").from_(node), parent)
        else:
            raise unsupported(f"{type(node).__name__.upper()} as a query")
        bound.ctes = ctes + bound.ctes
        return bound

    def _parenthesized(self, node: exp.Expression, parent: Scope | None) -> Query:
        inner = self.query(node.this, parent)
        extras = [key for key in ("order", "limit", "offset") if node.args.get(key) is not None]
        if not extras:
            return inner
        source = self.context.alias()
        outputs = [
            Output(out.name, ColumnRef(out.value.type, source, at, out.name))
            for at, out in enumerate(inner.outputs)
        ]
        outer = SelectQuery(outputs, Derived(source, inner))
        scope = Scope(parent=parent)
        scope.add(RelationScope("", [ScopeColumn(o.name, o.value) for o in outputs]))
        binder = ExpressionBinder(self, scope, "", windows=False)
        self._order(node, outer, binder)
        self._limits(node, outer)
        return outer

    def cte(self, node: exp.CTE, recursive: bool, parent: Scope | None) -> Cte:
        name = name_of(node.args["alias"].this)
        engine_name = self.context.alias("q")
        names = [name_of(column) for column in node.args["alias"].args.get("columns") or ()]
        body = node.this
        if isinstance(body, (exp.Insert, exp.Update, exp.Delete)):
            raise unsupported("data-modifying WITH")
        if recursive and isinstance(body, exp.Union):
            return self._recursive(name, engine_name, names, body, parent)
        query = QueryBinder(self.context, dict(self.ctes)).query(body, parent)
        self._rename(query, names, name)
        self.ctes[name] = (engine_name, query.outputs)
        return Cte(engine_name, query)

    def _recursive(
        self, name: str, engine_name: str, names: list[str], body: exp.Union, parent: Scope | None
    ) -> Cte:
        base = QueryBinder(self.context, dict(self.ctes)).query(body.this, parent)
        self._rename(base, names, name)
        self.ctes[name] = (engine_name, base.outputs)
        step = QueryBinder(self.context, dict(self.ctes)).query(body.args["expression"], parent)
        union = self._combine("union", not body.args.get("distinct"), base, step, position_of(body))
        return Cte(engine_name, union, recursive=True)

    @staticmethod
    def _rename(query: Query, names: list[str], table: str) -> None:
        if len(names) > len(query.outputs):
            raise SqlError(
                "42P10",
                f'table "{table}" has {len(query.outputs)} columns available '
                f"but {len(names)} columns specified",
            )
        for output, name in zip(query.outputs, names, strict=False):
            output.name = name

    # --- SELECT

    def _select(self, node: exp.Select, parent: Scope | None) -> SelectQuery:
        for key in _REFUSED:
            if node.args.get(key):
                raise unsupported(key.upper())
        scope = Scope(parent=parent)
        query = SelectQuery([])
        query.source = self._from(node, scope)
        windows = {name_of(w.this): w for w in node.args.get("windows") or ()}
        where = node.args.get("where")
        if where is not None:
            binder = ExpressionBinder(self, scope, "WHERE", windows=False)
            query.where = binder.conjuncts(where.this, "WHERE")
        self.saw_aggregate = False
        binder = ExpressionBinder(self, scope, "", windows=True)
        binder.named_windows = windows
        query.outputs = self.select_list(node.expressions, binder)
        self._grouping(node, query, scope)
        having = node.args.get("having")
        if having is not None:
            query.having = ExpressionBinder(self, scope, "", False).boolean(having.this, "HAVING")
            query.grouped = True
        distinct = node.args.get("distinct")
        if distinct is not None:
            on = distinct.args.get("on")
            if on is not None:
                items = on.expressions if isinstance(on, exp.Tuple) else [on]
                query.distinct_on = [self._by_name_or_position(i, query, binder) for i in items]
            else:
                query.distinct = True
        self._order(node, query, binder)
        query.grouped = query.grouped or self.saw_aggregate or bool(query.group)
        if query.grouped:
            check_grouping(query, scope)
        self._limits(node, query)
        bind_locks(node, query, scope)
        return query

    def select_list(self, items: list[exp.Expression], binder: ExpressionBinder) -> list[Output]:
        outputs: list[Output] = []
        for item in items:
            value, alias = item, ""
            if isinstance(item, exp.Alias):
                value, alias = item.this, name_of(item.args["alias"])
            if isinstance(value, exp.Star):
                if not binder.scope.relations:
                    raise SqlError(
                        "42601",
                        "SELECT * with no tables specified is not valid",
                        position=position_of(value),
                    )
                outputs += [_plain_output(c) for c in binder.scope.columns if c.name != "tableoid"]
                continue
            if isinstance(value, exp.Column) and isinstance(value.this, exp.Star):
                relation = binder.scope.relation(name_of(value.args["table"]), position_of(value))
                outputs += [_plain_output(c) for c in relation.columns if c.name != "tableoid"]
                continue
            bound = binder.bind(value)
            output = Output(alias or output_name(value), bound)
            if isinstance(value, exp.Column):
                found = binder.scope.find(name_of(value.this), name_of(value.args.get("table")), 0)
                output.table_id, output.attnum = found.table_id, found.attnum
            outputs.append(output)
        return outputs

    def _grouping(self, node: exp.Select, query: SelectQuery, scope: Scope) -> None:
        group = node.args.get("group")
        if group is None:
            return
        for key in ("rollup", "cube", "grouping_sets", "totals", "all"):
            if group.args.get(key):
                raise unsupported(f"GROUP BY {key.upper().replace('_', ' ')}")
        query.grouped = True
        binder = ExpressionBinder(self, scope, "GROUP BY", windows=False)
        for item in group.expressions:
            if isinstance(item, (exp.Rollup, exp.Cube, exp.GroupingSets)):
                raise unsupported("GROUP BY with grouping sets")
            parts = item.expressions if isinstance(item, exp.Tuple) else [item]
            for part in parts:
                query.group.append(self._group_item(part, query, binder))

    def _group_item(
        self, item: exp.Expression, query: SelectQuery, binder: ExpressionBinder
    ) -> Expression:
        ordinal = self._ordinal(item, query, "GROUP BY")
        if ordinal is not None:
            return ordinal
        if isinstance(item, exp.Column) and not item.args.get("table"):
            name = name_of(item.this)
            if not any(c.name == name for c in binder.scope.columns):
                named = [out.value for out in query.outputs if out.name == name]
                if named:
                    return named[0]
        return binder.settled(item)

    def _ordinal(self, item: exp.Expression, query: SelectQuery, clause: str) -> Expression | None:
        if isinstance(item, exp.Literal) and not item.args.get("is_string"):
            text = str(item.this)
            if not text.isdigit():
                raise SqlError(
                    "42601", f"non-integer constant in {clause}", position=position_of(item)
                )
            if not 1 <= int(text) <= len(query.outputs):
                raise SqlError(
                    "42P10",
                    f"{clause} position {text} is not in select list",
                    position=position_of(item),
                )
            return query.outputs[int(text) - 1].value
        return None

    def _by_name_or_position(
        self, item: exp.Expression, query: SelectQuery, binder: ExpressionBinder
    ) -> Expression:
        ordinal = self._ordinal(item, query, "ORDER BY")
        if ordinal is not None:
            return ordinal
        if isinstance(item, exp.Column) and not item.args.get("table"):
            name = name_of(item.this)
            named = [out.value for out in query.outputs if out.name == name]
            if named:
                if any(value != named[0] for value in named):
                    raise SqlError(
                        "42702", f'ORDER BY "{name}" is ambiguous', position=position_of(item)
                    )
                return named[0]
        return binder.settled(item)

    def _order(self, node: exp.Expression, query: SelectQuery, binder: ExpressionBinder) -> None:
        order = node.args.get("order")
        if order is None:
            return
        for item in order.expressions:
            value = self._by_name_or_position(item.this, query, binder)
            query.order.append(self._directed(item, value))
        if query.distinct:
            outputs = [out.value for out in query.outputs]
            for item, key in zip(order.expressions, query.order, strict=True):
                if key.value not in outputs:
                    raise SqlError(
                        "42P10",
                        "for SELECT DISTINCT, ORDER BY expressions must appear in select list",
                        position=position_of(item),
                    )

    def sort_key(self, binder: ExpressionBinder, item: exp.Expression) -> SortKey:
        """An ORDER BY item of an aggregate or window."""
        return self._directed(item, binder.settled(item.this))

    def _directed(self, item: exp.Expression, value: Expression) -> SortKey:
        # The parser always fills in nulls_first, for PostgreSQL's default too.
        return SortKey(value, bool(item.args.get("desc")), bool(item.args.get("nulls_first")))

    def _limits(self, node: exp.Expression, query: Query) -> None:
        binder = ExpressionBinder(self, Scope(), "LIMIT", windows=False)
        limit, offset = node.args.get("limit"), node.args.get("offset")
        if limit is not None:
            if isinstance(limit, exp.Fetch):
                if limit.args.get("limit_options") is not None and (
                    limit.args["limit_options"].args.get("with_ties")
                ):
                    raise unsupported("FETCH ... WITH TIES")
                count = limit.args.get("count") or exp.Literal.number(1)
            else:
                count = limit.args["expression"]
            is_all = isinstance(count, exp.Column) and name_of(count.this) == "all"
            query.limit = None if is_all else self._count(count, binder, "LIMIT")
        if offset is not None:
            query.offset = self._count(offset.args["expression"], binder, "OFFSET")

    def _count(
        self, node: exp.Expression, binder: ExpressionBinder, clause: str
    ) -> Expression | None:
        bound = binder.bind(node)
        value = binder.coerce(bound, ts.INT8, "assignment", position_of(node))
        if value is None:
            raise SqlError(
                "42804",
                f"argument of {clause} must be type bigint, not type {ts.type_name(bound.type)}",
                position=position_of(node),
            )
        if isinstance(value, Literal):
            if value.text is None:
                return None
            if value.text.startswith("-"):
                code = "2201W" if clause == "LIMIT" else "2201X"
                raise SqlError(code, f"{clause} must not be negative", position=position_of(node))
        return value

    # --- set operations and VALUES

    def _set_operation(self, node: exp.SetOperation, parent: Scope | None) -> SetQuery:
        for side in (node, node.this, node.args["expression"]):
            if side.args.get("locks"):
                name = strength_of(side.args["locks"][0]).upper()
                text = f"FOR {name} is not allowed with UNION/INTERSECT/EXCEPT"
                raise SqlError("0A000", text)
        kind = {exp.Union: "union", exp.Intersect: "intersect", exp.Except: "except"}[type(node)]
        left = QueryBinder(self.context, self.ctes).query(node.this, parent, settle=False)
        right = QueryBinder(self.context, self.ctes).query(
            node.args["expression"], parent, settle=False
        )
        query = self._combine(kind, not node.args.get("distinct"), left, right, position_of(node))
        order = node.args.get("order")
        if order is not None:
            query.order = [self._position_key(item, query.outputs) for item in order.expressions]
        self._limits(node, query)
        return query

    def _position_key(self, item: exp.Expression, outputs: list[Output]) -> tuple[int, bool, bool]:
        names = [out.name for out in outputs]
        value = item.this
        if isinstance(value, exp.Literal) and str(value.this).isdigit():
            at = int(str(value.this)) - 1
            if not 0 <= at < len(outputs):
                raise SqlError(
                    "42P10",
                    f"ORDER BY position {at + 1} is not in select list",
                    position=position_of(value),
                )
        elif isinstance(value, exp.Column) and name_of(value.this) in names:
            at = names.index(name_of(value.this))
        else:
            raise SqlError(
                "0A000",
                "invalid UNION/INTERSECT/EXCEPT ORDER BY clause",
                detail="Only result column names can be used, not expressions or functions.",
                position=position_of(value),
            )
        return at, bool(item.args.get("desc")), bool(item.args.get("nulls_first"))

    def _combine(self, kind: str, all_: bool, left: Query, right: Query, position: int) -> SetQuery:
        if len(left.outputs) != len(right.outputs):
            raise SqlError(
                "42601",
                f"each {kind.upper()} query must have the same number of columns",
                position=position,
            )
        outputs = []
        for at, (one, two) in enumerate(zip(left.outputs, right.outputs, strict=True)):
            wanted = ts.common_type([one.value.type, two.value.type])
            if wanted is None:
                raise SqlError(
                    "42804",
                    f"{kind.upper()} types {ts.type_name(one.value.type)} and "
                    f"{ts.type_name(two.value.type)} cannot be matched",
                    position=position,
                )
            if one.value.type.code != wanted.code:
                left = self.converted(left, at, wanted)
            if two.value.type.code != wanted.code:
                right = self.converted(right, at, wanted)
            outputs.append(Output(one.name, ColumnRef(wanted, "", at, one.name)))
        return SetQuery(kind, all_, left, right, outputs)

    def _values(self, node: exp.Values, parent: Scope | None) -> ValuesQuery:
        binder = ExpressionBinder(self, Scope(parent=parent), "VALUES", windows=False)
        rows = [
            [
                binder.bind(item)
                for item in (row.expressions if isinstance(row, exp.Tuple) else [row])
            ]
            for row in node.expressions
        ]
        if any(len(row) != len(rows[0]) for row in rows):
            raise SqlError("42601", "VALUES lists must all be the same length")
        columns = [
            binder.common([row[at] for row in rows], "VALUES", position_of(node))
            for at in range(len(rows[0]))
        ]
        rows = [list(row) for row in zip(*columns, strict=True)]
        outputs = [
            Output(f"column{at + 1}", ColumnRef(value.type, "", at, f"column{at + 1}"))
            for at, value in enumerate(rows[0])
        ]
        query = ValuesQuery(rows, outputs)
        order = node.args.get("order")
        if order is not None:
            query.order = [self._position_key(item, outputs) for item in order.expressions]
        self._limits(node, query)
        return query


def _plain_output(column: ScopeColumn) -> Output:
    return Output(column.name, column.value, column.table_id, column.attnum)
