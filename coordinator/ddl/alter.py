"""ALTER TABLE as a pure function from a catalog snapshot to an edit (see `coordinator.ddl.edits`).

No row is rewritten: the descriptor keeps the earlier layouts, and what an added column is in rows
of those layouts. Column ids are never used again.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from coordinator.catalog import Catalog
from coordinator.ddl.edits import Edit, find_table, put
from coordinator.ddl.specs import AlterTable, ColumnSpec
from shardb.errors import SqlError, unsupported
from shardb.limits import COLUMNS_MAX, SCHEMA_VERSION_MAX, TABLE_LAYOUTS_MAX
from shardb.meta.descriptors import Column, Table


def alter_table(
    spec: AlterTable,
    catalog: Catalog,
    next_id: int,
    missing: Mapping[str, str | None] | None = None,
) -> Edit:
    """ALTER TABLE. `missing`: the values of added columns in the rows there are, in text form.

    `Edit.install` has the changed table for every range: shards learn it before it is published.
    """
    name = spec.name
    if spec.if_exists and catalog.lookup(name.name, name.schema) is None:
        return Edit(next_id, next_id, notices=(f'relation "{name.name}" does not exist, skipping',))
    table = find_table(name, catalog)
    change = _Change(table, missing or {})
    for drop in spec.drops:
        change.drop(drop.name, drop.if_exists)
    for add in spec.adds:
        change.add(add.column, add.if_not_exists)
    fresh = change.finish(spec.options)
    notices = tuple(change.notices)
    if fresh is table:
        return Edit(next_id, next_id, notices=notices)
    return Edit(
        next_id,
        next_id + 1,
        puts=(put("tables", fresh.id, fresh),),
        install=tuple((item, fresh) for item in catalog.ranges_for(fresh.group_id)),
        table=fresh,
        notices=notices,
        unfilled=change.unfilled,
    )


class _Change:
    """A table's columns in the making."""

    def __init__(self, table: Table, missing: Mapping[str, str | None]) -> None:
        self.table = table
        self.missing = missing
        self.columns = list(table.columns)
        self.next_column_id = table.next_column_id or _first_free_id(table)
        self.notices: list[str] = []
        self.unfilled = ""
        self.dropped: set[int] = set()

    def drop(self, name: str, if_exists: bool) -> None:
        at = self._find(name)
        text = f'column "{name}" of relation "{self.table.name}" does not exist'
        if at is None:
            if not if_exists:
                raise SqlError("42703", text)
            self.notices.append(f"{text}, skipping")
            return
        column = self.columns[at]
        if any(self.table.columns[key].id == column.id for key in self.table.primary_key):
            raise unsupported(
                f'dropping column "{name}" of the primary key',
                hint="Copy the rows into a table with another key.",
            )
        del self.columns[at]
        self.dropped.add(column.id)

    def add(self, column: ColumnSpec, if_not_exists: bool) -> None:
        name = column.name
        if self._find(name) is not None:
            text = f'column "{name}" of relation "{self.table.name}" already exists'
            if not if_not_exists:
                raise SqlError("42701", text)
            self.notices.append(f"{text}, skipping")
            return
        if self.next_column_id > COLUMNS_MAX:
            raise SqlError("54011", f"tables can have at most {COLUMNS_MAX} columns")
        missing = self.missing.get(name)
        if column.not_null and missing is None:
            self.unfilled = self.unfilled or name
        added = Column(
            self.next_column_id,
            name,
            column.type_code,
            column.typmod,
            column.not_null,
            column.default,
            missing=missing,
        )
        self.next_column_id += 1
        # The hidden key stays the last one.
        self.columns.insert(len(self.columns) - self.table.has_hidden_key, added)

    def finish(self, options: Mapping[str, str]) -> Table:
        """The changed table, or the same one if nothing changes."""
        table = self.table
        if options:
            table = msgspec.structs.replace(
                table, version=self.table.version + 1, options={**table.options, **options}
            )
        if tuple(self.columns) == table.columns:
            return table
        if len(table.history) >= TABLE_LAYOUTS_MAX or table.schema_version >= SCHEMA_VERSION_MAX:
            raise SqlError(
                "54000",
                f'the columns of table "{table.name}" have been changed too often',
                detail=f"A table can have rows of at most {TABLE_LAYOUTS_MAX} earlier layouts.",
                hint="Copy the rows into a new table, or TRUNCATE this one.",
            )
        ids = [column.id for column in self.columns]
        return msgspec.structs.replace(
            table,
            columns=tuple(self.columns),
            primary_key=tuple(ids.index(table.columns[at].id) for at in table.primary_key),
            version=self.table.version + 1,
            schema_version=table.schema_version + 1,
            next_column_id=self.next_column_id,
            history=(*table.history, table.layout),
            checks=tuple(c for c in table.checks if self.dropped.isdisjoint(c.columns)),
        )

    def _find(self, name: str) -> int | None:
        for at, column in enumerate(self.columns):
            if column.name == name and not column.hidden:
                return at
        return None


def _first_free_id(table: Table) -> int:
    """For a table whose columns have not changed since it was made."""
    return 1 + max(column.id for column in table.columns if column.id <= COLUMNS_MAX)
