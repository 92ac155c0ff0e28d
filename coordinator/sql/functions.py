"""The functions a statement may call: their signatures, result types and engine spelling.

Nothing else reaches the engine. A function also named in `PROGRAM_OPERATORS` runs in row programs.
Templates have `{0}`, `{1}` … for arguments and `{args}` for all of them, already printed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from coordinator.sql import typesystem as ts
from shardb.program import TypeRef
from shardb.types import TypeCode as T

PROGRAM_OPERATORS: Final = frozenset(
    [
        "=",
        "<>",
        "<",
        "<=",
        ">",
        ">=",
        "+",
        "-",
        "*",
        "/",
        "%",
        "neg",
        "and",
        "or",
        "not",
        "is_null",
        "is_not_null",
        "is_distinct",
        "is_not_distinct",
        "cast",
        "coalesce",
        "nullif",
        "case",
        "||",
        "like",
        "ilike",
        "in",
        "lower",
        "upper",
        "length",
        "abs",
    ]
)

VOLATILE: Final = frozenset({"random", "gen_random_uuid"})  # another value each time

ResultRule = TypeRef | Callable[[tuple[TypeRef, ...]], TypeRef]


@dataclass(frozen=True, slots=True)
class Signature:
    """One overload. `variadic`: the last argument type may repeat any number of times."""

    args: tuple[TypeRef, ...]
    result: ResultRule
    template: str
    variadic: bool = False

    def result_type(self, args: tuple[TypeRef, ...]) -> TypeRef:
        """The result type for arguments of these types."""
        return self.result if isinstance(self.result, TypeRef) else self.result(args)


def _same(args: tuple[TypeRef, ...]) -> TypeRef:
    return args[0]


def _rounded(args: tuple[TypeRef, ...]) -> TypeRef:
    return ts.numeric(38, 0)


def _f8(name: str, template: str = "") -> list[Signature]:
    return [Signature((ts.FLOAT8,), ts.FLOAT8, template or name + "({0})")]


def _text1(template: str, result: TypeRef = ts.TEXT) -> list[Signature]:
    return [Signature((ts.TEXT,), result, template)]


_NUMBER_TYPES: Final = (ts.INT2, ts.INT4, ts.INT8, ts.NUMERIC, ts.FLOAT4, ts.FLOAT8)
_T: Final = ts.TEXT
_I: Final = ts.INT4
_NULL: Final = "CAST(NULL AS VARCHAR)"
_DATE_PART: Final = "CAST(date_part({0}, {1}) AS DOUBLE)"

FUNCTIONS: Final[dict[str, list[Signature]]] = {
    "abs": [Signature((t,), _same, "abs({0})") for t in _NUMBER_TYPES],
    "sign": [
        Signature((ts.NUMERIC,), ts.numeric(38, 0), "CAST(sign({0}) AS DECIMAL(38,0))"),
        Signature((ts.FLOAT8,), ts.FLOAT8, "CAST(sign({0}) AS DOUBLE)"),
    ],
    "ceil": [
        Signature((ts.NUMERIC,), _rounded, "CAST(ceil({0}) AS DECIMAL(38,0))"),
        *_f8("ceil"),
    ],
    "floor": [
        Signature((ts.NUMERIC,), _rounded, "CAST(floor({0}) AS DECIMAL(38,0))"),
        *_f8("floor"),
    ],
    "trunc": [
        Signature((ts.NUMERIC,), _rounded, "CAST(trunc({0}) AS DECIMAL(38,0))"),
        Signature((ts.NUMERIC, _I), _same, "trunc({0}, {1})"),
        *_f8("trunc"),
    ],
    "round": [
        Signature((ts.NUMERIC,), _rounded, "CAST(round({0}) AS DECIMAL(38,0))"),
        Signature((ts.FLOAT8,), ts.FLOAT8, "round_even({0}, 0)"),
        Signature((ts.NUMERIC, _I), _same, "round({0}, {1})"),
    ],
    "mod": [
        Signature((t, t), _same, "({0} % {1})") for t in (ts.INT2, ts.INT4, ts.INT8, ts.NUMERIC)
    ],
    "power": [
        Signature((ts.FLOAT8, ts.FLOAT8), ts.FLOAT8, "power({0}, {1})"),
        Signature(
            (ts.NUMERIC, ts.NUMERIC),
            ts.NUMERIC,
            "CAST(power(CAST({0} AS DOUBLE), CAST({1} AS DOUBLE)) AS DECIMAL(38,16))",
        ),
    ],
    "sqrt": [
        *_f8("sqrt"),
        Signature((ts.NUMERIC,), ts.NUMERIC, "CAST(sqrt(CAST({0} AS DOUBLE)) AS DECIMAL(38,16))"),
    ],
    "exp": _f8("exp"),
    "ln": _f8("ln"),
    "log": _f8("log", "log10({0})"),
    "log10": _f8("log10"),
    "sin": _f8("sin"),
    "cos": _f8("cos"),
    "tan": _f8("tan"),
    "asin": _f8("asin"),
    "acos": _f8("acos"),
    "atan": _f8("atan"),
    "degrees": _f8("degrees"),
    "radians": _f8("radians"),
    "atan2": [Signature((ts.FLOAT8, ts.FLOAT8), ts.FLOAT8, "atan2({0}, {1})")],
    "pi": [Signature((), ts.FLOAT8, "pi()")],
    "random": [Signature((), ts.FLOAT8, "random()")],
    "lower": _text1("lower({0})"),
    "upper": _text1("upper({0})"),
    "length": _text1("CAST(length({0}) AS INTEGER)", _I),
    "char_length": _text1("CAST(length({0}) AS INTEGER)", _I),
    "character_length": _text1("CAST(length({0}) AS INTEGER)", _I),
    "octet_length": _text1("CAST(strlen({0}) AS INTEGER)", _I),
    "ascii": _text1("CAST(ascii({0}) AS INTEGER)", _I),
    "chr": [Signature((_I,), _T, "chr({0})")],
    "reverse": _text1("reverse({0})"),
    "md5": _text1("md5({0})"),
    "btrim": [Signature((_T,), _T, "trim({0}, ' ')"), Signature((_T, _T), _T, "trim({0}, {1})")],
    "ltrim": [Signature((_T,), _T, "ltrim({0}, ' ')"), Signature((_T, _T), _T, "ltrim({0}, {1})")],
    "rtrim": [Signature((_T,), _T, "rtrim({0}, ' ')"), Signature((_T, _T), _T, "rtrim({0}, {1})")],
    "substring": [
        Signature((_T, _I), _T, "substring({0}, {1})"),
        Signature((_T, _I, _I), _T, "substring({0}, {1}, {2})"),
    ],
    "substr": [
        Signature((_T, _I), _T, "substring({0}, {1})"),
        Signature((_T, _I, _I), _T, "substring({0}, {1}, {2})"),
    ],
    "left": [Signature((_T, _I), _T, "left({0}, {1})")],
    "right": [Signature((_T, _I), _T, "right({0}, {1})")],
    "lpad": [
        Signature((_T, _I), _T, "lpad({0}, {1}, ' ')"),
        Signature((_T, _I, _T), _T, "lpad({0}, {1}, {2})"),
    ],
    "rpad": [
        Signature((_T, _I), _T, "rpad({0}, {1}, ' ')"),
        Signature((_T, _I, _T), _T, "rpad({0}, {1}, {2})"),
    ],
    "repeat": [Signature((_T, _I), _T, "repeat({0}, greatest({1}, 0))")],
    "replace": [Signature((_T, _T, _T), _T, "replace({0}, {1}, {2})")],
    "translate": [Signature((_T, _T, _T), _T, "translate({0}, {1}, {2})")],
    "strpos": [Signature((_T, _T), _I, "CAST(strpos({0}, {1}) AS INTEGER)")],
    "split_part": [Signature((_T, _T, _I), _T, "split_part({0}, {1}, {2})")],
    "starts_with": [Signature((_T, _T), ts.BOOL, "starts_with({0}, {1})")],
    "concat": [Signature((_T,), _T, "concat({args})", variadic=True)],
    "concat_ws": [Signature((_T, _T), _T, "concat_ws({args})", variadic=True)],
    "regexp_replace": [
        Signature((_T, _T, _T), _T, "regexp_replace({0}, {1}, {2})"),
        Signature((_T, _T, _T, _T), _T, "regexp_replace({0}, {1}, {2}, {3})"),
    ],
    "date_part": [
        Signature((_T, ts.TIMESTAMP), ts.FLOAT8, _DATE_PART),
        Signature((_T, ts.TIMESTAMPTZ), ts.FLOAT8, _DATE_PART),
        Signature((_T, ts.INTERVAL), ts.FLOAT8, _DATE_PART),
        Signature((_T, ts.DATE), ts.FLOAT8, _DATE_PART),
        Signature((_T, ts.TIME), ts.FLOAT8, _DATE_PART),
    ],
    "date_trunc": [
        Signature(
            (_T, ts.TIMESTAMPTZ), ts.TIMESTAMPTZ, "CAST(date_trunc({0}, {1}) AS TIMESTAMPTZ)"
        ),
        Signature((_T, ts.TIMESTAMP), ts.TIMESTAMP, "CAST(date_trunc({0}, {1}) AS TIMESTAMP)"),
    ],
    "make_date": [Signature((_I, _I, _I), ts.DATE, "make_date({0}, {1}, {2})")],
    "age": [
        Signature((ts.TIMESTAMPTZ, ts.TIMESTAMPTZ), ts.INTERVAL, "age({0}, {1})"),
        Signature((ts.TIMESTAMP, ts.TIMESTAMP), ts.INTERVAL, "age({0}, {1})"),
    ],
    "to_timestamp": [Signature((ts.FLOAT8,), ts.TIMESTAMPTZ, "to_timestamp({0})")],
    "gen_random_uuid": [Signature((), ts.UUID, "unhex(replace(CAST(uuid() AS VARCHAR), '-', ''))")],
    "initcap": _text1(
        "regexp_replace(array_to_string(list_transform(regexp_extract_all(lower({0}), "
        "'[\\p{{L}}\\p{{N}}]+|[^\\p{{L}}\\p{{N}}]+'), lambda w: upper(w[1]) || w[2:]), ''), '', '')"
    ),
    "encode": [
        Signature(
            (ts.BYTEA, _T),
            _T,
            "(CASE lower({1}) WHEN 'hex' THEN lower(hex({0})) WHEN 'base64' THEN base64({0}) "
            "ELSE error('[22023] unrecognized encoding: \"' || {1} || '\"') END)",
        )
    ],
    "decode": [
        Signature(
            (_T, _T),
            ts.BYTEA,
            "(CASE lower({1}) WHEN 'hex' THEN unhex({0}) WHEN 'base64' THEN from_base64({0}) "
            "ELSE error('[22023] unrecognized encoding: \"' || {1} || '\"') END)",
        )
    ],
    "div": [
        Signature(
            (ts.NUMERIC, ts.NUMERIC),
            _rounded,
            "CAST(trunc(({0} - {0} % {1}) / {1}) AS DECIMAL(38,0))",
        )
    ],
    "gcd": [Signature((t, t), _same, "gcd({0}, {1})") for t in (_I, ts.INT8)],
    "lcm": [Signature((t, t), _same, "lcm({0}, {1})") for t in (_I, ts.INT8)],
    "cbrt": _f8("cbrt"),
    "to_hex": [Signature((t,), _T, "lower(to_hex({0}))") for t in (_I, ts.INT8)],
    "quote_literal": _text1("(chr(39) || replace({0}, chr(39), chr(39) || chr(39)) || chr(39))"),
    "isfinite": [
        Signature((t,), ts.BOOL, "isfinite({0})") for t in (ts.DATE, ts.TIMESTAMP, ts.TIMESTAMPTZ)
    ],
    "make_timestamp": [
        Signature(
            (_I, _I, _I, _I, _I, ts.FLOAT8),
            ts.TIMESTAMP,
            "make_timestamp({0}, {1}, {2}, {3}, {4}, {5})",
        )
    ],
    "row_number": [Signature((), ts.INT8, "row_number()")],
}
FUNCTIONS["ceiling"] = FUNCTIONS["ceil"]
FUNCTIONS["pow"] = FUNCTIONS["power"]

# Called by psql and drivers; what they answer does not depend on data.
SYSTEM: Final[dict[str, list[Signature]]] = {
    "pg_table_is_visible": [Signature((ts.INT8,), ts.BOOL, "({0} NOT BETWEEN 13001 AND 13999)")],
    "pg_type_is_visible": [Signature((ts.INT8,), ts.BOOL, "({0} IS NOT NULL)")],
    "pg_function_is_visible": [Signature((ts.INT8,), ts.BOOL, "({0} IS NOT NULL)")],
    "pg_get_userbyid": [Signature((ts.INT8,), _T, "'shardb'")],
    "pg_get_expr": [
        Signature((_T, ts.INT8), _T, "{0}"),
        Signature((_T, ts.INT8, ts.BOOL), _T, "{0}"),
    ],
    **{
        name: [Signature((ts.INT8,), ts.BOOL, "({0} IS NOT NULL)")]
        for name in (
            "pg_operator_is_visible",
            "pg_collation_is_visible",
            "pg_conversion_is_visible",
            "pg_opclass_is_visible",
            "pg_opfamily_is_visible",
            "pg_statistics_obj_is_visible",
            "pg_ts_config_is_visible",
            "pg_ts_dict_is_visible",
        )
    },
    # Objects that these describe do not exist here.
    **{
        name: [Signature((ts.INT8,), _T, _NULL), Signature((ts.INT8, ts.BOOL), _T, _NULL)]
        for name in (
            "pg_get_function_result",
            "pg_get_function_arguments",
            "pg_get_function_identity_arguments",
            "pg_get_functiondef",
            "pg_get_statisticsobjdef_columns",
            "pg_get_triggerdef",
            "pg_get_ruledef",
            "pg_get_viewdef",
            "pg_get_partkeydef",
            "pg_tablespace_location",
        )
    },
    "pg_get_serial_sequence": [Signature((_T, _T), _T, _NULL)],
    **{
        name: [
            Signature((ts.INT8,), ts.INT8, "CAST({0} * 0 AS BIGINT)"),
            Signature((_T,), ts.INT8, "CAST(length({0}) * 0 AS BIGINT)"),
        ]
        for name in (
            "pg_relation_size",
            "pg_table_size",
            "pg_total_relation_size",
            "pg_indexes_size",
            "pg_database_size",
            "pg_tablespace_size",
        )
    },
    "getdatabaseencoding": [Signature((), _T, "'UTF8'")],
    "pg_size_pretty": [
        Signature(
            (ts.INT8,),
            _T,
            "(CASE WHEN {0} < 10240 THEN {0} || ' bytes' WHEN {0} < 10485760 "
            "THEN ({0} // 1024) || ' kB' WHEN {0} < 10737418240 THEN ({0} // 1048576) || ' MB' "
            "ELSE ({0} // 1073741824) || ' GB' END)",
        )
    ],
    "array_to_string": [Signature((_T, _T), _T, "shardb_array_text({0}, {1})")],
    "array_upper": [Signature((_T, _I), _I, "CAST(nullif(len(shardb_array({0})), 0) AS INTEGER)")],
    "array_length": [Signature((_T, _I), _I, "CAST(nullif(len(shardb_array({0})), 0) AS INTEGER)")],
    "array_lower": [
        Signature((_T, _I), _I, "(CASE WHEN len(shardb_array({0})) > 0 THEN 1 END)"),
    ],
    "cardinality": [Signature((_T,), _I, "CAST(len(shardb_array({0})) AS INTEGER)")],
    "pg_char_to_encoding": [Signature((_T,), _I, "(CASE WHEN upper({0}) = 'UTF8' THEN 6 END)")],
    "quote_ident": [
        Signature(
            (_T,),
            _T,
            "(CASE WHEN regexp_full_match({0}, '[a-z_][a-z0-9_$]*') THEN {0} "
            "ELSE '\"' || replace({0}, '\"', '\"\"') || '\"' END)",
        )
    ],
    "shobj_description": [Signature((ts.INT8, _T), _T, _NULL)],
    "has_database_privilege": [
        Signature((_T, _T), ts.BOOL, "true"),
        Signature((ts.INT8, _T), ts.BOOL, "true"),
        Signature((_T, ts.INT8, _T), ts.BOOL, "true"),
    ],
    "pg_postmaster_start_time": [Signature((), ts.TIMESTAMPTZ, "now()")],
    "pg_my_temp_schema": [Signature((), ts.INT8, "CAST(0 AS BIGINT)")],
    "pg_is_other_temp_schema": [Signature((ts.INT8,), ts.BOOL, "false")],
    "txid_current": [Signature((), ts.INT8, "CAST(1 AS BIGINT)")],
    "obj_description": [Signature((ts.INT8, _T), _T, _NULL), Signature((ts.INT8,), _T, _NULL)],
    "col_description": [Signature((ts.INT8, _I), _T, "CAST(NULL AS VARCHAR)")],
    "pg_encoding_to_char": [Signature((_I,), _T, "'UTF8'")],
    "pg_backend_pid": [Signature((), _I, "1")],
    "pg_is_in_recovery": [Signature((), ts.BOOL, "false")],
    "pg_relation_is_publishable": [Signature((ts.INT8,), ts.BOOL, "false")],
    "version": [Signature((), _T, "'PostgreSQL 15.0 (shardb 0.1.0)'")],
    "current_schema": [Signature((), _T, "'public'")],
    "current_database": [Signature((), _T, "'shardb'")],
    "has_table_privilege": [
        Signature((ts.INT8, _T), ts.BOOL, "true"),
        Signature((_T, _T), ts.BOOL, "true"),
    ],
    "has_schema_privilege": [Signature((_T, _T), ts.BOOL, "true")],
    "format_type": [
        Signature((ts.INT8, _I), _T, "shardb_format_type({0}, {1})"),
    ],
}

# The engine functions that implement templates above; defined by `shardb.engine` as macros.
ENGINE_MACROS: Final = ("shardb_format_type", "shardb_array", "shardb_array_text")

WINDOW: Final[dict[str, list[Signature]]] = {
    "row_number": [Signature((), ts.INT8, "row_number()")],
    "rank": [Signature((), ts.INT8, "rank()")],
    "dense_rank": [Signature((), ts.INT8, "dense_rank()")],
    "percent_rank": [Signature((), ts.FLOAT8, "percent_rank()")],
    "cume_dist": [Signature((), ts.FLOAT8, "cume_dist()")],
    "ntile": [Signature((_I,), _I, "CAST(ntile({0}) AS INTEGER)")],
}
# Window functions whose result has the type of their first argument, whatever it is.
WINDOW_VALUE: Final = {
    "lag": (1, 3),
    "lead": (1, 3),
    "first_value": (1, 1),
    "last_value": (1, 1),
    "nth_value": (2, 2),
}

SETS: Final = {"generate_series"}


def sum_type(argument: TypeRef) -> TypeRef | None:
    """The type of sum(); None if there is no such function."""
    match argument.code:
        case T.INT2 | T.INT4:
            return ts.INT8
        case T.INT8:
            return ts.numeric(38, 0)
        case T.NUMERIC:
            shape = ts.numeric_shape(argument)
            return argument if argument == ts.NUMERIC else ts.numeric(38, shape[1])
        case T.FLOAT4 | T.FLOAT8 | T.INTERVAL:
            return argument
    return None


def average_type(argument: TypeRef) -> TypeRef | None:
    """The type of avg()."""
    match argument.code:
        case T.INT2 | T.INT4 | T.INT8 | T.NUMERIC:
            return ts.NUMERIC
        case T.FLOAT4 | T.FLOAT8:
            return ts.FLOAT8
        case T.INTERVAL:
            return ts.INTERVAL
    return None


def extreme_type(argument: TypeRef) -> TypeRef | None:
    """The type of min() and max()."""
    if argument.code in (T.BOOL, T.UUID, T.JSON, T.JSONB, T.BYTEA):
        return None
    return ts.TEXT if argument.code == T.VARCHAR else argument


def spread_type(argument: TypeRef) -> TypeRef | None:
    """The type of the statistical aggregates."""
    if argument.code in (T.FLOAT4, T.FLOAT8):
        return ts.FLOAT8
    return ts.NUMERIC if argument.code in ts.NUMBERS else None


def _bool_type(argument: TypeRef) -> TypeRef | None:
    return ts.BOOL if argument.code in (T.BOOL, T.UNKNOWN) else None


def _bits_type(argument: TypeRef) -> TypeRef | None:
    return argument if argument.code in ts.INTEGERS else None


AGGREGATES: Final[dict[str, tuple[Callable[[TypeRef], TypeRef | None], str]]] = {
    "sum": (sum_type, "sum"),
    "avg": (average_type, "avg"),
    "min": (extreme_type, "min"),
    "max": (extreme_type, "max"),
    "bool_and": (_bool_type, "bool_and"),
    "bool_or": (_bool_type, "bool_or"),
    "every": (_bool_type, "bool_and"),
    "stddev": (spread_type, "stddev_samp"),
    "stddev_samp": (spread_type, "stddev_samp"),
    "stddev_pop": (spread_type, "stddev_pop"),
    "variance": (spread_type, "var_samp"),
    "var_samp": (spread_type, "var_samp"),
    "var_pop": (spread_type, "var_pop"),
    "bit_and": (_bits_type, "bit_and"),
    "bit_or": (_bits_type, "bit_or"),
}


def resolve(signatures: list[Signature], args: tuple[TypeRef, ...]) -> Signature | None:
    """PostgreSQL's function resolution (manual, 10.3) over our list; None if nothing fits."""
    best: Signature | None = None
    best_rank: tuple[int, int, int] | None = None
    for order, signature in enumerate(signatures):
        wanted = expand(signature, len(args))
        if wanted is None:
            continue
        if not all(
            ts.can_cast(have.code, want.code, "implicit")
            or (signature.variadic and want.code == T.TEXT)
            for have, want in zip(args, wanted, strict=True)
        ):
            continue
        exact = sum(have.code == want.code for have, want in zip(args, wanted, strict=True))
        preferred = sum(
            ts.is_preferred(want.code)
            for have, want in zip(args, wanted, strict=True)
            if have.code != want.code
        )
        rank = (exact, preferred, -order)
        if best_rank is None or rank > best_rank:
            best, best_rank = signature, rank
    return best


def expand(signature: Signature, count: int) -> tuple[TypeRef, ...] | None:
    """The signature's argument types for `count` arguments; None if it takes another number."""
    if signature.variadic and count >= len(signature.args):
        return signature.args + (signature.args[-1],) * (count - len(signature.args))
    return signature.args if len(signature.args) == count else None
