"""The names PostgreSQL gives to result columns without an alias."""

from __future__ import annotations

from sqlglot import exp

from coordinator.sql import typesystem as ts
from coordinator.sql.arrays import element_type
from coordinator.sql.bind_expr import data_type, name_of
from shardb.types import TypeCode as T


def output_name(node: exp.Expression) -> str:
    """The name PostgreSQL gives an unnamed result column."""
    if isinstance(node, exp.Column):
        return name_of(node.this)
    if isinstance(node, exp.Cast):
        inner = node.this.this if isinstance(node.this, exp.Paren) else node.this
        named = isinstance(inner, (exp.Column, exp.Anonymous, exp.Case, exp.Window))
        return output_name(inner) if named else _cast_name(node)
    if isinstance(node, exp.Anonymous):
        return str(node.this).lower()
    if isinstance(node, (exp.Window, exp.Filter, exp.Paren, exp.Collate)):
        return output_name(node.this)
    if isinstance(node, exp.Dot):
        return output_name(node.args["expression"])
    if isinstance(node, exp.Case):
        default = node.args.get("default")
        return name_of(default.this) if isinstance(default, exp.Column) else "case"
    if isinstance(node, (exp.Subquery, exp.Select)):
        inner_select = node.this if isinstance(node, exp.Subquery) else node
        if isinstance(inner_select, exp.Select) and inner_select.expressions:
            first = inner_select.expressions[0]
            return (
                name_of(first.args["alias"])
                if isinstance(first, exp.Alias)
                else (output_name(first))
            )
    fixed = {
        exp.Exists: "exists",
        exp.Extract: "extract",
        exp.Substring: "substring",
        exp.Trim: "btrim",
        exp.StrPosition: "position",
        exp.GroupConcat: "string_agg",
        exp.CurrentDate: "current_date",
        exp.Ceil: "ceil",
        exp.Floor: "floor",
        exp.CurrentTimestamp: "current_timestamp",
        exp.Interval: "interval",
        exp.Localtimestamp: "localtimestamp",
        exp.CurrentUser: "current_user",
        exp.SessionUser: "session_user",
        exp.CurrentSchema: "current_schema",
        exp.CurrentCatalog: "current_catalog",
        exp.AtTimeZone: "timezone",
        exp.Array: "array",
    }
    return fixed.get(type(node), "?column?")


def _cast_name(node: exp.Cast) -> str:
    names = {
        T.INT2: "int2",
        T.INT4: "int4",
        T.INT8: "int8",
        T.FLOAT4: "float4",
        T.FLOAT8: "float8",
        T.BOOL: "bool",
        T.VARCHAR: "varchar",
        T.BPCHAR: "bpchar",
        T.TIMESTAMP: "timestamp",
        T.TIMESTAMPTZ: "timestamptz",
        T.TIME: "time",
    }
    ref = data_type(element_type(node.args["to"]) or node.args["to"])
    return names.get(T(ref.code), ts.type_name(ref))
