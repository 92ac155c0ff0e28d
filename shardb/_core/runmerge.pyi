"""Runs of a tablet merged into record batches."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from shardb._core.memtable import MemTable
from shardb._core.rowcodec import RowLayout
from shardb._core.rowmap import RowMap
from shardb._core.segment import Segment

class RunMerge(Iterator[pa.RecordBatch]):
    """Runs of a tablet merged into batches in a segment file's form; see runmerge.pyx."""

    @property
    def schema(self) -> pa.Schema: ...
    def __init__(
        self,
        sources: Sequence[tuple[MemTable | Segment, RowMap | None]],
        layout: RowLayout,
        names: Sequence[str],
        arrow_types: Sequence[pa.DataType],
        *,
        gc_ts: int = 0,
        drop_tombstones: bool = False,
        start: bytes = b"",
        end: bytes = b"",
        group_rows: int = 65536,
        group_bytes: int = ...,
    ) -> None: ...
    def __next__(self) -> pa.RecordBatch: ...
    def cancel(self) -> None: ...
