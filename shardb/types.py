"""SQL types: names, PostgreSQL OIDs, Arrow types and engine types in one table, nowhere else.

A type is a `TypeCode` with a typmod, PostgreSQL's: -1 for none, n + 4 for varchar(n) and char(n),
((p << 16) | s) + 4 for numeric(p, s), the digits after the second for time and timestamps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import pyarrow as pa

from shardb.errors import SqlError
from shardb.limits import NUMERIC_PRECISION_MAX, NUMERIC_UNCONSTRAINED_SCALE

CHARACTER_LENGTH_MAX: Final = 10_485_760  # varchar(n) and char(n), as in PostgreSQL
SECOND_DIGITS_MAX: Final = 6


class TypeCode(IntEnum):
    """The storage type of a column or value; the numbers are on disk and never change."""

    UNKNOWN = 0
    BOOL = 1
    INT2 = 2
    INT4 = 3
    INT8 = 4
    FLOAT4 = 5
    FLOAT8 = 6
    NUMERIC = 7
    TEXT = 8
    VARCHAR = 9
    BPCHAR = 10
    BYTEA = 11
    DATE = 12
    TIME = 13
    TIMESTAMP = 14
    TIMESTAMPTZ = 15
    INTERVAL = 16
    UUID = 17
    JSON = 18
    JSONB = 19


@dataclass(frozen=True, slots=True)
class TypeInfo:
    """One type. `name` is pg_type's, `sql_name` what format_type says, `length` typlen.

    `category` and `preferred` steer the choice among overloaded operators, as in pg_type.
    `engine` is the type's name in the fragment engine, without modifiers.
    """

    code: TypeCode
    name: str
    sql_name: str
    oid: int
    array_oid: int
    length: int
    category: str
    preferred: bool
    engine: str
    aliases: tuple[str, ...] = ()

    @property
    def by_value(self) -> bool:
        """pg_type.typbyval on a 64-bit machine."""
        return 0 < self.length <= 8

    @property
    def variable(self) -> bool:
        """True if rows hold it in their variable region."""
        return self.length < 0 and self.code is not TypeCode.NUMERIC


_T = TypeCode

TYPES: Final[dict[TypeCode, TypeInfo]] = {
    info.code: info
    for info in (
        TypeInfo(_T.UNKNOWN, "unknown", "unknown", 705, 0, -2, "X", False, "VARCHAR"),
        TypeInfo(_T.BOOL, "bool", "boolean", 16, 1000, 1, "B", True, "BOOLEAN", ("boolean",)),
        TypeInfo(_T.INT2, "int2", "smallint", 21, 1005, 2, "N", False, "SMALLINT", ("smallint",)),
        TypeInfo(
            _T.INT4, "int4", "integer", 23, 1007, 4, "N", False, "INTEGER", ("integer", "int")
        ),
        TypeInfo(_T.INT8, "int8", "bigint", 20, 1016, 8, "N", False, "BIGINT", ("bigint",)),
        TypeInfo(_T.FLOAT4, "float4", "real", 700, 1021, 4, "N", False, "FLOAT", ("real",)),
        TypeInfo(
            _T.FLOAT8,
            "float8",
            "double precision",
            701,
            1022,
            8,
            "N",
            True,
            "DOUBLE",
            ("double precision", "double", "float"),
        ),
        TypeInfo(
            _T.NUMERIC,
            "numeric",
            "numeric",
            1700,
            1231,
            -1,
            "N",
            False,
            "DECIMAL",
            ("decimal", "dec"),
        ),
        TypeInfo(_T.TEXT, "text", "text", 25, 1009, -1, "S", True, "VARCHAR"),
        TypeInfo(
            _T.VARCHAR,
            "varchar",
            "character varying",
            1043,
            1015,
            -1,
            "S",
            False,
            "VARCHAR",
            ("character varying", "char varying", "nvarchar"),
        ),
        TypeInfo(
            _T.BPCHAR,
            "bpchar",
            "character",
            1042,
            1014,
            -1,
            "S",
            False,
            "VARCHAR",
            ("character", "char", "nchar"),
        ),
        TypeInfo(_T.BYTEA, "bytea", "bytea", 17, 1001, -1, "U", False, "BLOB"),
        TypeInfo(_T.DATE, "date", "date", 1082, 1182, 4, "D", False, "DATE"),
        TypeInfo(
            _T.TIME,
            "time",
            "time without time zone",
            1083,
            1183,
            8,
            "D",
            False,
            "TIME",
            ("time without time zone",),
        ),
        TypeInfo(
            _T.TIMESTAMP,
            "timestamp",
            "timestamp without time zone",
            1114,
            1115,
            8,
            "D",
            False,
            "TIMESTAMP",
            ("timestamp without time zone", "datetime"),
        ),
        TypeInfo(
            _T.TIMESTAMPTZ,
            "timestamptz",
            "timestamp with time zone",
            1184,
            1185,
            8,
            "D",
            True,
            "TIMESTAMP WITH TIME ZONE",
            ("timestamp with time zone",),
        ),
        TypeInfo(_T.INTERVAL, "interval", "interval", 1186, 1187, 16, "T", True, "INTERVAL"),
        TypeInfo(_T.UUID, "uuid", "uuid", 2950, 2951, 16, "U", False, "UUID"),
        TypeInfo(_T.JSON, "json", "json", 114, 199, -1, "U", False, "JSON"),
        TypeInfo(_T.JSONB, "jsonb", "jsonb", 3802, 3807, -1, "U", False, "JSON"),
    )
}

assert len(TYPES) == len(TypeCode)

_BY_OID: Final = {info.oid: info.code for info in TYPES.values()}
_BY_NAME: Final = {
    name: info.code for info in TYPES.values() for name in (info.name, *info.aliases)
}

_ARROW: Final[dict[TypeCode, pa.DataType]] = {
    _T.UNKNOWN: pa.string(),
    _T.BOOL: pa.bool_(),
    _T.INT2: pa.int16(),
    _T.INT4: pa.int32(),
    _T.INT8: pa.int64(),
    _T.FLOAT4: pa.float32(),
    _T.FLOAT8: pa.float64(),
    _T.TEXT: pa.string(),
    _T.VARCHAR: pa.string(),
    _T.BPCHAR: pa.string(),
    _T.BYTEA: pa.binary(),
    _T.DATE: pa.date32(),
    _T.TIME: pa.time64("us"),
    _T.TIMESTAMP: pa.timestamp("us"),
    _T.TIMESTAMPTZ: pa.timestamp("us", tz="UTC"),
    _T.INTERVAL: pa.month_day_nano_interval(),
    _T.UUID: pa.binary(16),
    _T.JSON: pa.string(),
    _T.JSONB: pa.string(),
}


def type_by_oid(oid: int) -> TypeCode | None:
    """The type of a PostgreSQL OID; oid 0 means "not said" and is unknown."""
    return TypeCode.UNKNOWN if oid == 0 else _BY_OID.get(oid)


def type_by_name(name: str) -> TypeCode | None:
    """The type called `name` (any letter case, one blank between words), modifiers left off."""
    return _BY_NAME.get(name.lower())


def resolve_type(name: str, modifiers: Sequence[int] = ()) -> tuple[TypeCode, int]:
    """The type and typmod of an SQL type name with its modifiers, such as `numeric`, (10, 2).

    Raises SqlError 42704 for an unknown type and 22023 / 42601 for modifiers that do not fit.
    """
    key = " ".join(name.lower().split())
    code = _BY_NAME.get(key)
    if key == "float" and modifiers:
        if not 1 <= modifiers[0] <= 53:
            low = modifiers[0] < 1
            bound = "at least 1 bit" if low else "less than 54 bits"
            raise SqlError("22023", f"precision for type float must be {bound}")
        return (TypeCode.FLOAT4 if modifiers[0] <= 24 else TypeCode.FLOAT8), -1
    if code is None or code is TypeCode.UNKNOWN:
        raise SqlError("42704", f'type "{name}" does not exist')
    if not modifiers:
        # char without a length is char(1); bpchar by its own name has no limit
        return code, (5 if code is TypeCode.BPCHAR and key != "bpchar" else -1)
    if code is TypeCode.NUMERIC:
        return code, numeric_typmod(modifiers)
    if len(modifiers) == 1:
        size = modifiers[0]
        if code in (TypeCode.VARCHAR, TypeCode.BPCHAR):
            short = "varchar" if code is TypeCode.VARCHAR else "char"
            if size < 1:
                raise SqlError("22023", f"length for type {short} must be at least 1")
            if size > CHARACTER_LENGTH_MAX:
                raise SqlError(
                    "22023", f"length for type {short} cannot exceed {CHARACTER_LENGTH_MAX}"
                )
            return code, size + 4
        if code in (TypeCode.TIME, TypeCode.TIMESTAMP, TypeCode.TIMESTAMPTZ, TypeCode.INTERVAL):
            if size < 0:
                upper = TYPES[code].sql_name.upper()
                raise SqlError("22023", f"{upper}({size}) precision must not be negative")
            digits = min(size, SECOND_DIGITS_MAX)
            return code, (-1 if code is TypeCode.INTERVAL else digits)
    raise SqlError("42601", f'type modifier is not allowed for type "{TYPES[code].name}"')


def numeric_typmod(modifiers: Sequence[int]) -> int:
    """The typmod of numeric(p) or numeric(p, s)."""
    if len(modifiers) > 2:
        raise SqlError("22023", "invalid NUMERIC type modifier")
    precision = modifiers[0]
    scale = modifiers[1] if len(modifiers) == 2 else 0
    if not 1 <= precision <= NUMERIC_PRECISION_MAX:
        raise SqlError(
            "22023",
            f"NUMERIC precision {precision} must be between 1 and {NUMERIC_PRECISION_MAX}",
        )
    if not 0 <= scale <= precision:
        raise SqlError(
            "22023", f"NUMERIC scale {scale} must be between 0 and precision {precision}"
        )
    return ((precision << 16) | scale) + 4


def numeric_shape(typmod: int) -> tuple[int, int]:
    """Precision and scale of a numeric as it is stored."""
    if typmod < 4:
        return NUMERIC_PRECISION_MAX, NUMERIC_UNCONSTRAINED_SCALE
    return (typmod - 4) >> 16, (typmod - 4) & 0xFFFF


def arrow_type(code: int, typmod: int = -1) -> pa.DataType:
    """The Arrow type that values of a type have in scans and results."""
    if code == TypeCode.NUMERIC:
        precision, scale = numeric_shape(typmod)
        return pa.decimal128(precision, scale)
    return _ARROW[TypeCode(code)]


def engine_type(code: int, typmod: int = -1) -> str:
    """The type's name in the fragment engine's SQL."""
    if code == TypeCode.NUMERIC:
        precision, scale = numeric_shape(typmod)
        return f"DECIMAL({precision}, {scale})"
    return TYPES[TypeCode(code)].engine


def format_type(code: int, typmod: int = -1) -> str:
    """The SQL name with modifiers, as PostgreSQL's format_type()."""
    info = TYPES[TypeCode(code)]
    if typmod < 0:
        return "bpchar" if info.code is TypeCode.BPCHAR else info.sql_name
    if info.code in (TypeCode.VARCHAR, TypeCode.BPCHAR):
        return f"{info.sql_name}({typmod - 4})"
    if info.code is TypeCode.NUMERIC:
        precision, scale = numeric_shape(typmod)
        return f"numeric({precision},{scale})"
    if info.code in (TypeCode.TIME, TypeCode.TIMESTAMP, TypeCode.TIMESTAMPTZ):
        head, _, tail = info.sql_name.partition(" ")
        return f"{head}({typmod}) {tail}"
    return info.sql_name
