"""What a statement becomes: frozen plans that the session carries out and the plan cache keeps."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.sql.bind_advisory import AdvisoryCall
from shardb.program import NamedCheck, ProgramSpec, TypeRef
from shardb.rpc.messages import Bound


@dataclass(frozen=True, slots=True)
class OutColumn:
    """A result column as RowDescription needs it; table_oid/attnum 0 if not a plain column."""

    name: str
    type: TypeRef
    table_oid: int = 0
    attnum: int = 0


@dataclass(frozen=True, slots=True)
class RowPlan:
    """A row program on one table.

    `tag` is the CommandComplete text with `{}` for the row count (`INSERT 0 {}`).
    `program.params` are the statement's own parameters, in order, then one for each of `extras`,
    which the session fills in: `now` (timestamptz, the transaction's start) and `rowid` (int8, the
    first of `rowids` consecutive fresh row ids; row i of the insert adds i itself).
    `fallback` does the same in the engine: it must be used when the key interval meets more than
    one range and the result cannot be had by concatenating theirs (aggregates, limit, offset).
    `nowait`: of a SELECT that locks, as in `messages.Execute`.
    """

    program: ProgramSpec
    program_id: int
    columns: tuple[OutColumn, ...]
    tag: str
    catalog_version: int
    extras: tuple[str, ...] = ()
    rowids: int = 0
    fallback: QueryPlan | LockPlan | None = None
    nowait: int = 0


@dataclass(frozen=True, slots=True)
class BoundProgram:
    """A condition of a scan's filter on one column, as a key program over that column alone.

    `program` selects from a table of this one column as its key: its points (IN), or its interval,
    taken as `[low, high]`, are what the condition lets pass.
    """

    column: int
    type: TypeRef
    program: ProgramSpec


@dataclass(frozen=True, slots=True)
class ScanStage:
    """Rows of one table gathered from its ranges under the engine name `alias`.

    `key_low` / `key_high`: encoded key interval (high empty = to the end), narrowed at run time by
    `key_program` (a select whose `interval` or `points` give it) if there is one.
    `filter` is engine SQL over `c<position>` columns with
    `$1` style parameters allowed. `columns` are table positions; the gathered table has them as
    `c<position>`. Positions are those of the table's `schema_version` (0: the present one).
    `bounds` follow from `filter`, the rest of them at run time from `bound_programs`.
    """

    alias: str
    table_id: int
    columns: tuple[int, ...]
    key_low: bytes
    key_high: bytes
    filter: str
    with_key: bool = False
    key_program: ProgramSpec | None = None
    schema_version: int = 0
    bound_programs: tuple[BoundProgram, ...] = ()
    bounds: tuple[Bound, ...] = ()


@dataclass(frozen=True, slots=True)
class QueryPlan:
    """Scans beside the data, then `sql` in the final stage over the gathered tables.

    `catalog_tables` are virtual tables (pg_class ...) the engine needs, by name.
    `params` are the parameter types, the statement's own and then `extras` as in RowPlan; `$1` in
    `sql` is bound by value, `coordinator.sql.literals.fill_parameters` does it for scan filters.
    `locked` are subqueries that lock rows, run before: the engine gets what they give by name.
    """

    sql: str
    scans: tuple[ScanStage, ...]
    catalog_tables: tuple[str, ...]
    params: tuple[TypeRef, ...]
    columns: tuple[OutColumn, ...]
    tag: str
    catalog_version: int
    extras: tuple[str, ...] = ()
    locked: tuple[tuple[str, LockPlan], ...] = ()


@dataclass(frozen=True, slots=True)
class TableLock:
    """How a query locks the rows of one table: in which mode, with `nowait` as in `Execute`.

    `key_at` and `ts_at` are the query's columns with their keys and versions. `skipped` names the
    table of keys (`c0`) that the query is to leave out, "" if it skips none.
    """

    table_id: int
    mode: int
    nowait: int
    key_at: int
    ts_at: int
    skipped: str


@dataclass(frozen=True, slots=True)
class LockPlan:
    """SELECT ... FOR UPDATE by query: `query` finds the rows, then they are locked by key.

    After the result's own columns come those of `locks`, and with a LIMIT two more: the number of
    rows that are wanted, OFFSET's included, NULL for all, and OFFSET. `query` gives `spare` rows
    more than that, for those that may be skipped.
    """

    query: QueryPlan
    locks: tuple[TableLock, ...]
    limited: bool
    spare: int
    columns: tuple[OutColumn, ...]
    tag: str
    strength: str

    @property
    def extras(self) -> tuple[str, ...]:
        """As in RowPlan."""
        return self.query.extras


@dataclass(frozen=True, slots=True)
class WritePlan:
    """DML by query: `query` yields for each row the key, its version and the new values.

    kind `insert`: the query's columns are all columns of the table in order, `c<position>`; a
    hidden rowid column is NULL there and filled in by the session.
    kind `update`: `_key`, `_ts`, then all columns with their new values; the key may change.
    kind `delete`: `_key`, `_ts` (and all columns if RETURNING).
    `checks` are the table's CHECK constraints, for the rows that are written.
    `returning` is engine SQL over the written rows (`c<position>`, table name `written`), or empty.
    """

    kind: str
    table_id: int
    query: QueryPlan
    conflict: str  # "", "nothing"
    returning: str
    columns: tuple[OutColumn, ...]
    tag: str
    checks: tuple[NamedCheck, ...] = ()


@dataclass(frozen=True, slots=True)
class AdvisoryPlan:
    """SELECT of advisory lock functions: `query` gives one row with their arguments.

    `items` are calls, or columns of the query as they are.
    """

    query: QueryPlan
    items: tuple[AdvisoryCall | int, ...]
    columns: tuple[OutColumn, ...]
    tag: str = "SELECT {}"

    @property
    def extras(self) -> tuple[str, ...]:
        """As in RowPlan."""
        return self.query.extras


@dataclass(frozen=True, slots=True)
class UtilityPlan:
    """Everything that is not a query: `kind` names the handler, `args` are its frozen arguments.

    kinds: begin commit rollback set show reset discard create_table drop_table truncate alter_table
    add_primary_key copy_from explain vacuum analyze empty, and savepoint release rollback_to
    prepare execute deallocate set_transaction. The arguments of each are listed in
    `coordinator.sql.utility`; DDL kinds carry a value of `coordinator.ddl`.
    """

    kind: str
    args: tuple[object, ...]
    tag: str
    columns: tuple[OutColumn, ...] = ()


Plan = RowPlan | QueryPlan | LockPlan | WritePlan | AdvisoryPlan | UtilityPlan
