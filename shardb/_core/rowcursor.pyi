from collections.abc import Iterator, Mapping

from shardb._core.runs import Runs

class RowCursor(Iterator[tuple[bytes, bytes, int]]):
    """Visible rows of an interval as (key, row, commit_ts), own writes (commit_ts 0) first."""

    def __init__(
        self,
        runs: Runs,
        low: bytes,
        high: bytes,
        ts: int,
        reverse: bool,
        overlay: Mapping[bytes, bytes | None] | None,
    ) -> None: ...
    def __next__(self) -> tuple[bytes, bytes, int]: ...
