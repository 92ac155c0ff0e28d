"""The form of what shards answer to scans, for those who gather it."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from shardb.meta.descriptors import Table
from shardb.types import arrow_type


def scan_schema(table: Table, columns: Sequence[int], with_key: bool) -> pa.Schema:
    """The Arrow schema of a scan's result."""
    fields = [
        pa.field(
            f"c{position}",
            arrow_type(table.columns[position].type_code, table.columns[position].typmod),
        )
        for position in columns
    ]
    if with_key:
        fields += [pa.field("_key", pa.binary()), pa.field("_ts", pa.uint64())]
    return pa.schema(fields)
