"""Bound trees as engine SQL.

The engine only ever sees text made here: names are generated, literals are quoted here, functions
come from our list. Where the engine's semantics differ from PostgreSQL's, the difference is made up
here (integer and decimal division, blank-padded strings, averages).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from coordinator.sql import functions as fn
from coordinator.sql import print_numeric
from coordinator.sql import typesystem as ts
from coordinator.sql.tree import (
    AggregateCall,
    Call,
    CatalogScan,
    ColumnRef,
    Cte,
    CteScan,
    Derived,
    Expression,
    FunctionScan,
    GivenRows,
    Join,
    Literal,
    Parameter,
    Query,
    Relation,
    Scan,
    SelectQuery,
    SetQuery,
    SortKey,
    SubqueryCall,
    WindowCall,
)
from shardb.errors import internal
from shardb.program import TypeRef
from shardb.types import TypeCode as T

_INFIX: Final = {
    "=": "=",
    "<>": "<>",
    "<": "<",
    "<=": "<=",
    ">": ">",
    ">=": ">=",
    "+": "+",
    "-": "-",
    "*": "*",
    "%": "%",
    "and": "AND",
    "or": "OR",
    "is_distinct": "IS DISTINCT FROM",
    "is_not_distinct": "IS NOT DISTINCT FROM",
    "&": "&",
    "|": "|",
    "<<": "<<",
    ">>": ">>",
}


_HIDDEN: Final = {-1: "_key", -2: "_ts"}  # a row's key and commit timestamp, for DML by query


def quote(text: str) -> str:
    """A string literal."""
    return "'" + text.replace("'", "''") + "'"


class Printer:
    """Prints one statement.

    `parameter` turns a parameter's index (-1 is now()) into its number in the plan. With `bare` the
    columns of every source print without a qualifier, for filters that run beside the data.
    """

    def __init__(self, parameter: Callable[[int], int], bare: bool = False) -> None:
        self.parameter = parameter
        self.bare = bare

    # --- queries

    def query(self, query: Query) -> str:
        """A query with output columns `c0`, `c1` …"""
        text = self._body(query)
        if query.limit is not None:
            text += f" LIMIT {self.expression(query.limit)}"
        if query.offset is not None:
            text += f" OFFSET {self.expression(query.offset)}"
        if query.ctes:
            recursive = "RECURSIVE " if any(cte.recursive for cte in query.ctes) else ""
            items = ", ".join(
                f"{cte.name}({self._names(cte.query)}) AS ({self._cte(cte)})" for cte in query.ctes
            )
            text = f"WITH {recursive}{items} {text}"
        return text

    def _cte(self, cte: Cte) -> str:
        query = cte.query
        if cte.recursive and isinstance(query, SetQuery):
            # The engine sees the recursion only in a plain UNION of the two parts.
            word = "UNION ALL" if query.all else "UNION"
            return f"{self.query(query.left)} {word} {self.query(query.right)}"
        return self.query(query)

    @staticmethod
    def _names(query: Query) -> str:
        return ", ".join(f"c{at}" for at in range(len(query.outputs)))

    def _body(self, query: Query) -> str:
        if isinstance(query, SelectQuery):
            return self._select(query)
        if isinstance(query, SetQuery):
            word = query.kind.upper() + (" ALL" if query.all else "")
            text = f"SELECT * FROM (({self.query(query.left)}) {word} ({self.query(query.right)}))"
            text += f" AS u({self._names(query)})"
        else:
            rows = ", ".join(
                "(" + ", ".join(self.expression(item) for item in row) + ")" for row in query.rows
            )
            text = f"SELECT * FROM (VALUES {rows}) AS u({self._names(query)})"
        if query.order:
            text += " ORDER BY " + ", ".join(
                f"c{at} {_direction(desc, nulls)}" for at, desc, nulls in query.order
            )
        return text

    def _select(self, query: SelectQuery) -> str:
        items = (
            ", ".join(
                f"{self.output(output.value)} AS c{at}" for at, output in enumerate(query.outputs)
            )
            or "1 AS c0"
        )
        distinct = ""
        if query.distinct_on:
            distinct = "DISTINCT ON (" + ", ".join(map(self.expression, query.distinct_on)) + ") "
        elif query.distinct:
            distinct = "DISTINCT "
        text = f"SELECT {distinct}{items}"
        if query.source is not None:
            text += f" FROM {self.relation(query.source)}"
        if query.where:
            text += " WHERE " + " AND ".join(map(self.expression, query.where))
        group = [item for item in query.group if not isinstance(item, (Literal, Parameter))]
        if group:
            text += " GROUP BY " + ", ".join(map(self.expression, group))
        if query.having is not None:
            text += f" HAVING {self.expression(query.having)}"
        if query.order:
            outputs = [output.value for output in query.outputs]
            text += " ORDER BY " + ", ".join(self._order_item(k, outputs) for k in query.order)
        return text

    def _order_item(self, key: SortKey, outputs: list[Expression]) -> str:
        if key.value in outputs:
            text = str(outputs.index(key.value) + 1)
        else:
            text = self.expression(key.value)
        return f"{text} {_direction(key.descending, key.nulls_first)}"

    def relation(self, relation: Relation) -> str:
        """A relation of FROM."""
        if isinstance(relation, Scan):
            return relation.alias
        if isinstance(relation, (CatalogScan, GivenRows)):
            return f"{relation.name} AS {relation.alias}"
        if isinstance(relation, CteScan):
            return f"{relation.cte} AS {relation.alias}"
        if isinstance(relation, Derived):
            lateral = "LATERAL " if relation.lateral else ""
            return f"{lateral}({self.query(relation.query)}) AS {relation.alias}"
        if isinstance(relation, FunctionScan):
            args = ", ".join(map(self.expression, relation.args))
            return (
                f"(SELECT CAST(x AS {ts.engine_type(relation.args[0].type)}) AS c0 "
                f"FROM {relation.function}({args}) AS g(x)) AS {relation.alias}"
            )
        return self._join(relation)

    def _join(self, join: Join) -> str:
        left, right = self.relation(join.left), self.relation(join.right)
        if isinstance(join.right, Join):
            right = f"({right})"
        if join.on is None:
            if join.kind != "cross":
                return f"{left} {join.kind.upper()} JOIN {right} ON true"
            return f"{left} CROSS JOIN {right}"
        return f"{left} {join.kind.upper()} JOIN {right} ON {self.expression(join.on)}"

    # --- expressions

    def output(self, node: Expression) -> str:
        """An expression of the select list; the result has the declared type's engine form."""
        text = self.expression(node)
        if node.type.code == T.UNKNOWN:
            return f"CAST({text} AS VARCHAR)"
        return text

    def expression(self, node: Expression) -> str:
        """Any expression; compound ones come in parentheses."""
        if isinstance(node, Call):
            return self._call(node)
        if isinstance(node, ColumnRef):
            name = _HIDDEN.get(node.position) or f"c{node.position}"
            return name if self.bare else f"{node.source}.{name}"
        if isinstance(node, Literal):
            return self.literal(node)
        if isinstance(node, Parameter):
            return f"CAST(${self.parameter(node.index) + 1} AS {ts.engine_type(node.type)})"
        if isinstance(node, AggregateCall):
            return self._aggregate(node, "")
        if isinstance(node, WindowCall):
            return self._window(node)
        return self._subquery(node)

    def literal(self, node: Literal) -> str:
        """A constant with its type written out."""
        kind = ts.engine_type(node.type)
        if node.text is None:
            return f"CAST(NULL AS {kind})"
        code = node.type.code
        if code == T.BOOL:
            return node.text
        if code == T.BYTEA:
            return f"CAST({quote(_blob(node.text))} AS BLOB)"
        if code in (*ts.STRINGS, T.UNKNOWN, T.JSON, T.JSONB):
            return quote(node.text)
        if code == T.UUID:
            return f"unhex({quote(node.text.replace('-', ''))})"
        return f"CAST({quote(node.text)} AS {kind})"

    def _call(self, node: Call) -> str:
        op, args = node.op, node.args
        if op in ("=", "<>", "in") and args[0].type.code == T.BPCHAR:
            return self._blank_equal(node)
        if op in ("<", "<=", ">", ">=") and args[0].type.code == T.BPCHAR:
            left, right = (f"rtrim({self.expression(arg)}, ' ')" for arg in args)
            return f"({left} {op} {right})"
        texts = [self.expression(arg) for arg in args]
        if op.startswith("array_a"):
            quantifier, _, comparison = op.partition(" ")
            word = quantifier.removeprefix("array_").upper()
            return f"({texts[0]} {comparison} {word} (SELECT {texts[1]}))"
        if op in _INFIX and len(texts) >= 2:
            if op == "*" and node.type.code == T.NUMERIC:
                return print_numeric.product(node.type, args[0].type, args[1].type, texts)
            joined = f" {_INFIX[op]} ".join(texts)
            if op in ("+", "-") and node.type.code == T.DATE:
                return f"CAST(({joined}) AS DATE)"
            if op == "-" and node.type.code == T.INT4 and args[0].type.code == T.DATE:
                return f"CAST(({joined}) AS INTEGER)"
            return f"({joined})"
        special = _SPECIAL.get(op)
        if special is not None:
            return special(self, node, texts)
        return self._function(node, texts)

    def _function(self, node: Call, texts: list[str]) -> str:
        if node.op.startswith("extract_"):
            return self._extract(node, texts[0])
        signatures = fn.FUNCTIONS.get(node.op) or fn.SYSTEM.get(node.op) or fn.WINDOW.get(node.op)
        if signatures is None:
            if node.op in fn.WINDOW_VALUE:
                return f"{node.op}({', '.join(texts)})"
            raise internal(f"no engine spelling for {node.op}")
        signature = fn.resolve(signatures, tuple(arg.type for arg in node.args))
        if signature is None:
            raise internal(f"no engine spelling for {node.op} of these types")
        return signature.template.replace("{args}", ", ".join(texts)).format(*texts)

    @staticmethod
    def _extract(node: Call, text: str) -> str:
        field = node.op.removeprefix("extract_")
        scale = ts.numeric_shape(node.type)[1]
        if field == "second":
            return f"CAST(date_part('microsecond', {text}) / 1000000.0 AS DECIMAL(38,6))"
        if field == "milliseconds":
            return f"CAST(date_part('microsecond', {text}) / 1000.0 AS DECIMAL(38,6))"
        return f"CAST(date_part('{field}', {text}) AS DECIMAL(38,{scale}))"

    def _blank_equal(self, node: Call) -> str:
        # Stored values are padded to the column's length, so an equal constant is padded too and
        # the column can be compared as it is.
        width = max(arg.type.typmod for arg in node.args) - 4
        texts = []
        for arg in node.args:
            if isinstance(arg, Literal) and arg.text is not None and width > 0:
                texts.append(quote(arg.text.rstrip(" ").ljust(width)))
            elif arg.type.typmod - 4 == width and isinstance(arg, ColumnRef):
                texts.append(self.expression(arg))
            else:
                texts = [f"rtrim({self.expression(one)}, ' ')" for one in node.args]
                break
        if node.op == "in":
            return f"({texts[0]} IN ({', '.join(texts[1:])}))"
        return f"({texts[0]} {node.op} {texts[1]})"

    def _aggregate(self, node: AggregateCall, over: str) -> str:
        filter_ = ""
        if node.filter is not None:
            filter_ = f" FILTER (WHERE {self.expression(node.filter)})"
        if node.function == "count_star":
            return f"count(*){filter_}{over}"
        args = ", ".join(map(self.expression, node.args))
        distinct = "DISTINCT " if node.distinct else ""
        order = ""
        if node.order:
            order = " ORDER BY " + ", ".join(
                f"{self.expression(k.value)} {_direction(k.descending, k.nulls_first)}"
                for k in node.order
            )
        name = fn.AGGREGATES[node.function][1] if node.function in fn.AGGREGATES else node.function
        text = f"{name}({distinct}{args}{order}){filter_}{over}"
        if node.function == "avg" and node.type == ts.NUMERIC:
            total = f"sum({distinct}{args}){filter_}{over}"
            count = f"count({distinct}{args}){filter_}{over}"
            # No rows: the count is 0 then and must not be divided by.
            return print_numeric.average(node.args[0].type, total, f"nullif({count}, 0)")
        if node.function in ("sum", "avg") or node.type == ts.NUMERIC:
            return f"CAST({text} AS {ts.engine_type(node.type)})"
        return text

    def _window(self, node: WindowCall) -> str:
        parts = []
        if node.partition:
            parts.append("PARTITION BY " + ", ".join(map(self.expression, node.partition)))
        if node.order:
            parts.append(
                "ORDER BY "
                + ", ".join(
                    f"{self.expression(k.value)} {_direction(k.descending, k.nulls_first)}"
                    for k in node.order
                )
            )
        if node.frame:
            parts.append(node.frame)
        over = f" OVER ({' '.join(parts)})"
        if isinstance(node.function, AggregateCall):
            return self._aggregate(node.function, over)
        text = self.expression(node.function)
        if node.function.op == "ntile":
            return f"CAST(ntile({self.expression(node.function.args[0])}){over} AS INTEGER)"
        return f"{text}{over}"

    def _subquery(self, node: SubqueryCall) -> str:
        inner = self.query(node.query)
        negated = "NOT " if node.negated else ""
        if node.kind == "array":
            return f"('{{' || array_to_string(ARRAY({inner}), ',') || '}}')"
        if node.kind == "scalar":
            return f"({inner})"
        if node.kind == "exists":
            return f"({negated}EXISTS ({inner}))"
        probe = ", ".join(map(self.expression, node.probe))
        if len(node.probe) > 1:
            probe = f"({probe})"
        if node.kind == "in":
            return f"({probe} {negated}IN ({inner}))"
        return f"({probe} {node.operator} {node.kind.upper()} ({inner}))"


def _direction(descending: bool, nulls_first: bool) -> str:
    return f"{'DESC' if descending else 'ASC'} NULLS {'FIRST' if nulls_first else 'LAST'}"


def _blob(text: str) -> str:
    data = bytes.fromhex(text[2:]) if text.startswith("\\x") else text.encode()
    return "".join(f"\\x{byte:02X}" for byte in data)


def _print_cast(printer: Printer, node: Call, texts: list[str]) -> str:
    source, target = node.args[0].type, node.type
    text = texts[0]
    kind = ts.engine_type(target)
    if source.code == T.BPCHAR and target.code in (T.TEXT, T.VARCHAR):
        text = f"rtrim({text}, ' ')"
    elif target.code in ts.STRINGS and source.code not in ts.STRINGS:
        text = _to_text(source, text)
    if target.code in (T.VARCHAR, T.BPCHAR) and target.typmod > 0:
        width = target.typmod - 4
        padded = f"left({text}, {width})"
        return f"rpad({padded}, {width}, ' ')" if target.code == T.BPCHAR else padded
    if target.code in ts.STRINGS:
        return text
    if target.code == T.UUID:
        return f"unhex(replace({text}, '-', ''))"
    if target.code == T.DATE and source.code == T.TIMESTAMPTZ:
        return f"CAST(CAST({text} AS TIMESTAMP) AS DATE)"
    return f"CAST({text} AS {kind})"


def _to_text(source: TypeRef, text: str) -> str:
    if source == ts.NUMERIC:
        # Values without a declared scale carry 16 digits inside and print without trailing zeros.
        shown = f"CAST({text} AS VARCHAR)"
        return (
            f"(CASE WHEN contains({shown}, '.') THEN rtrim(rtrim({shown}, '0'), '.') "
            f"ELSE {shown} END)"
        )
    if source.code in (T.FLOAT4, T.FLOAT8):
        return f"regexp_replace(CAST({text} AS VARCHAR), '\\.0$', '')"
    if source.code == T.TIMESTAMPTZ:
        return f"(CAST(CAST({text} AS TIMESTAMP) AS VARCHAR) || '+00')"
    if source.code == T.UUID:
        return (
            f"regexp_replace(lower(hex({text})), '(.{{8}})(.{{4}})(.{{4}})(.{{4}})(.{{12}})', "
            "'\\1-\\2-\\3-\\4-\\5')"
        )
    if source.code == T.BYTEA:
        return f"('\\x' || lower(hex({text})))"
    return f"CAST({text} AS VARCHAR)"


def _array_elements(ref: TypeRef, text: str) -> str:
    item = f"unnest(shardb_array({text}))"
    if ref.code == T.UUID:
        return f"unhex(replace({item}, '-', ''))"
    return f"CAST({item} AS {ts.engine_type(TypeRef(ref.code))})"


def _print_store(printer: Printer, node: Call, texts: list[str]) -> str:
    width = node.type.typmod - 4
    name = ts.format_type(node.type)
    short = f"left({texts[0]}, {width})"
    fitted = f"rpad({short}, {width}, ' ')" if node.type.code == T.BPCHAR else short
    message = quote(f"[22001] value too long for type {name}")
    return (
        f"(CASE WHEN length(rtrim({texts[0]}, ' ')) > {width} THEN error({message}) "
        f"ELSE {fitted} END)"
    )


def _print_divide(printer: Printer, node: Call, texts: list[str]) -> str:
    if node.type.code == T.NUMERIC:
        return print_numeric.quotient(node.args[0].type, node.args[1].type, texts)
    if node.type.code == T.INTERVAL:
        return f"({texts[0]} / {texts[1]})"
    return f"({texts[0]} / {texts[1]})"


def _print_case(printer: Printer, node: Call, texts: list[str]) -> str:
    branches = " ".join(
        f"WHEN {texts[at]} THEN {texts[at + 1]}" for at in range(0, len(texts) - 1, 2)
    )
    return f"(CASE {branches} ELSE {texts[-1]} END)"


def _print_like(printer: Printer, node: Call, texts: list[str]) -> str:
    word = "ILIKE" if node.op.startswith("ilike") else "LIKE"
    escape = texts[2] if len(texts) > 2 else "'\\'"
    return f"({texts[0]} {word} {texts[1]} ESCAPE {escape})"


_SPECIAL: Final[dict[str, Callable[[Printer, Call, list[str]], str]]] = {
    "array_elements": lambda _, node, texts: _array_elements(node.type, texts[0]),
    "array_list": lambda _, node, texts: f"shardb_array({texts[0]})",
    "array_item": lambda _, node, texts: f"shardb_array({texts[0]})[{texts[1]}]",
    "cast": _print_cast,
    "shape": lambda _, node, texts: f"CAST({texts[0]} AS {ts.engine_type(node.type)})",
    "store": _print_store,
    "/": _print_divide,
    "case": _print_case,
    "like": _print_like,
    "ilike": _print_like,
    "like_escape": _print_like,
    "ilike_escape": _print_like,
    "in": lambda _, node, texts: f"({texts[0]} IN ({', '.join(texts[1:])}))",
    "not": lambda _, node, texts: f"(NOT {texts[0]})",
    "neg": lambda _, node, texts: f"(- {texts[0]})",
    "and": lambda _, node, texts: texts[0],
    "or": lambda _, node, texts: texts[0],
    "is_null": lambda _, node, texts: f"({texts[0]} IS NULL)",
    "is_not_null": lambda _, node, texts: f"({texts[0]} IS NOT NULL)",
    "||": lambda _, node, texts: f"({texts[0]} || {texts[1]})",
    "#": lambda _, node, texts: f"xor({texts[0]}, {texts[1]})",
    "~": lambda _, node, texts: f"regexp_matches({texts[0]}, {texts[1]})",
    "~*": lambda _, node, texts: f"regexp_matches({texts[0]}, {texts[1]}, 'i')",
    "coalesce": lambda _, node, texts: f"coalesce({', '.join(texts)})",
    "greatest": lambda _, node, texts: f"greatest({', '.join(texts)})",
    "least": lambda _, node, texts: f"least({', '.join(texts)})",
    "nullif": lambda _, node, texts: f"nullif({texts[0]}, {texts[1]})",
    "at_time_zone": lambda _, node, texts: f"timezone({texts[1]}, {texts[0]})",
}
