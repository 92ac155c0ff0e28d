"""ALTER TABLE as edits of descriptors: ids, layouts and what rows of earlier layouts have."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.ddl import edits
from coordinator.ddl.alter import alter_table
from coordinator.ddl.edits import Edit
from coordinator.plan.plans import UtilityPlan
from coordinator.sql.compiler import Compiler
from shardb.errors import SqlError
from shardb.limits import COLUMNS_MAX, TABLE_LAYOUTS_MAX
from shardb.meta.descriptors import Layout, Table
from shardb.node.ranges import schema_of
from shardb.types import TypeCode as T
from tests.support.local_plans import LocalPlans


def change(local: LocalPlans, statement: str, **missing: str | None) -> Edit:
    """Runs a schema change on the descriptors."""
    plan = Compiler(local.catalog).compile(statement).plan
    assert isinstance(plan, UtilityPlan)
    if plan.kind == "alter_table":
        edit = alter_table(plan.args[0], local.catalog, local.next_id, missing)  # type: ignore[arg-type]
    else:
        edit = getattr(edits, plan.kind)(plan.args[0], local.catalog, local.next_id)
    local.apply(edit)
    return edit


def table(local: LocalPlans, name: str = "a") -> Table:
    found = local.catalog.lookup(name)
    assert found is not None
    return found


def names(of: Table) -> list[str]:
    return [column.name for column in of.columns]


@pytest.fixture
def local() -> LocalPlans:
    made = LocalPlans()
    made.create("create table a (x int, y text, primary key (x)) with (split_at = '10')")
    made.create("create table keyless (x int, y text)")
    return made


def test_an_added_column_is_missing_in_earlier_rows(local: LocalPlans) -> None:
    before = table(local)
    edit = change(local, "alter table a add z int default 1 + 1 not null, add w text", z="2")
    after = table(local)
    assert edit.table == after and [pair[1] for pair in edit.install] == [after, after]
    assert names(after) == ["x", "y", "z", "w"]
    assert [(c.id, c.missing, c.default) for c in after.columns[2:]] == [
        (3, "2", "1 + 1"),
        (4, None, None),
    ]
    assert after.version > before.version
    assert after.schema_version == before.schema_version + 1
    assert after.history == (before.layout,)
    assert before.layout == Layout(1, ((1, T.INT4, -1), (2, T.TEXT, -1)))


def test_column_ids_are_not_used_again(local: LocalPlans) -> None:
    change(local, "alter table a add z int")
    change(local, "alter table a drop z")
    change(local, "alter table a drop y, add z text, add y int")
    assert [(c.id, c.name) for c in table(local).columns] == [(1, "x"), (4, "z"), (5, "y")]
    assert table(local).schema_version == 4
    assert [layout.schema_version for layout in table(local).history] == [1, 2, 3]


def test_the_hidden_key_stays_the_last_column(local: LocalPlans) -> None:
    change(local, "alter table keyless add z int, drop x")
    after = table(local, "keyless")
    assert names(after) == ["y", "z", edits.ROWID_NAME]
    assert after.primary_key == (2,) and after.has_hidden_key
    assert [column.id for column in after.columns] == [2, 3, edits.ROWID_ID]


def test_the_key_moves_with_its_column(local: LocalPlans) -> None:
    local.create("create table b (p text, q int, r int, primary key (r, q))")
    change(local, "alter table b drop p")
    assert table(local, "b").primary_key == (1, 0)


def test_earlier_columns_are_found_by_schema_version(local: LocalPlans) -> None:
    first = table(local)
    change(local, "alter table a drop y, add z date")
    second = table(local)
    change(local, "alter table a add y int")
    third = table(local)
    assert third.at(0) is third and third.at(3) is third
    assert third.at(2).columns == second.columns and third.at(2).history == second.history
    assert third.at(1).layout == first.layout
    assert names(third.at(1)) == ["x", ""] and third.at(1).primary_key == (0,)
    with pytest.raises(SqlError):
        third.at(4)
    assert msgspec.json.decode(msgspec.json.encode(third), type=Table) == third


def test_earlier_rows_have_their_value_of_a_column_that_is_gone(local: LocalPlans) -> None:
    old = schema_of(table(local)).layout(1).encode([4, "four"])
    change(local, "alter table a add z int default 7", z="7")
    change(local, "alter table a drop z")
    after = table(local)
    row_map = schema_of(after).map(1, 2)
    assert row_map is not None
    assert schema_of(after).layout(2).decode(row_map.convert(old)) == (4, "four", 7)
    assert after.at(2).columns[2].missing == "7"


def test_nothing_changes_where_nothing_is_to_be_done(local: LocalPlans) -> None:
    before = table(local)
    edit = change(local, "alter table a add if not exists y int, drop if exists z")
    assert table(local) == before and not edit.puts and not edit.install
    assert edit.notices == (
        'column "z" of relation "a" does not exist, skipping',
        'column "y" of relation "a" already exists, skipping',
    )
    edit = change(local, "alter table if exists nope add z int")
    assert edit.notices == ('relation "nope" does not exist, skipping',)


@pytest.mark.parametrize(
    "statement,missing,unfilled",
    [
        ("alter table a add z int", None, ""),
        ("alter table a add z int not null", None, "z"),
        ("alter table a add z int not null default 1", "1", ""),
        ("alter table a add z int default null not null", None, "z"),
    ],
)
def test_a_column_that_rows_lack_must_be_nullable(
    local: LocalPlans, statement: str, missing: str | None, unfilled: str
) -> None:
    assert change(local, statement, z=missing).unfilled == unfilled


def test_layouts_of_a_table_are_bounded(local: LocalPlans) -> None:
    for _ in range(TABLE_LAYOUTS_MAX // 2):
        change(local, "alter table a add z int default 1", z="1")
        change(local, "alter table a drop z")
    with pytest.raises(SqlError) as caught:
        change(local, "alter table a add z int")
    assert caught.value.sqlstate == "54000" and caught.value.hint
    change(local, "alter table a set (compression = 'zstd')")
    change(local, "truncate a")
    assert table(local).history == ()
    change(local, "alter table a add z int default 1", z="1")
    change(local, "truncate a")
    assert [column.missing for column in table(local).columns] == [None, None, None]


def test_columns_of_a_table_are_bounded_over_its_life(local: LocalPlans) -> None:
    wide = ", ".join(f"add c{at} int" for at in range(COLUMNS_MAX - 2))
    change(local, f"alter table a {wide}")
    change(local, "alter table a drop c7")
    with pytest.raises(SqlError) as caught:
        change(local, "alter table a add c7 int")
    assert caught.value.sqlstate == "54011"


def test_options_change_no_layout(local: LocalPlans) -> None:
    change(local, "create table z (i int) with (compression = 'lz4')")
    assert table(local, "z").options == {"compression": "lz4"}
    edit = change(local, "alter table z set (compression = 'none', fillfactor = 70)")
    after = table(local, "z")
    assert after.options == {"compression": "none", "fillfactor": "70"}
    assert after.schema_version == 1 and after.version == 2 and edit.install
