"""Conversions: what a value becomes where another type is wanted, and checked literals.

Casts between an integer and a numeric keep the natural shape (int4 is numeric(10,0)), so that exact
arithmetic has the digits it needs and no more.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from coordinator.sql import typesystem as ts
from coordinator.sql.tree import Call, Expression, Literal, Parameter
from shardb._core.coreerror import CoreError
from shardb._core.datum import text_to_text
from shardb.errors import SqlError
from shardb.program import TypeRef
from shardb.types import TypeCode as T

_BOUNDS: Final = {T.INT2: 1 << 15, T.INT4: 1 << 31, T.INT8: 1 << 63}
_PLAIN: Final = re.compile(r"[+-]?\d+(\.\d+)?")


class Parameters:
    """The types of a statement's parameters, filled in as their uses are seen."""

    def __init__(self, declared: list[TypeRef]) -> None:
        self.types = declared
        self.arrays: dict[int, TypeRef] = {}  # element types of those that are arrays

    def reference(self, index: int) -> Parameter:
        """The parameter at `index`, with its type if that is known already."""
        while len(self.types) <= index:
            self.types.append(ts.UNKNOWN)
        return Parameter(self.types[index], index)

    def resolve(self, node: Parameter, target: TypeRef) -> Parameter:
        """Gives a parameter of unknown type the type `target`."""
        if self.types[node.index].code == T.UNKNOWN:
            self.types[node.index] = TypeRef(target.code)
        return Parameter(self.types[node.index], node.index)


def natural_numeric(text: str) -> TypeRef:
    """The tightest numeric type of a decimal literal."""
    digits, _, fraction = text.lstrip("+-").partition(".")
    whole = digits.lstrip("0")
    return ts.numeric(max(len(whole) + len(fraction), 1), len(fraction))


def number_literal(text: str, position: int) -> Literal:
    """A numeric literal as written, typed as PostgreSQL types it."""
    text = text.replace("_", "")
    if text.isdigit():
        value = int(text)
        if value < 1 << 31:
            return Literal(ts.INT4, str(value))
        if value < 1 << 63:
            return Literal(ts.INT8, str(value))
        text = str(value)
    elif "e" in text.lower():
        text = format(Decimal(text), "f")
    if text.startswith("."):
        text = "0" + text
    text = text.rstrip(".")
    if len(text.replace(".", "").lstrip("0")) > 38:
        raise SqlError("22003", "value overflows numeric format", position=position)
    return Literal(natural_numeric(text), text)


def parse_literal(text: str, target: TypeRef, position: int) -> Literal:
    """The constant `text` of type `target` in normal form; 22P02, 22007 or 22003 if it is none."""
    try:
        normal = text_to_text(target.code, -1, text.encode()).decode()
    except CoreError as error:
        raise SqlError(
            error.sqlstate, error.message, detail=error.detail, position=position
        ) from None
    code = T(target.code)
    if code == T.NUMERIC:
        return (
            Literal(natural_numeric(text.strip()), text.strip())
            if _PLAIN.fullmatch(text.strip())
            else Literal(natural_numeric(normal), normal)
        )
    if code == T.BOOL:
        return Literal(ts.BOOL, "true" if normal.startswith("t") else "false")
    if code in (*ts.STRINGS, T.JSON):
        normal = text
    return Literal(TypeRef(code), normal)


def cast_node(node: Expression, target: TypeRef) -> Expression:
    """A cast without any check, folded where the value is a literal and folding is exact."""
    source = node.type
    if isinstance(node, Literal):
        if node.text is None:
            return Literal(target, None)
        if source.code in ts.INTEGERS:
            if target.code in ts.INTEGERS and abs(int(node.text)) < _BOUNDS[T(target.code)]:
                return Literal(target, node.text)
            if target.code == T.NUMERIC and target.typmod < 0:
                return Literal(natural_numeric(node.text), node.text)
            if target.code in (T.FLOAT4, T.FLOAT8):
                return Literal(target, node.text)
        if source.code == T.NUMERIC and target.code in (T.FLOAT4, T.FLOAT8):
            return Literal(target, node.text)
    if target.code == T.NUMERIC and target.typmod < 0 and source.code in ts.INTEGERS:
        target = ts.numeric(*ts.exact_shape(source))
    return Call(target, "cast", (node,))


class Coercer:
    """Applies conversions and lets parameters and literals of unknown type take theirs."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def coerce(
        self, node: Expression, target: TypeRef, context: str, position: int = 0
    ) -> Expression | None:
        """`node` as a `target` in `context` (implicit, assignment, explicit); None if it cannot."""
        source = node.type
        if source.code == T.UNKNOWN:
            return self._unknown(node, target, context, position)
        if source.code == target.code:
            return self._modify(node, target, context)
        if not ts.can_cast(source.code, target.code, context):
            return None
        return cast_node(node, target)

    def _modify(self, node: Expression, target: TypeRef, context: str) -> Expression:
        if target.typmod < 0 or node.type.typmod == target.typmod or context == "implicit":
            return node
        if isinstance(node, Literal) and node.text is not None:
            if target.code == T.VARCHAR and len(node.text) <= target.typmod - 4:
                return Literal(target, node.text)
            if target.code == T.BPCHAR and len(node.text) <= target.typmod - 4:
                return Literal(target, node.text.ljust(target.typmod - 4))
        if context == "assignment" and target.code in (T.VARCHAR, T.BPCHAR):
            # Too long is an error on assignment; only an explicit cast truncates.
            return Call(target, "store", (node,))
        return Call(target, "cast", (node,))

    def _unknown(
        self, node: Expression, target: TypeRef, context: str, position: int
    ) -> Expression | None:
        if target.code == T.UNKNOWN:
            return node
        typed: Expression
        if isinstance(node, Parameter):
            typed = self.parameters.resolve(node, target)
            if typed.type.code != target.code:
                return self.coerce(typed, target, context, position)
        elif isinstance(node, Literal):
            if node.text is None:
                return Literal(target, None)
            typed = parse_literal(node.text, target, position)
        else:
            return self.coerce(cast_node(node, ts.TEXT), target, "explicit", position)
        return self._modify(typed, target, context)

    def settle(self, node: Expression) -> Expression:
        """Gives a value whose type nothing determined the type text."""
        if node.type.code != T.UNKNOWN:
            return node
        settled = self.coerce(node, ts.TEXT, "implicit")
        assert settled is not None
        return settled
