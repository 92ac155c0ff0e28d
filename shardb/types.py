"""SQL types: names, PostgreSQL OIDs, Arrow types and engine types in one table, nowhere else."""

from __future__ import annotations

from enum import IntEnum


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
