"""EXPLAIN: a plan as indented lines of text, with the ranges and nodes it will use.

Ranges that depend on parameters are shown as all those the table has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from coordinator.catalog import Catalog
from coordinator.plan.bounds import one_column_table
from coordinator.plan.plans import (
    AdvisoryPlan,
    BoundProgram,
    LockPlan,
    Plan,
    QueryPlan,
    RowPlan,
    ScanStage,
    WritePlan,
)
from shardb import program as rp
from shardb._core.coreerror import CoreError
from shardb._core.rowprog import Program
from shardb.errors import SqlError
from shardb.meta.descriptors import Range, Table

_COLUMN: Final = re.compile(r"'(?:[^']|'')*'|\bc(\d+)\b")


def explain_lines(plan: Plan, catalog: Catalog) -> list[str]:
    """The lines of EXPLAIN for `plan`."""
    if isinstance(plan, RowPlan):
        return _row_plan(plan, catalog)
    if isinstance(plan, QueryPlan):
        return _query_plan(plan, catalog, "Final Stage on coordinator")
    if isinstance(plan, LockPlan):
        names = ", ".join(catalog.table(lock.table_id).name for lock in plan.locks)
        lines = [f"Lock Rows of {names} for {plan.strength}"]
        return lines + _indent(_query_plan(plan.query, catalog, "Final Stage on coordinator"), "->")
    if isinstance(plan, AdvisoryPlan):
        names = ", ".join(item.name for item in plan.items if not isinstance(item, int))
        return [f"Advisory Locks: {names}"]
    if isinstance(plan, WritePlan):
        table = catalog.table(plan.table_id)
        lines = [f"{plan.kind.capitalize()} on {table.name} by query"]
        return lines + _indent(_query_plan(plan.query, catalog, "Final Stage on coordinator"), "->")
    return [plan.kind]


def _row_plan(plan: RowPlan, catalog: Catalog) -> list[str]:
    spec = plan.program
    table = catalog.table(spec.table_id)
    kind = {"select": "Select", "insert": "Insert", "update": "Update", "delete": "Delete"}
    lines = [f"Row Program: {kind[spec.kind]} on {table.name}"]
    if spec.kind == "insert":
        lines.append(f"  Rows: {len(spec.rows)}")
        if spec.conflict is not None:
            action = "update" if spec.conflict.assignments else "nothing"
            lines.append(f"  On Conflict: do {action}")
        return [*lines, "  " + _shards(table, catalog.ranges_for(table.group_id), catalog)]
    lines.append("  Key: " + key_text(spec.key, table))
    if spec.filter is not None:
        lines.append("  Filter: " + expression_text(spec.filter, table))
    if spec.reverse:
        lines.append("  Order: backward")
    if spec.limit is not None:
        lines.append("  Limit: " + expression_text(spec.limit, table))
    if spec.aggregates:
        lines.append("  Aggregate: " + ", ".join(a.function for a in spec.aggregates))
    return [*lines, "  " + _shards(table, ranges_of(spec, table, catalog), catalog)]


def _query_plan(plan: QueryPlan, catalog: Catalog, title: str) -> list[str]:
    lines = [title, f"  Query: {plan.sql}"]
    for name in plan.catalog_tables:
        lines.append(f"  -> Catalog Table {name}")
    for _, locked in plan.locked:
        lines += ["  " + line for line in _indent(explain_lines(locked, catalog), "->")]
    for stage in plan.scans:
        lines += ["  " + line for line in _indent(_scan(stage, catalog), "->")]
    return lines


def _scan(stage: ScanStage, catalog: Catalog) -> list[str]:
    table = catalog.table(stage.table_id)
    names = ", ".join(table.columns[at].name for at in stage.columns)
    lines = [f"Scan on {table.name} as {stage.alias}", f"  Columns: {names}"]
    ranges = catalog.ranges_for(table.group_id, stage.key_low, stage.key_high)
    if stage.key_program is not None:
        lines.append("  Key: " + key_text(stage.key_program.key, table))
        ranges = ranges_of(stage.key_program, table, catalog)
    if stage.filter:
        lines.append("  Filter: " + _named(stage.filter, table))
    if stage.bound_programs:
        lines.append("  Bounds: " + " and ".join(_bound(b, table) for b in stage.bound_programs))
    return [*lines, "  " + _shards(table, ranges, catalog)]


def _bound(bound: BoundProgram, table: Table) -> str:
    name = table.columns[bound.column].name
    return key_text(bound.program.key, one_column_table(bound, name))


def _indent(lines: list[str], mark: str) -> list[str]:
    return [f"{mark} {lines[0]}", *(f"   {line}" for line in lines[1:])]


def _named(sql: str, table: Table) -> str:
    def replace(match: re.Match[str]) -> str:
        number = match.group(1)
        if number is None or int(number) >= len(table.columns):
            return match.group()
        return table.columns[int(number)].name

    return _COLUMN.sub(replace, sql)


def _shards(table: Table, ranges: Iterable[Range], catalog: Catalog) -> str:
    used = list(ranges)
    total = len(catalog.ranges_for(table.group_id))
    nodes = ", ".join(
        f"node {node} ({', '.join(f'range {r.id}' for r in used if r.primary == node)})"
        for node in sorted({item.primary for item in used})
    )
    return f"Shards: {len(used)} of {total} ranges: {nodes or 'none'}"


def ranges_of(spec: rp.ProgramSpec, table: Table, catalog: Catalog) -> tuple[Range, ...]:
    """The ranges a program touches; all of the table's if that depends on parameters."""
    everything = catalog.ranges_for(table.group_id)
    if spec.params or spec.kind == "insert":
        return everything
    try:
        program = Program(spec, table)
        params = program.param_layout.encode([])
        if spec.key.points:
            found = {
                item.id: item
                for key in program.points(params)
                for item in [catalog.find_range(table.group_id, key)]
            }
            return tuple(sorted(found.values(), key=lambda item: item.start))
        interval = program.interval(params)
    except (SqlError, CoreError, NotImplementedError):
        return everything
    if interval is None:
        return ()
    return catalog.ranges_for(table.group_id, interval[0], interval[1])


def key_text(key: rp.Key, table: Table) -> str:
    """The key of a program in words of SQL."""
    names = [table.columns[at].name for at in table.primary_key]
    if key.points:
        if len(key.points) > 3:
            return f"{len(key.points)} points of ({', '.join(names)})"
        return " or ".join(
            "("
            + " and ".join(
                f"{name} = {expression_text(value, table)}"
                for name, value in zip(names, point, strict=True)
            )
            + ")"
            for point in key.points
        )
    parts = [
        f"{name} = {expression_text(value, table)}"
        for name, value in zip(names, key.prefix, strict=False)
    ]
    if key.low is not None:
        sign = ">=" if key.low_inclusive else ">"
        parts.append(f"{names[len(key.prefix)]} {sign} {expression_text(key.low, table)}")
    if key.high is not None:
        sign = "<=" if key.high_inclusive else "<"
        parts.append(f"{names[len(key.prefix)]} {sign} {expression_text(key.high, table)}")
    return " and ".join(parts) or "all"


def expression_text(node: rp.Expr, table: Table) -> str:
    """A program expression in words of SQL."""
    if isinstance(node, rp.Const):
        if node.text is None:
            return "NULL"
        return (
            node.text if node.text.lstrip("-").replace(".", "", 1).isdigit() else (f"'{node.text}'")
        )
    if isinstance(node, rp.Param):
        return f"${node.index + 1}"
    if isinstance(node, rp.Col):
        width = len(table.columns)
        prefix = "excluded." if node.index >= width else ""
        return prefix + table.columns[node.index % width].name
    args = [expression_text(arg, table) for arg in node.args]
    if len(args) == 2 and not node.op[0].isalpha():
        return f"({args[0]} {node.op} {args[1]})"
    if node.op in ("and", "or"):
        return "(" + f" {node.op} ".join(args) + ")"
    if node.op == "cast":
        return args[0]
    return f"{node.op}({', '.join(args)})"
