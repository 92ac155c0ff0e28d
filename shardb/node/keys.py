"""Keys as users see them, for messages."""

from __future__ import annotations

import datetime
from decimal import Decimal

from shardb._core.keycodec import KeyCodec
from shardb.meta.descriptors import Table

VALUE_CHARACTERS_MAX = 200


def key_codec_of(table: Table) -> KeyCodec:
    """The codec of a table's primary key."""
    columns = [table.columns[position] for position in table.primary_key]
    return KeyCodec([(column.type_code, column.typmod, False, False) for column in columns])


def key_positions(table: Table) -> frozenset[int]:
    """The columns that foreign keys may refer to: an UPDATE of others takes a weaker lock."""
    return frozenset(table.primary_key)


def describe_key(table: Table, key: bytes) -> tuple[str, str]:
    """(column names, values) of a key, each joined by commas as PostgreSQL prints them."""
    names = ", ".join(table.columns[position].name for position in table.primary_key)
    try:
        values = key_codec_of(table).decode(key)
    except ValueError:
        return names, "?"
    return names, ", ".join(_text(value)[:VALUE_CHARACTERS_MAX] for value in values)


def _text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ")
    return str(value)
