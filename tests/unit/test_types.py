"""The type table: names, modifiers and OIDs as PostgreSQL has them."""

from __future__ import annotations

import pyarrow as pa
import pytest

from shardb.errors import SqlError
from shardb.types import (
    TYPES,
    TypeCode,
    arrow_type,
    engine_type,
    format_type,
    numeric_typmod,
    resolve_type,
    type_by_name,
    type_by_oid,
)

T = TypeCode


def test_names_and_oids_are_unique() -> None:
    oids = [info.oid for info in TYPES.values()]
    names = [name for info in TYPES.values() for name in (info.name, *info.aliases)]
    assert len(set(oids)) == len(oids)
    assert len(set(names)) == len(names)
    assert all(type_by_oid(info.oid) is code for code, info in TYPES.items())
    assert type_by_oid(0) is T.UNKNOWN
    assert type_by_oid(600) is None
    assert type_by_name("Timestamp WITH time zone") is T.TIMESTAMPTZ


@pytest.mark.parametrize(
    ("name", "modifiers", "code", "typmod", "formatted"),
    [
        ("int", (), T.INT4, -1, "integer"),
        ("varchar", (10,), T.VARCHAR, 14, "character varying(10)"),
        ("CHARACTER  varying", (), T.VARCHAR, -1, "character varying"),
        ("char", (), T.BPCHAR, 5, "character(1)"),
        ("bpchar", (), T.BPCHAR, -1, "bpchar"),
        ("numeric", (10, 2), T.NUMERIC, (10 << 16 | 2) + 4, "numeric(10,2)"),
        ("decimal", (5,), T.NUMERIC, (5 << 16) + 4, "numeric(5,0)"),
        ("numeric", (), T.NUMERIC, -1, "numeric"),
        ("float", (24,), T.FLOAT4, -1, "real"),
        ("float", (25,), T.FLOAT8, -1, "double precision"),
        ("timestamp", (3,), T.TIMESTAMP, 3, "timestamp(3) without time zone"),
        ("timestamptz", (9,), T.TIMESTAMPTZ, 6, "timestamp(6) with time zone"),
        ("jsonb", (), T.JSONB, -1, "jsonb"),
    ],
)
def test_resolve(
    name: str, modifiers: tuple[int, ...], code: TypeCode, typmod: int, formatted: str
) -> None:
    assert resolve_type(name, modifiers) == (code, typmod)
    assert format_type(code, typmod) == formatted


@pytest.mark.parametrize(
    ("name", "modifiers", "state"),
    [
        ("blob", (), "42704"),
        ("unknown", (), "42704"),
        ("varchar", (0,), "22023"),
        ("numeric", (39,), "22023"),
        ("numeric", (5, 6), "22023"),
        ("numeric", (5, 2, 1), "22023"),
        ("float", (54,), "22023"),
        ("int", (4,), "42601"),
    ],
)
def test_refused(name: str, modifiers: tuple[int, ...], state: str) -> None:
    with pytest.raises(SqlError) as caught:
        resolve_type(name, modifiers)
    assert caught.value.sqlstate == state


def test_arrow_and_engine() -> None:
    assert arrow_type(T.NUMERIC) == pa.decimal128(38, 16)
    assert arrow_type(T.NUMERIC, numeric_typmod((12, 2))) == pa.decimal128(12, 2)
    assert engine_type(T.NUMERIC, numeric_typmod((12, 2))) == "DECIMAL(12, 2)"
    assert engine_type(T.INT8) == "BIGINT"
    for code in TypeCode:
        assert isinstance(arrow_type(code), pa.DataType)
        assert engine_type(code)
