"""Rows of the virtual catalog tables, from a catalog snapshot.

A row is a mapping of what differs from the columns' defaults (see `catalog_tables`). OIDs of tables
are their ids; those of our own namespaces and types are PostgreSQL's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from coordinator.catalog import Catalog
from coordinator.sql import typesystem as ts
from shardb import types
from shardb.limits import CHECKS_MAX
from shardb.meta.descriptors import Column, Table
from shardb.program import TypeRef
from shardb.types import TypeCode as T

Row = Mapping[str, Any]

NAMESPACES: Final = {"pg_catalog": 11, "public": 2200, "information_schema": 13000}
DATABASE: Final = "shardb"
_DATABASE_OID: Final = 5
_OWNER_OID: Final = 10
_TABLESPACE_OID: Final = 1663
_COLLATION_OID: Final = 100
_INDEX_OIDS: Final = 1_000_000_000
_CONSTRAINT_OIDS: Final = 2_000_000_000
_CHECK_OIDS: Final = 3_000_000_000
_TABLE_OWNER: Final = "shardb"


def _index_oid(table: Table) -> int:
    return _INDEX_OIDS + table.id


def _check_oid(table: Table, number: int) -> int:
    return _CHECK_OIDS + table.id * CHECKS_MAX + number


def _key_name(table: Table) -> str:
    return table.primary_key_name or f"{table.name}_pkey"


def _quoted(name: str) -> str:
    plain = name.replace("_", "a").isalnum() and name == name.lower() and not name[:1].isdigit()
    return name if plain else '"' + name.replace('"', '""') + '"'


def _visible(table: Table) -> Iterator[tuple[int, Column]]:
    """The columns a client sees with their numbers, which stay when others are dropped."""
    for column in table.columns:
        if not column.hidden:
            yield column.id, column


def _key_numbers(table: Table) -> list[str]:
    """The numbers of the primary key's columns."""
    return [str(table.columns[at].id) for at in table.primary_key]


def _keyed(catalog: Catalog) -> Iterator[Table]:
    return (table for table in catalog.tables.values() if not table.has_hidden_key)


def default_text(column: Column) -> str | None:
    """A column's default as pg_get_expr() prints it: a quoted constant shows its type."""
    text = column.default
    if text is None or not (text.startswith("'") and text.endswith("'")):
        return text
    shown = "bpchar" if column.type_code == T.BPCHAR else ts.type_name(TypeRef(column.type_code))
    return f"{text}::{shown}"


def namespaces(catalog: Catalog) -> Iterator[Row]:
    for name, oid in NAMESPACES.items():
        yield {"oid": oid, "nspname": name, "nspowner": _OWNER_OID}


def classes(catalog: Catalog) -> Iterator[Row]:
    for table in catalog.tables.values():
        namespace = NAMESPACES.get(table.schema, 2200)
        yield {
            "oid": table.id,
            "relname": table.name,
            "relnamespace": namespace,
            "relkind": "r",
            "relam": 2,
            "relnatts": max((number for number, _ in _visible(table)), default=0),
            "relhasindex": not table.has_hidden_key,
            "relchecks": len(table.checks),
            "relreplident": "d",
        }
        if not table.has_hidden_key:
            yield {
                "oid": _index_oid(table),
                "relname": _key_name(table),
                "relnamespace": namespace,
                "relkind": "i",
                "relam": 403,
                "relnatts": len(table.primary_key),
                "relreplident": "n",
            }


def attributes(catalog: Catalog) -> Iterator[Row]:
    for table in catalog.tables.values():
        for number, column in _visible(table):
            yield _attribute(table.id, number, column) | {
                "attnotnull": column.not_null,
                "atthasdef": column.default is not None,
                "atthasmissing": column.missing is not None,
            }
    for table in _keyed(catalog):
        for number, at in enumerate(table.primary_key, 1):
            yield _attribute(_index_oid(table), number, table.columns[at])


def _attribute(relation: int, number: int, column: Column) -> dict[str, Any]:
    kind = types.TYPES[T(column.type_code)]
    storage = "p" if kind.length > 0 else ("m" if column.type_code == T.NUMERIC else "x")
    return {
        "attrelid": relation,
        "attname": column.name,
        "atttypid": kind.oid,
        "attlen": kind.length,
        "attnum": number,
        "atttypmod": column.typmod,
        "attstorage": storage,
        "attcollation": _COLLATION_OID if column.type_code in ts.STRINGS else 0,
    }


def defaults(catalog: Catalog) -> Iterator[Row]:
    for table in catalog.tables.values():
        for number, column in _visible(table):
            if column.default is not None:
                yield {
                    "oid": table.id * 2000 + number,
                    "adrelid": table.id,
                    "adnum": number,
                    "adbin": default_text(column),
                }


def type_rows(catalog: Catalog) -> Iterator[Row]:
    for kind in types.TYPES.values():
        row = {
            "oid": kind.oid,
            "typname": kind.name,
            "typlen": kind.length,
            "typbyval": kind.by_value,
            "typcategory": kind.category,
            "typispreferred": kind.preferred,
            "typarray": kind.array_oid,
            "typcollation": _COLLATION_OID if kind.category == "S" else 0,
        }
        yield row
        if kind.array_oid:
            yield {
                "oid": kind.array_oid,
                "typname": f"_{kind.name}",
                "typlen": -1,
                "typcategory": "A",
                "typelem": kind.oid,
            }


def indexes(catalog: Catalog) -> Iterator[Row]:
    for table in _keyed(catalog):
        yield {
            "indexrelid": _index_oid(table),
            "indrelid": table.id,
            "indnatts": len(table.primary_key),
            "indnkeyatts": len(table.primary_key),
            "indisunique": True,
            "indisprimary": True,
            "indkey": " ".join(_key_numbers(table)),
        }


def constraints(catalog: Catalog) -> Iterator[Row]:
    for table in _keyed(catalog):
        numbers = ",".join(_key_numbers(table))
        yield {
            "oid": _CONSTRAINT_OIDS + table.id,
            "conname": _key_name(table),
            "connamespace": NAMESPACES.get(table.schema, 2200),
            "contype": "p",
            "conrelid": table.id,
            "conindid": _index_oid(table),
            "conkey": "{" + numbers + "}",
        }
    for table in catalog.tables.values():
        for at, check in enumerate(table.checks):
            yield {
                "oid": _check_oid(table, at),
                "conname": check.name,
                "connamespace": NAMESPACES.get(table.schema, 2200),
                "contype": "c",
                "conrelid": table.id,
                "conkey": "{" + ",".join(map(str, check.columns)) + "}",
            }


def definitions(catalog: Catalog) -> Iterator[Row]:
    """What pg_get_indexdef(), pg_get_constraintdef() and casts of regclass to text look up."""
    for table in catalog.tables.values():
        yield {"oid": table.id, "definition": "", "name": _quoted(table.name)}
        for at, check in enumerate(table.checks):
            yield {
                "oid": _check_oid(table, at),
                "definition": f"CHECK ({check.text})",
                "name": _quoted(check.name),
            }
    for table in _keyed(catalog):
        names = [_quoted(table.columns[at].name) for at in table.primary_key]
        listed = ", ".join(names)
        key = _quoted(_key_name(table))
        yield {
            "oid": _index_oid(table),
            "definition": f"CREATE UNIQUE INDEX {key} ON {table.schema}.{_quoted(table.name)} "
            f"USING btree ({listed})",
            "name": key,
        }
        for number, name in enumerate(names, 1):
            yield {"oid": _index_oid(table), "part": number, "definition": name}
        yield {
            "oid": _CONSTRAINT_OIDS + table.id,
            "definition": f"PRIMARY KEY ({listed})",
            "name": key,
        }


def databases(catalog: Catalog) -> Iterator[Row]:
    yield {
        "oid": _DATABASE_OID,
        "datname": DATABASE,
        "datdba": _OWNER_OID,
        "encoding": 6,
        "datlocprovider": "c",
        "datallowconn": True,
        "datconnlimit": -1,
        "datcollate": "C.UTF-8",
        "datctype": "C.UTF-8",
        "dattablespace": _TABLESPACE_OID,
    }


def tablespaces(catalog: Catalog) -> Iterator[Row]:
    yield {"oid": _TABLESPACE_OID, "spcname": "pg_default", "spcowner": _OWNER_OID}


def access_methods(catalog: Catalog) -> Iterator[Row]:
    yield {"oid": 2, "amname": "heap", "amtype": "t"}
    yield {"oid": 403, "amname": "btree", "amtype": "i"}


def collations(catalog: Catalog) -> Iterator[Row]:
    for oid, name in ((_COLLATION_OID, "default"), (950, "C"), (951, "POSIX")):
        yield {"oid": oid, "collname": name, "collnamespace": 11, "collencoding": -1}


def roles(catalog: Catalog) -> Iterator[Row]:
    flags = ("super", "inherit", "createrole", "createdb", "canlogin", "replication", "bypassrls")
    yield {"oid": _OWNER_OID, "rolname": _TABLE_OWNER, "rolconnlimit": -1} | {
        f"rol{flag}": True for flag in flags
    }


def user_tables(catalog: Catalog) -> Iterator[Row]:
    """pg_tables."""
    for table in catalog.tables.values():
        yield {
            "schemaname": table.schema,
            "tablename": table.name,
            "tableowner": _TABLE_OWNER,
            "hasindexes": not table.has_hidden_key,
        }


def user_indexes(catalog: Catalog) -> Iterator[Row]:
    """pg_indexes."""
    by_oid = {row["oid"]: row for row in definitions(catalog) if not row.get("part")}
    for table in _keyed(catalog):
        yield {
            "schemaname": table.schema,
            "tablename": table.name,
            "indexname": _key_name(table),
            "indexdef": by_oid[_index_oid(table)]["definition"],
        }


def schemata(catalog: Catalog) -> Iterator[Row]:
    for name in NAMESPACES:
        yield {"catalog_name": DATABASE, "schema_name": name, "schema_owner": _TABLE_OWNER}


def information_tables(catalog: Catalog) -> Iterator[Row]:
    for table in catalog.tables.values():
        yield {
            "table_catalog": DATABASE,
            "table_schema": table.schema,
            "table_name": table.name,
            "table_type": "BASE TABLE",
            "is_insertable_into": "YES",
            "is_typed": "NO",
        }


def information_columns(catalog: Catalog) -> Iterator[Row]:
    for table in catalog.tables.values():
        for number, column in _visible(table):
            ref = TypeRef(column.type_code, column.typmod)
            row: dict[str, Any] = {
                "table_catalog": DATABASE,
                "table_schema": table.schema,
                "table_name": table.name,
                "column_name": column.name,
                "ordinal_position": number,
                "column_default": default_text(column),
                "is_nullable": "NO" if column.not_null else "YES",
                "data_type": ts.type_name(ref),
                "udt_catalog": DATABASE,
                "udt_schema": "pg_catalog",
                "udt_name": types.TYPES[T(ref.code)].name,
            }
            if ref.code in ts.INTEGERS:
                row["numeric_precision"] = {T.INT2: 16, T.INT4: 32, T.INT8: 64}[T(ref.code)]
                row["numeric_precision_radix"] = 2
                row["numeric_scale"] = 0
            elif ref.code in (T.FLOAT4, T.FLOAT8):
                row["numeric_precision"] = 24 if ref.code == T.FLOAT4 else 53
                row["numeric_precision_radix"] = 2
            elif ref.code == T.NUMERIC:
                row["numeric_precision_radix"] = 10
                if ref.typmod >= 0:
                    row["numeric_precision"], row["numeric_scale"] = ts.numeric_shape(ref)
            elif ref.code in ts.STRINGS and ref.typmod > 0:
                row["character_maximum_length"] = ref.typmod - 4
                row["character_octet_length"] = 4 * (ref.typmod - 4)
            elif ref.code == T.TEXT:
                row["character_octet_length"] = 1 << 30
            elif ref.code == T.DATE:
                row["datetime_precision"] = 0
            elif ref.code in (T.TIME, T.TIMESTAMP, T.TIMESTAMPTZ, T.INTERVAL):
                row["datetime_precision"] = 6
            yield row


def table_constraints(catalog: Catalog) -> Iterator[Row]:
    for table in _keyed(catalog):
        yield {
            "constraint_catalog": DATABASE,
            "constraint_schema": table.schema,
            "constraint_name": _key_name(table),
            "table_catalog": DATABASE,
            "table_schema": table.schema,
            "table_name": table.name,
            "constraint_type": "PRIMARY KEY",
        }


def key_columns(catalog: Catalog) -> Iterator[Row]:
    for table in _keyed(catalog):
        for number, at in enumerate(table.primary_key, 1):
            yield {
                "constraint_catalog": DATABASE,
                "constraint_schema": table.schema,
                "constraint_name": _key_name(table),
                "table_catalog": DATABASE,
                "table_schema": table.schema,
                "table_name": table.name,
                "column_name": table.columns[at].name,
                "ordinal_position": number,
            }


def nothing(catalog: Catalog) -> Iterator[Row]:
    """The rows of a table whose objects do not exist here."""
    return iter(())
