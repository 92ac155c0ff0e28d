"""Bounds of columns: what a scan's filter implies, for shards that skip row groups by it."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.plan.bounds import bounds
from coordinator.plan.cache import PlanCache
from coordinator.plan.explain import explain_lines
from coordinator.plan.plans import QueryPlan, ScanStage, UtilityPlan
from coordinator.sql.compiler import Compiler
from shardb._core.keycodec import KeyCodec
from shardb._core.rowprog import Program
from shardb.limits import SCAN_BOUND_MAX_BYTES
from shardb.rpc.messages import Bound
from tests.support.local_plans import LocalPlans

LOCAL = LocalPlans()
TABLE = LOCAL.create(
    "create table t (k int primary key, i int, s int2, b int8, n numeric(8,2), f float8, r float4, "
    "v varchar(20), c char(5), d date, ts timestamp, q bool, u uuid, j jsonb, iv interval)"
)
COMPILER = Compiler(LOCAL.catalog)
NAMES = [column.name for column in TABLE.columns]


def stage_of(condition: str) -> ScanStage:
    plan = COMPILER.compile(f"select count(*) from t where {condition}").plan
    assert isinstance(plan, QueryPlan), plan
    return plan.scans[0]


def bounds_of(condition: str, values: tuple[Any, ...] = ()) -> tuple[Bound, ...]:
    cache = PlanCache(COMPILER, Program)
    return bounds(stage_of(condition).bound_programs, cache.bound_program_of, values)


def encoded(name: str, value: object) -> bytes:
    column = TABLE.columns[NAMES.index(name)]
    return KeyCodec([(column.type_code, column.typmod, False, False)]).encode((value,))


def pair(name: str, low: object, high: object) -> Bound:
    return Bound(
        NAMES.index(name),
        b"" if low is None else encoded(name, low),
        b"" if high is None else encoded(name, high),
    )


D, day = Decimal, datetime.date


@pytest.mark.parametrize(
    "condition,expected",
    [
        ("i = 5", [pair("i", 5, 5)]),
        ("5 > i", [pair("i", None, 5)]),
        ("i >= 5 and i < 9 and b = 7", [pair("i", 5, 9), pair("b", 7, 7)]),
        ("i between 5 and 9", [pair("i", 5, 9)]),
        ("i > 5 and i > 7 and i <= 20 and i <= 10", [pair("i", 7, 10)]),
        ("i in (9, 3, 5)", [pair("i", 3, 9)]),
        ("i in (9, null)", [pair("i", 9, 9)]),
        ("s = 70000", []),
        ("s < 300", [pair("s", None, 300)]),
        ("i > 2.5", [Bound(1, encoded("i", 3), b"")]),
        ("n < 24", [pair("n", None, D(24))]),
        ("n between 0.06 - 0.01 and 0.06 + 0.01", [pair("n", D("0.05"), D("0.07"))]),
        ("f > 1.5", [pair("f", 1.5, None)]),
        ("r > 1.5", [pair("r", 1.5, None)]),
        ("v = 'abc'", [pair("v", "abc", "abc")]),
        ("v >= 'abc' and v <> 'b'", [pair("v", "abc", None)]),
        ("c = 'abc'", []),
        ("d <= date '1998-12-01' - interval '90 day'", [pair("d", None, day(1998, 9, 2))]),
        (
            "d >= date '1994-01-01' and d < date '1994-01-01' + interval '1' year",
            [pair("d", day(1994, 1, 1), day(1995, 1, 1))],
        ),
        ("ts > '2024-01-01 10:00'", [pair("ts", datetime.datetime(2024, 1, 1, 10), None)]),
        ("q = true", [pair("q", True, True)]),
        ("iv = '1 day'", []),
        ("i < 5 or i > 9", []),
        ("not i < 5", []),
        ("i + 1 < 5", []),
        ("i = k", []),
        ("i = null", []),
        ("i > 9 and (v = 'a' or v = 'b')", [pair("i", 9, None)]),
        (f"v = '{'x' * (SCAN_BOUND_MAX_BYTES + 1)}'", []),
    ],
)
def test_conditions_bound_columns(condition: str, expected: list[Bound]) -> None:
    assert bounds_of(condition) == tuple(expected)


def test_parameters_bound_when_they_are_known() -> None:
    stage = stage_of("i = $1 and v > $2 and b < $3 + 1")
    assert [bound.column for bound in stage.bound_programs] == [1, 7, 3]
    assert stage.schema_version == TABLE.schema_version
    found = bounds_of("i = $1 and v > $2 and b < $3 + 1", (4, "m", 9))
    assert found == (pair("i", 4, 4), pair("b", None, 10), pair("v", "m", None))
    assert bounds_of("i = $1", (None,)) == ()
    # What cannot be computed does not bound: the filter meets the error.
    assert bounds_of("i = 1 / $1", (0,)) == ()


def test_only_the_scan_of_the_column_is_bound() -> None:
    plan = COMPILER.compile(
        "select count(*) from t join t as o on t.i = o.i and o.b > 5 where t.b < 3"
    ).plan
    assert isinstance(plan, QueryPlan)
    assert [[b.column for b in stage.bound_programs] for stage in plan.scans] == [[3], [3]]
    plan = COMPILER.compile(
        "select count(*) from t left join t as o on t.i = o.i where o.b > 5"
    ).plan
    assert isinstance(plan, QueryPlan)
    assert [stage.bound_programs for stage in plan.scans] == [(), ()]


def test_explain_shows_bounds() -> None:
    plan = COMPILER.compile("explain select count(*) from t where i >= 5 and v in ('a', 'b')").plan
    assert isinstance(plan, UtilityPlan)
    lines = explain_lines(plan.args[0], LOCAL.catalog)  # type: ignore[arg-type]
    assert "Bounds: i >= 5 and (v = 'a') or (v = 'b')" in "\n".join(lines)


OPERATORS = st.sampled_from(["=", "<", "<=", ">", ">="])
NUMBERS = st.decimals(-10_000, 10_000, places=3)
HOLDS = {
    "=": lambda a, b: a == b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def within(found: tuple[Bound, ...], name: str, value: object) -> bool:
    key = encoded(name, value)
    return all(
        bound.low <= key and (not bound.high or key <= bound.high)
        for bound in found
        if bound.column == NAMES.index(name)
    )


@given(st.lists(st.tuples(OPERATORS, NUMBERS), max_size=4), st.decimals(-10_000, 10_000, places=2))
def test_numeric_rows_that_pass_are_within(
    conditions: list[tuple[str, Decimal]], value: Decimal
) -> None:
    if all(HOLDS[op](value, constant) for op, constant in conditions):
        text = " and ".join(f"n {op} {constant:f}" for op, constant in conditions) or "true"
        assert within(bounds_of(text), "n", value)


@given(OPERATORS, NUMBERS, st.integers(-10_000, 10_000))
def test_integer_rows_that_pass_are_within(op: str, constant: Decimal, value: int) -> None:
    if HOLDS[op](value, constant):
        assert within(bounds_of(f"i {op} {constant:f}"), "i", value)


@given(OPERATORS, st.floats(width=64, allow_nan=False), st.floats(width=32, allow_nan=False))
def test_float_rows_that_pass_are_within(op: str, constant: float, value: float) -> None:
    if HOLDS[op](value, constant):
        assert within(bounds_of(f"r {op} $1::float8", (constant,)), "r", value)


@given(OPERATORS, st.text(max_size=5), st.text(max_size=5))
def test_text_rows_that_pass_are_within(op: str, constant: str, value: str) -> None:
    if "\0" in constant + value:
        return
    if HOLDS[op](value.encode(), constant.encode()):
        assert within(bounds_of(f"v {op} $1", (constant,)), "v", value)


MOMENTS = st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2100, 1, 1))


@given(OPERATORS, MOMENTS, st.dates(day(1900, 1, 1), day(2100, 1, 1)))
def test_dates_that_pass_are_within(op: str, constant: datetime.datetime, value: day) -> None:
    midnight = datetime.datetime.combine(value, datetime.time())
    if HOLDS[op](midnight, constant):
        assert within(bounds_of(f"d {op} timestamp '{constant.isoformat(' ')}'"), "d", value)
