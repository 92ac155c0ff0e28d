"""Immutable descriptions of what the cluster holds: tables, groups, ranges and nodes.

They are stored as JSON under `tables/<id>`, `groups/<id>`, `ranges/<id>` and `nodes/<id>`; a change
is a new value written by compare-and-swap. Ids are never reused.
"""

from __future__ import annotations

import msgspec

from shardb.errors import SqlError


class Column(msgspec.Struct, frozen=True):
    """One column. `id` is stable over renames; `type_code` is `shardb.types.TypeCode`.

    `typmod` is PostgreSQL's (-1 if none). `default` is the SQL text of the default or None.
    `missing` is the value, in text form, that the column has in rows written before there was one;
    None is NULL.
    """

    id: int
    name: str
    type_code: int
    typmod: int = -1
    not_null: bool = False
    default: str | None = None
    hidden: bool = False
    missing: str | None = None


class Layout(msgspec.Struct, frozen=True, array_like=True):
    """What the rows of one schema version are made of: (column id, type code, typmod) in order.

    `missing` has `Column.missing` by column id, for readers that still use this version when a
    column is gone from the table.
    """

    schema_version: int
    columns: tuple[tuple[int, int, int], ...]
    missing: tuple[tuple[int, str], ...] = ()


class Check(msgspec.Struct, frozen=True):
    """A CHECK constraint: `text` is its condition in SQL, `columns` the ids of those it names."""

    name: str
    text: str
    columns: tuple[int, ...]


class Table(msgspec.Struct, frozen=True):
    """A table. `primary_key` holds positions into `columns`, in key order.

    A table without a declared key has a hidden int8 column `rowid`, the last one, as its key.
    `history` has the earlier row layouts, newest last. `next_column_id` is above every column id
    that the table ever had (0 in descriptors of before there were changes of columns).
    Invariant: `version` grows with every change of the descriptor; `schema_version` with every
    change of the row layout (rows carry it).
    """

    id: int
    name: str
    group_id: int
    columns: tuple[Column, ...]
    primary_key: tuple[int, ...]
    primary_key_name: str = ""
    schema: str = "public"
    version: int = 1
    schema_version: int = 1
    options: dict[str, str] = {}
    next_column_id: int = 0
    history: tuple[Layout, ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def layout(self) -> Layout:
        """The present row layout."""
        columns = tuple((c.id, c.type_code, c.typmod) for c in self.columns)
        missing = tuple((c.id, c.missing) for c in self.columns if c.missing is not None)
        return Layout(self.schema_version, columns, missing)

    def at(self, schema_version: int) -> Table:
        """The table with the columns of one of its schema versions, for plans made then.

        0 is the present one. Columns that are gone have no name. 55000 if the version is not known.
        """
        if schema_version in (0, self.schema_version):
            return self
        versions = [layout.schema_version for layout in self.history]
        if schema_version not in versions:
            raise SqlError("55000", f'"{self.name}" has no schema version {schema_version}')
        index = versions.index(schema_version)
        layout = self.history[index]
        present = {column.id: column for column in self.columns}
        ids = [column_id for column_id, _, _ in layout.columns]
        missing = dict(layout.missing)
        columns = tuple(
            present.get(column_id)
            or Column(column_id, "", type_code, typmod, missing=missing.get(column_id))
            for column_id, type_code, typmod in layout.columns
        )
        return msgspec.structs.replace(
            self,
            columns=columns,
            primary_key=tuple(ids.index(self.columns[at].id) for at in self.primary_key),
            schema_version=schema_version,
            history=self.history[:index],
        )

    @property
    def has_hidden_key(self) -> bool:
        """True if the primary key is the hidden `rowid`."""
        return self.columns[self.primary_key[0]].hidden


class Group(msgspec.Struct, frozen=True):
    """Tables that are split at the same points of a shared key prefix."""

    id: int
    table_ids: tuple[int, ...]


class Range(msgspec.Struct, frozen=True):
    """`[start, end)` of a group's key space; an empty `end` means "to the last key"."""

    id: int
    group_id: int
    start: bytes
    end: bytes
    epoch: int
    primary: int
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]


class Node(msgspec.Struct, frozen=True):
    """A shard process, bound to its lease. `address` is `unix:/path` or `tcp:host:port`."""

    id: int
    address: str
    locality: str = ""
    version: str = ""
