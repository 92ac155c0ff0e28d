"""The bound tree: names are resolved, every expression has its type and every cast is written out.

Two backends read it: `coordinator.plan.rowplan` (row programs) and `coordinator.sql.printer`
(engine SQL). Nodes are frozen values and compare structurally, which GROUP BY relies on.
Relations have generated aliases, unique in a statement, and their columns are called `c<position>`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shardb.meta.descriptors import Table
from shardb.program import TypeRef


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant in PostgreSQL's text form; None is NULL."""

    type: TypeRef
    text: str | None


@dataclass(frozen=True, slots=True)
class Parameter:
    """The parameter at `index`, 0-based."""

    type: TypeRef
    index: int


@dataclass(frozen=True, slots=True)
class ColumnRef:
    """Column `position` of the relation `source`; `label` is its name for people, `at`
    where the statement mentions it (1-based, 0 if it does not).
    """

    type: TypeRef
    source: str
    position: int
    label: str = field(compare=False)
    at: int = field(compare=False, default=0)


@dataclass(frozen=True, slots=True)
class Call:
    """An operator or scalar function. `op` is a name of `coordinator.sql.functions`."""

    type: TypeRef
    op: str
    args: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class SortKey:
    """One ORDER BY item."""

    value: Expression
    descending: bool
    nulls_first: bool


@dataclass(frozen=True, slots=True)
class AggregateCall:
    """An aggregate; `count_star` has no arguments."""

    type: TypeRef
    function: str
    args: tuple[Expression, ...]
    distinct: bool = False
    filter: Expression | None = None
    order: tuple[SortKey, ...] = ()


@dataclass(frozen=True, slots=True)
class WindowCall:
    """A window function or an aggregate over a window; `frame` is engine SQL or empty."""

    type: TypeRef
    function: Call | AggregateCall
    partition: tuple[Expression, ...]
    order: tuple[SortKey, ...]
    frame: str


@dataclass(frozen=True, slots=True, eq=False)
class SubqueryCall:
    """A subquery in an expression.

    kind: `scalar`, `exists`, `in`, `any`, `all`. `probe` is the left side of the last three,
    `operator` the comparison of `any` and `all`.
    """

    type: TypeRef
    kind: str
    query: Query
    probe: tuple[Expression, ...] = ()
    operator: str = "="
    negated: bool = False


Expression = Literal | Parameter | ColumnRef | Call | AggregateCall | WindowCall | SubqueryCall


@dataclass(slots=True, eq=False)
class Scan:
    """A table read from its ranges; `table` says which columns there are."""

    alias: str
    table: Table
    with_key: bool = False


@dataclass(slots=True, eq=False)
class CatalogScan:
    """A virtual table of pg_catalog or information_schema."""

    alias: str
    name: str


@dataclass(slots=True, eq=False)
class Derived:
    """A subquery in FROM, possibly LATERAL."""

    alias: str
    query: Query
    lateral: bool = False


@dataclass(slots=True, eq=False)
class CteScan:
    """A reference to a WITH query, which is printed under the name `cte`."""

    alias: str
    cte: str


@dataclass(slots=True, eq=False)
class FunctionScan:
    """A set-returning function in FROM."""

    alias: str
    function: str
    args: tuple[Expression, ...]


@dataclass(slots=True, eq=False)
class GivenRows:
    """Rows that are there when the engine runs, under the name `name`."""

    alias: str
    name: str


@dataclass(slots=True, eq=False)
class Join:
    """kind: `inner`, `left`, `right`, `full` or `cross`."""

    kind: str
    left: Relation
    right: Relation
    on: Expression | None


Relation = Scan | CatalogScan | Derived | CteScan | FunctionScan | Join | GivenRows


@dataclass(slots=True, eq=False)
class Cte:
    """A WITH query under its generated name."""

    name: str
    query: Query
    recursive: bool = False


@dataclass(slots=True, eq=False)
class Output:
    """A column of a query's result."""

    name: str
    value: Expression
    table_id: int = 0
    attnum: int = 0


@dataclass(frozen=True, slots=True)
class RowLock:
    """FOR UPDATE and its like for one table of FROM; `strength` is `update`, `share`, ...

    `nowait`: 0 wait, 1 NOWAIT, 2 SKIP LOCKED.
    """

    alias: str
    table: Table
    strength: str
    nowait: int


@dataclass(slots=True, eq=False)
class SelectQuery:
    """One SELECT block."""

    outputs: list[Output]
    source: Relation | None = None
    where: list[Expression] = field(default_factory=list)
    group: list[Expression] = field(default_factory=list)
    grouped: bool = False
    having: Expression | None = None
    distinct: bool = False
    distinct_on: list[Expression] = field(default_factory=list)
    order: list[SortKey] = field(default_factory=list)
    limit: Expression | None = None
    offset: Expression | None = None
    ctes: list[Cte] = field(default_factory=list)
    locks: list[RowLock] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class SetQuery:
    """UNION, INTERSECT or EXCEPT; sort keys are output positions (0-based)."""

    kind: str
    all: bool
    left: Query
    right: Query
    outputs: list[Output]
    order: list[tuple[int, bool, bool]] = field(default_factory=list)
    limit: Expression | None = None
    offset: Expression | None = None
    ctes: list[Cte] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class ValuesQuery:
    """VALUES lists, all rows of one width and with agreed types."""

    rows: list[list[Expression]]
    outputs: list[Output]
    order: list[tuple[int, bool, bool]] = field(default_factory=list)
    limit: Expression | None = None
    offset: Expression | None = None
    ctes: list[Cte] = field(default_factory=list)


Query = SelectQuery | SetQuery | ValuesQuery


@dataclass(slots=True, eq=False)
class InsertStatement:
    """INSERT. `rows` (VALUES without subqueries) or `query` gives every column of the table.

    `conflict`: None, or assignments (empty: DO NOTHING) over the table's columns followed by
    EXCLUDED's, whose source alias is `excluded`.
    """

    table: Table
    alias: str
    rows: list[list[Expression]]
    query: Query | None
    conflict: list[tuple[int, Expression]] | None
    conflict_filter: Expression | None
    returning: list[Output]


@dataclass(slots=True, eq=False)
class UpdateStatement:
    """UPDATE of `scan`; `source` is the FROM list, None if there is none."""

    scan: Scan
    source: Relation | None
    assignments: list[tuple[int, Expression]]
    where: list[Expression]
    returning: list[Output]
    ctes: list[Cte] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class DeleteStatement:
    """DELETE from `scan`; `source` is the USING list."""

    scan: Scan
    source: Relation | None
    where: list[Expression]
    returning: list[Output]
    ctes: list[Cte] = field(default_factory=list)


Statement = Query | InsertStatement | UpdateStatement | DeleteStatement
