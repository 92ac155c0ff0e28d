"""Snapshot scans over a tablet's runs, memtables and segments, as Arrow record batches.

Every visible row comes once, from the newest run that has a version of its key at the snapshot:
first those of memtables, in key order, then those of each segment, in key order. They are merged
only where order is asked for.

Bounds of columns leave out row groups whose values cannot satisfy them, and nothing else: what such
a group hides stays hidden, and rows of others come whatever their values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import pyarrow as pa

from shardb import limits
from shardb._core.batchmerge import Merge
from shardb._core.memscan import scan_batches
from shardb._core.memtable import MemTable
from shardb._core.rowmap import RowMap
from shardb._core.runs import Runs
from shardb._core.segment import Segment
from shardb._core.segscan import SegmentScan
from shardb._core.shadow import Shadows
from shardb.storage.segmentformat import (
    SYSTEM_COLUMNS,
    GroupIndex,
    SegmentIndex,
    SegmentMeta,
)

Bound = tuple[int, bytes, bytes]


class TabletScan:
    """An iterator of RecordBatches with their `schema`; `scan_runs` makes it.

    Drawn in one thread, any. CoreError XX001 if a file is damaged.
    """

    def __init__(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        self.schema = schema
        self._batches = batches

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self

    def __next__(self) -> pa.RecordBatch:
        return next(self._batches)


def scan_runs(
    runs: Runs,
    columns: Sequence[int],
    arrow_types: Sequence[pa.DataType],
    ts: int,
    start: bytes = b"",
    end: bytes = b"",
    with_key: bool = False,
    overlay: Mapping[bytes, bytes | None] | None = None,
    batch_rows: int = limits.SCAN_BATCH_ROWS,
    bounds: Sequence[Bound] = (),
    ordered: bool = False,
    *,
    shadows: Shadows,
) -> TabletScan:
    """Batches of the rows of `[start, end)` that are visible at `ts`; none is empty.

    `columns` are positions in the layout of `runs`; they come as `c<position>` of `arrow_types`.
    `with_key` adds binary `_key` and uint64 `_ts` (0: a transaction's own row). Without any
    column a null column `_rows` carries the number of rows. `overlay` has the transaction's own
    writes that are newer than all runs, copied now. `bounds` are `(position, low, high)`: a row is
    of no use unless the column is within `[low, high]` as key encodings, ascending and not nullable
    (empty: no bound). `ordered`: by key.

    ValueError if a type does not fit its column. The caller has waited for every transaction
    prepared at or before `ts`.
    """
    own: MemTable | None = None
    if overlay:
        own = MemTable()
        for key, row in overlay.items():
            own.put(key, row, 0)
    scan = _Scan(runs, ts, start, end, batch_rows, bounds)
    keyed = with_key or ordered
    rows = scan_batches(
        runs,
        columns,
        arrow_types,
        ts,
        start,
        end,
        with_key=keyed,
        overlay=own,
        batch_rows=batch_rows,
    )

    def segments() -> SegmentScan:
        return SegmentScan(runs, columns, arrow_types, ts, keyed, own, shadows, rows.schema)

    numbers = [number for number, (_, of) in enumerate(runs.runs) if isinstance(of[0][0], Segment)]
    if ordered:  # runs are drawn from in turns: each has its own SegmentScan
        streams = [rows, *(scan.segment_runs([number], segments()) for number in numbers)]
        merged = Merge(runs.layout, columns, arrow_types, with_key, streams, batch_rows)
        return TabletScan(merged.schema, merged)
    return TabletScan(rows.schema, chain(rows, scan.segment_runs(numbers, segments())))


class _Scan(NamedTuple):
    """What rows are asked for: keys `[start, end)` (an empty `end` is no bound) at `ts`."""

    runs: Runs
    ts: int
    start: bytes
    end: bytes
    batch_rows: int
    bounds: Sequence[Bound]

    def segment_runs(
        self, numbers: Iterable[int], segments: SegmentScan
    ) -> Iterator[pa.RecordBatch]:
        """Batches of some of the runs, which are of segments; each in key order."""
        for number in numbers:
            own, pieces = self.runs.runs[number]
            for at, (segment, row_map) in enumerate(pieces):
                assert isinstance(segment, Segment)
                groups = list(self._groups(segment, row_map, own))
                if not groups:
                    continue
                segments.open(number, at)
                step = min(self.batch_rows, segments.rows_max)
                for group, low, high in groups:
                    for first in range(low, high, step):
                        yield from segments.batches(group, first, min(first + step, high))

    def _groups(
        self, segment: Segment, row_map: RowMap | None, own: bool
    ) -> Iterator[tuple[int, int, int]]:
        """Row groups that may have rows that are asked for, and their rows `[low, high)`."""
        meta, index = segment.meta, segment.index
        assert isinstance(meta, SegmentMeta)
        assert isinstance(index, SegmentIndex)
        if meta.max_key < self.start or (self.end and meta.min_key >= self.end):
            return
        if not own and (segment.link_ts or meta.min_ts) > self.ts:
            return
        places = _bounded_places(self.bounds, row_map)
        if places is None:
            return
        first = segment.position(self.start) if self.start > meta.min_key else 0
        end = segment.position(self.end) if self.end else segment.rows
        group_at = 0  # the number of the group's first row
        for at, group in enumerate(index.groups):
            low, high = max(first - group_at, 0), min(end - group_at, group.rows)
            group_at += group.rows
            if low >= high or not _may_have(group, places):
                continue
            if own or segment.link_ts or group.min_ts <= self.ts:
                yield at, low, high


def _bounded_places(bounds: Sequence[Bound], row_map: RowMap | None) -> list[Bound] | None:
    """The bounds by columns of a segment's file; None if no row of it can satisfy them.

    Of a column that the segment lacks nothing is known, but that a NULL satisfies no bound.
    """
    places: list[Bound] = []
    for position, low, high in bounds:
        source = position if row_map is None else row_map.source_of[position]
        if source >= 0:
            places.append((len(SYSTEM_COLUMNS) + source, low, high))
        elif row_map is not None and row_map.missing_row is None and (low or high):
            return None
    return places


def _may_have(group: GroupIndex, places: Sequence[Bound]) -> bool:
    """False if no row of the group can satisfy the bounds."""
    for place, low, high in places:
        if not (low or high):
            continue
        chunk = group.chunks[place]
        if chunk.nulls == group.rows:
            return False
        if low and chunk.high and chunk.high < low:
            return False
        if high and chunk.low and chunk.low > high:
            return False
    return True
