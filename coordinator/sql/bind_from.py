"""Binds FROM clauses: tables, joins, subqueries and functions become relations and a scope."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from coordinator.sql import catalog_tables
from coordinator.sql import typesystem as ts
from coordinator.sql.bind_expr import ExpressionBinder, name_of
from coordinator.sql.context import Context
from coordinator.sql.parse import position_of
from coordinator.sql.scope import RelationScope, Scope, ScopeColumn
from coordinator.sql.tree import (
    Call,
    CatalogScan,
    ColumnRef,
    CteScan,
    Derived,
    Expression,
    FunctionScan,
    Join,
    Output,
    Query,
    Relation,
    Scan,
    ValuesQuery,
)
from shardb.errors import SqlError, unsupported
from shardb.meta.descriptors import Table
from shardb.program import TypeRef
from shardb.types import TypeCode as T

if TYPE_CHECKING:
    from coordinator.sql.bind_query import QueryBinder


class FromBinder:
    """The FROM half of a `QueryBinder`."""

    context: Context
    ctes: dict[str, tuple[str, list[Output]]]

    def nested(self, node: exp.Expression, scope: Scope | None) -> Query:
        """A subquery in FROM."""
        raise NotImplementedError

    def _query_binder(self) -> QueryBinder:
        raise NotImplementedError

    def _from(self, node: exp.Expression, scope: Scope) -> Relation | None:
        clause = node.args.get("from_")
        joins = list(node.args.get("joins") or ())
        if clause is None:
            return None
        return self.join_chain(clause.this, joins, scope)

    def join_chain(
        self, first: exp.Expression, joins: list[exp.Expression], scope: Scope
    ) -> Relation:
        """A table and the joins that follow it."""
        relation = self._relation(first, scope)
        for nested in first.args.get("joins") or ():
            relation = self._join(relation, nested, scope)
        for join in joins:
            relation = self._join(relation, join, scope)
        return relation

    def _join(self, left: Relation, node: exp.Expression, scope: Scope) -> Relation:
        seen = len(scope.relations)
        left_columns = list(scope.columns)
        right = self._relation(node.this, scope)
        for nested in node.this.args.get("joins") or ():
            right = self._join(right, nested, scope)
        method = str(node.args.get("method") or "").upper()
        side = str(node.args.get("side") or "").lower()
        kind = str(node.args.get("kind") or "").lower()
        if method not in ("", "NATURAL") or kind not in ("", "inner", "outer", "cross"):
            raise unsupported(f"{method} {kind} JOIN".strip())
        join_kind = side or ("cross" if kind == "cross" else "inner")
        on = node.args.get("on")
        using = [name_of(item) for item in node.args.get("using") or ()]
        right_columns = [c for r in scope.relations[seen:] for c in r.columns]
        if method == "NATURAL":
            names = {c.name for c in right_columns}
            using = [c.name for c in left_columns if c.name in names]
        condition: Expression | None = None
        if using:
            condition = self._using(using, left_columns, right_columns, join_kind, scope)
        elif on is not None:
            binder = ExpressionBinder(self._query_binder(), scope, "JOIN conditions", windows=False)
            condition = binder.boolean(on, "JOIN/ON")
        if condition is None and join_kind == "inner":
            join_kind = "cross"
        return Join(join_kind, left, right, condition)

    def _using(
        self,
        names: list[str],
        left: list[ScopeColumn],
        right: list[ScopeColumn],
        kind: str,
        scope: Scope,
    ) -> Expression:
        merged, parts = [], []
        for name in names:
            pair = []
            for side, label in ((left, "left"), (right, "right")):
                found = [c for c in side if c.name == name]
                if not found:
                    raise SqlError(
                        "42703",
                        f'column "{name}" specified in USING clause does not '
                        f"exist in {label} table",
                    )
                if len(found) > 1:
                    raise SqlError(
                        "42702",
                        f'common column name "{name}" appears more than once in {label} table',
                    )
                pair.append(found[0])
            one, two = self.context.operators.comparable("=", pair[0].value, pair[1].value, 0)
            parts.append(Call(ts.BOOL, "=", (one, two)))
            value = pair[1].value if kind == "right" else pair[0].value
            if kind == "full":
                value = Call(one.type, "coalesce", (one, two))
            merged.append(ScopeColumn(name, value, pair[0].table_id, pair[0].attnum))
        rest = [c for c in (*left, *right) if c.name not in names]
        scope.columns = merged + rest
        return parts[0] if len(parts) == 1 else Call(ts.BOOL, "and", tuple(parts))

    def _relation(self, node: exp.Expression, scope: Scope) -> Relation:
        alias_node = node.args.get("alias")
        alias = name_of(alias_node.this) if alias_node is not None and alias_node.this else ""
        names = (
            [name_of(c) for c in alias_node.args.get("columns") or ()]
            if alias_node is not None
            else []
        )
        position = position_of(node)
        if isinstance(node, exp.Lateral):
            return self._derived(node.this, scope, alias, names, lateral=True)
        if isinstance(node, (exp.Subquery, exp.Values)):
            if isinstance(node, exp.Subquery) and isinstance(node.this, exp.Table):
                return self.join_chain(node.this, [], scope)
            return self._derived(node, scope, alias, names, lateral=False)
        if isinstance(node, exp.Table):
            if node.args.get("sample") or node.args.get("version"):
                raise unsupported("TABLESAMPLE")
            if isinstance(node.this, (exp.Anonymous, exp.Func)):
                return self._function(node.this, scope, alias, names)  # type: ignore[arg-type]
            return self._table(node, scope, alias, names, position)
        if isinstance(node, (exp.Anonymous, exp.Unnest)):
            return self._function(node, scope, alias, names)
        raise unsupported(f"{type(node).__name__.upper()} in FROM")

    def _table(
        self, node: exp.Table, scope: Scope, alias: str, names: list[str], position: int
    ) -> Relation:
        name, schema = name_of(node.this), name_of(node.args.get("db"))
        source = self.context.alias()
        if not schema and name in self.ctes:
            engine_name, outputs = self.ctes[name]
            columns = [
                ScopeColumn(out.name, ColumnRef(out.value.type, source, at, out.name))
                for at, out in enumerate(outputs)
            ]
            self._add(scope, alias or name, columns, names, position)
            return CteScan(source, engine_name)
        table = self.context.catalog.lookup(name, schema)
        if table is not None:
            self._add(scope, alias or name, table_columns(table, source), names, position)
            return Scan(source, table)
        virtual = catalog_tables.find(name, schema)
        if virtual is not None:
            columns = [
                ScopeColumn(label, ColumnRef(ref, source, at, label))
                for at, (label, ref) in enumerate(virtual.columns)
            ]
            self._add(scope, alias or name, columns, names, position)
            return CatalogScan(source, virtual.name)
        label = f"{schema}.{name}" if schema else name
        raise SqlError("42P01", f'relation "{label}" does not exist', position=position)

    def _derived(
        self, node: exp.Expression, scope: Scope, alias: str, names: list[str], lateral: bool
    ) -> Relation:
        inner = node
        if isinstance(node, exp.Subquery) and node.args.get("alias") is not None:
            inner = node.copy()
            inner.set("alias", None)
            inner.set("joins", None)
        if isinstance(node, exp.Values) and node.args.get("alias") is not None:
            inner = node.copy()
            inner.set("alias", None)
        query = self.nested(inner, scope if lateral else scope.parent)
        source = self.context.alias()
        columns = [
            ScopeColumn(
                out.name, ColumnRef(out.value.type, source, at, out.name), out.table_id, out.attnum
            )
            for at, out in enumerate(query.outputs)
        ]
        self._add(scope, alias, columns, names, 0)
        return Derived(source, query, lateral)

    def _function(
        self, node: exp.Expression, scope: Scope, alias: str, names: list[str]
    ) -> Relation:
        name = str(node.this).lower() if isinstance(node, exp.Anonymous) else "function"
        if name == "unnest" or isinstance(node, exp.Unnest):
            return self._unnest(node, scope, alias or "unnest", names)
        if name != "generate_series":
            raise SqlError(
                "42883", f"function {name} does not exist in FROM", position=position_of(node)
            )
        binder = ExpressionBinder(self._query_binder(), scope, "functions in FROM", windows=False)
        args = [binder.bind(arg) for arg in node.expressions]
        if not 2 <= len(args) <= 3:
            raise SqlError(
                "42883",
                "function generate_series takes two or three arguments",
                position=position_of(node),
            )
        if args[0].type.code in ts.MOMENTS:
            first = [binder.coerce(a, ts.TIMESTAMP, "assignment") for a in args[:2]]
            step = binder.coerce(args[2], ts.INTERVAL, "implicit") if len(args) > 2 else None
            typed, ref = [*first, step], ts.TIMESTAMP
        else:
            wanted = ts.common_type([arg.type for arg in args])
            ref = ts.INT8 if wanted is not None and wanted.code == T.INT8 else ts.INT4
            typed = [binder.coerce(arg, ref, "implicit", position_of(node)) for arg in args]
        if any(arg is None for arg in typed):
            raise SqlError(
                "42883",
                "function generate_series does not take these types",
                position=position_of(node),
            )
        source = self.context.alias()
        label = alias or name
        column = ScopeColumn(label, ColumnRef(ref, source, 0, label))
        self._add(scope, label, [column], names, 0)
        return FunctionScan(source, name, tuple(arg for arg in typed if arg is not None))

    def _unnest(self, node: exp.Expression, scope: Scope, alias: str, names: list[str]) -> Relation:
        binder = ExpressionBinder(self._query_binder(), scope, "functions in FROM", windows=False)
        if len(node.expressions) != 1:
            raise unsupported("unnest() of several arrays")
        source = self.context.alias()
        items = binder.arrays.elements(node.expressions[0])
        if items:
            items = binder.common(items, "ARRAY", position_of(node))
            ref = items[0].type
            column = ColumnRef(ref, source, 0, alias)
            values = ValuesQuery([[item] for item in items], [Output(alias, column)])
            self._add(scope, alias, [ScopeColumn(alias, column)], names, 0)
            return Derived(source, values)
        array = self.context.coercer.settle(binder.bind(node.expressions[0]))
        if array.type.code != T.TEXT:
            raise SqlError(
                "42883",
                f"function unnest({ts.type_name(array.type)}) does not exist",
                position=position_of(node),
            )
        self._add(
            scope, alias, [ScopeColumn(alias, ColumnRef(ts.TEXT, source, 0, alias))], names, 0
        )
        return FunctionScan(source, "unnest", (Call(ts.TEXT, "array_list", (array,)),))

    @staticmethod
    def _add(
        scope: Scope, name: str, columns: list[ScopeColumn], names: list[str], position: int
    ) -> None:
        if len(names) > len(columns):
            raise SqlError(
                "42P10",
                f'table "{name}" has {len(columns)} columns available but '
                f"{len(names)} columns specified",
                position=position,
            )
        renamed = [
            ScopeColumn(names[at] if at < len(names) else c.name, c.value, c.table_id, c.attnum)
            for at, c in enumerate(columns)
        ]
        scope.add(RelationScope(name, renamed), position)


def table_columns(table: Table, source: str) -> list[ScopeColumn]:
    """The visible columns of a table under the engine name `source`."""
    return [
        ScopeColumn(
            column.name,
            ColumnRef(TypeRef(column.type_code, column.typmod), source, at, column.name),
            table.id,
            column.id,
        )
        for at, column in enumerate(table.columns)
        if not column.hidden
    ]
