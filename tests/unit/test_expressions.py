"""Expressions of row programs against PostgreSQL's recorded answers and against plain Python."""

from __future__ import annotations

import re
import struct
from decimal import Context, Decimal
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
CONTEXT = Context(prec=200)
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


def evaluate(
    expression: Expr, params: tuple[TypeRef, ...] = (), values: tuple[object, ...] = ()
) -> str | None:
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


def beyond_numeric(expected: str, got: str) -> bool:
    """True where PostgreSQL's numeric holds more than 38 digits, or NaN, and ours says so."""
    if not Decimal(expected).is_finite():
        return got == "!0A000"
    if digits(expected) > 38 or len(expected.lstrip("-").partition(".")[0]) > 38:
        return True
    # Scales above 38 are not kept.
    return expected[0] != "!" and -int(Decimal(expected).as_tuple().exponent) > 38


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
        if result == "numeric" and expected[0] != "!" and expected != "NULL":
            if got[0] != "!" and Decimal(got) == Decimal(expected):
                continue
            if beyond_numeric(expected, got):
                continue
        wrong.append(f"{line}  got {got}")
    assert count > 1000
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:60])


# --- properties

INT8 = TypeRef(TypeCode.INT8)
INT4 = TypeRef(TypeCode.INT4)
NUMERIC = TypeRef(TypeCode.NUMERIC)
TEXT = TypeRef(TypeCode.TEXT)
BOOL = TypeRef(TypeCode.BOOL)


def binary(op: str, result: TypeRef, kind: TypeRef, a: object, b: object) -> str:
    """`a op b` on parameters, as the fixture writes answers."""
    try:
        text = evaluate(Call(result, op, (Param(kind, 0), Param(kind, 1))), (kind, kind), (a, b))
    except CoreError as error:
        return f"!{error.sqlstate}"
    return "NULL" if text is None else text


whole = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.integers(-100, 100), st.sampled_from([-(2**63), 2**63 - 1])
)


@given(whole, whole, st.sampled_from("+-*/%"))
def test_bigint_arithmetic(a: int, b: int, op: str) -> None:
    """Exact, truncating toward zero, and 22003 outside of 64 bits."""
    if op in "/%" and b == 0:
        expected = "!22012"
    else:
        quotient = abs(a) // abs(b) * (-1 if (a < 0) != (b < 0) else 1) if b else 0
        exact = {"+": a + b, "-": a - b, "*": a * b, "/": quotient, "%": a - b * quotient}[op]
        expected = str(exact) if -(2**63) <= exact < 2**63 else "!22003"
    assert binary(op, INT8, INT8, a, b) == expected


def decimals(places: int) -> st.SearchStrategy[Decimal]:
    return st.builds(
        lambda n, scale: Decimal(n).scaleb(-scale, CONTEXT),
        st.integers(-(10**18), 10**18) | st.integers(-1000, 1000),
        st.integers(0, places),
    )


@given(decimals(9), decimals(9), st.sampled_from(["+", "-", "*", "%"]))
def test_numeric_arithmetic(a: Decimal, b: Decimal, op: str) -> None:
    """Exact where 38 digits hold the result; products are rounded to no fewer than 16 places."""
    if op == "%" and b == 0:
        assert binary(op, NUMERIC, NUMERIC, a, b) == "!22012"
        return
    exact = {
        "+": CONTEXT.add(a, b),
        "-": CONTEXT.subtract(a, b),
        "*": CONTEXT.multiply(a, b),
        "%": CONTEXT.remainder(a, b) if b else a,
    }[op]
    got = binary(op, NUMERIC, NUMERIC, a, b)
    if len(exact.normalize(CONTEXT).as_tuple().digits) <= 38:
        assert Decimal(got) == exact
    else:
        assert got == "!22003" or abs(Decimal(got) - exact) <= Decimal("1e-16")


@given(decimals(9), decimals(9))
def test_numeric_division(a: Decimal, b: Decimal) -> None:
    """At least 16 significant digits, rounded correctly in the last place that is there."""
    got = binary("/", NUMERIC, NUMERIC, a, b)
    if b == 0:
        assert got == "!22012"
        return
    exact = CONTEXT.divide(a, b)
    if got == "!22003":  # 16 places after the point leave 22 before it
        assert abs(exact) >= Decimal("1e22")
        return
    assert CONTEXT.abs(CONTEXT.subtract(Decimal(got), exact)) <= max(
        CONTEXT.multiply(abs(exact), Decimal("1e-15")), Decimal("1e-38")
    )


@given(decimals(16), decimals(16), st.sampled_from(["=", "<", "<=", "<>"]))
def test_numeric_comparison(a: Decimal, b: Decimal, op: str) -> None:
    """By value, whatever the scales."""
    expected = {"=": a == b, "<": a < b, "<=": a <= b, "<>": a != b}[op]
    nodes = (Const(NUMERIC, format(a, "f")), Const(NUMERIC, format(b, "f")))
    assert evaluate(Call(BOOL, op, nodes)) == ("t" if expected else "f")


letters = st.text(alphabet="ab%_\\é", max_size=7)


@given(letters, letters)
def test_like(text: str, pattern: str) -> None:
    """LIKE is the regular expression it stands for."""
    expression = ""
    rest = iter(pattern)
    for ch in rest:
        if ch == "\\":
            following = next(rest, None)
            if following is None:
                return  # an error or not, depending on how far matching gets: see the fixture
            expression += re.escape(following)
        else:
            expression += {"%": ".*", "_": "."}.get(ch, re.escape(ch))
    expected = re.fullmatch(expression, text, re.DOTALL) is not None
    assert binary("like", BOOL, TEXT, text, pattern) == ("t" if expected else "f")


three = st.sampled_from([True, False, None])


@given(st.lists(three, min_size=1, max_size=4), st.sampled_from(["and", "or"]))
def test_three_valued_logic(values: list[bool | None], op: str) -> None:
    """The deciding value wins, else NULL, else the other one."""
    decides = op == "or"
    expected = decides if decides in values else None if None in values else not decides
    nodes = tuple(Param(BOOL, k) for k in range(len(values)))
    got = evaluate(Call(BOOL, op, nodes), (BOOL,) * len(values), tuple(values))
    assert got == {True: "t", False: "f", None: None}[expected]


@given(st.none() | st.integers(0, 3), st.lists(st.none() | st.integers(0, 3), max_size=4))
def test_in(probe: int | None, candidates: list[int | None]) -> None:
    """NULL unless found, if anything is NULL."""
    nodes = tuple(Param(INT4, k) for k in range(len(candidates) + 1))
    got = evaluate(Call(BOOL, "in", nodes), (INT4,) * len(nodes), (probe, *candidates))
    expected: str | None = "f"
    if not candidates:
        expected = "f" if probe is not None else None
    elif probe is None:
        expected = None
    elif probe in candidates:
        expected = "t"
    elif None in candidates:
        expected = None
    assert got == expected


def test_logic_decides_before_errors() -> None:
    """AND and OR stop at the argument that decides; CASE evaluates one branch."""
    zero = Call(INT4, "/", (Const(INT4, "1"), Const(INT4, "0")))
    fails = Call(BOOL, "=", (zero, Const(INT4, "1")))
    assert evaluate(Call(BOOL, "and", (Const(BOOL, "f"), fails))) == "f"
    assert evaluate(Call(BOOL, "or", (Const(BOOL, "t"), fails))) == "t"
    case = Call(INT4, "case", (Const(BOOL, "f"), zero, Const(BOOL, "t"), Const(INT4, "5"), zero))
    assert evaluate(case) == "5"
    assert evaluate(Call(INT4, "coalesce", (Const(INT4, None), Const(INT4, "2"), zero))) == "2"


def test_refused_at_compile_time() -> None:
    """What the machine does not have is 0A000 when the program is made, and `supported` says so."""
    assert "in" in OPERATORS
    assert supported("+", TypeCode.INT4, [TypeCode.INT4, TypeCode.INT4])
    assert not supported("=", TypeCode.BOOL, [TypeCode.INT4, TypeCode.TEXT])
    assert not supported("no such", TypeCode.BOOL, [])
    for bad in (
        Call(BOOL, "=", (Const(INT4, "1"), Const(TEXT, "1"))),
        Call(INT4, "sqrt", (Const(INT4, "1"),)),
        Call(BOOL, "=", (Const(TypeRef(TypeCode.JSON), "1"), Const(TypeRef(TypeCode.JSON), "1"))),
    ):
        with pytest.raises(CoreError) as caught:
            evaluate(bad)
        assert caught.value.sqlstate == "0A000"
