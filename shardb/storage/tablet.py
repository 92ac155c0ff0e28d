"""One table's rows in one range. The seam behind which segments will stand beside the memtable.

Row programs reach the memtable itself (`tablet.memtable`) in C. The methods here belong to the
engine's thread, but for `scan`, whose batches may be drawn in another thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from shardb import limits
from shardb._core.memload import put_framed, put_many
from shardb._core.memtable import TS_MAX, MemTable
from shardb._core.rowcodec import RowLayout
from shardb._core.runs import Runs
from shardb._core.shadow import Shadows
from shardb.storage.scan import TabletScan, scan_runs

if TYPE_CHECKING:
    import pyarrow as pa
    from typing_extensions import Buffer


class Tablet:
    """Versions of rows by key, in one layout. A key's versions have ascending timestamps."""

    __slots__ = ("layout", "memtable", "range_id", "shadows", "table_id")

    def __init__(self, range_id: int, table_id: int, layout: RowLayout) -> None:
        self.range_id = range_id
        self.table_id = table_id
        self.layout = layout
        self.memtable = MemTable()
        self.shadows = Shadows(limits.SHADOWS_MAX_BYTES)

    def get(self, key: bytes, ts: int) -> tuple[bytes | None, int] | None:
        """(row, or None if deleted; its commit_ts) as visible at `ts`, or None if never written."""
        return self.memtable.get(key, ts)

    def newest(self, key: bytes) -> tuple[bytes | None, int] | None:
        """(row, or None if deleted; its commit_ts) of the newest version, or None."""
        return self.memtable.newest(key)

    def apply(self, writes: Iterable[tuple[bytes, bytes | None]], commit_ts: int) -> None:
        """Makes a committed transaction's writes visible from `commit_ts` on; None deletes."""
        put = self.memtable.put
        for key, row in writes:
            put(key, row, commit_ts)

    def apply_framed(self, keys: bytes, rows: bytes | None, count: int, commit_ts: int) -> None:
        """The same for `count` items of `u32 length, bytes`; `rows` None deletes the keys."""
        put_framed(self.memtable, keys, rows, count, commit_ts)

    def apply_many(
        self,
        keys: Buffer,
        key_offsets: Buffer,
        rows: Buffer | None,
        row_offsets: Buffer | None,
        commit_ts: int,
    ) -> None:
        """The same for concatenated keys and rows with their offsets (4- or 8-byte integers)."""
        put_many(self.memtable, keys, key_offsets, rows, row_offsets, commit_ts)

    def cursor(
        self, start: bytes = b"", end: bytes = b"", ts: int = TS_MAX, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes, int]]:
        """(key, row, commit_ts) of `[start, end)` at `ts`; an empty `end` is no bound."""
        return self.memtable.cursor(start, end, ts, reverse)

    def scan(
        self,
        columns: Sequence[int],
        arrow_types: Sequence[pa.DataType],
        ts: int,
        start: bytes = b"",
        end: bytes = b"",
        with_key: bool = False,
        overlay: Mapping[bytes, bytes | None] | None = None,
        batch_rows: int = limits.SCAN_BATCH_ROWS,
    ) -> TabletScan:
        """Arrow batches of the rows visible at `ts`, and their `.schema`; see `scan_runs`.

        `overlay` holds a transaction's own writes, copied now and seen instead of what is below.
        The caller has waited for every transaction prepared at or before `ts`.
        """
        return scan_runs(
            Runs(self.layout, [(False, [(self.memtable, None)])]),
            columns,
            arrow_types,
            ts,
            start,
            end,
            with_key,
            overlay,
            batch_rows,
            shadows=self.shadows,
        )
