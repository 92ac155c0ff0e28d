"""Which names an expression sees: relations of FROM clauses, nested from subquery to outside."""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.sql.tree import Expression
from shardb.errors import SqlError


@dataclass(frozen=True, slots=True)
class ScopeColumn:
    """A visible column. Hidden ones are found by nobody but the planner."""

    name: str
    value: Expression
    table_id: int = 0
    attnum: int = 0


@dataclass(slots=True)
class RelationScope:
    """A relation under the name its columns can be qualified with."""

    name: str
    columns: list[ScopeColumn]
    schema: str = ""


@dataclass(slots=True)
class Scope:
    """The relations of one FROM clause; `parent` is the scope around a subquery.

    `columns` is what `*` and unqualified names see: USING and NATURAL merge columns there.
    """

    relations: list[RelationScope] = field(default_factory=list)
    columns: list[ScopeColumn] = field(default_factory=list)
    parent: Scope | None = None

    def add(self, relation: RelationScope, position: int = 0) -> None:
        """Adds a relation; its name must be new (42712)."""
        if any(known.name == relation.name for known in self.relations if relation.name):
            raise SqlError(
                "42712", f'table name "{relation.name}" specified more than once', position=position
            )
        self.relations.append(relation)
        self.columns.extend(relation.columns)

    def find(self, name: str, table: str, position: int) -> ScopeColumn:
        """The column called `name`, of relation `table` if given (42703, 42702, 42P01)."""
        scope: Scope | None = self
        table_seen = False
        while scope is not None:
            if table:
                relation = next((r for r in scope.relations if r.name == table), None)
                if relation is not None:
                    table_seen = True
                    found = [c for c in relation.columns if c.name == name]
                    if found:
                        return _single(found, name, position)
                    break
            else:
                found = [c for c in scope.columns if c.name == name]
                if found:
                    return _single(found, name, position)
            scope = scope.parent
        if table and not table_seen:
            raise SqlError(
                "42P01", f'missing FROM-clause entry for table "{table}"', position=position
            )
        label = f"{table}.{name}" if table else f'"{name}"'
        raise SqlError("42703", f"column {label} does not exist", position=position)

    def relation(self, name: str, position: int) -> RelationScope:
        """The relation `name.*` refers to."""
        scope: Scope | None = self
        while scope is not None:
            for relation in scope.relations:
                if relation.name == name:
                    return relation
            scope = scope.parent
        raise SqlError("42P01", f'missing FROM-clause entry for table "{name}"', position=position)


def _single(found: list[ScopeColumn], name: str, position: int) -> ScopeColumn:
    if len(found) > 1:
        raise SqlError("42702", f'column reference "{name}" is ambiguous', position=position)
    return found[0]
