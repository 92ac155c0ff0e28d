"""CHECK constraints bound and translated: a condition must be what row programs can try."""

from __future__ import annotations

from dataclasses import dataclass

from sqlglot import exp

from coordinator.catalog import Catalog
from coordinator.plan.rowplan import Translator, Unfit
from coordinator.sql.bind_expr import ExpressionBinder
from coordinator.sql.bind_from import table_columns
from coordinator.sql.bind_query import QueryBinder
from coordinator.sql.context import Context
from coordinator.sql.parse import parse_expression
from coordinator.sql.scope import RelationScope, Scope
from coordinator.sql.tree import ColumnRef, Parameter
from coordinator.sql.walk import expressions
from shardb.errors import SqlError, unsupported
from shardb.meta.descriptors import Table
from shardb.program import Expr, NamedCheck


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition as a program's expression, and the positions of its columns in order."""

    expression: Expr
    columns: tuple[int, ...]


def bind_check(table: Table, text: str, catalog: Catalog) -> Condition:
    """The condition of a CHECK constraint; 0A000 if it needs more than row programs have."""
    node = parse_expression(text)
    if node.find(exp.Select) is not None:
        raise unsupported("a subquery in a check constraint")
    context = Context(catalog, text, [])
    scope = Scope()
    scope.add(RelationScope(table.name, table_columns(table, "t")))
    binder = ExpressionBinder(QueryBinder(context, {}), scope, "check constraints", windows=False)
    bound = binder.boolean(node, "CHECK")
    found = list(expressions(bound))
    if context.parameters.types:
        raise SqlError("42P02", "there is no parameter $1")
    if any(isinstance(one, Parameter) for one in found):
        raise unsupported("the present time in a check constraint")
    columns = {one.position for one in found if isinstance(one, ColumnRef)}
    try:
        expression = Translator(0, {"t": 0}).expression(bound)
    except Unfit:
        raise unsupported(
            f"the check constraint ({text}), which needs functions of queries"
        ) from None
    return Condition(expression, tuple(sorted(columns)))


def checks_of(table: Table, catalog: Catalog) -> tuple[NamedCheck, ...]:
    """A table's checks in the order in which PostgreSQL tries them, which is by name."""
    return tuple(
        NamedCheck(check.name, bind_check(table, check.text, catalog).expression)
        for check in sorted(table.checks, key=lambda check: check.name)
    )
