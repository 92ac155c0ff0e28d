"""Rows of one layout as rows of another."""

from collections.abc import Sequence

from shardb._core.rowcodec import RowLayout

class RowMap:
    """How rows of `source` become rows of `target`; see rowmap.pyx."""

    @property
    def source(self) -> RowLayout: ...
    @property
    def target(self) -> RowLayout: ...
    @property
    def source_of(self) -> tuple[int, ...]: ...
    @property
    def missing_row(self) -> bytes | None: ...
    def __init__(
        self,
        source: RowLayout,
        target: RowLayout,
        source_of: Sequence[int],
        missing_row: bytes | None = None,
    ) -> None: ...
    def convert(self, row: bytes) -> bytes: ...
