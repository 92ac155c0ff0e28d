"""Parameter values written into engine SQL as literals.

Only SQL printed by us passes through here: a `$n` outside quotes is always a parameter.
"""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from coordinator.sql.printer import quote
from shardb.errors import internal

_PARAMETER: Final = re.compile(r"'(?:[^']|'')*'|\$(\d+)")


def fill_parameters(sql: str, values: Sequence[object]) -> str:
    """`sql` with `$1` … replaced by `values` (Python values as `RowLayout.decode` gives them)."""
    if "$" not in sql:
        return sql

    def replace(match: re.Match[str]) -> str:
        number = match.group(1)
        return match.group() if number is None else engine_literal(values[int(number) - 1])

    return _PARAMETER.sub(replace, sql)


def engine_literal(value: object) -> str:
    """A Python value as an engine literal; the parameter's cast around it gives the exact type."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"({value})"
    if isinstance(value, float):
        return quote(repr(value))
    if isinstance(value, Decimal):
        return quote(format(value, "f"))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return quote("".join(f"\\x{byte:02X}" for byte in bytes(value)))
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return quote(value.isoformat())
    if isinstance(value, uuid.UUID):
        return quote("".join(f"\\x{byte:02X}" for byte in value.bytes))
    if isinstance(value, tuple) and len(value) == 3:
        months, days, micros = value
        return quote(f"{months} months {days} days {micros} microseconds")
    raise internal(f"a parameter of Python type {type(value).__name__}")
