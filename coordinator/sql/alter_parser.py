"""Parses ALTER TABLE: columns that come and go, options, and ADD PRIMARY KEY."""

from __future__ import annotations

from typing import Final

from coordinator.ddl.specs import (
    AddColumn,
    AddPrimaryKey,
    AlterTable,
    ColumnSpec,
    DropColumn,
    TableName,
)
from coordinator.plan.plans import UtilityPlan
from coordinator.sql.context import Context
from coordinator.sql.ddl_parser import bind_default, column_list, parse_column, parse_options
from coordinator.sql.functions import VOLATILE
from coordinator.sql.lexer import Cursor, syntax_error, tokenize
from coordinator.sql.tree import Call
from coordinator.sql.walk import expressions
from shardb.errors import SqlError, unsupported

_CONSTRAINTS: Final = {
    "constraint": "a constraint",
    "unique": "UNIQUE",
    "check": "CHECK",
    "foreign": "FOREIGN KEY",
    "exclude": "EXCLUDE",
}
_FORMS: Final = (
    "alter",
    "attach",
    "cluster",
    "detach",
    "disable",
    "enable",
    "force",
    "inherit",
    "no",
    "of",
    "owner",
    "rename",
    "replica",
    "reset",
    "validate",
)
_PER_CALL: Final = frozenset({"clock_timestamp", "timeofday"})  # in PostgreSQL; here as now()


def parse_alter(cursor: Cursor, context: Context) -> UtilityPlan:
    """ALTER TABLE; the other ALTERs are refused by name."""
    cursor.expect("alter")
    if not cursor.accept("table"):
        if cursor.token.kind != "word":
            raise syntax_error(cursor.token)
        raise unsupported(f"ALTER {cursor.token.value.upper()}")
    if_exists = cursor.accept("if", "exists")
    cursor.accept("only")
    name = TableName(*cursor.qualified_name())
    cursor.accept_mark("*")
    known = context.catalog.lookup(name.name, name.schema) is not None
    if not known and not if_exists:
        raise SqlError("42P01", f'relation "{name}" does not exist')
    key = _primary_key(cursor, name)
    if key is not None:
        if not known:
            return UtilityPlan("alter_table", (AlterTable(name, True),), "ALTER TABLE")
        return UtilityPlan("add_primary_key", (key,), "ALTER TABLE")
    actions = _Actions(cursor, context, name.name)
    while True:
        actions.take()
        if not cursor.accept_mark(","):
            break
    spec = AlterTable(name, if_exists, tuple(actions.drops), tuple(actions.adds), actions.options)
    return UtilityPlan("alter_table", (spec,), "ALTER TABLE")


def _primary_key(cursor: Cursor, name: TableName) -> AddPrimaryKey | None:
    """ADD [CONSTRAINT name] PRIMARY KEY, which stands alone."""
    start = cursor.at
    constraint = ""
    if cursor.accept("add"):
        if cursor.accept("constraint"):
            constraint = cursor.identifier()
        if cursor.accept("primary", "key"):
            columns = column_list(cursor)
            if cursor.accept_mark(","):
                raise unsupported("ALTER TABLE ... ADD PRIMARY KEY beside other actions")
            return AddPrimaryKey(name, columns, constraint)
    cursor.at = start
    return None


class _Actions:
    """The actions of one ALTER TABLE."""

    def __init__(self, cursor: Cursor, context: Context, table: str) -> None:
        self.cursor = cursor
        self.context = context
        self.table = table
        self.drops: list[DropColumn] = []
        self.adds: list[AddColumn] = []
        self.options: dict[str, str] = {}

    def take(self) -> None:
        """One action."""
        cursor = self.cursor
        if cursor.accept("add"):
            self._add()
        elif cursor.accept("drop"):
            self._drop()
        elif cursor.accept("set"):
            if cursor.token.text != "(":
                raise unsupported(f"ALTER TABLE ... SET {cursor.token.value.upper()}")
            self._set()
        elif cursor.token.is_word(*_FORMS):
            what = cursor.token.value.upper() + (" COLUMN" if cursor.token.value == "alter" else "")
            raise unsupported(f"ALTER TABLE ... {what}")
        else:
            raise syntax_error(cursor.token)

    def _add(self) -> None:
        cursor = self.cursor
        if cursor.token.is_word("primary") and cursor.peek().is_word("key"):
            raise unsupported("ALTER TABLE ... ADD PRIMARY KEY beside other actions")
        if cursor.token.is_word(*_CONSTRAINTS):
            raise unsupported(f"ALTER TABLE ... ADD {_CONSTRAINTS[cursor.token.value]}")
        cursor.accept("column")
        if_not_exists = cursor.accept("if", "not", "exists")
        name = cursor.identifier()
        column = parse_column(cursor, self.context, self.table, name, _Refused())
        self._check_default(column)
        self.adds.append(AddColumn(column, if_not_exists))

    def _check_default(self, column: ColumnSpec) -> None:
        """Refuses defaults that differ from row to row: the rows there are share one value."""
        bound = bind_default(column, self.context)
        if bound is None:
            return
        called = {node.op for node in expressions(bound) if isinstance(node, Call)} & VOLATILE
        words = {token.value for token in tokenize(column.default or "") if token.kind == "word"}
        for name in sorted(called | (words & _PER_CALL)):
            raise unsupported(
                f'ALTER TABLE ... ADD COLUMN with the volatile function "{name}" as default',
                hint="Add the column without a default, and fill it by UPDATE.",
            )

    def _drop(self) -> None:
        cursor = self.cursor
        if cursor.token.is_word("constraint"):
            raise unsupported("ALTER TABLE ... DROP CONSTRAINT")
        cursor.accept("column")
        if_exists = cursor.accept("if", "exists")
        self.drops.append(DropColumn(cursor.identifier(), if_exists))
        cursor.accept_any("restrict", "cascade")

    def _set(self) -> None:
        options = parse_options(self.cursor)
        for name in ("split_at", "colocate_with"):
            if name in options:
                raise unsupported(f"ALTER TABLE ... SET ({name})")
        self.options.update(options)


class _Refused:
    """The constraints that a column cannot be added with."""

    def key(self, column: str, name: str) -> None:
        raise unsupported("ALTER TABLE ... ADD COLUMN with PRIMARY KEY")

    def check(self, name: str, text: str) -> None:
        raise unsupported("ALTER TABLE ... ADD COLUMN with CHECK")
