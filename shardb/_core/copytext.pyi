from collections.abc import Iterable, Sequence

from shardb._core.rowdeal import RowDealer

class CopyReader:
    def __init__(
        self,
        dealer: RowDealer,
        table: str,
        names: Sequence[str],
        columns: Sequence[int],
        not_null: Iterable[int],
        defaults: bytes,
        csv: bool = False,
        delimiter: bytes = b"\t",
        quote: bytes = b'"',
        escape: bytes = b'"',
        null: bytes = b"\\N",
        header: int = 0,
        force_null: Iterable[int] = (),
        force_not_null: Iterable[int] = (),
        rowid: int = -1,
        next_rowid: int = 0,
    ) -> None: ...
    @property
    def next_rowid(self) -> int: ...
    @property
    def line(self) -> int: ...
    @property
    def ended(self) -> bool: ...
    @property
    def pending(self) -> int: ...
    def feed(self, parts: Sequence[bytes], final: bool = False) -> bool: ...
