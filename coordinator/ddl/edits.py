"""DDL as pure functions from a catalog snapshot to edits of the metadata store.

All DDL is serialized by one compare-and-swap: an edit applies only if `ids/next` still holds the
number it was planned with, and every edit moves it on. The shell then applies in this order:
install tablets on the nodes (idempotent, invisible), commit the edit, drop old tablets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from coordinator.catalog import Catalog
from coordinator.ddl.keys import split_key
from coordinator.ddl.specs import AddPrimaryKey, CreateTable, DropTable, TableName, Truncate
from shardb.errors import SqlError, unsupported
from shardb.limits import COLUMNS_MAX
from shardb.meta.descriptors import Check, Column, Group, Range, Table
from shardb.types import TypeCode as T

ROWID_NAME: Final = "rowid"
ROWID_ID: Final = COLUMNS_MAX + 1  # above the ids that other columns get


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of descriptors. `next_id` is the value of `ids/next` it expects; `after_id` its new.

    `install` lists tablets to create before, `drop` those to drop after the change is published.
    `table` is the new or the changed table. `unfilled`: an added column that must not be NULL and
    is in the rows there are, so that there must be none.
    """

    next_id: int
    after_id: int
    puts: tuple[tuple[str, bytes], ...] = ()
    deletes: tuple[str, ...] = ()
    install: tuple[tuple[Range, Table], ...] = ()
    drop: tuple[tuple[Range, Table], ...] = ()
    table: Table | None = None
    notices: tuple[str, ...] = ()
    unfilled: str = ""


def create_table(spec: CreateTable, catalog: Catalog, next_id: int) -> Edit:
    """CREATE TABLE: a table, and a group with its ranges unless it is colocated."""
    schema = spec.schema or "public"
    if schema != "public":
        raise SqlError("3F000", f'schema "{schema}" does not exist')
    if catalog.lookup(spec.name, schema) is not None:
        if spec.if_not_exists:
            return Edit(
                next_id, next_id, notices=(f'relation "{spec.name}" already exists, skipping',)
            )
        raise SqlError("42P07", f'relation "{spec.name}" already exists')
    columns = [
        Column(at + 1, c.name, c.type_code, c.typmod, c.not_null, c.default)
        for at, c in enumerate(spec.columns)
    ]
    if spec.primary_key:
        names = [c.name for c in columns]
        key = tuple(names.index(name) for name in spec.primary_key)
    else:
        columns.append(Column(ROWID_ID, ROWID_NAME, T.INT8, -1, True, None, hidden=True))
        key = (len(columns) - 1,)
    ids = {column.name: column.id for column in columns}
    checks = tuple(
        Check(check.name, check.text, tuple(ids[name] for name in check.columns))
        for check in spec.checks
    )
    table = Table(
        id=next_id,
        name=spec.name,
        group_id=next_id + 1,
        columns=tuple(columns),
        primary_key=key,
        primary_key_name=spec.primary_key_name,
        schema=schema,
        options=spec.options,
        next_column_id=len(spec.columns) + 1,
        checks=checks,
    )
    if spec.colocate_with:
        if spec.split_at:
            raise SqlError("22023", "a table cannot have both split_at and colocate_with")
        return _colocated(table, spec.colocate_with, catalog, next_id)
    codec_keys = sorted({split_key(table, values) for values in spec.split_at})
    return _own_group(table, codec_keys, catalog, next_id)


def _colocated(table: Table, other_name: str, catalog: Catalog, next_id: int) -> Edit:
    other = catalog.lookup(other_name)
    if other is None:
        raise SqlError("42P01", f'relation "{other_name}" does not exist')
    mine, theirs = table.columns[table.primary_key[0]], other.columns[other.primary_key[0]]
    if mine.type_code != theirs.type_code or table.has_hidden_key or other.has_hidden_key:
        raise SqlError(
            "22023",
            f'table "{table.name}" cannot be colocated with "{other_name}"',
            detail="The first primary key columns must have the same type.",
        )
    group = catalog.groups[other.group_id]
    table = msgspec.structs.replace(table, group_id=group.id)
    changed = msgspec.structs.replace(group, table_ids=(*group.table_ids, table.id))
    return Edit(
        next_id,
        next_id + 1,
        puts=(put("tables", table.id, table), put("groups", group.id, changed)),
        install=tuple((r, table) for r in catalog.ranges_for(group.id)),
        table=table,
    )


def _own_group(table: Table, keys: Sequence[bytes], catalog: Catalog, next_id: int) -> Edit:
    group = Group(id=table.group_id, table_ids=(table.id,))
    nodes = sorted(catalog.nodes)
    if not nodes:
        raise SqlError("57P03", "no shard is available yet")
    first_range = group.id + 1
    starts = [b"", *keys]
    ranges = []
    for at, start in enumerate(starts):
        node = nodes[(at if len(starts) > 1 else table.id) % len(nodes)]
        ranges.append(
            Range(
                id=first_range + at,
                group_id=group.id,
                start=start,
                end=starts[at + 1] if at + 1 < len(starts) else b"",
                epoch=1,
                primary=node,
                replicas=(node,),
                in_sync=(node,),
            )
        )
    return Edit(
        next_id,
        first_range + len(ranges),
        puts=(
            put("tables", table.id, table),
            put("groups", group.id, group),
            *(put("ranges", item.id, item) for item in ranges),
        ),
        install=tuple((item, table) for item in ranges),
        table=table,
    )


def drop_table(spec: DropTable, catalog: Catalog, next_id: int) -> Edit:
    """DROP TABLE of one or more tables."""
    notices: list[str] = []
    doomed: list[Table] = []
    for name in spec.names:
        table = catalog.lookup(name.name, name.schema)
        if table is None:
            if not spec.if_exists:
                raise SqlError("42P01", f'table "{name.name}" does not exist')
            notices.append(f'table "{name.name}" does not exist, skipping')
        elif table not in doomed:
            doomed.append(table)
    if not doomed:
        return Edit(next_id, next_id, notices=tuple(notices))
    puts, deletes, drop = _removal(doomed, catalog)
    return Edit(next_id, next_id + 1, puts=puts, deletes=deletes, drop=drop, notices=tuple(notices))


def _removal(
    doomed: list[Table], catalog: Catalog
) -> tuple[tuple[tuple[str, bytes], ...], tuple[str, ...], tuple[tuple[Range, Table], ...]]:
    puts: list[tuple[str, bytes]] = []
    deletes: list[str] = []
    drop: list[tuple[Range, Table]] = []
    ids = {table.id for table in doomed}
    for table in doomed:
        deletes.append(f"tables/{table.id}")
        drop += [(item, table) for item in catalog.ranges_for(table.group_id)]
    for group_id in {table.group_id for table in doomed}:
        group = catalog.groups[group_id]
        rest = tuple(i for i in group.table_ids if i not in ids)
        if rest:
            puts.append(put("groups", group_id, msgspec.structs.replace(group, table_ids=rest)))
            continue
        deletes.append(f"groups/{group_id}")
        deletes += [f"ranges/{item.id}" for item in catalog.ranges_for(group_id)]
    return tuple(puts), tuple(deletes), tuple(drop)


def truncate(spec: Truncate, catalog: Catalog, next_id: int) -> Edit:
    """TRUNCATE: every table is replaced by an empty one of a new id in the same ranges."""
    puts: list[tuple[str, bytes]] = []
    deletes: list[str] = []
    install: list[tuple[Range, Table]] = []
    drop: list[tuple[Range, Table]] = []
    groups = dict(catalog.groups)
    for name in dict.fromkeys(spec.names):
        table = find_table(name, catalog)
        fresh = msgspec.structs.replace(
            table,
            id=next_id + len(deletes),
            version=table.version + 1,
            columns=_without_past(table.columns),
            history=(),
        )
        group = groups[table.group_id]
        members = tuple(fresh.id if i == table.id else i for i in group.table_ids)
        groups[group.id] = msgspec.structs.replace(group, table_ids=members)
        deletes.append(f"tables/{table.id}")
        puts.append(put("tables", fresh.id, fresh))
        ranges = catalog.ranges_for(table.group_id)
        install += [(item, fresh) for item in ranges]
        drop += [(item, table) for item in ranges]
    puts += [
        put("groups", group.id, group)
        for group in groups.values()
        if group != catalog.groups[group.id]
    ]
    return Edit(
        next_id, next_id + len(deletes), tuple(puts), tuple(deletes), tuple(install), tuple(drop)
    )


def add_primary_key(
    spec: AddPrimaryKey, catalog: Catalog, next_id: int, split_keys: Sequence[bytes] = ()
) -> Edit:
    """ALTER TABLE ADD PRIMARY KEY: a new table in ranges of its own takes the name over.

    The shell creates `edit.table`'s tablets, copies the rows (23505 on duplicates, 23502 on NULLs)
    under the old table's exclusive lock, and then commits the edit. `split_keys` are in the new
    key's encoding (see `quantile_splits`); for an empty table there are none.
    """
    old = find_table(spec.name, catalog)
    if not old.has_hidden_key:
        raise SqlError("42P16", f'multiple primary keys for table "{old.name}" are not allowed')
    if len(catalog.groups[old.group_id].table_ids) > 1:
        raise unsupported("ADD PRIMARY KEY on a colocated table")
    fresh = keyed_table(spec, old, next_id)
    edit = _own_group(fresh, split_keys, catalog, next_id)
    _, deletes, drop = _removal([old], catalog)
    return Edit(next_id, edit.after_id, edit.puts, deletes, edit.install, drop, fresh)


def keyed_table(spec: AddPrimaryKey, old: Table, next_id: int) -> Table:
    """The descriptor of `old` with the primary key: hidden rowid gone, key columns NOT NULL."""
    names = [column.name for column in old.columns if not column.hidden]
    for name in spec.columns:
        if name not in names:
            raise SqlError("42703", f'column "{name}" named in key does not exist')
        if spec.columns.count(name) > 1:
            raise SqlError("42701", f'column "{name}" appears twice in primary key constraint')
    key = tuple(names.index(name) for name in spec.columns)
    check_key_types([old.columns[at] for at in key])
    columns = tuple(
        msgspec.structs.replace(column, not_null=column.not_null or at in key)
        for at, column in enumerate(_without_past([c for c in old.columns if not c.hidden]))
    )
    return msgspec.structs.replace(
        old,
        id=next_id,
        group_id=next_id + 1,
        columns=columns,
        primary_key=key,
        primary_key_name=spec.constraint,
        version=old.version + 1,
        schema_version=1,
        history=(),
    )


def check_key_types(columns: Sequence[Column]) -> None:
    """Refuses key columns of types without an order (42704, as for a missing operator class)."""
    for column in columns:
        if column.type_code in (T.JSON, T.JSONB, T.INTERVAL):
            raise SqlError(
                "42704", f'column "{column.name}" has a type that cannot be part of a primary key'
            )


def quantile_splits(sorted_keys: Sequence[bytes], pieces: int) -> list[bytes]:
    """Split points that cut a sorted sample of keys into `pieces` parts of about equal size."""
    points: list[bytes] = []
    for piece in range(1, pieces):
        key = sorted_keys[len(sorted_keys) * piece // pieces] if sorted_keys else b""
        if key and (not points or key > points[-1]) and key > sorted_keys[0]:
            points.append(key)
    return points


def find_table(name: TableName, catalog: Catalog) -> Table:
    """The table of a name; 42P01 if there is none."""
    table = catalog.lookup(name.name, name.schema)
    if table is None:
        raise SqlError("42P01", f'relation "{name}" does not exist')
    return table


def _without_past(columns: Sequence[Column]) -> tuple[Column, ...]:
    """The columns of a table that has no rows of earlier layouts."""
    return tuple(msgspec.structs.replace(column, missing=None) for column in columns)


def put(kind: str, item_id: int, value: Table | Group | Range) -> tuple[str, bytes]:
    """A descriptor with its key, for `Edit.puts`."""
    return f"{kind}/{item_id}", msgspec.json.encode(value)
