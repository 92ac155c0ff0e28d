"""Binds INSERT, UPDATE and DELETE."""

from __future__ import annotations

from typing import Final

from sqlglot import exp

from coordinator.sql import catalog_tables
from coordinator.sql import typesystem as ts
from coordinator.sql.bind_expr import ExpressionBinder, name_of
from coordinator.sql.bind_from import table_columns
from coordinator.sql.bind_query import QueryBinder
from coordinator.sql.context import Context
from coordinator.sql.parse import parse_expression, position_of
from coordinator.sql.scope import RelationScope, Scope
from coordinator.sql.tree import (
    ColumnRef,
    Cte,
    DeleteStatement,
    Derived,
    Expression,
    InsertStatement,
    Join,
    Literal,
    Output,
    Query,
    Relation,
    Scan,
    SelectQuery,
    UpdateStatement,
)
from shardb.errors import SqlError, unsupported
from shardb.meta.descriptors import Column, Table
from shardb.program import TypeRef
from shardb.types import TypeCode as T

EXCLUDED: Final = "excluded"


def column_type(column: Column) -> TypeRef:
    """A column's type."""
    return TypeRef(column.type_code, column.typmod)


class DmlBinder:
    """Binds one data-changing statement."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.query = QueryBinder(context, {})

    def bind(self, node: exp.Expression) -> InsertStatement | UpdateStatement | DeleteStatement:
        """The bound form of an Insert, Update or Delete node."""
        ctes = self._ctes(node)
        if isinstance(node, exp.Insert):
            return self._insert(node, ctes)
        if isinstance(node, exp.Update):
            return self._update(node, ctes)
        assert isinstance(node, exp.Delete)
        return self._delete(node, ctes)

    def default(self, column: Column) -> Expression:
        """A column's default, converted to its type; NULL if it has none."""
        if column.default is None:
            return Literal(column_type(column), None)
        node = parse_expression(column.default)
        binder = ExpressionBinder(self.query, Scope(), "DEFAULT expressions", windows=False)
        return self._assign(binder.bind(node), column, 0, "default expression")

    def _ctes(self, node: exp.Expression) -> list[Cte]:
        with_ = node.args.get("with_")
        if with_ is None:
            return []
        return [
            self.query.cte(cte, bool(with_.args.get("recursive")), None)
            for cte in with_.expressions
        ]

    def _target(self, node: exp.Expression) -> tuple[Table, str]:
        position = position_of(node)
        name, schema = name_of(node.this), name_of(node.args.get("db"))
        table = self.context.catalog.lookup(name, schema)
        if table is None:
            if catalog_tables.find(name, schema) is not None:
                raise SqlError("42501", f"permission denied for table {name}", position=position)
            label = f"{schema}.{name}" if schema else name
            raise SqlError("42P01", f'relation "{label}" does not exist', position=position)
        alias = node.args.get("alias")
        return table, name_of(alias.this) if alias is not None else name

    def _column(self, table: Table, node: exp.Expression) -> int:
        identifier = node.this if isinstance(node, exp.Column) else node
        name = name_of(identifier)
        for at, column in enumerate(table.columns):
            if column.name == name and not column.hidden:
                return at
        raise SqlError(
            "42703",
            f'column "{name}" of relation "{table.name}" does not exist',
            position=position_of(node),
        )

    def _assign(
        self, value: Expression, column: Column, position: int, what: str = "expression"
    ) -> Expression:
        target = column_type(column)
        converted = self.query.context.coercer.coerce(value, target, "assignment", position)
        if converted is None:
            raise SqlError(
                "42804",
                f'column "{column.name}" is of type {ts.type_name(target)} but '
                f"{what} is of type {ts.type_name(value.type)}",
                hint="You will need to rewrite or cast the expression.",
                position=position,
            )
        return converted

    # --- INSERT

    def _insert(self, node: exp.Insert, ctes: list[Cte]) -> InsertStatement:
        schema = node.this
        target_node = schema.this if isinstance(schema, exp.Schema) else schema
        table, alias = self._target(target_node)
        positions = [at for at, column in enumerate(table.columns) if not column.hidden]
        explicit = isinstance(schema, exp.Schema)
        if explicit:
            positions = [self._column(table, item) for item in schema.expressions]
            for item, at in zip(schema.expressions, positions, strict=True):
                if positions.count(at) > 1:
                    raise SqlError(
                        "42701",
                        f'column "{table.columns[at].name}" specified more than once',
                        position=position_of(item),
                    )
        rows: list[list[Expression]] = []
        query: Query | None = None
        source = node.args.get("expression")
        plain_values = isinstance(source, exp.Values) and not any(
            source.args.get(key) for key in ("order", "limit", "offset", "with_")
        )
        if source is None:
            rows = [[self.default(c) for c in table.columns]]
        elif plain_values:
            rows = self._values(source, table, positions, explicit)
        else:
            query = self._insert_query(source, table, positions, explicit)
            query.ctes = ctes + query.ctes
        conflict, conflict_filter = self._conflict(node.args.get("conflict"), table, alias)
        returning = self._returning(node, self._scope(table, alias, "t"))
        return InsertStatement(table, "t", rows, query, conflict, conflict_filter, returning)

    def _values(
        self, source: exp.Expression, table: Table, positions: list[int], explicit: bool
    ) -> list[list[Expression]]:
        binder = ExpressionBinder(self.query, Scope(), "VALUES", windows=False)
        rows = []
        defaults: dict[int, Expression] = {}
        for item in source.expressions:
            values = item.expressions if isinstance(item, exp.Tuple) else [item]
            self._check_width(len(values), positions, explicit, item)
            row: list[Expression | None] = [None] * len(table.columns)
            for at, value in zip(positions, values, strict=False):
                if _is_default(value):
                    continue
                row[at] = self._assign(binder.bind(value), table.columns[at], position_of(value))
            for at, column in enumerate(table.columns):
                if row[at] is None:
                    if at not in defaults:
                        defaults[at] = self.default(column)
                    row[at] = defaults[at]
            rows.append([value for value in row if value is not None])
        return rows

    @staticmethod
    def _check_width(
        width: int, positions: list[int], explicit: bool, node: exp.Expression
    ) -> None:
        if width > len(positions):
            raise SqlError(
                "42601",
                "INSERT has more expressions than target columns",
                position=position_of(node),
            )
        if explicit and width < len(positions):
            raise SqlError(
                "42601",
                "INSERT has more target columns than expressions",
                position=position_of(node),
            )

    def _insert_query(
        self, source: exp.Expression, table: Table, positions: list[int], explicit: bool
    ) -> Query:
        inner = self.query.query(source, settle=False)
        self._check_width(len(inner.outputs), positions, explicit, source)
        for index, (at, out) in enumerate(zip(positions, inner.outputs, strict=False)):
            if out.value.type.code == T.UNKNOWN:
                inner = self.query.converted(inner, index, column_type(table.columns[at]))
        alias = self.context.alias()
        given = {
            at: self._assign(
                ColumnRef(out.value.type, alias, index, out.name), table.columns[at], 0
            )
            for index, (at, out) in enumerate(zip(positions, inner.outputs, strict=False))
        }
        outputs = [
            Output(column.name, given[at] if at in given else self.default(column))
            for at, column in enumerate(table.columns)
        ]
        return SelectQuery(outputs, Derived(alias, inner))

    def _conflict(
        self, node: exp.Expression | None, table: Table, alias: str
    ) -> tuple[list[tuple[int, Expression]] | None, Expression | None]:
        if node is None:
            return None, None
        nothing = str(node.args["action"].name).upper() == "DO NOTHING"
        keys = [
            key.this if isinstance(key, exp.Ordered) else key
            for key in node.args.get("conflict_keys") or ()
        ]
        constraint = node.args.get("constraint")
        if node.args.get("index_predicate") is not None:
            raise unsupported("ON CONFLICT with an index predicate")
        if constraint is not None:
            name = name_of(constraint)
            if name != (table.primary_key_name or f"{table.name}_pkey") or table.has_hidden_key:
                raise SqlError(
                    "42704", f'constraint "{name}" for table "{table.name}" does not exist'
                )
        elif keys:
            positions = {self._column(table, key) for key in keys}
            if positions != set(table.primary_key):
                raise SqlError(
                    "42P10",
                    "there is no unique or exclusion constraint matching the "
                    "ON CONFLICT specification",
                )
        elif not nothing:
            raise SqlError(
                "42601",
                "ON CONFLICT DO UPDATE requires inference specification or constraint name",
                hint="For example, ON CONFLICT (column_name).",
            )
        if nothing:
            return [], None
        scope = self._scope(table, alias, "t")
        excluded = RelationScope(EXCLUDED, table_columns(table, EXCLUDED))
        scope.relations.append(excluded)
        binder = ExpressionBinder(self.query, scope, "UPDATE", windows=False)
        assignments = self._assignments(node.expressions, table, binder)
        where = node.args.get("where")
        filter_ = binder.boolean(where.this, "WHERE") if where is not None else None
        return assignments, filter_

    # --- UPDATE and DELETE

    def _update(self, node: exp.Update, ctes: list[Cte]) -> UpdateStatement:
        table, alias = self._target(node.this)
        if node.args.get("order") or node.args.get("limit"):
            raise SqlError("42601", 'syntax error at or near "ORDER"')
        source_alias = self.context.alias()
        scope = self._scope(table, alias, source_alias)
        from_ = node.args.get("from_")
        source = None
        if from_ is not None:
            source = self.query.join_chain(from_.this, list(node.args.get("joins") or ()), scope)
        binder = ExpressionBinder(self.query, scope, "UPDATE", windows=False)
        assignments = self._assignments(node.expressions, table, binder)
        where = self._where(node, scope)
        returning = self._returning(node, scope)
        return UpdateStatement(
            Scan(source_alias, table), source, assignments, where, returning, ctes
        )

    def _assignments(
        self, items: list[exp.Expression], table: Table, binder: ExpressionBinder
    ) -> list[tuple[int, Expression]]:
        assignments: list[tuple[int, Expression]] = []
        for item in items:
            if not isinstance(item, exp.EQ):
                raise SqlError("42601", f'syntax error at or near "{item.sql()[:20]}"')
            left, right = item.this, item.args["expression"]
            if isinstance(left, (exp.Tuple, exp.Paren)):
                targets = left.expressions if isinstance(left, exp.Tuple) else [left.this]
                if not isinstance(right, (exp.Tuple, exp.Paren)):
                    raise unsupported("UPDATE of several columns from a subquery")
                values = right.expressions if isinstance(right, exp.Tuple) else [right.this]
                if len(targets) != len(values):
                    raise SqlError(
                        "42601",
                        "number of columns does not match number of values",
                        position=position_of(item),
                    )
            else:
                targets, values = [left], [right]
            for target, value in zip(targets, values, strict=True):
                at = self._column(table, target)
                if any(at == seen for seen, _ in assignments):
                    raise SqlError(
                        "42601",
                        f'multiple assignments to same column "{table.columns[at].name}"',
                        position=position_of(target),
                    )
                column = table.columns[at]
                if _is_default(value):
                    assignments.append((at, self.default(column)))
                    continue
                bound = self._assign(binder.bind(value), column, position_of(value))
                assignments.append((at, bound))
        return assignments

    def _delete(self, node: exp.Delete, ctes: list[Cte]) -> DeleteStatement:
        table, alias = self._target(node.this)
        source_alias = self.context.alias()
        scope = self._scope(table, alias, source_alias)
        source: Relation | None = None
        for item in node.args.get("using") or ():
            relation = self.query.join_chain(item, [], scope)
            source = relation if source is None else Join("cross", source, relation, None)
        where = self._where(node, scope)
        returning = self._returning(node, scope)
        return DeleteStatement(Scan(source_alias, table), source, where, returning, ctes)

    def _where(self, node: exp.Expression, scope: Scope) -> list[Expression]:
        where = node.args.get("where")
        if where is None:
            return []
        return ExpressionBinder(self.query, scope, "WHERE", windows=False).conjuncts(
            where.this, "WHERE"
        )

    def _scope(self, table: Table, alias: str, source: str) -> Scope:
        scope = Scope()
        scope.add(RelationScope(alias, table_columns(table, source)))
        return scope

    def _returning(self, node: exp.Expression, scope: Scope) -> list[Output]:
        returning = node.args.get("returning")
        if returning is None:
            return []
        binder = ExpressionBinder(self.query, scope, "RETURNING", windows=False)
        outputs = self.query.select_list(returning.expressions, binder)
        for output in outputs:
            output.value = self.context.coercer.settle(output.value)
        return outputs


def _is_default(node: exp.Expression) -> bool:
    if isinstance(node, exp.Var):
        return str(node.this).upper() == "DEFAULT"
    return (
        isinstance(node, exp.Column)
        and not node.args.get("table")
        and isinstance(node.this, exp.Identifier)
        and not node.this.args.get("quoted")
        and str(node.this.this).lower() == "default"
    )
