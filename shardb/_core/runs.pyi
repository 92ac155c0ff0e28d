from collections.abc import Sequence

from shardb._core.memtable import MemTable
from shardb._core.rowcodec import RowLayout
from shardb._core.rowmap import RowMap
from shardb._core.segment import Segment

Source = MemTable | Segment
Piece = tuple[Source, RowMap | None]
Run = tuple[bool, Sequence[Piece]]

class Runs:
    """A tablet's runs, newest first, as rows of one layout; see runs.pxd."""

    def __init__(self, layout: RowLayout, runs: Sequence[Run]) -> None: ...
    @property
    def layout(self) -> RowLayout: ...
    @property
    def runs(self) -> tuple[tuple[bool, tuple[Piece, ...]], ...]: ...
    def get(self, key: bytes, ts: int) -> tuple[bytes | None, int] | None: ...
    def newest(self, key: bytes) -> tuple[bytes | None, int] | None: ...
    def first_existing(
        self, keys: bytes, count: int, begin: int = 0, deleted: bool = False
    ) -> int: ...
    def is_empty(self) -> bool: ...
