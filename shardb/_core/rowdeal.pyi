from collections.abc import Sequence

import pyarrow as pa

from shardb._core.keycodec import KeyCodec
from shardb._core.rowcodec import RowLayout

class Block:
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class RowDealer:
    def __init__(
        self,
        layout: RowLayout,
        codec: KeyCodec,
        positions: Sequence[int],
        starts: Sequence[bytes],
        key_limit: int,
        row_limit: int,
        batch_bytes: int,
        held_limit: int,
    ) -> None: ...
    @property
    def held(self) -> int: ...
    @property
    def full(self) -> bool: ...
    def take(self, all_of_it: bool = False) -> list[tuple[int, int, Block, Block]]: ...
    def deal_arrow(self, batch: pa.RecordBatch, start: int) -> int: ...
