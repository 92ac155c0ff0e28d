"""Walks and rewrites bound trees."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from coordinator.sql.tree import (
    AggregateCall,
    Call,
    Derived,
    Expression,
    FunctionScan,
    Join,
    Query,
    Relation,
    Scan,
    SelectQuery,
    SetQuery,
    SortKey,
    SubqueryCall,
    WindowCall,
)


def children(node: Expression) -> tuple[Expression, ...]:
    """The direct operands of an expression; a subquery's inside is not among them."""
    if isinstance(node, Call):
        return node.args
    if isinstance(node, AggregateCall):
        extra = (node.filter,) if node.filter is not None else ()
        return (*node.args, *extra, *(key.value for key in node.order))
    if isinstance(node, WindowCall):
        return (node.function, *node.partition, *(key.value for key in node.order))
    if isinstance(node, SubqueryCall):
        return node.probe
    return ()


def expressions(node: Expression) -> Iterator[Expression]:
    """The node and all below it, subqueries' insides left out."""
    yield node
    for child in children(node):
        yield from expressions(child)


def own_expressions(query: Query) -> Iterator[Expression]:
    """The expressions written in this query block itself, not in subqueries or FROM subqueries."""
    if query.limit is not None:
        yield query.limit
    if query.offset is not None:
        yield query.offset
    if isinstance(query, SelectQuery):
        for output in query.outputs:
            yield output.value
        yield from query.where
        yield from query.group
        yield from query.distinct_on
        if query.having is not None:
            yield query.having
        for key in query.order:
            yield key.value
        if query.source is not None:
            for relation in relations(query.source):
                if isinstance(relation, Join) and relation.on is not None:
                    yield relation.on
                elif isinstance(relation, FunctionScan):
                    yield from relation.args
    elif not isinstance(query, SetQuery):
        for row in query.rows:
            yield from row


def relations(relation: Relation) -> Iterator[Relation]:
    """The relation and, of a join, all below."""
    yield relation
    if isinstance(relation, Join):
        yield from relations(relation.left)
        yield from relations(relation.right)


def queries(query: Query) -> Iterator[Query]:
    """The query and all queries inside it: WITH, FROM, set operands and expressions."""
    yield query
    for cte in query.ctes:
        yield from queries(cte.query)
    if isinstance(query, SetQuery):
        yield from queries(query.left)
        yield from queries(query.right)
    if isinstance(query, SelectQuery) and query.source is not None:
        for relation in relations(query.source):
            if isinstance(relation, Derived):
                yield from queries(relation.query)
    for root in own_expressions(query):
        for node in expressions(root):
            if isinstance(node, SubqueryCall):
                yield from queries(node.query)


def all_expressions(query: Query) -> Iterator[Expression]:
    """Every expression node anywhere in the query."""
    for one in queries(query):
        for root in own_expressions(one):
            yield from expressions(root)


def scans(query: Query) -> Iterator[Scan]:
    """Every table scan anywhere in the query."""
    for one in queries(query):
        if isinstance(one, SelectQuery) and one.source is not None:
            for relation in relations(one.source):
                if isinstance(relation, Scan):
                    yield relation


def rewrite(node: Expression, change: Callable[[Expression], Expression | None]) -> Expression:
    """A copy with every subtree replaced for which `change` returns something, top down."""
    changed = change(node)
    if changed is not None:
        return changed
    if isinstance(node, Call):
        return Call(node.type, node.op, tuple(rewrite(arg, change) for arg in node.args))
    if isinstance(node, AggregateCall):
        return AggregateCall(
            node.type,
            node.function,
            tuple(rewrite(arg, change) for arg in node.args),
            node.distinct,
            None if node.filter is None else rewrite(node.filter, change),
            tuple(_rewrite_key(key, change) for key in node.order),
        )
    if isinstance(node, WindowCall):
        function = rewrite(node.function, change)
        assert isinstance(function, (Call, AggregateCall))
        return WindowCall(
            node.type,
            function,
            tuple(rewrite(item, change) for item in node.partition),
            tuple(_rewrite_key(key, change) for key in node.order),
            node.frame,
        )
    if isinstance(node, SubqueryCall):
        probe = tuple(rewrite(item, change) for item in node.probe)
        return SubqueryCall(node.type, node.kind, node.query, probe, node.operator, node.negated)
    return node


def _rewrite_key(key: SortKey, change: Callable[[Expression], Expression | None]) -> SortKey:
    return SortKey(rewrite(key.value, change), key.descending, key.nulls_first)
