"""Rule: of a table only the columns that something uses are read."""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.sql.tree import ColumnRef, Expression, Query
from coordinator.sql.walk import all_expressions, expressions


def needed_columns(query: Query, filters: dict[str, list[Expression]]) -> dict[str, set[int]]:
    """The column positions used of every relation, by alias."""
    needed: dict[str, set[int]] = {}
    _collect(all_expressions(query), needed)
    for nodes in filters.values():
        for node in nodes:
            _collect(expressions(node), needed)
    return needed


def _collect(nodes: Iterable[Expression], needed: dict[str, set[int]]) -> None:
    for node in nodes:
        if isinstance(node, ColumnRef) and node.position >= 0:
            needed.setdefault(node.source, set()).add(node.position)
