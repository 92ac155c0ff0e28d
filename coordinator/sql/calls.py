"""Binds calls: scalar functions, aggregates, window functions and SQL's special call forms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlglot import exp

from coordinator.sql import bind_advisory, catalog_tables
from coordinator.sql import functions as fn
from coordinator.sql import typesystem as ts
from coordinator.sql.parse import position_of
from coordinator.sql.tree import (
    AggregateCall,
    Call,
    CatalogScan,
    ColumnRef,
    Expression,
    Literal,
    Output,
    Parameter,
    SelectQuery,
    SortKey,
    SubqueryCall,
    WindowCall,
)
from shardb.errors import SqlError, unsupported
from shardb.program import TypeRef
from shardb.types import TypeCode as T

if TYPE_CHECKING:
    from coordinator.sql.bind_expr import ExpressionBinder

_FIELDS: Final = frozenset(
    [
        "year",
        "month",
        "day",
        "hour",
        "minute",
        "second",
        "quarter",
        "week",
        "dow",
        "doy",
        "isodow",
        "isoyear",
        "epoch",
        "decade",
        "century",
        "millennium",
        "microseconds",
        "milliseconds",
    ]
)
NOW: Final = Parameter(ts.TIMESTAMPTZ, -1)


class Calls:
    """The call half of an `ExpressionBinder`."""

    def __init__(self, binder: ExpressionBinder) -> None:
        self.binder = binder

    def bind(self, node: exp.Expression) -> Expression:
        """A call of any kind."""
        if isinstance(node, exp.Window):
            return self._window(node)
        filter_: Expression | None = None
        inner = node
        if isinstance(node, exp.Filter):
            inner = node.this
            name, _ = self._shape(inner)
            if not self._is_aggregate(name):
                raise SqlError(
                    "42809",
                    f"FILTER specified, but {name} is not an aggregate function",
                    position=position_of(node),
                )
            filter_ = self._nested(node.args["expression"].this, "FILTER")
        if isinstance(inner, exp.WithinGroup):
            raise unsupported("WITHIN GROUP")
        special = self._special(inner)
        if special is not None:
            return special
        name, args = self._shape(inner)
        if self._is_aggregate(name):
            return self._aggregate(name, args, filter_, inner)
        if name in fn.WINDOW or name in fn.WINDOW_VALUE:
            raise SqlError(
                "42809",
                f"window function {name} requires an OVER clause",
                position=position_of(node),
            )
        return self.scalar(name, [self.binder.bind(arg) for arg in args], position_of(inner))

    def scalar(self, name: str, args: list[Expression], position: int) -> Expression:
        """A scalar function by name."""
        match name:
            case "coalesce":
                self._need(name, args, 1, position)
                args = self.binder.common(args, "COALESCE", position)
                return Call(args[-1].type, "coalesce", tuple(args))
            case "greatest" | "least":
                self._need(name, args, 1, position)
                args = self.binder.common(args, name.upper(), position)
                return Call(args[-1].type, name, tuple(args))
            case "nullif":
                if len(args) != 2:
                    raise self._missing(name, args, position)
                left, right = self.binder.operators.comparable("=", args[0], args[1], position)
                return Call(left.type, "nullif", (left, right))
            case "now" | "transaction_timestamp" | "statement_timestamp" | "clock_timestamp":
                if args:
                    raise self._missing(name, args, position)
                self.binder.context.uses_now = True
                return NOW
            case "to_regclass":
                return self.regclass(args[0], position)
            case "pg_typeof":
                self._need(name, args, 1, position)
                return Literal(ts.TEXT, ts.type_name(args[0].type))
            case "pg_get_indexdef" | "pg_get_constraintdef":
                self._need(name, args, 1, position)
                part = args[1] if name == "pg_get_indexdef" and len(args) > 1 else None
                return self._definition(args[0], part, "definition", position)
            case "current_setting":
                raise unsupported("current_setting()")
        if name in bind_advisory.FUNCTIONS:
            raise bind_advisory.refused(name)
        signatures = fn.FUNCTIONS.get(name) or fn.SYSTEM.get(name)
        signature = fn.resolve(signatures, tuple(arg.type for arg in args)) if signatures else None
        if signature is None:
            raise self._missing(name, args, position)
        wanted = fn.expand(signature, len(args))
        assert wanted is not None
        converted = []
        for arg, target in zip(args, wanted, strict=True):
            one = self.binder.coerce(arg, target, "assignment", position)
            assert one is not None
            converted.append(one)
        result = signature.result_type(tuple(arg.type for arg in converted))
        if name in ("round", "trunc") and len(converted) == 2:
            result = _rounded_type(result, converted[1])
        return Call(result, name, tuple(converted))

    def regclass(self, inner: Expression, position: int) -> Expression:
        """`'name'::regclass`: the table's OID, which is its id."""
        if isinstance(inner, Literal) and inner.text is not None:
            if inner.text.isdigit():
                return Literal(ts.INT8, inner.text)
            parts = [part.strip('"') for part in inner.text.split(".")]
            schema = parts[0] if len(parts) > 1 else ""
            oid = self.binder.context.relation_oid(parts[-1], schema)
            if oid is None:
                raise SqlError(
                    "42P01", f'relation "{inner.text}" does not exist', position=position
                )
            return Literal(ts.INT8, str(oid))
        if inner.type.code in ts.INTEGERS:
            return self._definition(inner, None, "name", position)
        raise unsupported("a regclass that is not a literal")

    def _definition(
        self, oid: Expression, part: Expression | None, column: str, position: int
    ) -> Expression:
        """What pg_definitions has on an object, as a scalar subquery."""
        table = catalog_tables.TABLES["pg_definitions"]
        alias = self.binder.context.alias()
        columns = {
            name: ColumnRef(ref, alias, at, name) for at, (name, ref) in enumerate(table.columns)
        }
        if part is None:
            part = Literal(ts.INT4, "0")
        conditions = [
            self.binder.operators.binary("=", columns[name], value, position)
            for name, value in (("oid", oid), ("part", part))
        ]
        query = SelectQuery(
            [Output(column, columns[column])], CatalogScan(alias, table.name), conditions
        )
        return SubqueryCall(ts.TEXT, "scalar", query)

    def _need(self, name: str, args: list[Expression], least: int, position: int) -> None:
        if len(args) < least:
            raise self._missing(name, args, position)

    def _missing(self, name: str, args: list[Expression], position: int) -> SqlError:
        types = ", ".join(ts.type_name(arg.type) for arg in args)
        return SqlError(
            "42883",
            f"function {name}({types}) does not exist",
            hint="No function matches the given name and argument types. You might need to add "
            "explicit type casts.",
            position=position,
        )

    # --- shapes sqlglot gives to calls

    def _shape(self, node: exp.Expression) -> tuple[str, list[exp.Expression]]:
        if isinstance(node, exp.Dot):
            schema, node = node.this, node.args["expression"]
            if schema.name.lower() not in ("pg_catalog", "information_schema", "public"):
                raise SqlError("3F000", f'schema "{schema.name}" does not exist')
            if not isinstance(node, exp.Anonymous):
                raise unsupported("a field of a row value")
        if isinstance(node, exp.Anonymous):
            return str(node.this).lower(), list(node.expressions)
        if isinstance(node, exp.GroupConcat):
            return "string_agg", [node.this, node.args.get("separator") or exp.Null()]
        if isinstance(node, (exp.Ceil, exp.Floor, exp.Initcap)):
            return type(node).__name__.lower(), [node.this]
        if isinstance(node, exp.Chr):
            return "chr", list(node.expressions)
        return type(node).__name__.lower(), [
            child for child in node.args.values() if isinstance(child, exp.Expression)
        ]

    def _special(self, node: exp.Expression) -> Expression | None:
        bind, position = self.binder.bind, position_of(node)
        if isinstance(node, exp.Extract):
            return self._extract(node.this.name.lower(), bind(node.args["expression"]), position)
        if isinstance(node, exp.Substring):
            parts = [node.this, node.args.get("start"), node.args.get("length")]
            if parts[1] is None:
                parts[1] = exp.Literal.number(1)
            return self.scalar("substring", [bind(p) for p in parts if p is not None], position)
        if isinstance(node, exp.Trim):
            side = str(node.args.get("position") or "BOTH").upper()
            name = {"BOTH": "btrim", "LEADING": "ltrim", "TRAILING": "rtrim"}[side]
            parts = [node.this, node.args.get("expression")]
            return self.scalar(name, [bind(p) for p in parts if p is not None], position)
        if isinstance(node, exp.StrPosition):
            return self.scalar("strpos", [bind(node.this), bind(node.args["substr"])], position)
        if isinstance(node, (exp.CurrentTimestamp, exp.CurrentDate, exp.Localtimestamp)):
            self.binder.context.uses_now = True
            target = {exp.CurrentDate: ts.DATE, exp.Localtimestamp: ts.TIMESTAMP}.get(type(node))
            return NOW if target is None else Call(target, "cast", (NOW,))
        if isinstance(node, (exp.CurrentUser, exp.SessionUser)):
            return Literal(ts.TEXT, self.binder.context.user)
        if isinstance(node, exp.CurrentSchema):
            return Literal(ts.TEXT, "public")
        if isinstance(node, exp.CurrentCatalog):
            return Literal(ts.TEXT, "shardb")
        if isinstance(node, exp.Overlay):
            return self._overlay(node, position)
        if isinstance(node, (exp.CurrentTime, exp.Localtime, exp.If)):
            raise unsupported(node.sql(dialect="postgres"))
        return None

    def _overlay(self, node: exp.Overlay, position: int) -> Expression:
        bind, plus = self.binder.bind, self.binder.operators.binary
        text, other = bind(node.this), bind(node.args["expression"])
        start, one = bind(node.args["from_"]), Literal(ts.INT4, "1")
        count = node.args.get("for_")
        width = self.scalar("length", [other], position) if count is None else bind(count)
        head = self.scalar("substring", [text, one, plus("-", start, one, position)], position)
        tail = self.scalar("substring", [text, plus("+", start, width, position)], position)
        return plus("||", plus("||", head, other, position), tail, position)

    def _extract(self, field: str, value: Expression, position: int) -> Expression:
        if field not in _FIELDS:
            raise SqlError(
                "22023",
                f'unit "{field}" not recognized for type {ts.type_name(value.type)}',
                position=position,
            )
        if value.type.code not in (*ts.MOMENTS, T.TIME, T.INTERVAL):
            raise SqlError(
                "42883",
                f"function pg_catalog.extract(unknown, {ts.type_name(value.type)}) does not exist",
                position=position,
            )
        scale = 6 if field in ("second", "epoch", "milliseconds") else 0
        return Call(ts.numeric(38, scale), "extract_" + field, (value,))

    # --- aggregates and windows

    @staticmethod
    def _is_aggregate(name: str) -> bool:
        return name in fn.AGGREGATES or name in ("count", "string_agg")

    def _nested(self, node: exp.Expression, clause: str) -> Expression:
        from coordinator.sql.bind_expr import ExpressionBinder

        inner = ExpressionBinder(self.binder.query, self.binder.scope, clause, windows=False)
        return inner.boolean(node, clause)

    def _aggregate(
        self,
        name: str,
        args: list[exp.Expression],
        filter_: Expression | None,
        node: exp.Expression,
    ) -> Expression:
        from coordinator.sql.bind_expr import ExpressionBinder

        position = position_of(node)
        if self.binder.clause == "an aggregate":
            raise SqlError("42803", "aggregate function calls cannot be nested", position=position)
        if self.binder.clause:
            raise SqlError(
                "42803",
                f"aggregate functions are not allowed in {self.binder.clause}",
                position=position,
            )
        inner = ExpressionBinder(
            self.binder.query, self.binder.scope, "an aggregate", windows=False
        )
        self.binder.query.saw_aggregate = True
        distinct = False
        order: tuple[SortKey, ...] = ()
        if args and isinstance(args[0], exp.Order):
            order = tuple(inner.query.sort_key(inner, item) for item in args[0].expressions)
            args = [args[0].this, *args[1:]]
        if args and isinstance(args[0], exp.Distinct):
            distinct = True
            args = [*args[0].expressions, *args[1:]]
        if name == "count":
            if len(args) == 1 and isinstance(args[0], exp.Star):
                return AggregateCall(ts.INT8, "count_star", (), filter=filter_)
            if len(args) != 1:
                raise self._missing(name, [inner.bind(arg) for arg in args], position)
            value = inner.settled(args[0])
            return AggregateCall(ts.INT8, "count", (value,), distinct, filter_, order)
        if name == "string_agg":
            texts = []
            for arg in args:
                text = inner.coerce(inner.bind(arg), ts.TEXT, "implicit", position)
                if text is None:
                    raise self._missing(name, [inner.bind(a) for a in args], position)
                texts.append(text)
            return AggregateCall(ts.TEXT, "string_agg", tuple(texts), distinct, filter_, order)
        bound = [inner.bind(arg) for arg in args]
        if len(bound) != 1:
            raise self._missing(name, bound, position)
        value = inner.context.coercer.settle(bound[0])
        result = fn.AGGREGATES[name][0](value.type)
        if result is None:
            raise self._missing(name, bound, position)
        return AggregateCall(result, name, (value,), distinct, filter_, order)

    def _window(self, node: exp.Window) -> Expression:
        binder = self.binder
        position = position_of(node)
        if not binder.windows:
            raise SqlError(
                "42P20",
                f"window functions are not allowed in {binder.clause or 'this place'}",
                position=position,
            )
        spec: exp.Expression = node
        if node.args.get("alias") is not None:
            name = node.args["alias"].name.lower()
            if name not in binder.named_windows:
                raise SqlError("42704", f'window "{name}" does not exist', position=position)
            spec = binder.named_windows[name]
        partition = tuple(binder.settled(item) for item in spec.args.get("partition_by") or ())
        ordering = spec.args.get("order")
        order = tuple(
            binder.query.sort_key(binder, item)
            for item in (ordering.expressions if ordering is not None else ())
        )
        function = self._window_function(node.this)
        frame = _frame(spec.args.get("spec"))
        return WindowCall(function.type, function, partition, order, frame)

    def _window_function(self, node: exp.Expression) -> Call | AggregateCall:
        filtered = node.this if isinstance(node, exp.Filter) else node
        name, args = self._shape(filtered)
        position = position_of(node)
        if self._is_aggregate(name):
            before = self.binder.query.saw_aggregate
            bound = self.bind(node)
            self.binder.query.saw_aggregate = before
            assert isinstance(bound, AggregateCall)
            return bound
        values = [self.binder.bind(arg) for arg in args]
        if name in fn.WINDOW_VALUE:
            least, most = fn.WINDOW_VALUE[name]
            if not least <= len(values) <= most:
                raise self._missing(name, values, position)
            values = [self.binder.context.coercer.settle(value) for value in values]
            return Call(values[0].type, name, tuple(values))
        signatures = fn.WINDOW.get(name)
        signature = fn.resolve(signatures, tuple(v.type for v in values)) if signatures else None
        if signature is None:
            if name in fn.FUNCTIONS:
                raise SqlError(
                    "42809",
                    f"OVER specified, but {name} is not a window function "
                    "nor an aggregate function",
                    position=position,
                )
            raise self._missing(name, values, position)
        converted = [
            self.binder.coerce(value, target, "implicit", position) or value
            for value, target in zip(values, signature.args, strict=True)
        ]
        return Call(signature.result_type(()), name, tuple(converted))


def _rounded_type(value: TypeRef, digits: Expression) -> TypeRef:
    """round(numeric, n) has n digits after the point if n is a constant."""
    if not isinstance(digits, Literal) or digits.text is None or value.code != T.NUMERIC:
        return ts.NUMERIC
    scale = min(max(int(digits.text), 0), 16)
    precision, old = ts.numeric_shape(value)
    return ts.numeric(min(38, precision - old + 1 + scale), scale)


def _frame(spec: exp.Expression | None) -> str:
    """A frame clause as engine SQL; only constant bounds are let through."""
    if spec is None:
        return ""

    def bound(side: str, default: str) -> str:
        value = spec.args.get(side)
        if value is None:
            return default
        direction = str(spec.args.get(f"{side}_side") or "")
        if isinstance(value, str):
            return f"{value} {direction}".strip()
        if isinstance(value, exp.Literal) and not value.args.get("is_string"):
            return f"{int(value.name)} {direction}"
        raise unsupported("a window frame bound that is not a constant")

    kind = str(spec.args.get("kind")).upper()
    text = f"{kind} BETWEEN {bound('start', 'CURRENT ROW')} AND {bound('end', 'CURRENT ROW')}"
    exclude = spec.args.get("exclude")
    if exclude is not None:
        raise unsupported("EXCLUDE in a window frame")
    return text.upper()
