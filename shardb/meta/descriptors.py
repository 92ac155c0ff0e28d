"""Immutable descriptions of what the cluster holds: tables, groups, ranges and nodes.

They are stored as JSON under `tables/<id>`, `groups/<id>`, `ranges/<id>` and `nodes/<id>`; a change
is a new value written by compare-and-swap. Ids are never reused.
"""

from __future__ import annotations

import msgspec


class Column(msgspec.Struct, frozen=True):
    """One column. `id` is stable over renames; `type_code` is `shardb.types.TypeCode`.

    `typmod` is PostgreSQL's (-1 if none). `default` is the SQL text of the default or None.
    """

    id: int
    name: str
    type_code: int
    typmod: int = -1
    not_null: bool = False
    default: str | None = None
    hidden: bool = False


class Table(msgspec.Struct, frozen=True):
    """A table. `primary_key` holds positions into `columns`, in key order.

    A table without a declared key has a hidden int8 column `rowid`, the last one, as its key.
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
