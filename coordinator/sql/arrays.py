"""Arrays, as far as they stand for lists: `= ANY (...)`, ARRAY(SELECT ...), unnest(), array text.

There is no array type of a column. A constant array takes part element by element; a parameter or a
catalog's array is its text form (`{1,2}`), which the engine takes apart.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from sqlglot import exp

from coordinator.sql import typesystem as ts
from coordinator.sql.parse import position_of
from coordinator.sql.tree import Call, Expression, Literal, Parameter, SubqueryCall
from shardb import types
from shardb._core.coreerror import CoreError
from shardb._core.datum import binary_to_text
from shardb.errors import SqlError
from shardb.program import TypeRef
from shardb.types import TypeCode as T

if TYPE_CHECKING:
    from coordinator.sql.bind_expr import ExpressionBinder

_QUERIES: Final = (exp.Subquery, exp.Select, exp.SetOperation, exp.Values)
_HEADER: Final = struct.Struct("!iii")
_LENGTH: Final = struct.Struct("!i")
_QUOTED: Final = frozenset('{},"\\ \t\n\r\v\f')


def parse_array(text: str, position: int = 0) -> list[str | None]:
    """The elements of a one-dimensional array in text form; 22P02 if it is none."""
    body = text.strip()
    if not (body.startswith("{") and body.endswith("}")):
        raise _malformed(
            text, position, 'Array value must start with "{" or dimension information.'
        )
    items: list[str | None] = []
    at, end = 1, len(body) - 1
    if not body[1:end].strip():
        return []
    while True:
        piece, quoted, at = _element(body, at, end, text, position)
        if not quoted:
            piece = piece.strip()
            if not piece:
                raise _malformed(text, position, f'Unexpected "{body[at]}" character.')
        items.append(None if not quoted and piece.upper() == "NULL" else piece)
        if at >= end:
            return items
        at += 1


def _element(body: str, at: int, end: int, text: str, position: int) -> tuple[str, bool, int]:
    piece, quoted, inside = "", False, False
    while at < end and (inside or body[at] != ","):
        char = body[at]
        if char == "\\" and at + 1 < end:
            at += 1
            piece += body[at]
        elif char == '"':
            inside = not inside
            quoted = True
        elif char in "{}" and not inside:
            if char == "{":
                raise SqlError("0A000", "arrays of several dimensions are not supported")
            raise _malformed(text, position, 'Unexpected "}" character.')
        elif not (quoted and not inside and char.isspace()):
            piece += char
        at += 1
    if inside:
        raise _malformed(text, position, "Unexpected end of input.")
    return piece, quoted, at


def _malformed(text: str, position: int, detail: str) -> SqlError:
    return SqlError("22P02", f'malformed array literal: "{text}"', detail=detail, position=position)


def array_text(items: list[str | None], quoted: bool = False) -> str:
    """Elements as an array's text form, all of them in quotes if so wanted."""
    shown = []
    for item in items:
        if item is None:
            shown.append("NULL")
        elif quoted or not item or item.upper() == "NULL" or set(item) & _QUOTED:
            escaped = item.replace("\\", "\\\\").replace('"', '\\"')
            shown.append(f'"{escaped}"')
        else:
            shown.append(item)
    return "{" + ",".join(shown) + "}"


def parameter_text(data: bytes, binary: bool) -> bytes:
    """An array parameter as text with quoted elements, which the engine reads without mistake."""
    try:
        text = binary_array_text(data) if binary else data
        return array_text(parse_array(text.decode()), quoted=True).encode()
    except UnicodeDecodeError:
        raise SqlError("22021", 'invalid byte sequence for encoding "UTF8"') from None


def binary_array_text(data: bytes) -> bytes:
    """A binary array as text; 22P03 if it is malformed."""
    try:
        dimensions, _, oid = _HEADER.unpack_from(data)
        if dimensions == 0:
            return b"{}"
        if dimensions != 1:
            raise SqlError("0A000", "arrays of several dimensions are not supported")
        code = types.type_by_oid(oid)
        if code is None:
            raise SqlError("0A000", f"arrays of the type with OID {oid} are not supported")
        (count,) = _LENGTH.unpack_from(data, _HEADER.size)
        at = _HEADER.size + 8
        items: list[str | None] = []
        for _ in range(count):
            (size,) = _LENGTH.unpack_from(data, at)
            at += 4
            if size < 0:
                items.append(None)
                continue
            if at + size > len(data):
                raise SqlError("08P01", "insufficient data left in message")
            items.append(binary_to_text(code, -1, data[at : at + size]).decode())
            at += size
        if at != len(data):
            raise SqlError("22P03", "incorrect binary data format in bind parameter")
        return array_text(items).encode()
    except CoreError as error:
        raise SqlError(error.sqlstate, error.message) from None
    except struct.error:
        raise SqlError("08P01", "insufficient data left in message") from None


def element_type(node: exp.Expression) -> exp.Expression | None:
    """The element's type node if `node` is the type node of an array."""
    if not isinstance(node, exp.DataType) or not node.args.get("nested") or not node.expressions:
        return None
    inner = node.expressions[0]
    return inner if isinstance(inner, exp.DataType) else None


class Arrays:
    """The array half of an `ExpressionBinder`."""

    def __init__(self, binder: ExpressionBinder) -> None:
        self.binder = binder
        self.context = binder.context

    def quantified(
        self, node: exp.Expression, op: str, kind: str, inner: exp.Expression
    ) -> Expression:
        """`left op ANY (array)`, or ALL."""
        position = position_of(node)
        left = self.binder.bind(node.this)
        items = self.elements(inner)
        operators = self.binder.operators
        if items is None:
            return self._over_text(op, kind, left, inner, position)
        if not items:
            return Literal(ts.BOOL, "false" if kind == "any" else "true")
        if op == "=" and kind == "any":
            pairs = [operators.comparable("=", left, item, position) for item in items]
            if all(pair[0] == pairs[0][0] for pair in pairs):
                return Call(ts.BOOL, "in", (pairs[0][0], *(pair[1] for pair in pairs)))
        parts = tuple(operators.binary(op, left, item, position) for item in items)
        return Call(ts.BOOL, "or" if kind == "any" else "and", parts)

    def elements(self, node: exp.Expression) -> list[Expression] | None:
        """The elements of a constant array, None if the node is something else."""
        while isinstance(node, exp.Paren):
            node = node.this
        if isinstance(node, exp.Array) and not isinstance(self._query_in(node), _QUERIES):
            return [self.binder.bind(item) for item in node.expressions]
        if isinstance(node, exp.Literal) and node.args.get("is_string"):
            texts = parse_array(str(node.this), position_of(node))
            return [Literal(ts.UNKNOWN, text) for text in texts]
        if isinstance(node, exp.Cast):
            inner_type = element_type(node.args["to"])
            items = self.elements(node.this) if inner_type is not None else None
            if items is None or inner_type is None:
                return None
            from coordinator.sql.bind_expr import data_type

            position = position_of(node)
            target = data_type(inner_type, position)
            converted = [self.binder.coerce(item, target, "explicit", position) for item in items]
            if any(item is None for item in converted):
                raise SqlError(
                    "42846", f"cannot cast to type {ts.type_name(target)}[]", position=position
                )
            return [item for item in converted if item is not None]
        return None

    def _over_text(
        self, op: str, kind: str, left: Expression, inner: exp.Expression, position: int
    ) -> Expression:
        element = TypeRef(T.TEXT if left.type.code == T.UNKNOWN else left.type.code)
        value = self._array_value(inner, element)
        if isinstance(value, Parameter):
            element = self.context.parameters.arrays.get(value.index, element)
        if value.type.code != T.TEXT:
            raise SqlError(
                "42809", "op ANY/ALL (array) requires array on right side", position=position
            )
        stand_in = Call(element, "array_elements", (value,))
        left, right = self.binder.operators.comparable(op, left, stand_in, position)
        return Call(ts.BOOL, f"array_{kind} {op}", (left, right))

    def _array_value(self, node: exp.Expression, element: TypeRef) -> Expression:
        while isinstance(node, exp.Paren):
            node = node.this
        if isinstance(node, exp.Cast):
            inner_type = element_type(node.args["to"])
            if inner_type is not None:
                from coordinator.sql.bind_expr import data_type

                element = data_type(inner_type, position_of(node))
                node = node.this
        value = self.binder.bind(node)
        if isinstance(value, Parameter) and value.type.code == T.UNKNOWN:
            self.context.parameters.arrays[value.index] = TypeRef(element.code)
            return self.context.parameters.resolve(value, ts.TEXT)
        return self.context.coercer.settle(value)

    def cast(self, node: exp.Cast, inner_type: exp.Expression) -> Expression:
        """A cast to an array type: its text form, checked if it is constant."""
        items = self.elements(node)
        if items is not None and all(isinstance(item, Literal) for item in items):
            texts = [item.text for item in items if isinstance(item, Literal)]
            return Literal(ts.TEXT, array_text(texts))
        return self._array_value(node, ts.TEXT)

    def from_query(self, node: exp.Expression) -> Expression | None:
        """ARRAY(SELECT ...) as array text; None if the node is not that."""
        inner = self._query_in(node)
        if not isinstance(inner, _QUERIES):
            return None
        query = self.binder.query.subquery(inner, self.binder.scope)
        if len(query.outputs) != 1:
            raise SqlError(
                "42601", "subquery must return only one column", position=position_of(node)
            )
        return SubqueryCall(ts.TEXT, "array", query)

    @staticmethod
    def _query_in(node: exp.Expression) -> exp.Expression | None:
        return node.expressions[0] if len(node.expressions) == 1 else None

    def constant(self, node: exp.Array) -> Expression:
        """ARRAY[...] as a value: its text form if it is constant."""
        items = self.binder.common(
            [self.binder.bind(item) for item in node.expressions], "ARRAY", position_of(node)
        )
        if not all(isinstance(item, Literal) for item in items):
            raise SqlError("0A000", "an array of expressions is not supported here")
        return Literal(
            ts.TEXT, array_text([item.text for item in items if isinstance(item, Literal)])
        )

    def item(self, node: exp.Bracket) -> Expression:
        """`array[n]`, whose type the context gives."""
        value = self.context.coercer.settle(self.binder.bind(node.this))
        index = self.binder.coerce(
            self.binder.bind(node.expressions[0]), ts.INT4, "assignment", position_of(node)
        )
        if value.type.code != T.TEXT or index is None:
            raise SqlError(
                "42804",
                f"cannot subscript type {ts.type_name(value.type)} because it does not support "
                "subscripting",
                position=position_of(node),
            )
        return Call(ts.UNKNOWN, "array_item", (value, index))
