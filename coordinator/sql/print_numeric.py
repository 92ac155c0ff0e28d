"""Exact numeric arithmetic in engine SQL.

The engine multiplies decimals in the width of its operands and divides them as doubles. Here a
product is as wide as its type, and a quotient is one of 128-bit integers, rounded where PostgreSQL
rounds (select_div_scale), but to no more than the 16 digits that a numeric carries inside.
"""

from __future__ import annotations

from typing import Final

from coordinator.sql import typesystem as ts
from shardb.program import TypeRef
from shardb.types import TypeCode as T

_NARROW: Final = 18  # digits that the engine multiplies without widening


def product(result: TypeRef, left: TypeRef, right: TypeRef, texts: list[str]) -> str:
    """`left * right`."""
    if result == ts.NUMERIC:
        wide = [f"CAST({text} AS DECIMAL(38,16))" for text in texts]
        return f"shardb_product({wide[0]}, {wide[1]})"
    (precision, scale), (other, _) = ts.exact_shape(left), ts.exact_shape(right)
    if precision <= _NARROW and other <= _NARROW < precision + other:
        return f"(CAST({texts[0]} AS DECIMAL(38,{scale})) * {texts[1]})"
    return f"({texts[0]} * {texts[1]})"


def quotient(left: TypeRef, right: TypeRef, texts: list[str]) -> str:
    """`left / right`, an unconstrained numeric."""
    scale = max(ts.exact_shape(left)[1], ts.exact_shape(right)[1])
    over = _unscaled(texts[0], ts.exact_shape(left), scale)
    under = _unscaled(texts[1], ts.exact_shape(right), scale)
    return f"shardb_quotient({over}, {under}, {scale})"


def average(argument: TypeRef, total: str, count: str) -> str:
    """avg() of integers or numerics from their sum and their number."""
    scale = ts.numeric_shape(argument)[1] if argument.code == T.NUMERIC else 0
    over = _unscaled(total, (38, scale), scale)
    return f"shardb_quotient({over}, {_times(f'CAST({count} AS HUGEINT)', scale)}, {scale})"


def _unscaled(text: str, shape: tuple[int, int], scale: int) -> str:
    """A decimal times 10 ** scale as a 128-bit integer; `scale` is at least its own."""
    precision, own = shape
    if own == 0:
        whole = f"CAST({text} AS HUGEINT)"
    elif precision + own <= 38:
        whole = (
            f"CAST(CAST({text} AS DECIMAL(38,{own})) * CAST({10**own} AS DECIMAL({own + 1},0)) "
            "AS HUGEINT)"
        )
    else:
        shown = f"CAST(CAST({text} AS DECIMAL(38,{own})) AS VARCHAR)"
        whole = f"CAST(replace({shown}, '.', '') AS HUGEINT)"
    return _times(whole, scale - own)


def _times(text: str, digits: int) -> str:
    return text if digits == 0 else f"({text} * CAST({10**digits} AS HUGEINT))"
