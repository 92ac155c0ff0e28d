"""A tablet of real memtables and segment files, and beside it its rows in plain Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa

from shardb._core.memtable import MemTable
from shardb._core.rowcodec import RowLayout
from shardb._core.rowmap import RowMap
from shardb._core.runs import Runs
from shardb._core.segment import Segment
from shardb._core.shadow import Shadows
from shardb.storage.segmentformat import SegmentColumn, SegmentIndex, SegmentMeta
from shardb.storage.segmentwriter import SegmentWriter
from shardb.types import TypeCode, arrow_type

if TYPE_CHECKING:
    from shardb._core.runs import Run

NUMERIC_10_2 = (10 << 16 | 2) + 4
# Columns of the table by id: type, typmod and what rows have that were written without it.
COLUMNS: dict[int, tuple[TypeCode, int, Any]] = {
    1: (TypeCode.INT8, -1, None),
    2: (TypeCode.TEXT, -1, None),
    3: (TypeCode.BOOL, -1, True),
    4: (TypeCode.NUMERIC, NUMERIC_10_2, Decimal("1.50")),
    5: (TypeCode.INT8, -1, 7),
    6: (TypeCode.TEXT, -1, "added"),
    7: (TypeCode.FLOAT8, -1, None),
}
VERSIONS: dict[int, list[int]] = {1: [1, 2, 3, 4], 2: [2, 1, 4, 5], 3: [5, 6, 1, 7]}
LAYOUTS = {
    version: RowLayout(version, [(int(COLUMNS[c][0]), COLUMNS[c][1]) for c in ids])
    for version, ids in VERSIONS.items()
}
Values = Mapping[int, Any]  # by column id
Version = tuple[bytes, int, Values | None]  # key, timestamp, the row or None


class MemoryFile:
    """An output file that keeps what is written."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: Any) -> None:
        self.data += data

    def sync(self) -> None: ...

    def close(self) -> None: ...


def row_map(source: int, target: int) -> RowMap | None:
    """How rows of one version of the table become those of another."""
    if source == target:
        return None
    ids = VERSIONS[source]
    places = [ids.index(c) if c in ids else -1 for c in VERSIONS[target]]
    missing = LAYOUTS[target].encode([COLUMNS[c][2] for c in VERSIONS[target]])
    return RowMap(LAYOUTS[source], LAYOUTS[target], places, missing)


def cells(values: Values, version: int) -> list[Any]:
    """A row as a version of the table has it."""
    return [values.get(c, COLUMNS[c][2]) for c in VERSIONS[version]]


def make_memtable(rows: Iterable[Version], version: int) -> MemTable:
    table = MemTable()
    for key, ts, values in rows:
        table.put(
            key, None if values is None else LAYOUTS[version].encode(cells(values, version)), ts
        )
    return table


def segment_bytes(
    rows: Sequence[Version],
    version: int,
    number: int,
    group_rows: int,
    codec: str = "",
    link_ts: int = 0,
) -> tuple[SegmentMeta, bytes]:
    """The file of a segment of rows that are sorted by key, newest first."""
    ids = VERSIONS[version]
    file = MemoryFile()
    columns = [SegmentColumn(c, f"column{c}", int(COLUMNS[c][0]), COLUMNS[c][1]) for c in ids]
    writer = SegmentWriter(file, columns, version, codec)
    for group in (rows[at : at + group_rows] for at in range(0, len(rows), group_rows)):
        table = [[None] * len(ids) if row[2] is None else cells(row[2], version) for row in group]
        data = [
            [row[0] for row in group],
            [row[1] for row in group],
            [row[2] is None for row in group],
            *([row[at] for row in table] for at in range(len(ids))),
        ]
        arrays = [pa.array(of, kind) for of, kind in zip(data, writer.schema.types, strict=True)]
        writer.write(pa.record_batch(arrays, schema=writer.schema))
    meta = writer.finish(number=number, order=number, range_id=1, table_id=1, link_ts=link_ts)
    return meta, bytes(file.data)


def write_segment(
    rows: Sequence[Version],
    version: int,
    number: int,
    group_rows: int,
    codec: str = "",
    link_ts: int = 0,
) -> Segment:
    """The same, opened."""
    return open_segment(*segment_bytes(rows, version, number, group_rows, codec, link_ts))


def open_segment(meta: SegmentMeta, data: bytes) -> Segment:
    packed = data[meta.index_at : meta.index_at + meta.index_bytes]
    index = msgspec.msgpack.decode(packed, type=SegmentIndex)
    return Segment(meta, index, pa.py_buffer(data), f"segment {meta.number}")


@dataclass
class ModelRun:
    """A memtable, or segments in key order, and the versions in them."""

    version: int
    rows: list[Version]
    sources: list[MemTable] | list[Segment]
    link_ts: int = 0

    @property
    def is_memtable(self) -> bool:
        return isinstance(self.sources[0], MemTable)

    def run(self, target: int, own: bool = False) -> Run:
        return own, [(source, row_map(self.version, target)) for source in self.sources]


@dataclass
class TabletModel:
    """`runs`, newest first; the first is the active memtable."""

    group_rows: int
    codec: str
    version: int = 1
    ts: int = 0
    history: dict[bytes, list[tuple[int, Values | None]]] = field(default_factory=dict)
    runs: list[ModelRun] = field(default_factory=list)
    shadows: Shadows = field(default_factory=lambda: Shadows(1 << 20))
    number: int = 0

    def __post_init__(self) -> None:
        self.runs = [self._empty()]

    def _empty(self) -> ModelRun:
        return ModelRun(self.version, [], [MemTable()])

    # --- changes

    def put(self, rows: Mapping[bytes, Values | None], again: bool = False) -> None:
        """A commit of its own timestamp; `again`: the newest one once more, as a replay does."""
        if not again:
            self.ts += 1
        for key, values in rows.items():
            if not again:
                self.history.setdefault(key, []).append((self.ts, values))
            self.runs[0].rows.append((key, self.ts, values))
            table = self.runs[0].sources[0]
            assert isinstance(table, MemTable)
            row = None
            if values is not None:
                row = LAYOUTS[self.version].encode(cells(values, self.version))
            table.put(key, row, self.ts)

    def freeze(self) -> None:
        if self.runs[0].rows:
            self.runs.insert(0, self._empty())

    def alter(self, version: int) -> None:
        self.freeze()
        self.version = version
        self.runs[0] = self._empty()

    def segments(
        self, rows: list[Version], version: int, cut: bytes, link_ts: int = 0
    ) -> list[Segment]:
        """The rows as one segment, or as two that are cut at a key."""
        found: list[Segment] = []
        in_order = sorted(
            {row[:2]: row for row in rows}.values(), key=lambda row: (row[0], -row[1])
        )
        for part in (
            [row for row in in_order if row[0] < cut],
            [row for row in in_order if row[0] >= cut],
        ):
            if part:
                self.number += 1
                found.append(
                    write_segment(part, version, self.number, self.group_rows, self.codec, link_ts)
                )
        return found

    def link(self, rows: list[Version], cut: bytes) -> None:
        """A large insert's segments: newer than everything."""
        self.freeze()
        self.ts += 1
        for key, _, values in rows:
            self.history.setdefault(key, []).append((self.ts, values))
        segments = self.segments(rows, self.version, cut, self.ts)
        versions = [(key, self.ts, values) for key, _, values in rows]
        self.runs.insert(1, ModelRun(self.version, versions, segments, self.ts))

    def flush(self, at: int, cut: bytes, hand_over: bool) -> None:
        """A frozen memtable becomes segments."""
        run = self.runs[at]
        if at and run.is_memtable and run.rows:
            self._replace(at, at + 1, run.rows, run.version, cut, hand_over)

    def flush_all(self) -> None:
        """The active memtable becomes a segment."""
        self.freeze()
        self.flush(1, b"", False)

    def compact(self, at: int, cut: bytes, hand_over: bool) -> None:
        """Two neighbours of segments become one run, all versions kept.

        They must be of the same version of the table: what a newer one lacks would be lost.
        """
        pair = self.runs[at : at + 2]
        if pair[0].version == pair[1].version:
            rows = [row for run in pair for row in run.rows]
            self._replace(at, at + 2, rows, pair[0].version, cut, hand_over)

    def _replace(
        self, at: int, end: int, rows: list[Version], version: int, cut: bytes, hand_over: bool
    ) -> None:
        segments = self.segments(rows, version, cut)
        sources = [source for run in self.runs[at:end] for source in run.sources]
        if hand_over:
            self.shadows.replace(self.view(self.version), sources, segments)
        self.runs[at:end] = [ModelRun(version, rows, segments)]
        self.shadows.keep(self.view(self.version))

    # --- reading

    def view(self, target: int, own: Sequence[Run] = ()) -> Runs:
        return Runs(LAYOUTS[target], [*own, *(run.run(target) for run in self.runs)])

    def visible(
        self, ts: int, own: Mapping[bytes, Values | None]
    ) -> dict[bytes, tuple[Values, int]]:
        """Rows and their timestamps at a snapshot, by key in order; those of `own` at 0."""
        found: dict[bytes, tuple[Values, int]] = {}
        for key in sorted({*self.history, *own}):
            if key in own:
                values, stamp = own[key], 0
            else:
                seen = [version for version in self.history[key] if version[0] <= ts]
                if not seen:
                    continue
                stamp, values = seen[-1]
            if values is not None:
                found[key] = values, stamp
        return found


def arrow_types(version: int, columns: Iterable[int]) -> list[pa.DataType]:
    ids = VERSIONS[version]
    return [arrow_type(int(COLUMNS[ids[c]][0]), COLUMNS[ids[c]][1]) for c in columns]
