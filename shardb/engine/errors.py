"""The engine's errors as PostgreSQL's: SQLSTATE and wording by exception class and message."""

from __future__ import annotations

import re
from typing import Final

import duckdb

from shardb.errors import SqlError, internal

# A message of our own, raised by error() in generated SQL: `[22001] value too long ...`.
_OURS: Final = re.compile(r"\[([0-9A-Z]{5})\] ([^\n]*)")
_NAMES: Final = {
    "INT16": "smallint",
    "INT32": "integer",
    "INT64": "bigint",
    "SMALLINT": "smallint",
    "INTEGER": "integer",
    "BIGINT": "bigint",
    "HUGEINT": "numeric",
    "INT128": "numeric",
    "FLOAT": "real",
    "DOUBLE": "double precision",
    "DATE": "date",
    "TIMESTAMP": "timestamp",
    "BOOL": "boolean",
    "BOOLEAN": "boolean",
    "TIME": "time",
}


def translate(error: Exception, cancelled: bool = False) -> SqlError:
    """What the client is told of an engine error."""
    message = str(error)
    if cancelled or isinstance(error, duckdb.InterruptException):
        return SqlError("57014", "canceling statement due to user request")
    ours = _OURS.search(message)
    if ours is not None:
        return SqlError(ours.group(1), ours.group(2).rstrip("\"' !"))
    if "ivision by zero" in message:
        return SqlError("22012", "division by zero")
    if isinstance(error, duckdb.OutOfMemoryException):
        return SqlError(
            "53200",
            "out of memory",
            detail="The query needs more memory than it may use, and its temporary files are full.",
        )
    if "More than one row returned by a subquery" in message:
        return SqlError("21000", "more than one row returned by a subquery used as an expression")
    if "square root of a negative" in message:
        return SqlError("2201F", "cannot take square root of a negative number")
    if "logarithm" in message:
        what = "zero" if "of zero" in message else "a negative number"
        return SqlError("2201E", f"cannot take logarithm of {what}")
    if isinstance(error, duckdb.ConversionException):
        return _conversion(message)
    if isinstance(error, duckdb.OutOfRangeException):
        return _out_of_range(message)
    if isinstance(error, duckdb.InvalidInputException) and "regular expression" in message.lower():
        return SqlError("2201B", "invalid regular expression")
    if isinstance(error, duckdb.IOException):
        return SqlError("58030", "I/O error of the query engine")
    return internal(f"query engine: {message.splitlines()[0][:300] if message else error!r}")


def _conversion(message: str) -> SqlError:
    found = re.search(r"Could not convert string '(.*?)' to (\w+)", message, re.DOTALL)
    if found:
        name = _NAMES.get(found.group(2).upper(), found.group(2).lower())
        state = "22007" if name in ("date", "timestamp", "time") else "22P02"
        return SqlError(state, f'invalid input syntax for type {name}: "{found.group(1)}"')
    if (
        "out of range" in message
        or "Failed to cast decimal" in message
        or "Could not cast value" in message
        or "because" in message
    ):
        return _out_of_range(message)
    return SqlError("22P02", "invalid input syntax")


def _out_of_range(message: str) -> SqlError:
    if "DECIMAL" in message:
        return SqlError("22003", "numeric field overflow")
    if "date" in message.lower() or "timestamp" in message.lower():
        return SqlError("22008", "timestamp out of range")
    for engine_name in re.findall(r"[A-Z]+[0-9]*", message)[::-1]:
        if engine_name in _NAMES:
            return SqlError("22003", f"{_NAMES[engine_name]} out of range")
    return SqlError("22003", "value out of range")
