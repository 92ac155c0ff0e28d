"""The virtual tables of pg_catalog and information_schema: their columns, and rows from a snapshot.

OIDs of tables are their ids; those of our own namespaces and types are PostgreSQL's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from coordinator.catalog import Catalog
from coordinator.sql import typesystem as ts
from shardb.program import TypeRef
from shardb.types import TYPES as TYPES_TABLE
from shardb.types import TypeCode

NAMESPACES: Final = {"pg_catalog": 11, "public": 2200, "information_schema": 13000}
DATABASE_OID: Final = 5


@dataclass(frozen=True, slots=True)
class VirtualTable:
    """A virtual table; `name` is also its engine name. `rows` makes its rows from a snapshot."""

    name: str
    schema: str
    columns: tuple[tuple[str, TypeRef], ...]
    rows: Callable[[Catalog], list[tuple[Any, ...]]]
    oid: int


_ARROW: Final = {
    ts.INT8.code: pa.int64(),
    ts.TEXT.code: pa.string(),
    ts.BOOL.code: pa.bool_(),
    ts.INT2.code: pa.int16(),
    ts.INT4.code: pa.int32(),
    ts.FLOAT4.code: pa.float32(),
}
_OID, _TEXT, _BOOL, _I2, _I4 = ts.INT8, ts.TEXT, ts.BOOL, ts.INT2, ts.INT4


def _pg_namespace(catalog: Catalog) -> list[tuple[Any, ...]]:
    return [(oid, name, 10) for name, oid in NAMESPACES.items()]


def _pg_class(catalog: Catalog) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for table in catalog.tables.values():
        visible = sum(not column.hidden for column in table.columns)
        rows.append(
            (
                table.id,
                table.name,
                NAMESPACES.get(table.schema, 2200),
                0,
                10,
                2,
                0,
                0,
                0,
                -1.0,
                not table.has_hidden_key,
                "p",
                "r",
                visible,
                0,
                False,
                False,
                False,
                False,
                True,
                "d",
                False,
            )
        )
        if not table.has_hidden_key:
            rows.append(
                (
                    _index_oid(table.id),
                    _key_name(table),
                    2200,
                    0,
                    10,
                    403,
                    0,
                    0,
                    0,
                    -1.0,
                    False,
                    "p",
                    "i",
                    len(table.primary_key),
                    0,
                    False,
                    False,
                    False,
                    False,
                    True,
                    "n",
                    False,
                )
            )
    for virtual in TABLES.values():
        rows.append(
            (
                virtual.oid,
                virtual.name,
                NAMESPACES[virtual.schema],
                0,
                10,
                2,
                0,
                0,
                0,
                -1.0,
                False,
                "p",
                "r",
                len(virtual.columns),
                0,
                False,
                False,
                False,
                False,
                True,
                "n",
                False,
            )
        )
    return rows


def _index_oid(table_id: int) -> int:
    return 1_000_000_000 + table_id


def _key_name(table: Any) -> str:
    return table.primary_key_name or f"{table.name}_pkey"


def _pg_attribute(catalog: Catalog) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for table in catalog.tables.values():
        for at, column in enumerate(table.columns):
            if column.hidden:
                continue
            rows.append(
                (
                    table.id,
                    column.name,
                    ts.oid_of(TypeRef(column.type_code)),
                    -1,
                    -1,
                    at + 1,
                    column.typmod,
                    column.not_null,
                    column.default is not None,
                    "",
                    "",
                    False,
                    0,
                    True,
                    0,
                    0,
                )
            )
    for virtual in TABLES.values():
        for at, (name, ref) in enumerate(virtual.columns):
            rows.append(
                (
                    virtual.oid,
                    name,
                    ts.oid_of(ref),
                    -1,
                    -1,
                    at + 1,
                    -1,
                    False,
                    False,
                    "",
                    "",
                    False,
                    0,
                    True,
                    0,
                    0,
                )
            )
    return rows


def _pg_attrdef(catalog: Catalog) -> list[tuple[Any, ...]]:
    return [
        (table.id * 2000 + at, table.id, at + 1, column.default)
        for table in catalog.tables.values()
        for at, column in enumerate(table.columns)
        if column.default is not None
    ]


def _pg_type(catalog: Catalog) -> list[tuple[Any, ...]]:
    return [
        (
            t.oid,
            t.name,
            11,
            10,
            t.length,
            t.by_value,
            "b",
            t.category,
            True,
            ",",
            0,
            0,
            t.array_oid,
            0,
            -1,
            0,
        )
        for t in TYPES_TABLE.values()
    ]


def _pg_index(catalog: Catalog) -> list[tuple[Any, ...]]:
    return [
        (
            _index_oid(table.id),
            table.id,
            len(table.primary_key),
            len(table.primary_key),
            True,
            False,
            True,
            False,
            True,
            False,
            True,
            True,
            True,
            False,
            " ".join(str(at + 1) for at in table.primary_key),
            None,
            None,
        )
        for table in catalog.tables.values()
        if not table.has_hidden_key
    ]


def _pg_constraint(catalog: Catalog) -> list[tuple[Any, ...]]:
    return [
        (
            2_000_000_000 + table.id,
            _key_name(table),
            2200,
            "p",
            False,
            False,
            True,
            table.id,
            0,
            _index_oid(table.id),
            0,
            0,
        )
        for table in catalog.tables.values()
        if not table.has_hidden_key
    ]


def _pg_database(catalog: Catalog) -> list[tuple[Any, ...]]:
    return [(DATABASE_OID, "shardb", 10, 6, "C", "C", False, True, -1)]


def _none(catalog: Catalog) -> list[tuple[Any, ...]]:
    return []


def _pg_am(catalog: Catalog) -> list[tuple[Any, ...]]:
    return [(2, "heap", "t"), (403, "btree", "i")]


def _pg_roles(catalog: Catalog) -> list[tuple[Any, ...]]:
    return [(10, "shardb", True, True, True, True, True)]


def _tables(catalog: Catalog) -> list[tuple[Any, ...]]:
    own = [("shardb", t.schema, t.name, "BASE TABLE", "YES") for t in catalog.tables.values()]
    return own + [("shardb", v.schema, v.name, "VIEW", "NO") for v in TABLES.values()]


def _columns(catalog: Catalog) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for table in catalog.tables.values():
        for at, column in enumerate(table.columns):
            if column.hidden:
                continue
            ref = TypeRef(column.type_code, column.typmod)
            shape = (
                ts.numeric_shape(ref)
                if ref.code == ts.NUMERIC.code and ref.typmod >= 0
                else (None, None)
            )
            length = ref.typmod - 4 if ref.code in ts.STRINGS and ref.typmod > 0 else None
            rows.append(
                (
                    "shardb",
                    table.schema,
                    table.name,
                    column.name,
                    at + 1,
                    column.default,
                    "NO" if column.not_null else "YES",
                    ts.type_name(ref),
                    length,
                    *shape,
                    TYPES_TABLE[TypeCode(ref.code)].name,
                )
            )
    return rows


def _table(
    table_oid: int,
    schema: str,
    table_name: str,
    rows: Callable[[Catalog], list[tuple[Any, ...]]],
    /,
    **columns: TypeRef,
) -> VirtualTable:
    return VirtualTable(table_name, schema, tuple(columns.items()), rows, table_oid)


_P, _IS = "pg_catalog", "information_schema"
TABLES: Final[dict[str, VirtualTable]] = {
    table.name: table
    for table in (
        _table(2615, _P, "pg_namespace", _pg_namespace, oid=_OID, nspname=_TEXT, nspowner=_OID),
        _table(
            1259,
            _P,
            "pg_class",
            _pg_class,
            oid=_OID,
            relname=_TEXT,
            relnamespace=_OID,
            reltype=_OID,
            relowner=_OID,
            relam=_OID,
            reltablespace=_OID,
            reloftype=_OID,
            relpages=_I4,
            reltuples=ts.FLOAT4,
            relhasindex=_BOOL,
            relpersistence=_TEXT,
            relkind=_TEXT,
            relnatts=_I2,
            relchecks=_I2,
            relhasrules=_BOOL,
            relhastriggers=_BOOL,
            relrowsecurity=_BOOL,
            relforcerowsecurity=_BOOL,
            relispopulated=_BOOL,
            relreplident=_TEXT,
            relispartition=_BOOL,
        ),
        _table(
            1249,
            _P,
            "pg_attribute",
            _pg_attribute,
            attrelid=_OID,
            attname=_TEXT,
            atttypid=_OID,
            attstattarget=_I4,
            attlen=_I2,
            attnum=_I2,
            atttypmod=_I4,
            attnotnull=_BOOL,
            atthasdef=_BOOL,
            attidentity=_TEXT,
            attgenerated=_TEXT,
            attisdropped=_BOOL,
            attinhcount=_I4,
            attislocal=_BOOL,
            attcollation=_OID,
            attndims=_I4,
        ),
        _table(2604, _P, "pg_attrdef", _pg_attrdef, oid=_OID, adrelid=_OID, adnum=_I2, adbin=_TEXT),
        _table(
            1247,
            _P,
            "pg_type",
            _pg_type,
            oid=_OID,
            typname=_TEXT,
            typnamespace=_OID,
            typowner=_OID,
            typlen=_I2,
            typbyval=_BOOL,
            typtype=_TEXT,
            typcategory=_TEXT,
            typisdefined=_BOOL,
            typdelim=_TEXT,
            typrelid=_OID,
            typelem=_OID,
            typarray=_OID,
            typbasetype=_OID,
            typtypmod=_I4,
            typcollation=_OID,
        ),
        _table(
            2610,
            _P,
            "pg_index",
            _pg_index,
            indexrelid=_OID,
            indrelid=_OID,
            indnatts=_I2,
            indnkeyatts=_I2,
            indisunique=_BOOL,
            indnullsnotdistinct=_BOOL,
            indisprimary=_BOOL,
            indisexclusion=_BOOL,
            indimmediate=_BOOL,
            indisclustered=_BOOL,
            indisvalid=_BOOL,
            indisready=_BOOL,
            indislive=_BOOL,
            indisreplident=_BOOL,
            indkey=_TEXT,
            indexprs=_TEXT,
            indpred=_TEXT,
        ),
        _table(
            2606,
            _P,
            "pg_constraint",
            _pg_constraint,
            oid=_OID,
            conname=_TEXT,
            connamespace=_OID,
            contype=_TEXT,
            condeferrable=_BOOL,
            condeferred=_BOOL,
            convalidated=_BOOL,
            conrelid=_OID,
            contypid=_OID,
            conindid=_OID,
            conparentid=_OID,
            confrelid=_OID,
        ),
        _table(
            1262,
            _P,
            "pg_database",
            _pg_database,
            oid=_OID,
            datname=_TEXT,
            datdba=_OID,
            encoding=_I4,
            datcollate=_TEXT,
            datctype=_TEXT,
            datistemplate=_BOOL,
            datallowconn=_BOOL,
            datconnlimit=_I4,
        ),
        _table(
            3350,
            _P,
            "pg_partitioned_table",
            _none,
            partrelid=_OID,
            partstrat=_TEXT,
            partnatts=_I2,
            partdefid=_OID,
        ),
        _table(
            2611,
            _P,
            "pg_inherits",
            _none,
            inhrelid=_OID,
            inhparent=_OID,
            inhseqno=_I4,
            inhdetachpending=_BOOL,
        ),
        _table(2601, _P, "pg_am", _pg_am, oid=_OID, amname=_TEXT, amtype=_TEXT),
        _table(
            1260,
            _P,
            "pg_roles",
            _pg_roles,
            oid=_OID,
            rolname=_TEXT,
            rolsuper=_BOOL,
            rolinherit=_BOOL,
            rolcreaterole=_BOOL,
            rolcreatedb=_BOOL,
            rolcanlogin=_BOOL,
        ),
        _table(
            2609,
            _P,
            "pg_description",
            _none,
            objoid=_OID,
            classoid=_OID,
            objsubid=_I4,
            description=_TEXT,
        ),
        _table(3456, _P, "pg_collation", _none, oid=_OID, collname=_TEXT, collnamespace=_OID),
        _table(1255, _P, "pg_proc", _none, oid=_OID, proname=_TEXT, pronamespace=_OID),
        _table(2620, _P, "pg_trigger", _none, oid=_OID, tgrelid=_OID, tgname=_TEXT),
        _table(3256, _P, "pg_policy", _none, oid=_OID, polname=_TEXT, polrelid=_OID),
        _table(6104, _P, "pg_publication", _none, oid=_OID, pubname=_TEXT, puballtables=_BOOL),
        _table(12000, _P, "pg_settings", _none, name=_TEXT, setting=_TEXT, category=_TEXT),
        _table(
            13001,
            _IS,
            "tables",
            _tables,
            table_catalog=_TEXT,
            table_schema=_TEXT,
            table_name=_TEXT,
            table_type=_TEXT,
            is_insertable_into=_TEXT,
        ),
        _table(
            13002,
            _IS,
            "columns",
            _columns,
            table_catalog=_TEXT,
            table_schema=_TEXT,
            table_name=_TEXT,
            column_name=_TEXT,
            ordinal_position=_I4,
            column_default=_TEXT,
            is_nullable=_TEXT,
            data_type=_TEXT,
            character_maximum_length=_I4,
            numeric_precision=_I4,
            numeric_scale=_I4,
            udt_name=_TEXT,
        ),
    )
}


def arrow_table(name: str, catalog: Catalog) -> pa.Table:
    """The rows of a virtual table as Arrow, its columns called `c0`, `c1` … for the engine."""
    virtual = TABLES[name]
    rows = virtual.rows(catalog)
    arrays = [
        pa.array([row[at] for row in rows], type=_ARROW[ref.code])
        for at, (_, ref) in enumerate(virtual.columns)
    ]
    return pa.table(arrays, names=[f"c{at}" for at in range(len(arrays))])


def find(name: str, schema: str) -> VirtualTable | None:
    """The virtual table of this name; information_schema's need their schema."""
    table = TABLES.get(name)
    if table is None or (schema and table.schema != schema):
        return None
    return table if schema or table.schema == _P else None


def oid_of(name: str) -> int | None:
    """The OID of a virtual table."""
    table = TABLES.get(name)
    return None if table is None else table.oid
