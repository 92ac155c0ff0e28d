from typing_extensions import Buffer

from shardb._core.memtable import MemTable

def put_many(
    table: MemTable,
    keys: Buffer,
    key_offsets: Buffer,
    rows: Buffer | None,
    row_offsets: Buffer | None,
    commit_ts: int,
) -> None: ...
def put_framed(
    table: MemTable, keys: Buffer, rows: Buffer | None, count: int, commit_ts: int
) -> None: ...
