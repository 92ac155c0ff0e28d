"""Binds expressions: sqlglot nodes to typed nodes of the bound tree.

One table maps node classes to methods; a class that is not there is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from sqlglot import exp

from coordinator.sql import typesystem as ts
from coordinator.sql.arrays import Arrays, element_type
from coordinator.sql.calls import Calls
from coordinator.sql.coerce import number_literal, parse_literal
from coordinator.sql.lexer import fold_identifier, unescape
from coordinator.sql.node_operators import BINARY
from coordinator.sql.parse import position_of
from coordinator.sql.tree import Call, ColumnRef, Expression, Literal, SubqueryCall
from shardb.errors import SqlError, unsupported
from shardb.limits import STATEMENT_DEPTH_MAX
from shardb.program import TypeRef
from shardb.types import TypeCode as T

if TYPE_CHECKING:
    from coordinator.sql.bind_query import QueryBinder
    from coordinator.sql.scope import Scope


def name_of(identifier: exp.Expression | str | None) -> str:
    """The name of an identifier node, folded unless it was quoted."""
    if identifier is None:
        return ""
    if isinstance(identifier, str):
        return fold_identifier(identifier)
    if isinstance(identifier, exp.Identifier):
        text = str(identifier.this)
        return text if identifier.args.get("quoted") else fold_identifier(text)
    return fold_identifier(identifier.name)


def data_type(node: exp.Expression, position: int = 0) -> TypeRef:
    """The type a sqlglot type node names."""
    text = node.sql(dialect="postgres").lower()
    if "[" in text or (isinstance(node, exp.DataType) and node.args.get("nested")):
        raise unsupported("array type")
    name, _, rest = text.partition("(")
    inside, _, after = rest.partition(")")
    modifiers = tuple(int(item) for item in inside.split(",") if item.strip().isdigit())
    name = " ".join((name + " " + after).split()).strip('"')
    if name.startswith("pg_catalog."):
        name = name.removeprefix("pg_catalog.").strip('"')
    return ts.from_name(name, modifiers, position)


class ExpressionBinder:
    """Binds the expressions of one query block.

    `aggregates` says where they are refused: "" allows them, else the clause's name.
    """

    def __init__(self, query: QueryBinder, scope: Scope, clause: str, windows: bool) -> None:
        self.query = query
        self.context = query.context
        self.scope = scope
        self.clause = clause
        self.windows = windows
        self.coerce = self.context.coercer.coerce
        self.operators = self.context.operators
        self.calls = Calls(self)
        self.arrays = Arrays(self)
        self.named_windows: dict[str, exp.Expression] = {}
        self._depth = 0

    def bind(self, node: exp.Expression) -> Expression:
        """The typed form of `node`; parameters and literals may still be of unknown type."""
        self._depth += 1
        if self._depth > 4 * STATEMENT_DEPTH_MAX:
            raise SqlError("54001", "stack depth limit exceeded", position=position_of(node))
        try:
            _check_arguments(node)
            op = BINARY.get(type(node))
            if op is not None:
                return self._binary(node, op)
            method = _METHODS.get(type(node))
            if method is None:
                raise unsupported(f"the expression {node.sql(dialect='postgres')[:60]}")
            return method(self, node)
        finally:
            self._depth -= 1

    def settled(self, node: exp.Expression) -> Expression:
        """The typed form with nothing unknown left."""
        return self.context.coercer.settle(self.bind(node))

    def boolean(self, node: exp.Expression, clause: str) -> Expression:
        """A condition; 42804 if it is not boolean."""
        bound = self.bind(node)
        result = self.coerce(bound, ts.BOOL, "implicit", position_of(node))
        if result is None:
            raise SqlError(
                "42804",
                f"argument of {clause} must be type boolean, not type {ts.type_name(bound.type)}",
                position=position_of(node),
            )
        return result

    def conjuncts(self, node: exp.Expression, clause: str) -> list[Expression]:
        """The parts of a conjunction."""
        return [self.boolean(part, clause) for part in flatten(node, exp.And)]

    def common(self, nodes: list[Expression], what: str, position: int) -> list[Expression]:
        """The nodes converted to the type they agree on (42804)."""
        wanted = ts.common_type([node.type for node in nodes])
        if wanted is None:
            known = [node.type for node in nodes if node.type.code != T.UNKNOWN]
            other = next(t for t in known if ts.common_type([known[0], t]) is None)
            raise SqlError(
                "42804",
                f"{what} types {ts.type_name(known[0])} and "
                f"{ts.type_name(other)} cannot be matched",
                position=position,
            )
        converted = []
        for node in nodes:
            one = self.coerce(node, wanted, "implicit", position)
            assert one is not None
            converted.append(one)
        return converted

    # --- names and constants

    def _column(self, node: exp.Column) -> Expression:
        if isinstance(node.this, exp.Star):
            raise SqlError("42601", 'syntax error at or near "*"', position=position_of(node))
        table = node.args.get("table")
        position = position_of(node)
        value = self.scope.find(name_of(node.this), name_of(table), position).value
        if isinstance(value, ColumnRef):
            return ColumnRef(value.type, value.source, value.position, value.label, position)
        return value

    def _literal(self, node: exp.Literal) -> Expression:
        if not node.args.get("is_string"):
            return number_literal(str(node.this), position_of(node))
        return Literal(ts.UNKNOWN, str(node.this))

    def _escape_string(self, node: exp.ByteString) -> Expression:
        start, end = node.meta.get("start"), node.meta.get("end")
        if start is None or end is None:
            return Literal(ts.UNKNOWN, str(node.this))
        source = self.context.text[start : end + 1]
        return Literal(ts.UNKNOWN, unescape(source[2:-1].replace("''", "'")))

    def _raw_string(self, node: exp.RawString) -> Expression:
        return Literal(ts.UNKNOWN, str(node.this))

    def _boolean(self, node: exp.Boolean) -> Expression:
        return Literal(ts.BOOL, "true" if node.this else "false")

    def _null(self, node: exp.Null) -> Expression:
        return Literal(ts.UNKNOWN, None)

    def _parameter(self, node: exp.Parameter) -> Expression:
        text = node.this.name if node.this is not None else ""
        if not text.isdigit() or not 1 <= int(text) <= 65535:
            raise SqlError("42P02", f"there is no parameter ${text}", position=position_of(node))
        return self.context.parameters.reference(int(text) - 1)

    def _interval(self, node: exp.Interval) -> Expression:
        value = node.this
        unit = node.args.get("unit")
        if value is None or not isinstance(value, exp.Literal):
            raise unsupported("an interval that is not a literal")
        text = str(value.this) + (f" {unit.name.lower()}" if unit is not None else "")
        return parse_literal(text, ts.INTERVAL, position_of(node))

    # --- operators

    def _binary(self, node: exp.Expression, op: str) -> Expression:
        right_node = node.args["expression"]
        if isinstance(right_node, (exp.Any, exp.All)) or _is_quantifier(right_node):
            if node.args.get("negate"):
                raise unsupported("NOT LIKE ANY")
            return self._quantified(node, op, right_node)
        if isinstance(node.this, exp.Tuple) and isinstance(right_node, exp.Tuple):
            return self._rows(node, op, right_node)
        if isinstance(node.this, exp.Tuple) and isinstance(right_node, exp.Subquery):
            raise unsupported("a row comparison with a subquery")
        left, right = self.bind(node.this), self.bind(right_node)
        try:
            result = self.operators.binary(op, left, right, position_of(node))
        except SqlError as error:
            raise self._placed(error, node, right_node) from None
        return negation(result) if node.args.get("negate") else result

    def _placed(self, error: SqlError, node: exp.Expression, right: exp.Expression) -> SqlError:
        """The error at the place PostgreSQL names: the operator, or the literal that is wrong."""
        if error.sqlstate in ("42883", "42725"):
            error.position = self._token_after(node.this) or error.position
        else:
            for side in (right, node.this):
                if isinstance(side, exp.Literal) and side.args.get("is_string"):
                    error.position = position_of(side)
        return error

    def _token_after(self, node: exp.Expression, mark: str = "") -> int:
        """The position of the first operator (or `mark`) after an operand."""
        end = max((int(part.meta["end"]) for part in node.walk() if "end" in part.meta), default=-1)
        for token in self.context.tokens:
            if token.start > end >= 0 and (token.text == mark if mark else token.text != ")"):
                return token.start + 1
        return 0

    def _rows(self, node: exp.Expression, op: str, right: exp.Tuple) -> Expression:
        lefts, rights = node.this.expressions, right.expressions
        if len(lefts) != len(rights):
            raise SqlError(
                "42601", "unequal number of entries in row expressions", position=position_of(node)
            )
        pairs = [(self.bind(one), self.bind(two)) for one, two in zip(lefts, rights, strict=True)]
        position = position_of(node)
        if op in ("=", "<>"):
            parts = [self.operators.binary(op, a, b, position) for a, b in pairs]
            return Call(ts.BOOL, "and" if op == "=" else "or", tuple(parts))
        if op not in ("<", "<=", ">", ">="):
            raise unsupported(f"operator {op} on rows")
        result = self.operators.binary(op, *pairs[-1], position)
        for one, two in reversed(pairs[:-1]):
            strict = self.operators.binary(op[0], one, two, position)
            equal = self.operators.binary("=", one, two, position)
            result = Call(ts.BOOL, "or", (strict, Call(ts.BOOL, "and", (equal, result))))
        return result

    def _quantified(self, node: exp.Expression, op: str, right: exp.Expression) -> Expression:
        named = right.this if isinstance(right, exp.Anonymous) else ""
        kind = "any" if isinstance(right, exp.Any) or named.lower() in ("any", "some") else "all"
        inner = right.expressions[0] if named else right.this
        while isinstance(inner, exp.Paren):
            inner = inner.this
        if isinstance(inner, (exp.Subquery, exp.Select, exp.SetOperation, exp.Values)):
            query = self.query.subquery(inner, self.scope)
            return self._probe(kind, (self.bind(node.this),), query, op, position_of(node))
        return self.arrays.quantified(node, op, kind, inner)

    def _junction(self, node: exp.Expression) -> Expression:
        kind = type(node)
        op = "AND" if kind is exp.And else "OR"
        parts = tuple(self.boolean(part, op) for part in flatten(node, kind))
        return Call(ts.BOOL, op.lower(), parts)

    def _not(self, node: exp.Not) -> Expression:
        return negation(self.boolean(node.this, "NOT"))

    def _negative(self, node: exp.Neg) -> Expression:
        return self.operators.negate(self.bind(node.this), position_of(node))

    def _paren(self, node: exp.Paren) -> Expression:
        return self.bind(node.this)

    def _is(self, node: exp.Is) -> Expression:
        right = node.args["expression"]
        negated = bool(node.args.get("negate"))
        if isinstance(right, exp.Null):
            result: Expression = Call(ts.BOOL, "is_null", (self.settled(node.this),))
            return negation(result) if negated else result
        if isinstance(right, exp.Boolean):
            left = self.boolean(node.this, "IS TRUE" if right.this else "IS FALSE")
            op = "is_distinct" if negated else "is_not_distinct"
            return Call(ts.BOOL, op, (left, Literal(ts.BOOL, "true" if right.this else "false")))
        raise unsupported(f"IS {right.sql(dialect='postgres')}")

    def _between(self, node: exp.Between) -> Expression:
        position = position_of(node)
        probe = self.bind(node.this)
        low, high = self.bind(node.args["low"]), self.bind(node.args["high"])

        def within(least: Expression, most: Expression) -> Call:
            above = self.operators.binary(">=", probe, least, position)
            return Call(ts.BOOL, "and", (above, self.operators.binary("<=", probe, most, position)))

        if node.args.get("symmetric"):
            return Call(ts.BOOL, "or", (within(low, high), within(high, low)))
        return within(low, high)

    def _in(self, node: exp.In) -> Expression:
        position = position_of(node)
        query = node.args.get("query")
        targets = node.this.expressions if isinstance(node.this, exp.Tuple) else [node.this]
        probe = tuple(self.bind(target) for target in targets)
        if query is not None:
            return self._probe("in", probe, self.query.subquery(query, self.scope), "=", position)
        if isinstance(node.this, exp.Tuple):
            parts = [
                self._rows(exp.EQ(this=node.this, expression=item), "=", item)
                for item in node.expressions
            ]
            return Call(ts.BOOL, "or", tuple(parts))
        if not node.expressions:
            place = self._token_after(node.this, ")")
            raise SqlError("42601", 'syntax error at or near ")"', position=place)
        items = [self.bind(item) for item in node.expressions]
        pairs = [self.operators.comparable("=", probe[0], item, position) for item in items]
        if all(pair[0] == pairs[0][0] for pair in pairs):
            return Call(ts.BOOL, "in", (pairs[0][0], *(pair[1] for pair in pairs)))
        return Call(ts.BOOL, "or", tuple(Call(ts.BOOL, "=", pair) for pair in pairs))

    def _probe(
        self, kind: str, probe: tuple[Expression, ...], query: Any, op: str, position: int
    ) -> Expression:
        if len(query.outputs) != len(probe):
            few = "few" if len(query.outputs) < len(probe) else "many"
            raise SqlError("42601", f"subquery has too {few} columns", position=position)
        converted: list[Expression] = []
        for left, output in zip(probe, query.outputs, strict=True):
            stand_in = ColumnRef(output.value.type, "", 0, output.name)
            left, right = self.operators.comparable(op, left, stand_in, position)
            if right is not stand_in:
                query = self.query.converted(query, len(converted), right.type)
            converted.append(left)
        return SubqueryCall(ts.BOOL, kind, query, tuple(converted), op)

    # --- conditionals and conversions

    def _case(self, node: exp.Case) -> Expression:
        operand = self.bind(node.this) if node.this is not None else None
        conditions, values = [], []
        for branch in node.args["ifs"]:
            if operand is None:
                conditions.append(self.boolean(branch.this, "CASE/WHEN"))
            else:
                conditions.append(
                    self.operators.binary(
                        "=", operand, self.bind(branch.this), position_of(branch.this)
                    )
                )
            values.append(self.bind(branch.args["true"]))
        default = node.args.get("default")
        values.append(self.bind(default) if default is not None else Literal(ts.UNKNOWN, None))
        values = self.common(values, "CASE", position_of(node))
        args: list[Expression] = []
        for condition, value in zip(conditions, values, strict=False):
            args += [condition, value]
        return Call(values[-1].type, "case", (*args, values[-1]))

    def _cast(self, node: exp.Cast) -> Expression:
        position = position_of(node)
        element = element_type(node.args["to"])
        if element is not None:
            return self.arrays.cast(node, element)
        inner = self.bind(node.this)
        name = node.args["to"].sql(dialect="postgres").lower()
        if name in ("regtype", "pg_catalog.regtype") and inner.type.code in ts.INTEGERS:
            return self.calls.scalar("format_type", [inner, Literal(ts.UNKNOWN, None)], position)
        if name in ("regclass", "pg_catalog.regclass"):
            return self.calls.regclass(inner, position)
        target = data_type(node.args["to"], position)
        converted = self.coerce(inner, target, "explicit", position_of(node.this))
        if converted is None:
            raise SqlError(
                "42846",
                f"cannot cast type {ts.type_name(inner.type)} to {ts.type_name(target)}",
                position=position,
            )
        return converted

    def _escape(self, node: exp.Escape) -> Expression:
        inner = node.this.copy()
        negated = bool(inner.args.get("negate"))
        inner.set("negate", None)
        like = self.bind(inner)
        escape = self.coerce(self.bind(node.args["expression"]), ts.TEXT, "implicit")
        if not isinstance(like, Call) or escape is None or like.op not in ("like", "ilike"):
            raise unsupported("ESCAPE here")
        result = Call(ts.BOOL, like.op + "_escape", (*like.args, escape))
        return negation(result) if negated else result

    def _at_time_zone(self, node: exp.AtTimeZone) -> Expression:
        value = self.bind(node.this)
        zone = self.coerce(self.bind(node.args["zone"]), ts.TEXT, "implicit")
        assert zone is not None
        if value.type.code in (T.DATE, T.TIMESTAMPTZ, T.UNKNOWN):
            value = self.coerce(value, ts.TIMESTAMPTZ, "implicit") or value
            return Call(ts.TIMESTAMP, "at_time_zone", (value, zone))
        return Call(ts.TIMESTAMPTZ, "at_time_zone", (value, zone))

    def _subquery(self, node: exp.Expression) -> Expression:
        query = self.query.subquery(node, self.scope)
        if len(query.outputs) != 1:
            raise SqlError(
                "42601", "subquery must return only one column", position=position_of(node)
            )
        return SubqueryCall(query.outputs[0].value.type, "scalar", query)

    def _exists(self, node: exp.Exists) -> Expression:
        return SubqueryCall(ts.BOOL, "exists", self.query.subquery(node.this, self.scope))

    def _collate(self, node: exp.Collate) -> Expression:
        name = node.args["expression"].name
        if name not in ("C", "POSIX", "default"):
            raise SqlError("42704", f'collation "{name}" for encoding "UTF8" does not exist')
        return self.bind(node.this)

    def _operator(self, node: exp.Operator) -> Expression:
        """OPERATOR(pg_catalog.~) as psql writes it."""
        text = str(node.args.get("operator", "")).rpartition(".")[2].strip()
        op = {"~": "~", "=": "=", "!=": "<>", "<>": "<>", "~~": "like", "~*": "~*"}.get(text)
        if op is None:
            raise unsupported(f"OPERATOR({text})")
        left, right = self.bind(node.this), self.bind(node.args["expression"])
        return self.operators.binary(op, left, right, position_of(node))

    def _tuple(self, node: exp.Tuple) -> Expression:
        raise unsupported("a row value")

    def _array(self, node: exp.Array) -> Expression:
        return self.arrays.from_query(node) or self.arrays.constant(node)

    def _bracket(self, node: exp.Bracket) -> Expression:
        return self.arrays.item(node)

    def _function(self, node: exp.Expression) -> Expression:
        if isinstance(node, exp.Anonymous) and node.this.lower() == "array":
            found = self.arrays.from_query(node)
            if found is not None:
                return found
        return self.calls.bind(node)


def _is_quantifier(node: exp.Expression) -> bool:
    # sqlglot takes ALL of something in brackets for a call.
    return (
        isinstance(node, exp.Anonymous)
        and node.this.lower() in ("all", "any", "some")
        and len(node.expressions) == 1
    )


# What a node may carry besides `this`, `expression` and `expressions`. Anything else that is set
# would change the meaning without our noticing, so it is refused.
_ARGUMENTS: Final = frozenset(
    (
        "is_string",
        "quoted",
        "table",
        "query",
        "low",
        "high",
        "ifs",
        "default",
        "to",
        "_type",
        "typed",
        "safe",
        "zone",
        "start",
        "length",
        "position",
        "substr",
        "partition_by",
        "order",
        "spec",
        "alias",
        "over",
        "separator",
        "operator",
        "unit",
        "symmetric",
        "from_",
        "nested",
        "value_constructor",
        "for_",
        "distinct",
        "big_int",
        "nulls_first",
        "desc",
        "true",
        "wrap",
    )
)
_QUERIES: Final = (exp.Select, exp.SetOperation, exp.Subquery, exp.Values, exp.Table)
_NEGATABLE: Final = (exp.Like, exp.ILike, exp.Is)


def _check_arguments(node: exp.Expression) -> None:
    if isinstance(node, _QUERIES):
        return
    for key, value in node.args.items():
        if not value or key in ("this", "expression", "expressions") or key in _ARGUMENTS:
            continue
        if key == "db" and isinstance(node, exp.Column):
            continue  # schema.table.column: the table's name says it
        if key == "negate" and isinstance(node, _NEGATABLE):
            continue
        raise unsupported(f"{key} in {node.sql(dialect='postgres')[:60]}")


def flatten(node: exp.Expression, kind: type[exp.Expression]) -> list[exp.Expression]:
    """The operands of a chain of AND or OR, from left to right, without recursion."""
    found: list[exp.Expression] = []
    pending = [node]
    while pending:
        one = pending.pop()
        while isinstance(one, exp.Paren) and isinstance(one.this, kind):
            one = one.this
        if isinstance(one, kind):
            pending += [one.args["expression"], one.this]
        else:
            found.append(one)
    return found


def negation(node: Expression) -> Expression:
    """NOT `node`, with the simple negations folded in."""
    opposite = {
        "is_null": "is_not_null",
        "is_not_null": "is_null",
        "is_distinct": "is_not_distinct",
        "is_not_distinct": "is_distinct",
    }
    if isinstance(node, Call) and node.op in opposite:
        return Call(ts.BOOL, opposite[node.op], node.args)
    if isinstance(node, SubqueryCall) and node.kind in ("in", "exists"):
        return SubqueryCall(
            node.type, node.kind, node.query, node.probe, node.operator, not node.negated
        )
    return Call(ts.BOOL, "not", (node,))


_B = ExpressionBinder
_METHODS: Final[dict[type[Any], Callable[[ExpressionBinder, Any], Expression]]] = {
    exp.Column: _B._column,
    exp.Literal: _B._literal,
    exp.ByteString: _B._escape_string,
    exp.RawString: _B._raw_string,
    exp.Boolean: _B._boolean,
    exp.Null: _B._null,
    exp.Parameter: _B._parameter,
    exp.Interval: _B._interval,
    exp.And: _B._junction,
    exp.Or: _B._junction,
    exp.Not: _B._not,
    exp.Neg: _B._negative,
    exp.Paren: _B._paren,
    exp.Is: _B._is,
    exp.Between: _B._between,
    exp.In: _B._in,
    exp.Case: _B._case,
    exp.Cast: _B._cast,
    exp.Escape: _B._escape,
    exp.AtTimeZone: _B._at_time_zone,
    exp.Subquery: _B._subquery,
    exp.Select: _B._subquery,
    exp.Exists: _B._exists,
    exp.Collate: _B._collate,
    exp.Operator: _B._operator,
    exp.Tuple: _B._tuple,
    exp.Array: _B._array,
    exp.Bracket: _B._bracket,
    exp.Anonymous: _B._function,
    exp.Dot: _B._function,
    exp.Filter: _B._function,
    exp.Window: _B._function,
    exp.WithinGroup: _B._function,
    exp.GroupConcat: _B._function,
    exp.Extract: _B._function,
    exp.Substring: _B._function,
    exp.Trim: _B._function,
    exp.StrPosition: _B._function,
    exp.Overlay: _B._function,
    exp.Ceil: _B._function,
    exp.Floor: _B._function,
    exp.Initcap: _B._function,
    exp.Chr: _B._function,
    exp.CurrentDate: _B._function,
    exp.CurrentTimestamp: _B._function,
    exp.CurrentTime: _B._function,
    exp.Localtime: _B._function,
    exp.Localtimestamp: _B._function,
    exp.CurrentUser: _B._function,
    exp.SessionUser: _B._function,
    exp.CurrentSchema: _B._function,
    exp.CurrentCatalog: _B._function,
    exp.If: _B._function,
}
