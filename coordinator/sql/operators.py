"""Operators: which types they take, what they make of unknown sides, and what they return.

Follows the manual's chapter 10.2 for the operators of our types. Comparison of strings is by bytes.
"""

from __future__ import annotations

from typing import Final

from coordinator.sql import typesystem as ts
from coordinator.sql.coerce import Coercer, cast_node
from coordinator.sql.tree import Call, Expression, Literal
from shardb.errors import SqlError
from shardb.program import TypeRef
from shardb.types import TypeCode as T

COMPARISONS: Final = ("=", "<>", "<", "<=", ">", ">=")
MATCHES: Final = ("like", "ilike", "~", "~*", "similar")
_PRODUCT_SCALE_MAX: Final = 20


class Operators:
    """Types and builds operator calls."""

    def __init__(self, coercer: Coercer) -> None:
        self._coerce = coercer.coerce
        self._settle = coercer.settle

    def binary(self, op: str, left: Expression, right: Expression, position: int) -> Expression:
        """`left op right`; 42883 if there is no such operator."""
        if op in COMPARISONS or op in ("is_distinct", "is_not_distinct"):
            left, right = self.comparable(op, left, right, position)
            return Call(ts.BOOL, op, (left, right))
        if op in MATCHES:
            return Call(
                ts.BOOL,
                op,
                (
                    self._text(op, left, right, left, position),
                    self._text(op, left, right, right, position),
                ),
            )
        if op == "||":
            return self._concatenate(left, right, position)
        return self._arithmetic(op, left, right, position)

    def negate(self, operand: Expression, position: int) -> Expression:
        """`- operand`."""
        if operand.type.code == T.UNKNOWN:
            operand = self._must(operand, ts.FLOAT8, position)
        if operand.type.code not in ts.NUMBERS and operand.type.code != T.INTERVAL:
            raise SqlError(
                "42883",
                f"operator does not exist: - {ts.type_name(operand.type)}",
                hint=_HINT,
                position=position,
            )
        if (
            isinstance(operand, Literal)
            and operand.text is not None
            and (operand.type.code in ts.NUMBERS)
        ):
            text = operand.text[1:] if operand.text.startswith("-") else "-" + operand.text
            return Literal(_negated_type(operand.type, text), text)
        return Call(operand.type, "neg", (operand,))

    def comparable(
        self, op: str, left: Expression, right: Expression, position: int
    ) -> tuple[Expression, Expression]:
        """Both sides of a comparison, converted to one type."""
        a, b = left.type.code, right.type.code
        if a == T.UNKNOWN and b == T.UNKNOWN:
            return self._settle(left), self._settle(right)
        if a == T.UNKNOWN:
            return self._must(left, TypeRef(b), position), right
        if b == T.UNKNOWN:
            return left, self._must(right, TypeRef(a), position)
        if a == b and a not in (T.JSON, T.JSONB):
            return left, right
        if a in ts.NUMBERS and b in ts.NUMBERS:
            wanted = ts.common_numeric(left.type, right.type)
            wanted = TypeRef(wanted.code)
        elif a in ts.STRINGS and b in ts.STRINGS:
            wanted = ts.TEXT
        elif a in ts.MOMENTS and b in ts.MOMENTS:
            wanted = TypeRef(max(a, b))
        elif T.TIME in (a, b) and T.INTERVAL in (a, b):
            wanted = ts.INTERVAL
        else:
            raise self.missing(op, left, right, position)
        return self._must(left, wanted, position), self._must(right, wanted, position)

    def missing(self, op: str, left: Expression, right: Expression, position: int) -> SqlError:
        """42883 as PostgreSQL words it."""
        shown = {"like": "~~", "ilike": "~~*", "is_distinct": "=", "is_not_distinct": "="}
        names = f"{ts.type_name(left.type)} {shown.get(op, op)} {ts.type_name(right.type)}"
        return SqlError("42883", f"operator does not exist: {names}", hint=_HINT, position=position)

    def _must(self, node: Expression, target: TypeRef, position: int) -> Expression:
        converted = self._coerce(node, target, "implicit", position)
        assert converted is not None, (node.type, target)
        return converted

    def _text(
        self, op: str, left: Expression, right: Expression, node: Expression, position: int
    ) -> Expression:
        if node.type.code in (T.TEXT, T.VARCHAR, T.BPCHAR):
            return node
        if node.type.code != T.UNKNOWN:
            raise self.missing(op, left, right, position)
        return self._must(node, ts.TEXT, position)

    def _concatenate(self, left: Expression, right: Expression, position: int) -> Expression:
        stringy = (*ts.STRINGS, T.UNKNOWN)
        if left.type.code not in stringy and right.type.code not in stringy:
            if left.type.code == T.BYTEA and right.type.code == T.BYTEA:
                return Call(ts.BYTEA, "||", (left, right))
            raise self.missing("||", left, right, position)
        sides = []
        for node in (left, right):
            converted = self._coerce(node, ts.TEXT, "assignment", position)
            if converted is None:
                raise self.missing("||", left, right, position)
            sides.append(converted)
        return Call(ts.TEXT, "||", (sides[0], sides[1]))

    def _arithmetic(
        self, op: str, left: Expression, right: Expression, position: int
    ) -> Expression:
        a, b = left.type.code, right.type.code
        if a == T.UNKNOWN and b == T.UNKNOWN:
            raise SqlError(
                "42725",
                f"operator is not unique: unknown {op} unknown",
                hint="Could not choose a best candidate operator. You might need to "
                "add explicit type casts.",
                position=position,
            )
        if a == T.UNKNOWN:
            left = self._guess(op, left, right, position)
        elif b == T.UNKNOWN:
            right = self._guess(op, right, left, position)
        a, b = left.type.code, right.type.code
        if a in ts.NUMBERS and b in ts.NUMBERS:
            return self._numbers(op, left, right, position)
        return self._moments(op, left, right, position)

    def _guess(self, op: str, node: Expression, other: Expression, position: int) -> Expression:
        code = other.type.code
        if code in ts.MOMENTS and op in "+-" and isinstance(node, Literal):
            text = (node.text or "").strip()
            if code == T.DATE and text.lstrip("+-").isdigit():
                return self._must(node, ts.INT4, position)
            if op == "-" and text[:4].isdigit() and "-" in text:
                return self._must(node, TypeRef(code), position)
            return self._must(node, ts.INTERVAL, position)
        if code == T.INTERVAL and op in "*/":
            return self._must(node, ts.FLOAT8, position)
        return self._must(node, TypeRef(code), position)

    def _numbers(self, op: str, left: Expression, right: Expression, position: int) -> Expression:
        shape = ts.common_numeric(left.type, right.type)
        if op == "%" and shape.code in (T.FLOAT4, T.FLOAT8):
            raise self.missing(op, left, right, position)
        if op == "^":
            target = ts.NUMERIC if shape.code == T.NUMERIC else ts.FLOAT8
            args = tuple(self._must(side, target, position) for side in (left, right))
            return Call(target, "power", args)
        if (op in "&|#" or op in ("<<", ">>")) and shape.code not in ts.INTEGERS:
            raise self.missing(op, left, right, position)
        wanted = TypeRef(shape.code)
        left = self._must(left, wanted, position)
        right = self._must(right, wanted, position)
        if shape.code != T.NUMERIC:
            return Call(wanted, op, (left, right))
        return Call(_numeric_result(op, left.type, right.type), op, (left, right))

    def _moments(self, op: str, left: Expression, right: Expression, position: int) -> Expression:
        a, b = left.type.code, right.type.code
        if op == "+" and (a in ts.INTEGERS or a == T.INTERVAL) and b in (*ts.MOMENTS, T.TIME):
            left, right, a, b = right, left, b, a
        result: TypeRef | None = None
        if op in "+-":
            if a == T.DATE and b in ts.INTEGERS:
                result, right = ts.DATE, self._int4(right)
            elif op == "-" and a == T.DATE and b == T.DATE:
                result = ts.INT4
            elif op == "-" and a in ts.MOMENTS and b in ts.MOMENTS:
                left, right = self.comparable(op, left, right, position)
                result = ts.INTERVAL
            elif a in (T.DATE, T.TIMESTAMP) and b == T.INTERVAL:
                left = self._must(left, ts.TIMESTAMP, position)
                result = ts.TIMESTAMP
            elif a == b == T.TIME and op == "-":
                result = ts.INTERVAL
            elif a in (T.TIMESTAMPTZ, T.TIME, T.INTERVAL) and b == T.INTERVAL:
                result = left.type
            elif op == "+" and a == T.DATE and b == T.TIME:
                result = ts.TIMESTAMP
        elif op == "*" and T.INTERVAL in (a, b) and (a in ts.NUMBERS or b in ts.NUMBERS):
            if a != T.INTERVAL:
                left, right = right, left
            result, right = ts.INTERVAL, self._must(right, ts.FLOAT8, position)
        elif op == "/" and a == T.INTERVAL and b in ts.NUMBERS:
            result, right = ts.INTERVAL, self._must(right, ts.FLOAT8, position)
        if result is None:
            raise self.missing(op, left, right, position)
        return Call(result, op, (left, right))

    @staticmethod
    def _int4(node: Expression) -> Expression:
        return node if node.type.code == T.INT4 else cast_node(node, ts.INT4)


def _numeric_result(op: str, left: TypeRef, right: TypeRef) -> TypeRef:
    (p1, s1), (p2, s2) = ts.exact_shape(left), ts.exact_shape(right)
    if op in ("+", "-"):
        if ts.NUMERIC in (left, right):
            return ts.NUMERIC
        scale = max(s1, s2)
        return ts.numeric(min(38, max(p1 - s1, p2 - s2) + scale + 1), scale)
    if op == "*" and ts.NUMERIC not in (left, right) and s1 + s2 <= _PRODUCT_SCALE_MAX:
        return ts.numeric(min(38, p1 + p2), s1 + s2)
    if op == "%" and ts.NUMERIC not in (left, right):
        return ts.numeric(max(p1 - s1, p2 - s2) + max(s1, s2), max(s1, s2))
    return ts.NUMERIC


def _negated_type(ref: TypeRef, text: str) -> TypeRef:
    if ref.code == T.INT8 and text == "-2147483648":
        return ts.INT4
    if ref.code == T.NUMERIC and text == "-9223372036854775808":
        return ts.INT8
    return ref


_HINT: Final = (
    "No operator matches the given name and argument types. You might need to add explicit type "
    "casts."
)
