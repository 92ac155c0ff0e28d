"""The engine's own functions, as macros that every connection defines before it is fenced."""

from __future__ import annotations

from typing import Final

MACROS: Final = (
    # The elements of an array in PostgreSQL's text form.
    "CREATE MACRO shardb_array(shown) AS CAST('[' || shown[2:-2] || ']' AS VARCHAR[])",
    "CREATE MACRO shardb_array_text(shown, mark) AS array_to_string(shardb_array(shown), mark)",
    # format_type(): enough of it for the clients' catalog queries.
    "CREATE MACRO shardb_format_type(code, modifier) AS CASE code "
    "WHEN 16 THEN 'boolean' WHEN 17 THEN 'bytea' WHEN 20 THEN 'bigint' WHEN 21 THEN 'smallint' "
    "WHEN 23 THEN 'integer' WHEN 25 THEN 'text' WHEN 114 THEN 'json' WHEN 700 THEN 'real' "
    "WHEN 701 THEN 'double precision' WHEN 1082 THEN 'date' WHEN 1186 THEN 'interval' "
    "WHEN 1083 THEN 'time without time zone' WHEN 1114 THEN 'timestamp without time zone' "
    "WHEN 1184 THEN 'timestamp with time zone' WHEN 2950 THEN 'uuid' WHEN 3802 THEN 'jsonb' "
    "WHEN 1043 THEN 'character varying' || CASE WHEN modifier > 4 "
    "THEN '(' || (modifier - 4) || ')' ELSE '' END "
    "WHEN 1042 THEN 'character' || CASE WHEN modifier > 4 "
    "THEN '(' || (modifier - 4) || ')' ELSE '' END "
    "WHEN 1700 THEN 'numeric' || CASE WHEN modifier > 4 THEN '(' || ((modifier - 4) >> 16) || ',' "
    "|| ((modifier - 4) & 65535) || ')' ELSE '' END ELSE '???' END",
    # r / b as sixteen digits after the point, rounded half up; 0 <= r < b.
    "CREATE MACRO shardb_fraction(r, b) AS CASE WHEN b < 8000000000000000000000 "
    "THEN (2 * r * 10000000000000000 + b) // (2 * b) "
    "ELSE CAST(round(CAST(r AS DOUBLE) / CAST(b AS DOUBLE) * 1e16) AS HUGEINT) END",
    # The unit to which PostgreSQL rounds a quotient of this size (sixteen digits after the point).
    "CREATE MACRO shardb_unit(q, s) AS CAST(power(10, 16 - least(16, greatest(s, CASE "
    "WHEN q < 100000000000000000000 THEN 16 WHEN q < 1000000000000000000000000 THEN 12 "
    "WHEN q < 10000000000000000000000000000 THEN 8 "
    "WHEN q < 100000000000000000000000000000000 THEN 4 ELSE 0 END))) AS HUGEINT)",
    "CREATE MACRO shardb_to_unit(q, u) AS ((q + u // 2) // u) * u",
    # x / y of 128-bit integers as a numeric; s is the larger scale of the operands. The lambdas
    # evaluate each operand once.
    "CREATE MACRO shardb_quotient(x, y, s) AS CAST(list_transform(list_transform(list_transform("
    "[{'a': x, 'b': y}], "
    "lambda v: {'a': abs(v.a), 'b': abs(v.b), 'n': (v.a < 0) <> (v.b < 0), 'z': v.a // v.b}), "
    "lambda v: {'q': (v.a // v.b) * 10000000000000000 + shardb_fraction(v.a % v.b, v.b), "
    "'n': v.n}), "
    "lambda v: CAST(CASE WHEN v.n THEN -1 ELSE 1 END "
    "* shardb_to_unit(v.q, shardb_unit(v.q, s)) AS DECIMAL(38,0)))[1] "
    "* CAST('0.0000000000000001' AS DECIMAL(17,16)) AS DECIMAL(38,16))",
    # x * y of numerics with sixteen digits after the point.
    "CREATE MACRO shardb_product(x, y) AS list_transform([{'a': x, 'b': y}], lambda v: "
    "CAST(CAST(trunc(v.a) AS DECIMAL(38,0)) * v.b AS DECIMAL(38,16)) "
    "+ CAST((v.a - trunc(v.a)) * CAST(trunc(v.b) AS DECIMAL(22,0)) AS DECIMAL(38,16)) "
    "+ CAST(CAST(v.a - trunc(v.a) AS DECIMAL(17,16)) * CAST(v.b - trunc(v.b) AS DECIMAL(17,16)) "
    "AS DECIMAL(38,16)))[1]",
)
