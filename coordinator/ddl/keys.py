"""Key encodings for DDL: split points from literals, and the codec of a table's primary key."""

from __future__ import annotations

from collections.abc import Sequence

from shardb._core.keycodec import KeyCodec
from shardb._core.rowcodec import RowLayout
from shardb.errors import SqlError
from shardb.meta.descriptors import Table


def key_codec(table: Table) -> KeyCodec:
    """The codec of the table's primary key."""
    columns = [table.columns[at] for at in table.primary_key]
    return KeyCodec([(c.type_code, c.typmod, False, False) for c in columns])


def split_key(table: Table, values: Sequence[str | None]) -> bytes:
    """The encoded key prefix of a split point given as text values of leading key columns."""
    columns = [table.columns[at] for at in table.primary_key]
    if len(values) > len(columns):
        raise SqlError(
            "22023",
            f"a split point has {len(values)} values but the primary key of "
            f'"{table.name}" has {len(columns)} columns',
        )
    if any(value is None for value in values):
        raise SqlError("22023", "a split point cannot be NULL")
    layout = RowLayout(0, [(c.type_code, c.typmod) for c in columns[: len(values)]])
    row = layout.encode_text([value.encode() for value in values if value is not None])
    return bytes(key_codec(table).encode_prefix(layout.decode(row)))
