"""Statements against PostgreSQL's own answers, recorded in tests/fixtures/sql.

`queries.tsv`: query, rows as JSON. `errors.tsv`: statement, SQLSTATE, position (`-` where we do not
say the same place), message.
"""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from coordinator.ddl import edits
from coordinator.ddl.alter import alter_table
from coordinator.plan.explain import explain_lines
from coordinator.plan.plans import QueryPlan, RowPlan, UtilityPlan, WritePlan
from coordinator.sql.arrays import array_text, binary_array_text, parse_array
from coordinator.sql.compiler import Compiler
from shardb.errors import SqlError
from tests.support.local_plans import LocalPlans

FIXTURES = Path(__file__).parent.parent / "fixtures" / "sql"
SCHEMA = (
    "create table t (i int, b bigint, n numeric(10,2), s varchar(10), c char(4), d date, "
    "f float8, tm time, ts timestamp, primary key (i))",
    "create table u (k int, v int)",
    "create table pk (a int primary key, z text)",
)
_D, _day, _time, _at = Decimal, datetime.date, datetime.time, datetime.datetime
ROWS: dict[str, list[tuple[Any, ...]]] = {
    "t": [
        (
            1,
            10,
            _D("1.50"),
            "apple",
            "x",
            _day(2020, 1, 31),
            0.5,
            _time(8, 30),
            _at(2020, 1, 1, 10),
        ),
        (2, 20, _D("2.25"), "pear", "yy", _day(2021, 2, 28), 1.25, _time(9, 30), _at(2019, 1, 1)),
        (3, -5, _D("-3.75"), None, None, None, None, None, None),
        (
            4,
            2**63 - 1,
            _D("100.00"),
            "apple",
            "x",
            _day(1999, 12, 31),
            2.5,
            _time(23, 59, 59),
            _at(2024, 2, 29, 12, 30, 15, 500000),
        ),
    ],
    "u": [(1, 10), (1, 11), (2, 5), (7, 70)],
    "pk": [(1, "one"), (2, "two")],
}


def _lines(name: str) -> list[list[str]]:
    return [line.split("\t") for line in (FIXTURES / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def database() -> LocalPlans:
    local = LocalPlans()
    for statement, (name, rows) in zip(SCHEMA, ROWS.items(), strict=True):
        local.create(statement)
        columns = [list(column) for column in zip(*rows, strict=True)]
        local.fill(name, pa.table(columns, names=[str(at) for at in range(len(columns))]))
    return local


def _comparable(text: str | None) -> str | None:
    """Numbers lose trailing zeros: numerics without a scale print without them."""
    if text is None or "." not in text:
        return text
    try:
        return format(Decimal(text).normalize(), "f")
    except ArithmeticError:
        return text


@pytest.mark.parametrize("query,expected", _lines("queries.tsv"))
def test_query_answers_as_postgres(database: LocalPlans, query: str, expected: str) -> None:
    wanted = json.loads(expected)
    if isinstance(wanted, str):
        with pytest.raises(SqlError) as caught:
            database.texts(query)
        assert caught.value.sqlstate == wanted[1:]
        return
    got = [tuple(map(_comparable, row)) for row in database.texts(query)]
    assert got == [tuple(map(_comparable, row)) for row in wanted]


@pytest.mark.parametrize("statement,sqlstate,position,message", _lines("errors.tsv"))
def test_error_is_postgres(
    database: LocalPlans, statement: str, sqlstate: str, position: str, message: str
) -> None:
    with pytest.raises(SqlError) as caught:
        plan = Compiler(database.catalog).compile(statement).plan
        if isinstance(plan, UtilityPlan):
            make = alter_table if plan.kind == "alter_table" else getattr(edits, plan.kind)
            make(plan.args[0], database.catalog, database.next_id)
    assert (caught.value.sqlstate, caught.value.message) == (sqlstate, message)
    if position != "-":
        assert caught.value.position == int(position)


@pytest.mark.parametrize(
    "statement,kind",
    [
        ("select b from t where i = $1", RowPlan),
        ("select b from t where i in (1, 2, 3)", RowPlan),
        ("select b from t where i >= $1 and i < 10 order by i desc limit 5", RowPlan),
        ("select count(*) from t where i between 1 and 5", RowPlan),
        ("select b from t where b = 1", QueryPlan),
        ("select b from t where i = 1 order by random()", RowPlan),
        ("insert into t (i, b) values ($1, $2), ($3, $4)", RowPlan),
        ("insert into u values (1, 2) returning k", RowPlan),
        ("insert into t (i) select k from u", WritePlan),
        ("insert into t (i) values (1) on conflict (i) do update set b = t.b + 1", RowPlan),
        ("update t set b = b + $1 where i = $2", RowPlan),
        ("update t set b = 0", RowPlan),
        ("update t set b = u.v from u where u.k = t.i", WritePlan),
        ("delete from t where i = 1 returning *", RowPlan),
        ("delete from t where i in (select k from u)", WritePlan),
    ],
)
def test_kind_of_plan(database: LocalPlans, statement: str, kind: type) -> None:
    assert isinstance(Compiler(database.catalog).compile(statement).plan, kind)


def test_parameters_take_their_types_from_context(database: LocalPlans) -> None:
    compiled = Compiler(database.catalog).compile(
        "select * from t where i = $1 and s = $2 and n > $3 and d < $4"
    )
    assert [int(ref.code) for ref in compiled.params] == [3, 9, 7, 12]


def test_wider_parameter_keeps_the_key(database: LocalPlans) -> None:
    plan = Compiler(database.catalog).compile("select b from t where i = $1", [20]).plan
    assert isinstance(plan, RowPlan)
    assert len(plan.program.key.points) == 1


def test_lifted_text_compiles_or_is_left_alone(database: LocalPlans) -> None:
    compiler = Compiler(database.catalog)
    assert compiler.compile_lifted("select b from t where i = $1", [23]) is not None
    assert compiler.compile_lifted("select b from nope where i = $1", [23]) is None


def test_programs_have_stable_ids(database: LocalPlans) -> None:
    first, second = (
        Compiler(database.catalog).compile("update t set b = 1 where i = 2").plan for _ in "ab"
    )
    assert isinstance(first, RowPlan) and isinstance(second, RowPlan)
    assert first.program_id == second.program_id
    assert 0 < first.program_id < 2**63


def test_filters_columns_and_keys_reach_the_scan(database: LocalPlans) -> None:
    plan = (
        Compiler(database.catalog)
        .compile("select t.s from t join u on t.i = u.k and u.v > 3 where t.i > 1 and t.b = 2")
        .plan
    )
    assert isinstance(plan, QueryPlan)
    first, second = plan.scans
    assert first.columns == (0, 1, 3)
    assert first.key_program is not None and first.key_program.key.low is not None
    assert "c1 = " in first.filter
    assert "c1 > " in second.filter


def test_outer_join_keeps_where_above_it(database: LocalPlans) -> None:
    plan = (
        Compiler(database.catalog)
        .compile("select * from t left join u on t.i = u.k where u.v is null")
        .plan
    )
    assert isinstance(plan, QueryPlan)
    assert [stage.filter for stage in plan.scans] == ["", ""]


def test_explain_names_shards(database: LocalPlans) -> None:
    local = LocalPlans()
    local.create("create table big (id int primary key, v text) with (split_at = '100, 200')")
    plan = Compiler(local.catalog).compile("explain select v from big where id = 150").plan
    assert isinstance(plan, UtilityPlan)
    text = "\n".join(explain_lines(plan.args[0], local.catalog))  # type: ignore[arg-type]
    assert "Shards: 1 of 3 ranges" in text
    plan = Compiler(local.catalog).compile("explain select count(*) from big").plan
    assert isinstance(plan, UtilityPlan)
    text = "\n".join(explain_lines(plan.args[0], local.catalog))  # type: ignore[arg-type]
    assert "Shards: 3 of 3 ranges" in text


def test_ddl_edits_keep_the_catalog_whole() -> None:
    local = LocalPlans()
    parent = local.create("create table a (x int primary key) with (split_at = '10, 20')")
    local.create("create table b (x int, y int, primary key (x, y)) with (colocate_with = 'a')")
    assert len(local.catalog.ranges_for(parent.group_id)) == 3
    for statement in ("truncate a, b", "drop table a", "drop table b"):
        plan = Compiler(local.catalog).compile(statement).plan
        assert isinstance(plan, UtilityPlan)
        local.apply(getattr(edits, plan.kind)(plan.args[0], local.catalog, local.next_id))
    assert not local.items


def test_deep_nesting_is_refused(database: LocalPlans) -> None:
    for text in ("select " + "(" * 5000 + "1" + ")" * 5000, "select " + "- " * 20000 + "1"):
        with pytest.raises(SqlError) as caught:
            Compiler(database.catalog).compile(text)
        assert caught.value.sqlstate == "54001"


def test_long_chains_are_not_deep(database: LocalPlans) -> None:
    chain = " or ".join(f"b = {number}" for number in range(2000))
    Compiler(database.catalog).compile(f"select i from t where {chain}")


def test_split_keeps_quotes_and_comments_together(database: LocalPlans) -> None:
    text = "select ';'; -- a; b\n select $$;$$ /* ; */ ; ;"
    parts = Compiler(database.catalog).split(text)
    assert [part.text for part in parts] == ["select ';'", "select $$;$$"]
    assert text[parts[1].offset :].startswith("select $$")


def test_list_parameters_are_arrays(database: LocalPlans) -> None:
    compiled = Compiler(database.catalog).compile("select 1 from t where i = any($1)")
    assert compiled.arrays == ((0, 1007),)
    declared = Compiler(database.catalog).compile("select 1 from t where i = any($1)", [1005])
    assert declared.arrays == ((0, 1005),)


def test_constant_lists_are_points(database: LocalPlans) -> None:
    plan = Compiler(database.catalog).compile("select b from t where i = any('{1,2}')").plan
    assert isinstance(plan, RowPlan)
    assert len(plan.program.key.points) == 2


@pytest.mark.parametrize(
    "items", [[], ["a"], [None, "NULL", "null"], ["", " x ", 'a"b', "c\\d", "{e}", "f,g"]]
)
def test_array_text_is_read_back(items: list[str | None]) -> None:
    assert parse_array(array_text(items)) == items


def test_binary_arrays_become_text() -> None:
    data = bytes.fromhex(
        "00000001 00000001 00000017 00000003 0000000100000004 00000001 ffffffff 00000004 fffffffe"
    )
    assert binary_array_text(data) == b"{1,NULL,-2}"
    for end in range(len(data)):
        with pytest.raises(SqlError):
            binary_array_text(data[:end])


@pytest.mark.parametrize("text", ["1", "{1", "{1,}", "{,1}", '{"a}', "{a}b}"])
def test_bad_array_text(text: str) -> None:
    with pytest.raises(SqlError) as caught:
        parse_array(text)
    assert caught.value.sqlstate == "22P02"
