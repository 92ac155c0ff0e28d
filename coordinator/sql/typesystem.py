"""The binder's view of types: which converts to which, and what an operator's sides agree on.

Names, OIDs and engine spellings of types are in `shardb.types`; here is only what PostgreSQL's
pg_cast and its type resolution rules (manual, chapter 10) say about them.

Numeric modifiers are tracked through expressions: a derived numeric has a typmod that says the
scale it has, so that the engine, the row programs and the result agree on digits.
"""

from __future__ import annotations

from typing import Final

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

_NAMES: Final[dict[int, str]] = {
    T.UNKNOWN: "unknown",
    T.BOOL: "boolean",
    T.INT2: "smallint",
    T.INT4: "integer",
    T.INT8: "bigint",
    T.FLOAT4: "real",
    T.FLOAT8: "double precision",
    T.NUMERIC: "numeric",
    T.TEXT: "text",
    T.VARCHAR: "character varying",
    T.BPCHAR: "character",
    T.BYTEA: "bytea",
    T.DATE: "date",
    T.TIME: "time without time zone",
    T.TIMESTAMP: "timestamp without time zone",
    T.TIMESTAMPTZ: "timestamp with time zone",
    T.INTERVAL: "interval",
    T.UUID: "uuid",
    T.JSON: "json",
    T.JSONB: "jsonb",
}

_CODES: Final[dict[str, int]] = {
    "boolean": T.BOOL,
    "bool": T.BOOL,
    "smallint": T.INT2,
    "int2": T.INT2,
    "smallserial": T.INT2,
    "int": T.INT4,
    "integer": T.INT4,
    "int4": T.INT4,
    "oid": T.INT8,
    "bigint": T.INT8,
    "int8": T.INT8,
    "real": T.FLOAT4,
    "float4": T.FLOAT4,
    "float": T.FLOAT8,
    "float8": T.FLOAT8,
    "double precision": T.FLOAT8,
    "numeric": T.NUMERIC,
    "decimal": T.NUMERIC,
    "dec": T.NUMERIC,
    "text": T.TEXT,
    "name": T.TEXT,
    "regclass": T.TEXT,
    "varchar": T.VARCHAR,
    "character varying": T.VARCHAR,
    "char": T.BPCHAR,
    "character": T.BPCHAR,
    "bpchar": T.BPCHAR,
    "nchar": T.BPCHAR,
    "bytea": T.BYTEA,
    "date": T.DATE,
    "time": T.TIME,
    "time without time zone": T.TIME,
    "timestamp": T.TIMESTAMP,
    "timestamp without time zone": T.TIMESTAMP,
    "timestamptz": T.TIMESTAMPTZ,
    "timestamp with time zone": T.TIMESTAMPTZ,
    "interval": T.INTERVAL,
    "uuid": T.UUID,
    "json": T.JSON,
    "jsonb": T.JSONB,
}

_ENGINE: Final[dict[int, str]] = {
    T.UNKNOWN: "VARCHAR",
    T.BOOL: "BOOLEAN",
    T.INT2: "SMALLINT",
    T.INT4: "INTEGER",
    T.INT8: "BIGINT",
    T.FLOAT4: "FLOAT",
    T.FLOAT8: "DOUBLE",
    T.TEXT: "VARCHAR",
    T.VARCHAR: "VARCHAR",
    T.BPCHAR: "VARCHAR",
    T.BYTEA: "BLOB",
    T.DATE: "DATE",
    T.TIME: "TIME",
    T.TIMESTAMP: "TIMESTAMP",
    T.TIMESTAMPTZ: "TIMESTAMPTZ",
    T.INTERVAL: "INTERVAL",
    T.UUID: "UUID",
    T.JSON: "VARCHAR",
    T.JSONB: "VARCHAR",
}

OIDS: Final[dict[int, int]] = {
    T.BOOL: 16,
    T.BYTEA: 17,
    T.INT8: 20,
    T.INT2: 21,
    T.INT4: 23,
    T.TEXT: 25,
    T.JSON: 114,
    T.FLOAT4: 700,
    T.FLOAT8: 701,
    T.UNKNOWN: 705,
    T.BPCHAR: 1042,
    T.VARCHAR: 1043,
    T.DATE: 1082,
    T.TIME: 1083,
    T.TIMESTAMP: 1114,
    T.TIMESTAMPTZ: 1184,
    T.INTERVAL: 1186,
    T.NUMERIC: 1700,
    T.UUID: 2950,
    T.JSONB: 3802,
}
_CODE_BY_OID: Final = {oid: code for code, oid in OIDS.items()} | {19: T.TEXT, 26: T.INT8}


def numeric(precision: int, scale: int) -> TypeRef:
    """numeric(precision, scale)."""
    return TypeRef(T.NUMERIC, ((precision << 16) | scale) + 4)


def numeric_shape(ref: TypeRef) -> tuple[int, int]:
    """Precision and scale of a numeric; (38, 16) if unconstrained."""
    if ref.typmod < 0:
        return NUMERIC_PRECISION_MAX, 16
    return (ref.typmod - 4) >> 16, (ref.typmod - 4) & 0xFFFF


def exact_shape(ref: TypeRef) -> tuple[int, int]:
    """Precision and scale that hold every value of an integer or numeric type."""
    if ref.code == T.NUMERIC:
        return numeric_shape(ref)
    return {T.INT2: 5, T.INT4: 10, T.INT8: 19}[T(ref.code)], 0


def from_oid(oid: int) -> TypeRef:
    """The type of a parameter announced with `oid`; 0 means "infer it"."""
    if oid == 0:
        return UNKNOWN
    code = _CODE_BY_OID.get(oid)
    if code is None:
        raise SqlError("0A000", f"parameters of the type with OID {oid} are not supported")
    return TypeRef(code)


def from_name(name: str, modifiers: tuple[int, ...] = (), position: int = 0) -> TypeRef:
    """The type called `name` (lower case) with its modifiers, as in `varchar(10)`."""
    code = _CODES.get(name)
    if code is None:
        raise SqlError("42704", f'type "{name}" does not exist', position=position)
    if name == "float" and modifiers:
        if not 1 <= modifiers[0] <= 53:
            raise SqlError("22023", "precision for type float must be at least 1 bit and at most 53"
                           if modifiers[0] < 1 else
                           "precision for type float must be less than 54 bits", position=position)
        return FLOAT4 if modifiers[0] <= 24 else FLOAT8
    if code == T.NUMERIC and modifiers:
        return _numeric_modifiers(modifiers, position)
    if code in (T.VARCHAR, T.BPCHAR):
        if name in ("char", "character", "nchar") and not modifiers:
            modifiers = (1,)
        if not modifiers:
            return TypeRef(code)
        kind = "varchar" if code == T.VARCHAR else "char"
        if len(modifiers) != 1:
            raise SqlError("22023", "invalid type modifier", position=position)
        if modifiers[0] < 1:
            raise SqlError("22023", f"length for type {kind} must be at least 1", position=position)
        if modifiers[0] > 10_485_760:
            raise SqlError("22023", f"length for type {kind} cannot exceed 10485760",
                           position=position)
        return TypeRef(code, modifiers[0] + 4)
    if code in (T.TIME, T.TIMESTAMP, T.TIMESTAMPTZ, T.INTERVAL) and modifiers:
        if modifiers != (6,):
            raise SqlError("0A000", f"a precision other than 6 for {_NAMES[code]} is not supported",
                           position=position)
        return TypeRef(code)
    if modifiers:
        raise SqlError("42601", f'type modifier is not allowed for type "{name}"',
                       position=position)
    return TypeRef(code)


def _numeric_modifiers(modifiers: tuple[int, ...], position: int) -> TypeRef:
    precision = modifiers[0]
    scale = modifiers[1] if len(modifiers) > 1 else 0
    if len(modifiers) > 2:
        raise SqlError("22023", "invalid NUMERIC type modifier", position=position)
    if not 1 <= precision <= NUMERIC_PRECISION_MAX:
        raise SqlError("22023", f"NUMERIC precision {precision} must be between 1 and "
                       f"{NUMERIC_PRECISION_MAX}", position=position)
    if not 0 <= scale <= precision:
        raise SqlError("22023", f"NUMERIC scale {scale} must be between 0 and precision "
                       f"{precision}", position=position)
    return numeric(precision, scale)


def format_type(ref: TypeRef) -> str:
    """The type as PostgreSQL's format_type() prints it."""
    name = _NAMES[ref.code]
    if ref.typmod < 0:
        return "bpchar" if ref.code == T.BPCHAR else name
    if ref.code == T.NUMERIC:
        return "{}({},{})".format(name, *numeric_shape(ref))
    return f"{name}({ref.typmod - 4})"


def type_name(ref: TypeRef) -> str:
    """The type without its modifier, as error messages name it."""
    return _NAMES[ref.code]


def engine_type(ref: TypeRef) -> str:
    """How the engine spells the type."""
    if ref.code == T.NUMERIC:
        return "DECIMAL({},{})".format(*numeric_shape(ref))
    return _ENGINE[ref.code]


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
    return code in (T.FLOAT8, T.TEXT, T.TIMESTAMPTZ, T.BOOL, T.INTERVAL)


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
            result = common_numeric(ref, result) if T.NUMERIC in (ref.code, result.code) else (
                ref if can_cast(result.code, ref.code, "implicit") else result)
        elif can_cast(ref.code, result.code, "implicit") and not (
            can_cast(result.code, ref.code, "implicit") and is_preferred(ref.code)
        ):
            result = TypeRef(result.code)
        elif can_cast(result.code, ref.code, "implicit"):
            result = TypeRef(ref.code)
        else:
            return None
    return result
