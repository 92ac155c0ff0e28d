"""Rule: a condition on one table's columns runs where the table's rows are.

A conjunct of WHERE or of an inner join's ON moves to the scan it speaks of. On the null-supplying
side of an outer join only the ON condition's own conjuncts may move, those of WHERE stay.
"""

from __future__ import annotations

from coordinator.sql.functions import VOLATILE
from coordinator.sql.tree import (
    AggregateCall,
    Call,
    ColumnRef,
    Expression,
    Join,
    Query,
    Relation,
    Scan,
    SelectQuery,
    SubqueryCall,
    WindowCall,
)
from coordinator.sql.walk import expressions, queries


def push_filters(query: Query, filters: dict[str, list[Expression]]) -> None:
    """Moves conditions out of `query` into `filters`, by scan alias."""
    for block in queries(query):
        if isinstance(block, SelectQuery) and block.source is not None:
            block.where = _push(block.where, _reachable(block.source), filters)
            _push_joins(block.source, filters)


def conjuncts(node: Expression) -> list[Expression]:
    """The parts of a conjunction."""
    if isinstance(node, Call) and node.op == "and":
        return [part for arg in node.args for part in conjuncts(arg)]
    return [node]


def _reachable(relation: Relation) -> set[str]:
    """Aliases of the scans that no outer join fills with NULLs."""
    if isinstance(relation, Scan):
        return {relation.alias}
    if not isinstance(relation, Join):
        return set()
    found: set[str] = set()
    if relation.kind in ("inner", "cross", "left"):
        found |= _reachable(relation.left)
    if relation.kind in ("inner", "cross", "right"):
        found |= _reachable(relation.right)
    return found


def _push_joins(relation: Relation, filters: dict[str, list[Expression]]) -> None:
    if not isinstance(relation, Join):
        return
    _push_joins(relation.left, filters)
    _push_joins(relation.right, filters)
    if relation.on is None or relation.kind == "full":
        return
    allowed: set[str] = set()
    if relation.kind in ("inner", "right"):
        allowed |= _reachable(relation.left)
    if relation.kind in ("inner", "left"):
        allowed |= _reachable(relation.right)
    rest = _push([relation.on], allowed, filters)
    if not rest:
        relation.on = None
        if relation.kind == "inner":
            relation.kind = "cross"
    else:
        relation.on = rest[0] if len(rest) == 1 else Call(rest[0].type, "and", tuple(rest))


def _push(
    nodes: list[Expression], allowed: set[str], filters: dict[str, list[Expression]]
) -> list[Expression]:
    rest = []
    for node in [part for one in nodes for part in conjuncts(one)]:
        alias = _only_source(node)
        if alias in allowed:
            filters.setdefault(alias, []).append(node)
        else:
            rest.append(node)
    return rest


def _only_source(node: Expression) -> str:
    """The one relation whose columns `node` uses; empty if it must stay where it is."""
    sources = set()
    for inner in expressions(node):
        if isinstance(inner, (SubqueryCall, AggregateCall, WindowCall)):
            return ""
        if isinstance(inner, Call) and inner.op in VOLATILE:
            return ""
        if isinstance(inner, ColumnRef):
            sources.add(inner.source)
    return sources.pop() if len(sources) == 1 else ""
