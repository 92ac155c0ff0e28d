"""Row programs as values: what a statement does to rows named by key, without any SQL in it.

The coordinator compiles a bound statement to a `ProgramSpec`, registers it on shards by id and
afterwards sends only parameters. `shardb._core.rowprog.Program` executes it. Expressions are typed:
the binder has inserted every cast, so that the arguments of an operator have the types it takes.

Parameters travel as one row in the row encoding whose columns are `params`
(see docs/formats/row.md).
"""

from __future__ import annotations

import msgspec


class TypeRef(msgspec.Struct, frozen=True, array_like=True):
    """A type: `code` is `shardb.types.TypeCode`, `typmod` PostgreSQL's."""

    code: int
    typmod: int = -1


class Const(msgspec.Struct, frozen=True, array_like=True, tag_field="node", tag="k"):
    """A literal; `text` is its PostgreSQL text form, None is NULL."""

    type: TypeRef
    text: str | None


class Param(msgspec.Struct, frozen=True, array_like=True, tag_field="node", tag="p"):
    """The parameter at `index` (0-based) of the parameter row."""

    type: TypeRef
    index: int


class Col(msgspec.Struct, frozen=True, array_like=True, tag_field="node", tag="c"):
    """Column `index` of the row at hand.

    In ON CONFLICT DO UPDATE, `index >= len(columns)` is column `index - len(columns)` of EXCLUDED.
    """

    type: TypeRef
    index: int


class Call(msgspec.Struct, frozen=True, array_like=True, tag_field="node", tag="f"):
    """An operator or function of the fixed list in `shardb._core.rowprog.OPERATORS`.

    `= <> < <= > >= + - * / %  neg and or not is_null is_not_null is_distinct is_not_distinct cast
    coalesce nullif case || like ilike in lower upper length abs`. `case` takes condition, value
    pairs and then the else value; `in` takes the probe and then the candidates; `cast` has one
    argument and `type` as its target. `now` takes none and is the statement's timestamp parameter.
    """

    type: TypeRef
    op: str
    args: tuple[Const | Param | Col | Call, ...]


Expr = Const | Param | Col | Call


class Key(msgspec.Struct, frozen=True):
    """Which rows: `points`, each a full primary key, or else the interval of `prefix` and bounds.

    Without points: the leading key columns equal `prefix`, and the next key column lies within
    `low` / `high` where given. Everything empty means the whole table.
    An expression that yields NULL selects nothing.
    """

    points: tuple[tuple[Expr, ...], ...] = ()
    prefix: tuple[Expr, ...] = ()
    low: Expr | None = None
    low_inclusive: bool = True
    high: Expr | None = None
    high_inclusive: bool = True


class Aggregate(msgspec.Struct, frozen=True):
    """`count_star`, `count`, `sum`, `min` or `max` over the matching rows."""

    function: str
    argument: Expr | None
    type: TypeRef


class Conflict(msgspec.Struct, frozen=True):
    """ON CONFLICT on the primary key: DO NOTHING without assignments, else DO UPDATE."""

    assignments: tuple[tuple[int, Expr], ...] = ()
    filter: Expr | None = None


class NamedCheck(msgspec.Struct, frozen=True):
    """A CHECK constraint of the table: rows for which `condition` is false are refused."""

    name: str
    condition: Expr


class ProgramSpec(msgspec.Struct, frozen=True):
    """One compiled statement on one table.

    kind is `select`, `insert`, `update` or `delete`.
    `output` is the select list or RETURNING; with `aggregates` it is empty and one row comes back.
    `rows` (insert) has an expression for every column of the table, defaults filled in; a hidden
    rowid column is filled from the last parameter.
    """

    table_id: int
    schema_version: int
    kind: str
    params: tuple[TypeRef, ...]
    key: Key = Key()
    filter: Expr | None = None
    output: tuple[Expr, ...] = ()
    aggregates: tuple[Aggregate, ...] = ()
    reverse: bool = False
    limit: Expr | None = None
    offset: Expr | None = None
    rows: tuple[tuple[Expr, ...], ...] = ()
    assignments: tuple[tuple[int, Expr], ...] = ()
    conflict: Conflict | None = None
    locking: str = ""  # "", "update" or "share": SELECT ... FOR UPDATE / SHARE
    checks: tuple[NamedCheck, ...] = ()  # of the rows that are written, in the order they are tried
