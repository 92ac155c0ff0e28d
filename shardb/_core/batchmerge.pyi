"""Streams of record batches in key order, merged."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from shardb._core.rowcodec import RowLayout

class Merge(Iterator[pa.RecordBatch]):
    """Batches of all rows of some streams in key order; see batchmerge.pyx."""

    def __init__(
        self,
        layout: RowLayout,
        columns: Sequence[int],
        arrow_types: Sequence[pa.DataType],
        with_key: bool,
        streams: Sequence[Iterator[pa.RecordBatch]],
        batch_rows: int,
    ) -> None: ...
    @property
    def schema(self) -> pa.Schema: ...
    def __next__(self) -> pa.RecordBatch: ...
