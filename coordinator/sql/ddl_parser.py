"""Parses CREATE TABLE, DROP TABLE and TRUNCATE."""

from __future__ import annotations

from typing import Final, Protocol

from coordinator.ddl.naming import constraint_name
from coordinator.ddl.specs import (
    CheckSpec,
    ColumnSpec,
    CreateTable,
    DropTable,
    TableName,
    Truncate,
)
from coordinator.plan.checks import bind_check
from coordinator.plan.plans import UtilityPlan
from coordinator.sql import typesystem as ts
from coordinator.sql.bind_dml import DmlBinder
from coordinator.sql.context import Context
from coordinator.sql.lexer import Cursor, syntax_error, tokenize
from coordinator.sql.tree import Expression
from shardb.errors import SqlError, unsupported
from shardb.limits import CHECKS_MAX, COLUMNS_MAX
from shardb.meta.descriptors import Column, Table
from shardb.program import TypeRef
from shardb.types import TypeCode as T

_TWO_WORDS: Final = {"double": "precision", "character": "varying"}
_AFTER_DEFAULT: Final = (
    "not",
    "null",
    "primary",
    "constraint",
    "unique",
    "check",
    "references",
    "generated",
    "collate",
)
_COMPRESSIONS: Final = ("lz4", "zstd", "none")
_REFUSED: Final = {
    "unique": "UNIQUE constraints",
    "references": "foreign keys",
    "foreign": "foreign keys",
    "exclude": "EXCLUDE constraints",
    "generated": "generated columns",
}


def parse_create(cursor: Cursor, context: Context) -> UtilityPlan:
    """CREATE TABLE; the other CREATEs are refused by name."""
    cursor.expect("create")
    if cursor.accept_any("temp", "temporary", "global", "local"):
        raise unsupported("a temporary table")
    cursor.accept("unlogged")
    if not cursor.token.is_word("table"):
        if cursor.token.kind != "word":
            raise syntax_error(cursor.token)
        raise unsupported(f"CREATE {cursor.token.value.upper()}")
    cursor.expect("table")
    if_not_exists = cursor.accept("if", "not", "exists")
    schema, name = cursor.qualified_name()
    if not cursor.accept_mark("("):
        if cursor.token.is_word("as", "of", "partition"):
            raise unsupported(f"CREATE TABLE ... {cursor.token.value.upper()}")
        raise syntax_error(cursor.token)
    table = _Table(cursor, context, name)
    if not cursor.accept_mark(")"):
        while True:
            table.element()
            if not cursor.accept_mark(","):
                break
        cursor.expect_mark(")")
    if cursor.token.is_word("inherits", "partition", "as"):
        raise unsupported(f"CREATE TABLE ... {cursor.token.value.upper()}")
    if cursor.accept("using"):
        cursor.identifier()
    options = parse_options(cursor) if cursor.accept("with") else {}
    if cursor.accept("without"):
        cursor.expect("oids")
    if cursor.accept("tablespace"):
        cursor.identifier()
    return UtilityPlan(
        "create_table", (table.finish(schema, if_not_exists, options),), "CREATE TABLE"
    )


class Constraints(Protocol):
    """Takes the constraints in a column's definition; `name` is "" if it has none."""

    def key(self, column: str, name: str) -> None: ...
    def check(self, name: str, text: str) -> None: ...


class _Table:
    """A CREATE TABLE in the making."""

    def __init__(self, cursor: Cursor, context: Context, name: str) -> None:
        self.cursor = cursor
        self.context = context
        self.name = name
        self.columns: list[ColumnSpec] = []
        self.key_columns: tuple[str, ...] = ()
        self.key_name = ""
        self.checks: list[tuple[str, str]] = []  # names and conditions

    def element(self) -> None:
        """A column or a table constraint."""
        cursor = self.cursor
        constraint = ""
        if cursor.token.is_word("constraint"):
            cursor.advance()
            constraint = cursor.identifier()
        if cursor.token.is_word("primary") and cursor.peek().is_word("key"):
            cursor.expect("primary", "key")
            self._set_key(column_list(cursor), constraint)
            return
        if cursor.token.is_word("check") and (constraint or cursor.peek().text == "("):
            self.check(constraint, check_text(cursor))
            return
        if (
            cursor.token.kind == "word"
            and cursor.token.value in _REFUSED
            and (constraint or cursor.peek().text == "(" or cursor.token.value == "foreign")
        ):
            raise unsupported(_REFUSED[cursor.token.value])
        if cursor.token.is_word("like"):
            raise unsupported("CREATE TABLE ... LIKE")
        if constraint:
            raise syntax_error(cursor.token)
        self._column()

    def _column(self) -> None:
        cursor = self.cursor
        position = cursor.token.start + 1
        name = cursor.identifier()
        if any(column.name == name for column in self.columns):
            raise SqlError("42701", f'column "{name}" specified more than once', position=position)
        self.columns.append(parse_column(cursor, self.context, self.name, name, self))

    def key(self, column: str, name: str) -> None:
        """PRIMARY KEY of a column."""
        self._set_key((column,), name)

    def check(self, name: str, text: str) -> None:
        """CHECK of a column or of the table."""
        self.checks.append((name, text))

    def _set_key(self, names: tuple[str, ...], constraint: str) -> None:
        if self.key_columns:
            raise SqlError(
                "42P16", f'multiple primary keys for table "{self.name}" are not allowed'
            )
        self.key_columns, self.key_name = names, constraint

    def finish(self, schema: str, if_not_exists: bool, options: dict[str, str]) -> CreateTable:
        """The finished value."""
        if len(self.columns) > COLUMNS_MAX:
            raise SqlError("54011", f"tables can have at most {COLUMNS_MAX} columns")
        names = [column.name for column in self.columns]
        for at, name in enumerate(self.key_columns):
            if name not in names:
                raise SqlError("42703", f'column "{name}" named in key does not exist')
            if name in self.key_columns[:at]:
                raise SqlError("42701", f'column "{name}" appears twice in primary key constraint')
        columns = tuple(
            ColumnSpec(
                c.name, c.type_code, c.typmod, c.not_null or c.name in self.key_columns, c.default
            )
            for c in self.columns
        )
        for column in columns:
            if column.name in self.key_columns and column.type_code in (
                T.JSON,
                T.JSONB,
                T.INTERVAL,
            ):
                raise unsupported(f'a primary key column of type "{column.name}"')
        split_at = options.pop("split_at", "")
        if split_at and not self.key_columns:
            raise SqlError("22023", "split_at needs a primary key")
        return CreateTable(
            name=self.name,
            schema=schema,
            columns=columns,
            primary_key=self.key_columns,
            primary_key_name=self.key_name,
            if_not_exists=if_not_exists,
            split_at=split_points(split_at) if split_at else (),
            colocate_with=options.pop("colocate_with", ""),
            options=options,
            checks=bound_checks(self.name, columns, self.checks, self.context),
        )


def parse_column(
    cursor: Cursor,
    context: Context,
    table: str,
    name: str,
    constraints: Constraints,
) -> ColumnSpec:
    """A column's definition after its name."""
    ref = parse_type(cursor)
    nulls: bool | None = None
    default = None
    while True:
        constraint = ""
        if cursor.accept("constraint"):
            constraint = cursor.identifier()
        position = cursor.token.start + 1
        if cursor.token.is_word("not", "null"):
            allowed = not cursor.accept("not")
            cursor.expect("null")
            if nulls is not None and nulls != allowed:
                raise SqlError(
                    "42601",
                    f'conflicting NULL/NOT NULL declarations for column "{name}" of table '
                    f'"{table}"',
                    position=position,
                )
            nulls = allowed
        elif cursor.accept("primary", "key"):
            constraints.key(name, constraint)
        elif cursor.token.is_word("check"):
            constraints.check(constraint, check_text(cursor))
        elif cursor.accept("default"):
            default = _default_text(cursor)
        elif cursor.accept("collate"):
            collation = cursor.qualified_name()[1]
            if collation not in ("C", "POSIX", "default"):
                raise SqlError(
                    "42704", f'collation "{collation}" for encoding "UTF8" does not exist'
                )
        elif cursor.token.kind == "word" and cursor.token.value in _REFUSED:
            raise unsupported(_REFUSED[cursor.token.value])
        elif constraint:
            raise syntax_error(cursor.token)
        else:
            break
    column = ColumnSpec(name, ref.code, ref.typmod, nulls is False, default)
    bind_default(column, context)
    return column


def check_text(cursor: Cursor) -> str:
    """The condition of CHECK (...)."""
    cursor.expect("check")
    cursor.expect_mark("(")
    start, end = cursor.balanced((")",))
    cursor.expect_mark(")")
    if cursor.accept("no"):
        cursor.expect("inherit")
    return cursor.text[start:end]


def bound_checks(
    table: str,
    columns: tuple[ColumnSpec, ...],
    checks: list[tuple[str, str]],
    context: Context,
    taken: tuple[str, ...] = (),
) -> tuple[CheckSpec, ...]:
    """Checks with their names and columns; one that cannot be bound is reported here.

    `taken` are the names of other constraints of the table.
    """
    described = tuple(Column(at + 1, c.name, c.type_code, c.typmod) for at, c in enumerate(columns))
    shape = Table(0, table, 0, described, (0,))
    if len(checks) > CHECKS_MAX:
        raise SqlError("54000", f"a table can have at most {CHECKS_MAX} check constraints")
    found: list[CheckSpec] = []
    names = set(taken) | {name for name, _ in checks if name}
    for name, text in checks:
        bound = bind_check(shape, text, context.catalog)
        mentioned = tuple(columns[at].name for at in bound.columns)
        if not name:
            name = constraint_name(table, mentioned if len(mentioned) == 1 else (), "check", names)
            names.add(name)
        elif name in taken or any(check.name == name for check in found):
            raise SqlError("42710", f'check constraint "{name}" already exists')
        found.append(CheckSpec(name, text, mentioned))
    return tuple(found)


def _default_text(cursor: Cursor) -> str | None:
    """The text of a default; None for NULL, which is no default."""
    start = cursor.token.start
    if cursor.token.is_word("null"):
        cursor.advance()
        if cursor.token.kind != "typecast":
            return None
    _, end = cursor.balanced((",", ")"), _AFTER_DEFAULT)
    return cursor.text[start:end]


def bind_default(column: ColumnSpec, context: Context) -> Expression | None:
    """The bound default of a column: a wrong type or function is reported when it is declared."""
    if column.default is None:
        return None
    binder = DmlBinder(Context(context.catalog, column.default, []))
    return binder.default(
        Column(0, column.name, column.type_code, column.typmod, column.not_null, column.default)
    )


def parse_type(cursor: Cursor) -> TypeRef:
    """A type name with modifiers."""
    position = cursor.token.start + 1
    name = cursor.identifier()
    if cursor.accept_mark("."):
        name = cursor.identifier()
    if name in _TWO_WORDS and cursor.accept(_TWO_WORDS[name]):
        name += " " + _TWO_WORDS[name]
    if name in ("serial", "bigserial", "smallserial", "serial4", "serial8"):
        raise unsupported(f'type "{name}"', hint="Use an integer or a uuid key.")
    modifiers: tuple[int, ...] = ()
    if cursor.accept_mark("("):
        numbers = [cursor.integer()]
        while cursor.accept_mark(","):
            numbers.append(cursor.integer())
        cursor.expect_mark(")")
        modifiers = tuple(numbers)
    if name in ("timestamp", "time"):
        if cursor.accept("with", "time", "zone"):
            name = {"timestamp": "timestamptz", "time": "timetz"}[name]
        else:
            cursor.accept("without", "time", "zone")
    if cursor.accept_mark("["):
        raise unsupported("array type")
    if cursor.token.is_word("array"):
        raise unsupported("array type")
    return ts.from_name(name, modifiers, position)


def column_list(cursor: Cursor) -> tuple[str, ...]:
    """Column names in parentheses."""
    cursor.expect_mark("(")
    names = [cursor.identifier()]
    while cursor.accept_mark(","):
        names.append(cursor.identifier())
    cursor.expect_mark(")")
    if cursor.token.is_word("include", "using", "with"):
        raise unsupported(f"PRIMARY KEY ... {cursor.token.value.upper()}")
    return tuple(names)


def parse_options(cursor: Cursor) -> dict[str, str]:
    """Storage options in parentheses; 22023 for those that are not known."""
    cursor.expect_mark("(")
    options: dict[str, str] = {}
    while True:
        name = cursor.identifier()
        value = "true"
        if cursor.accept_mark("="):
            sign = "-" if cursor.accept_mark("-") else ""
            if cursor.token.kind not in ("word", "quoted", "string", "number"):
                raise syntax_error(cursor.token)
            value = sign + cursor.advance().value
        options[name] = value
        if not cursor.accept_mark(","):
            break
    cursor.expect_mark(")")
    known = ("split_at", "colocate_with", "compression", "fillfactor")
    for name in options:
        if name not in known and not name.startswith(("autovacuum_", "toast", "parallel_")):
            raise SqlError("22023", f'unrecognized parameter "{name}"')
    compression = options.get("compression")
    if compression is not None and compression not in _COMPRESSIONS:
        raise SqlError(
            "22023",
            f'invalid value for enum option "compression": {compression}',
            detail='Valid values are "lz4", "zstd", and "none".',
        )
    return options


def split_points(text: str) -> tuple[tuple[str | None, ...], ...]:
    """The points of `split_at`: literals, or parenthesized lists of them, separated by commas."""
    cursor = Cursor(text, tokenize(text))
    points: list[tuple[str | None, ...]] = []
    while True:
        if cursor.accept_mark("("):
            values = [_point_value(cursor)]
            while cursor.accept_mark(","):
                values.append(_point_value(cursor))
            cursor.expect_mark(")")
            points.append(tuple(values))
        else:
            points.append((_point_value(cursor),))
        if not cursor.accept_mark(","):
            break
    cursor.finish()
    return tuple(points)


def _point_value(cursor: Cursor) -> str | None:
    sign = "-" if cursor.accept_mark("-") else ""
    if cursor.token.is_word("date", "timestamp", "timestamptz", "uuid"):
        cursor.advance()
    token = cursor.token
    if token.kind not in ("string", "number") or (sign and token.kind == "string"):
        raise SqlError("22023", f'invalid split point at or near "{token.text}"')
    return sign + cursor.advance().value


def parse_drop(cursor: Cursor, context: Context) -> UtilityPlan:
    """DROP TABLE."""
    cursor.expect("drop")
    if not cursor.accept("table"):
        if cursor.token.kind != "word":
            raise syntax_error(cursor.token)
        raise unsupported(f"DROP {cursor.token.value.upper()}")
    if_exists = cursor.accept("if", "exists")
    names = _names(cursor)
    cursor.accept_any("cascade", "restrict")
    return UtilityPlan("drop_table", (DropTable(names, if_exists),), "DROP TABLE")


def parse_truncate(cursor: Cursor, context: Context) -> UtilityPlan:
    """TRUNCATE."""
    cursor.expect("truncate")
    cursor.accept("table")
    names = _names(cursor)
    if cursor.accept_any("restart", "continue"):
        cursor.expect("identity")
    cursor.accept_any("cascade", "restrict")
    for name in names:
        if context.catalog.lookup(name.name, name.schema) is None:
            raise SqlError("42P01", f'relation "{name}" does not exist')
    return UtilityPlan("truncate", (Truncate(names),), "TRUNCATE TABLE")


def _names(cursor: Cursor) -> tuple[TableName, ...]:
    cursor.accept("only")
    names = [TableName(*cursor.qualified_name())]
    while cursor.accept_mark(","):
        names.append(TableName(*cursor.qualified_name()))
    return tuple(names)
