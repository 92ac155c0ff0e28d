"""Arrow record batches as ready DataRow messages of the wire protocol."""

from collections.abc import Sequence

import pyarrow as pa

class DataRowWriter:
    """Writes rows of `types`, a sequence of (type_code, typmod), in the wire `formats`."""

    @property
    def types(self) -> tuple[tuple[int, int], ...]: ...
    def __init__(self, types: Sequence[tuple[int, int]], formats: Sequence[int] = ()) -> None: ...
    def encode(self, batch: pa.RecordBatch) -> bytes: ...
