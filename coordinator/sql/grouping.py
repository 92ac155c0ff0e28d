"""The rule of GROUP BY: what is selected must be grouped by, aggregated or follow from a key."""

from __future__ import annotations

from coordinator.sql.scope import Scope
from coordinator.sql.tree import (
    AggregateCall,
    ColumnRef,
    Expression,
    Scan,
    SelectQuery,
    SubqueryCall,
)
from coordinator.sql.walk import all_expressions, children, relations
from shardb.errors import SqlError
from shardb.program import TypeRef


def check_grouping(query: SelectQuery, scope: Scope) -> None:
    """Raises 42803 for an ungrouped column; groups also by what a primary key determines."""
    own = {
        relation.alias
        for relation in (relations(query.source) if query.source is not None else ())
        if not hasattr(relation, "on")
    }
    extend_by_keys(query)
    grouped = set(query.group)
    roots = [output.value for output in query.outputs]
    roots += [key.value for key in query.order]
    if query.having is not None:
        roots.append(query.having)
    roots += query.distinct_on
    for root in roots:
        _check(root, grouped, own, scope)


def extend_by_keys(query: SelectQuery) -> None:
    """Groups also by the other columns of tables whose whole primary key is grouped by."""
    if query.source is None:
        return
    for relation in relations(query.source):
        if not isinstance(relation, Scan) or relation.table.has_hidden_key:
            continue
        positions = {
            node.position
            for node in query.group
            if isinstance(node, ColumnRef) and node.source == relation.alias
        }
        if not set(relation.table.primary_key) <= positions:
            continue
        used = {
            node.position: node
            for output in [*query.outputs]
            for node in _columns(output.value)
            if node.source == relation.alias
        }
        for key in (*query.order,):
            used |= {n.position: n for n in _columns(key.value) if n.source == relation.alias}
        if query.having is not None:
            used |= {n.position: n for n in _columns(query.having) if n.source == relation.alias}
        for position, node in used.items():
            if position not in positions:
                column = relation.table.columns[position]
                ref = TypeRef(column.type_code, column.typmod)
                query.group.append(ColumnRef(ref, relation.alias, position, node.label))


def _columns(node: Expression) -> list[ColumnRef]:
    if isinstance(node, AggregateCall):
        return []
    if isinstance(node, ColumnRef):
        return [node]
    return [found for child in children(node) for found in _columns(child)]


def _check(node: Expression, grouped: set[Expression], own: set[str], scope: Scope) -> None:
    if node in grouped or isinstance(node, AggregateCall):
        return
    if isinstance(node, ColumnRef):
        if node.source in own:
            raise _ungrouped(node, scope)
        return
    if isinstance(node, SubqueryCall):
        for inner in all_expressions(node.query):
            if isinstance(inner, ColumnRef) and inner.source in own and inner not in grouped:
                raise SqlError(
                    "42803", f'subquery uses ungrouped column "{inner.label}" from outer query'
                )
    for child in children(node):
        _check(child, grouped, own, scope)


def _ungrouped(node: ColumnRef, scope: Scope) -> SqlError:
    name = node.label
    for relation in scope.relations:
        if any(column.value == node for column in relation.columns):
            name = f"{relation.name}.{node.label}" if relation.name else node.label
            break
    return SqlError(
        "42803",
        f'column "{name}" must appear in the GROUP BY clause or be used in an aggregate function',
        position=node.at,
    )
