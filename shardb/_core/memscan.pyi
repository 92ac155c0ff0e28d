from collections.abc import Iterator, Sequence

import pyarrow as pa

from shardb._core.memtable import MemTable
from shardb._core.runs import Runs

class Scan(Iterator[pa.RecordBatch]):
    @property
    def schema(self) -> pa.Schema: ...
    def __next__(self) -> pa.RecordBatch: ...

def scan_batches(
    runs: Runs,
    columns: Sequence[int],
    arrow_types: Sequence[pa.DataType],
    ts: int,
    start: bytes = b"",
    end: bytes = b"",
    *,
    with_key: bool = False,
    overlay: MemTable | None = None,
    batch_rows: int = 65536,
) -> Scan: ...
