"""Which rows of segments are superseded by newer runs, learned once and kept; see shadow.pxd."""

from collections.abc import Sequence

from shardb._core.memtable import MemTable
from shardb._core.runs import Runs
from shardb._core.segment import Segment

class Shadows:
    """What is known of the segments of one tablet. Any thread."""

    def __init__(self, bytes_max: int) -> None: ...
    def keep(self, runs: Runs) -> None: ...
    def replace(
        self, runs: Runs, sources: Sequence[MemTable | Segment], results: Sequence[Segment]
    ) -> None: ...
    def clear(self) -> None: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def marks(self) -> int: ...
