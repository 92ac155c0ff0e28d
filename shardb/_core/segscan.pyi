"""Visible rows of segments as Arrow batches."""

from collections.abc import Sequence

import pyarrow as pa

from shardb._core.memtable import MemTable
from shardb._core.runs import Runs
from shardb._core.shadow import Shadows

class SegmentScan:
    """Rows of one segment after the other, at a snapshot; see segscan.pyx. One thread at a time."""

    def __init__(
        self,
        runs: Runs,
        columns: Sequence[int],
        arrow_types: Sequence[pa.DataType],
        ts: int,
        with_key: bool,
        overlay: MemTable | None,
        shadows: Shadows,
        schema: pa.Schema,
    ) -> None: ...
    @property
    def rows_max(self) -> int: ...
    def open(self, run: int, piece: int) -> None: ...
    def batches(self, group: int, low: int, high: int) -> list[pa.RecordBatch]: ...
