"""Rows of earlier layouts of a table as rows of its present one.

Only for what a shard holds in memory: it costs Python objects for each value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import pyarrow as pa

from shardb._core.frames import join_items, split_items
from shardb._core.memtable import MemTable
from shardb._core.rowcodec import RowLayout
from shardb.meta.descriptors import Table


def layout_of(table: Table) -> RowLayout:
    """The row layout of a table's present schema version."""
    types = [(column.type_code, column.typmod) for column in table.columns]
    return RowLayout(table.schema_version, types)


class Relayout:
    """Turns rows of any layout of `table` into the present one."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._target = layout_of(table)
        self._missing = self._target.decode(
            self._target.encode_text(
                [None if c.missing is None else c.missing.encode() for c in table.columns]
            )
        )
        self._source = lru_cache(self._source_of)

    def row(self, row: bytes) -> bytes:
        """One row."""
        version = int.from_bytes(row[:2], "little")
        if version == self._table.schema_version:
            return row
        layout, at = self._source(version)
        values = layout.decode(row)
        return self._target.encode(
            [
                missing if source < 0 else values[source]
                for source, missing in zip(at, self._missing, strict=True)
            ]
        )

    def items(self, rows: bytes, count: int) -> bytes:
        """The same for `count` items of `u32 length, bytes`."""
        version = int.from_bytes(rows[4:6], "little")
        if version == self._table.schema_version:  # one statement's rows have one layout
            return rows
        return join_items([self.row(row) for row in split_items(rows, count)])

    def memtable(self, old: MemTable) -> MemTable:
        """A copy of a memtable with all versions of the rows that are not deleted."""
        fresh = MemTable()
        for key, _, _ in old.cursor():
            for row, ts in reversed(old.versions_of(key)):
                fresh.put(key, None if row is None else self.row(row), ts)
        return fresh

    def _source_of(self, version: int) -> tuple[RowLayout, list[int]]:
        source = self._table.at(version)
        ids = [column.id for column in source.columns]
        at = [ids.index(c.id) if c.id in ids else -1 for c in self._table.columns]
        return layout_of(source), at


def positions_at(table: Table, schema_version: int, columns: Iterable[int]) -> list[int]:
    """Positions of an earlier schema version as present ones; -1 for columns that are gone."""
    present = {column.id: at for at, column in enumerate(table.columns)}
    earlier = table.at(schema_version)
    return [present.get(earlier.columns[at].id, -1) for at in columns]


class EarlierColumns:
    """Batches as a plan of an earlier schema version expects them; `schema` is theirs.

    `names` and `types` are of the wanted columns, `at` says where they are in the batches (-1: the
    column is gone); what follows in the batches (`_key`, `_ts`) stays at the end.
    """

    def __init__(
        self,
        batches: Iterator[pa.RecordBatch],
        names: Sequence[str],
        types: Sequence[pa.DataType],
        at: Sequence[int],
    ) -> None:
        self._batches = batches
        self._at = at
        given: pa.Schema = batches.schema  # type: ignore[attr-defined]
        self._rest = range(len([index for index in at if index >= 0]), len(given))
        fields = [pa.field(name, kind) for name, kind in zip(names, types, strict=True)]
        self.schema = pa.schema([*fields, *(given.field(index) for index in self._rest)])

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self

    def __next__(self) -> pa.RecordBatch:
        batch = next(self._batches)
        columns = [
            batch.column(index)
            if index >= 0
            else pa.nulls(batch.num_rows, self.schema.types[place])
            for place, index in enumerate(self._at)
        ]
        columns += [batch.column(index) for index in self._rest]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)
