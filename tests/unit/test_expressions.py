"""Expressions of row programs against PostgreSQL's recorded answers and against plain Python."""

from __future__ import annotations

import re
import struct
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardb._core.coreerror import CoreError
from shardb._core.rowprog import OPERATORS, Program, supported
from shardb.meta.descriptors import Column, Table
from shardb.program import Call, Const, Expr, Param, ProgramSpec, TypeRef
from shardb.types import TypeCode

FIXTURE = Path(__file__).parent.parent / "fixtures" / "expressions.tsv"
TABLE = Table(1, "t", 1, (Column(1, "id", TypeCode.INT4, not_null=True),), (0,))
ROW = Program(
    ProgramSpec(1, 1, "insert", (), rows=((Const(TypeRef(TypeCode.INT4), "1"),),)), TABLE
).insert(b"\0\0")[0][1]
TYPES = {
    name: TypeRef(TypeCode[name.upper()], typmod)
    for name, typmod in {
        "int2": -1, "int4": -1, "int8": -1, "float4": -1, "float8": -1, "numeric": -1, "text": -1,
        "date": -1, "timestamp": -1, "interval": -1, "time": -1, "bool": -1, "bpchar": 10,
        "varchar": 7,
    }.items()
}  # fmt: skip


def fields(message: bytes) -> list[bytes | None]:
    """The columns of a DataRow message."""
    assert message[:1] == b"D"
    length, count = struct.unpack_from("!IH", message, 1)
    assert length == len(message) - 1
    out: list[bytes | None] = []
    at = 7
    for _ in range(count):
        (size,) = struct.unpack_from("!i", message, at)
        at += 4
        out.append(None if size < 0 else message[at : at + size])
        at += max(size, 0)
    assert at == len(message)
    return out


def evaluate(expression: Expr, params: tuple[TypeRef, ...] = (), values: tuple[object, ...] = ()):
    """The expression's text form, None for NULL."""
    program = Program(ProgramSpec(1, 1, "select", params, output=(expression,)), TABLE)
    [field] = fields(program.returning(ROW, program.param_layout.encode(values), b""))
    return None if field is None else field.decode()


def answer(expression: Expr) -> str:
    """As the fixture writes it."""
    try:
        text = evaluate(expression)
    except CoreError as error:
        return f"!{error.sqlstate}"
    return "NULL" if text is None else text


def digits(text: str) -> int:
    """Significant digits that an exact decimal needs."""
    return len(Decimal(text).as_tuple().digits)


def test_postgres_answers() -> None:
    """Every recorded case; numerics compare by value, since trailing zeros are not kept."""
    wrong = []
    count = 0
    for line in FIXTURE.read_text().splitlines():
        result, op, *args, expected = line.split("\t")
        nodes = []
        for arg in args:
            kind, colon, value = arg.partition(":")
            nodes.append(Const(TYPES[kind], value if colon else None))
        got = answer(Call(TYPES[result], op, tuple(nodes)))
        count += 1
        if got == expected:
            continue
        if result == "numeric" and "!" not in got + expected:
            if Decimal(got) == Decimal(expected) or digits(expected) > 38:
                continue
            if -Decimal(expected).as_tuple().exponent > 38:  # type: ignore[operator]
                continue  # beyond the scale that is kept
        wrong.append(f"{line}  got {got}")
    assert count > 1000
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:60])
