"""The binder's view of types: which converts to which, and what an operator's sides agree on.

Names, OIDs and engine spellings of types are in `shardb.types`; here is only what PostgreSQL's
pg_cast and its type resolution rules (manual, chapter 10) say about them.

Numeric modifiers are tracked through expressions: a derived numeric has a typmod that says the
scale it has, so that the engine, the row programs and the result agree on digits.
"""

from __future__ import annotations

from typing import Final

from shardb import types
from shardb.errors import SqlError
from shardb.limits import NUMERIC_PRECISION_MAX
from shardb.program import TypeRef
from shardb.types import TypeCode as T

UNKNOWN: Final = TypeRef(T.UNKNOWN)
BOOL: Final = TypeRef(T.BOOL)
INT2: Final = TypeRef(T.INT2)
INT4: Final = TypeRef(T.INT4)
INT8: Final = TypeRef(T.INT8)
FLOAT4: Final = TypeRef(T.FLOAT4)
FLOAT8: Final = TypeRef(T.FLOAT8)
NUMERIC: Final = TypeRef(T.NUMERIC)
TEXT: Final = TypeRef(T.TEXT)
VARCHAR: Final = TypeRef(T.VARCHAR)
BPCHAR: Final = TypeRef(T.BPCHAR)
BYTEA: Final = TypeRef(T.BYTEA)
DATE: Final = TypeRef(T.DATE)
TIME: Final = TypeRef(T.TIME)
TIMESTAMP: Final = TypeRef(T.TIMESTAMP)
TIMESTAMPTZ: Final = TypeRef(T.TIMESTAMPTZ)
INTERVAL: Final = TypeRef(T.INTERVAL)
UUID: Final = TypeRef(T.UUID)
JSON: Final = TypeRef(T.JSON)
JSONB: Final = TypeRef(T.JSONB)

INTEGERS: Final = (T.INT2, T.INT4, T.INT8)
NUMBERS: Final = (T.INT2, T.INT4, T.INT8, T.NUMERIC, T.FLOAT4, T.FLOAT8)
STRINGS: Final = (T.TEXT, T.VARCHAR, T.BPCHAR)
MOMENTS: Final = (T.DATE, T.TIMESTAMP, T.TIMESTAMPTZ)

_IMPLICIT: Final[dict[int, frozenset[int]]] = {
    T.INT2: frozenset({T.INT4, T.INT8, T.NUMERIC, T.FLOAT4, T.FLOAT8}),
    T.INT4: frozenset({T.INT8, T.NUMERIC, T.FLOAT4, T.FLOAT8}),
    T.INT8: frozenset({T.NUMERIC, T.FLOAT4, T.FLOAT8}),
    T.NUMERIC: frozenset({T.FLOAT4, T.FLOAT8}),
    T.FLOAT4: frozenset({T.FLOAT8}),
    T.VARCHAR: frozenset({T.TEXT, T.BPCHAR}),
    T.BPCHAR: frozenset({T.TEXT, T.VARCHAR}),
    T.TEXT: frozenset({T.VARCHAR, T.BPCHAR}),
    T.DATE: frozenset({T.TIMESTAMP, T.TIMESTAMPTZ}),
    T.TIMESTAMP: frozenset({T.TIMESTAMPTZ}),
    T.TIME: frozenset({T.INTERVAL}),
}
_ASSIGNMENT: Final[dict[int, frozenset[int]]] = {
    T.INT4: frozenset({T.INT2}),
    T.INT8: frozenset({T.INT2, T.INT4}),
    T.NUMERIC: frozenset({T.INT2, T.INT4, T.INT8}),
    T.FLOAT4: frozenset({T.INT2, T.INT4, T.INT8, T.NUMERIC}),
    T.FLOAT8: frozenset({T.INT2, T.INT4, T.INT8, T.NUMERIC, T.FLOAT4}),
    T.TIMESTAMP: frozenset({T.DATE, T.TIME}),
    T.TIMESTAMPTZ: frozenset({T.DATE, T.TIME, T.TIMESTAMP}),
    T.INTERVAL: frozenset({T.TIME}),
    T.JSON: frozenset({T.JSONB}),
    T.JSONB: frozenset({T.JSON}),
}
_EXPLICIT: Final[dict[int, frozenset[int]]] = {
    T.INT4: frozenset({T.BOOL}),
    T.BOOL: frozenset({T.INT4}),
}

# Types of catalog columns and of casts to them, which we keep as plain ones.
_CATALOG_NAMES: Final = {
    "oid": INT8,
    "name": TEXT,
    "regclass": INT8,
    "regproc": INT8,
    "regprocedure": INT8,
    "regrole": TEXT,
    "xid": INT8,
    '"char"': TEXT,
    "regtype": TEXT,
    "cstring": TEXT,
    "regnamespace": TEXT,
}
_ELEMENTS: Final = {kind.array_oid: code for code, kind in types.TYPES.items() if kind.array_oid}
_CATALOG_OIDS: Final = {19: TEXT, 26: INT8, 2275: TEXT}


def numeric(precision: int, scale: int) -> TypeRef:
    """numeric(precision, scale)."""
    return TypeRef(T.NUMERIC, ((precision << 16) | scale) + 4)


def numeric_shape(ref: TypeRef) -> tuple[int, int]:
    """Precision and scale of a numeric; (38, 16) if unconstrained."""
    return types.numeric_shape(ref.typmod)


def exact_shape(ref: TypeRef) -> tuple[int, int]:
    """Precision and scale that hold every value of an integer or numeric type."""
    if ref.code == T.NUMERIC:
        return numeric_shape(ref)
    return {T.INT2: 5, T.INT4: 10, T.INT8: 19}[T(ref.code)], 0


def from_oid(oid: int) -> TypeRef:
    """The type of a parameter announced with `oid`; 0 and unknown's mean "infer it"."""
    if oid in _CATALOG_OIDS:
        return _CATALOG_OIDS[oid]
    if element_of(oid) is not None:
        return TEXT
    code = types.type_by_oid(oid)
    if code is None:
        raise SqlError("0A000", f"parameters of the type with OID {oid} are not supported")
    return TypeRef(code)


def element_of(oid: int) -> TypeRef | None:
    """The element type of an array type's OID; None if it is no array's."""
    found = _ELEMENTS.get(oid)
    return None if found is None else TypeRef(found)


def array_oid(ref: TypeRef) -> int:
    """The OID of the type's array type."""
    return types.TYPES[T(ref.code)].array_oid


def from_name(name: str, modifiers: tuple[int, ...] = (), position: int = 0) -> TypeRef:
    """The type called `name` (lower case) with its modifiers, as in `varchar(10)`."""
    if name in _CATALOG_NAMES and not modifiers:
        return _CATALOG_NAMES[name]
    try:
        return TypeRef(*types.resolve_type(name, modifiers))
    except SqlError as error:
        raise SqlError(error.sqlstate, error.message, position=position) from None


def oid_of(ref: TypeRef) -> int:
    """The type's OID."""
    return types.TYPES[T(ref.code)].oid


def format_type(ref: TypeRef) -> str:
    """The type as PostgreSQL's format_type() prints it."""
    return types.format_type(ref.code, ref.typmod)


def type_name(ref: TypeRef) -> str:
    """The type without its modifier, as error messages name it."""
    return types.TYPES[T(ref.code)].sql_name


def engine_type(ref: TypeRef) -> str:
    """How the engine spells the type; a uuid is its 16 bytes there, as it is in Arrow."""
    if ref.code == T.UUID:
        return "BLOB"
    return types.engine_type(ref.code, ref.typmod)


def can_cast(source: int, target: int, context: str) -> bool:
    """True if a value converts in `context`: `implicit`, `assignment` or `explicit`."""
    if source == target or source == T.UNKNOWN:
        return True
    if target in _IMPLICIT.get(source, ()):
        return True
    if context == "implicit":
        return False
    if target in STRINGS or target in _ASSIGNMENT.get(source, ()):
        return True
    if context == "assignment":
        return False
    return source in STRINGS or target in _EXPLICIT.get(source, ())


def is_preferred(code: int) -> bool:
    """True for the preferred type of a category (pg_type.typispreferred)."""
    return types.TYPES[T(code)].preferred


def common_numeric(left: TypeRef, right: TypeRef) -> TypeRef:
    """The number type both sides of an arithmetic operator or comparison become."""
    codes = (left.code, right.code)
    if T.FLOAT8 in codes or (T.FLOAT4 in codes and left.code != right.code):
        return FLOAT8
    if T.FLOAT4 in codes:
        return FLOAT4
    if T.NUMERIC in codes:
        return unify_shapes(left, right)
    return left if NUMBERS.index(T(left.code)) >= NUMBERS.index(T(right.code)) else right


def unify_shapes(left: TypeRef, right: TypeRef) -> TypeRef:
    """A numeric that holds the values of both (integers and numerics)."""
    (p1, s1), (p2, s2) = exact_shape(left), exact_shape(right)
    if NUMERIC in (left, right):
        return NUMERIC
    scale = max(s1, s2)
    return numeric(min(NUMERIC_PRECISION_MAX, max(p1 - s1, p2 - s2) + scale), scale)


def common_type(types: list[TypeRef]) -> TypeRef | None:
    """The type CASE branches, UNION columns, VALUES and lists agree on; None if there is none."""
    known = [ref for ref in types if ref.code != T.UNKNOWN]
    if not known:
        return TEXT
    result = known[0]
    for ref in known[1:]:
        if ref == result:
            continue
        if ref.code == result.code:
            result = unify_shapes(ref, result) if ref.code == T.NUMERIC else TypeRef(ref.code)
        elif ref.code in NUMBERS and result.code in NUMBERS:
            result = (
                common_numeric(ref, result)
                if T.NUMERIC in (ref.code, result.code)
                else (ref if can_cast(result.code, ref.code, "implicit") else result)
            )
        elif can_cast(ref.code, result.code, "implicit") and not (
            can_cast(result.code, ref.code, "implicit") and is_preferred(ref.code)
        ):
            result = TypeRef(result.code)
        elif can_cast(result.code, ref.code, "implicit"):
            result = TypeRef(ref.code)
        else:
            return None
    return result
