"""The virtual tables of pg_catalog and information_schema: their columns and where rows come from.

Columns are as in PostgreSQL 15, as far as clients ask for them. A catalog of objects that we do not
have is an empty table, so that queries over it are right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from coordinator.catalog import Catalog
from coordinator.sql import catalog_rows as rows_of
from coordinator.sql import typesystem as ts
from shardb import types
from shardb.program import TypeRef
from shardb.types import TypeCode as T

_Rows = Callable[[Catalog], Iterator[rows_of.Row]]

# The letters of column lists below: type, its Arrow form, what a row has that does not say. A
# capital is a column that is NULL unless said. OIDs are int8; arrays and pg_node_tree are text.
_LETTERS: Final[dict[str, tuple[TypeRef, pa.DataType, Any]]] = {
    "o": (ts.INT8, pa.int64(), 0),
    "t": (ts.TEXT, pa.string(), ""),
    "T": (ts.TEXT, pa.string(), None),
    "b": (ts.BOOL, pa.bool_(), False),
    "y": (ts.BOOL, pa.bool_(), True),
    "s": (ts.INT2, pa.int16(), 0),
    "i": (ts.INT4, pa.int32(), 0),
    "I": (ts.INT4, pa.int32(), None),
    "m": (ts.INT4, pa.int32(), -1),
    "f": (ts.FLOAT4, pa.float32(), -1.0),
}


@dataclass(frozen=True, slots=True)
class VirtualTable:
    """A virtual table; `name` is also its engine name. `rows` makes its rows from a snapshot."""

    name: str
    schema: str
    columns: tuple[tuple[str, TypeRef], ...]
    letters: str
    rows: _Rows
    oid: int


def _table(oid: int, name: str, rows: _Rows, columns: str) -> VirtualTable:
    schema, _, name = name.rpartition(".")
    items = [item.partition(":") for item in columns.split()]
    if columns.startswith("oid:"):
        items.append(("tableoid", ":", "o"))
    return VirtualTable(
        name,
        schema or "pg_catalog",
        tuple((label, _LETTERS[letter][0]) for label, _, letter in items),
        "".join(letter for _, _, letter in items),
        rows,
        oid,
    )


def _classes(catalog: Catalog) -> Iterator[rows_of.Row]:
    yield from rows_of.classes(catalog)
    for table in TABLES.values():
        yield {
            "oid": table.oid,
            "relname": table.name,
            "relnamespace": rows_of.NAMESPACES[table.schema],
            "relkind": "r" if table.schema == "pg_catalog" else "v",
            "relam": 2,
            "relnatts": len(table.columns),
            "relreplident": "n",
        }


def _attributes(catalog: Catalog) -> Iterator[rows_of.Row]:
    yield from rows_of.attributes(catalog)
    for table in TABLES.values():
        for number, (label, ref) in enumerate(table.columns, 1):
            kind = types.TYPES[T(ref.code)]
            yield {
                "attrelid": table.oid,
                "attname": label,
                "atttypid": kind.oid,
                "attlen": kind.length,
                "attnum": number,
                "attstorage": "p" if kind.length > 0 else "x",
            }


def _information_tables(catalog: Catalog) -> Iterator[rows_of.Row]:
    yield from rows_of.information_tables(catalog)
    for table in TABLES.values():
        yield {
            "table_catalog": rows_of.DATABASE,
            "table_schema": table.schema,
            "table_name": table.name,
            "table_type": "VIEW" if table.schema == "information_schema" else "BASE TABLE",
            "is_insertable_into": "NO",
            "is_typed": "NO",
        }


_none: Final = rows_of.nothing
TABLES: Final[dict[str, VirtualTable]] = {
    table.name: table
    for table in (
        _table(2615, "pg_namespace", rows_of.namespaces, "oid:o nspname:t nspowner:o nspacl:T"),
        _table(
            1259,
            "pg_class",
            _classes,
            "oid:o relname:t relnamespace:o reltype:o reloftype:o relowner:o relam:o relfilenode:o "
            "reltablespace:o relpages:i reltuples:f relallvisible:i reltoastrelid:o relhasindex:b "
            "relisshared:b relpersistence:t relkind:t relnatts:s relchecks:s relhasrules:b "
            "relhastriggers:b relhassubclass:b relrowsecurity:b relforcerowsecurity:b "
            "relispopulated:y relreplident:t relispartition:b relrewrite:o relacl:T reloptions:T "
            "relpartbound:T",
        ),
        _table(
            1249,
            "pg_attribute",
            _attributes,
            "attrelid:o attname:t atttypid:o attstattarget:m attlen:s attnum:s attndims:i "
            "attcacheoff:m atttypmod:m attbyval:b attalign:t attstorage:t attcompression:t "
            "attnotnull:b atthasdef:b atthasmissing:b attidentity:t attgenerated:t attisdropped:b "
            "attislocal:y attinhcount:i attcollation:o attacl:T attoptions:T attfdwoptions:T",
        ),
        _table(2604, "pg_attrdef", rows_of.defaults, "oid:o adrelid:o adnum:s adbin:T"),
        _table(
            1247,
            "pg_type",
            rows_of.type_rows,
            "oid:o typname:t typnamespace:o typowner:o typlen:s typbyval:b typtype:t typcategory:t "
            "typispreferred:b typisdefined:y typdelim:t typrelid:o typsubscript:t typelem:o "
            "typarray:o typinput:t typoutput:t typreceive:t typsend:t typalign:t typstorage:t "
            "typnotnull:b typbasetype:o typtypmod:m typndims:i typcollation:o typdefault:T "
            "typacl:T",
        ),
        _table(
            2610,
            "pg_index",
            rows_of.indexes,
            "indexrelid:o indrelid:o indnatts:s indnkeyatts:s indisunique:b indnullsnotdistinct:b "
            "indisprimary:b indisexclusion:b indimmediate:y indisclustered:b indisvalid:y "
            "indcheckxmin:b indisready:y indislive:y indisreplident:b indkey:t indcollation:t "
            "indclass:t indoption:t indexprs:T indpred:T",
        ),
        _table(
            2606,
            "pg_constraint",
            rows_of.constraints,
            "oid:o conname:t connamespace:o contype:t condeferrable:b condeferred:b convalidated:y "
            "conrelid:o contypid:o conindid:o conparentid:o confrelid:o confupdtype:t "
            "confdeltype:t confmatchtype:t conislocal:y coninhcount:i connoinherit:b conkey:T "
            "confkey:T conbin:T",
        ),
        _table(
            1262,
            "pg_database",
            rows_of.databases,
            "oid:o datname:t datdba:o encoding:i datlocprovider:t datistemplate:b datallowconn:b "
            "datconnlimit:i dattablespace:o datcollate:t datctype:t daticulocale:T "
            "datcollversion:T datacl:T",
        ),
        _table(2601, "pg_am", rows_of.access_methods, "oid:o amname:t amhandler:t amtype:t"),
        _table(
            1213,
            "pg_tablespace",
            rows_of.tablespaces,
            "oid:o spcname:t spcowner:o spcacl:T spcoptions:T",
        ),
        _table(
            3456,
            "pg_collation",
            rows_of.collations,
            "oid:o collname:t collnamespace:o collowner:o collprovider:t collisdeterministic:y "
            "collencoding:i collcollate:T collctype:T colliculocale:T collversion:T",
        ),
        _table(
            12000,
            "pg_roles",
            rows_of.roles,
            "oid:o rolname:t rolsuper:b rolinherit:b rolcreaterole:b rolcreatedb:b rolcanlogin:b "
            "rolreplication:b rolconnlimit:i rolpassword:T rolvaliduntil:T rolbypassrls:b "
            "rolconfig:T",
        ),
        _table(
            1260,
            "pg_authid",
            rows_of.roles,
            "oid:o rolname:t rolsuper:b rolinherit:b rolcreaterole:b rolcreatedb:b rolcanlogin:b "
            "rolreplication:b rolbypassrls:b rolconnlimit:i rolpassword:T rolvaliduntil:T",
        ),
        _table(
            12001,
            "pg_tables",
            rows_of.user_tables,
            "schemaname:t tablename:t tableowner:t tablespace:T hasindexes:b hasrules:b "
            "hastriggers:b rowsecurity:b",
        ),
        _table(
            12002,
            "pg_indexes",
            rows_of.user_indexes,
            "schemaname:t tablename:t indexname:t tablespace:T indexdef:T",
        ),
        _table(12003, "pg_definitions", rows_of.definitions, "oid:o part:i definition:T name:T"),
        _table(1261, "pg_auth_members", _none, "roleid:o member:o grantor:o admin_option:b"),
        _table(2613, "pg_largeobject_metadata", _none, "oid:o lomowner:o lomacl:T"),
        _table(
            3350,
            "pg_partitioned_table",
            _none,
            "partrelid:o partstrat:t partnatts:s partdefid:o partattrs:t partexprs:T",
        ),
        _table(2611, "pg_inherits", _none, "inhrelid:o inhparent:o inhseqno:i inhdetachpending:b"),
        _table(2609, "pg_description", _none, "objoid:o classoid:o objsubid:i description:t"),
        _table(2396, "pg_shdescription", _none, "objoid:o classoid:o description:t"),
        _table(
            2608,
            "pg_depend",
            _none,
            "classid:o objid:o objsubid:i refclassid:o refobjid:o refobjsubid:i deptype:t",
        ),
        _table(
            1255,
            "pg_proc",
            _none,
            "oid:o proname:t pronamespace:o proowner:o prolang:o procost:f prorows:f provariadic:o "
            "prokind:t prosecdef:b proleakproof:b proisstrict:b proretset:b provolatile:t "
            "proparallel:t pronargs:s pronargdefaults:s prorettype:o proargtypes:t "
            "proallargtypes:T proargmodes:T proargnames:T prosrc:t probin:T proconfig:T proacl:T",
        ),
        _table(
            2616,
            "pg_opclass",
            _none,
            "oid:o opcmethod:o opcname:t opcnamespace:o opcowner:o opcfamily:o opcintype:o "
            "opcdefault:b opckeytype:o",
        ),
        _table(2753, "pg_opfamily", _none, "oid:o opfmethod:o opfname:t opfnamespace:o opfowner:o"),
        _table(2600, "pg_aggregate", _none, "aggfnoid:o aggkind:t"),
        _table(
            2617,
            "pg_operator",
            _none,
            "oid:o oprname:t oprnamespace:o oprowner:o oprkind:t "
            "oprleft:o oprright:o oprresult:o oprcode:o",
        ),
        _table(
            2605,
            "pg_cast",
            _none,
            "oid:o castsource:o casttarget:o castfunc:o castcontext:t castmethod:t",
        ),
        _table(
            2607,
            "pg_conversion",
            _none,
            "oid:o conname:t connamespace:o conowner:o "
            "conforencoding:i contoencoding:i conproc:o condefault:b",
        ),
        _table(
            2612,
            "pg_language",
            _none,
            "oid:o lanname:t lanowner:o lanispl:b lanpltrusted:b "
            "lanplcallfoid:o laninline:o lanvalidator:o lanacl:T",
        ),
        _table(
            2618,
            "pg_rewrite",
            _none,
            "oid:o rulename:t ev_class:o ev_type:t ev_enabled:t is_instead:b",
        ),
        _table(
            2620,
            "pg_trigger",
            _none,
            "oid:o tgrelid:o tgparentid:o tgname:t tgfoid:o tgtype:s "
            "tgenabled:t tgisinternal:b tgconstrrelid:o tgconstrindid:o tgconstraint:o "
            "tgdeferrable:b tginitdeferred:b",
        ),
        _table(
            3466,
            "pg_event_trigger",
            _none,
            "oid:o evtname:t evtevent:t evtowner:o evtfoid:o evtenabled:t evttags:T",
        ),
        _table(
            3256,
            "pg_policy",
            _none,
            "oid:o polname:t polrelid:o polcmd:t polpermissive:b "
            "polroles:t polqual:T polwithcheck:T",
        ),
        _table(
            3381,
            "pg_statistic_ext",
            _none,
            "oid:o stxrelid:o stxname:t stxnamespace:o "
            "stxowner:o stxstattarget:i stxkeys:t stxkind:t stxexprs:T",
        ),
        _table(3501, "pg_enum", _none, "oid:o enumtypid:o enumsortorder:f enumlabel:t"),
        _table(3541, "pg_range", _none, "rngtypid:o rngsubtype:o rngmultitypid:o"),
        _table(
            2224,
            "pg_sequence",
            _none,
            "seqrelid:o seqtypid:o seqstart:o seqincrement:o "
            "seqmax:o seqmin:o seqcache:o seqcycle:b",
        ),
        _table(
            3079,
            "pg_extension",
            _none,
            "oid:o extname:t extowner:o extnamespace:o extrelocatable:b extversion:t",
        ),
        _table(
            1417,
            "pg_foreign_server",
            _none,
            "oid:o srvname:t srvowner:o srvfdw:o srvtype:T srvversion:T srvacl:T srvoptions:T",
        ),
        _table(
            2328,
            "pg_foreign_data_wrapper",
            _none,
            "oid:o fdwname:t fdwowner:o fdwhandler:o fdwvalidator:o fdwacl:T fdwoptions:T",
        ),
        _table(3118, "pg_foreign_table", _none, "ftrelid:o ftserver:o ftoptions:T"),
        _table(
            826,
            "pg_default_acl",
            _none,
            "oid:o defaclrole:o defaclnamespace:o defaclobjtype:t defaclacl:T",
        ),
        _table(2964, "pg_db_role_setting", _none, "setdatabase:o setrole:o setconfig:T"),
        _table(3602, "pg_ts_config", _none, "oid:o cfgname:t cfgnamespace:o cfgowner:o"),
        _table(3600, "pg_ts_dict", _none, "oid:o dictname:t dictnamespace:o dictinitoption:T"),
        _table(
            6104,
            "pg_publication",
            _none,
            "oid:o pubname:t pubowner:o puballtables:b "
            "pubinsert:b pubupdate:b pubdelete:b pubtruncate:b pubviaroot:b",
        ),
        _table(6106, "pg_publication_rel", _none, "oid:o prpubid:o prrelid:o prqual:T prattrs:T"),
        _table(6237, "pg_publication_namespace", _none, "oid:o pnpubid:o pnnspid:o"),
        _table(
            6100,
            "pg_subscription",
            _none,
            "oid:o subdbid:o subname:t subowner:o subenabled:b subpublications:T",
        ),
        _table(12004, "pg_views", _none, "schemaname:t viewname:t viewowner:t definition:T"),
        _table(
            12005,
            "pg_matviews",
            _none,
            "schemaname:t matviewname:t matviewowner:t ispopulated:b definition:T",
        ),
        _table(12006, "pg_sequences", _none, "schemaname:t sequencename:t sequenceowner:t"),
        _table(
            12007,
            "pg_settings",
            _none,
            "name:t setting:T unit:T category:t short_desc:t "
            "context:t vartype:t source:t boot_val:T reset_val:T pending_restart:b",
        ),
        _table(
            13001,
            "information_schema.tables",
            _information_tables,
            "table_catalog:t table_schema:t table_name:t table_type:t "
            "self_referencing_column_name:T reference_generation:T is_insertable_into:t "
            "is_typed:t commit_action:T",
        ),
        _table(
            13002,
            "information_schema.columns",
            rows_of.information_columns,
            "table_catalog:t table_schema:t table_name:t column_name:t ordinal_position:i "
            "column_default:T is_nullable:t data_type:t character_maximum_length:I "
            "character_octet_length:I numeric_precision:I numeric_precision_radix:I "
            "numeric_scale:I datetime_precision:I interval_type:T collation_name:T "
            "udt_catalog:t udt_schema:t udt_name:t is_identity:t is_generated:t "
            "generation_expression:T is_updatable:t",
        ),
        _table(
            13003,
            "information_schema.schemata",
            rows_of.schemata,
            "catalog_name:t schema_name:t schema_owner:t",
        ),
        _table(
            13004,
            "information_schema.table_constraints",
            rows_of.table_constraints,
            "constraint_catalog:t constraint_schema:t constraint_name:t table_catalog:t "
            "table_schema:t table_name:t constraint_type:t",
        ),
        _table(
            13005,
            "information_schema.key_column_usage",
            rows_of.key_columns,
            "constraint_catalog:t constraint_schema:t constraint_name:t table_catalog:t "
            "table_schema:t table_name:t column_name:t ordinal_position:i",
        ),
        _table(
            13006,
            "information_schema.views",
            _none,
            "table_catalog:t table_schema:t table_name:t view_definition:T",
        ),
    )
}

# What a column has that a row does not say, where the letter's default is not right.
_DEFAULTS: Final[dict[str, Any]] = {
    "relowner": 10,
    "relpersistence": "p",
    "typnamespace": 11,
    "typowner": 10,
    "typtype": "b",
    "typdelim": ",",
    "typstorage": "p",
    "nspowner": 10,
    "conmatchtype": " ",
    "is_identity": "NO",
    "is_generated": "NEVER",
    "is_updatable": "YES",
    "collowner": 10,
    "collprovider": "c",
}


def arrow_table(name: str, catalog: Catalog) -> pa.Table:
    """The rows of a virtual table as Arrow, its columns called `c0`, `c1` … for the engine."""
    virtual = TABLES[name]
    rows = list(virtual.rows(catalog.shown()))
    arrays = []
    for (label, _), letter in zip(virtual.columns, virtual.letters, strict=True):
        _, kind, default = _LETTERS[letter]
        default = virtual.oid if label == "tableoid" else _DEFAULTS.get(label, default)
        arrays.append(pa.array([row.get(label, default) for row in rows], type=kind))
    return pa.table(arrays, names=[f"c{at}" for at in range(len(arrays))])


def find(name: str, schema: str) -> VirtualTable | None:
    """The virtual table of this name; information_schema's need their schema."""
    table = TABLES.get(name)
    if table is None or (schema and table.schema != schema):
        return None
    return table if schema or table.schema == "pg_catalog" else None


def oid_of(name: str) -> int | None:
    """The OID of a virtual table."""
    table = TABLES.get(name)
    return None if table is None else table.oid
